"""A file is known by what is in it. What is not known is refused with what was found, or ignored beside what is."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from chatledger.transfer.detection import (
    FORMATS,
    LOOKED_AT,
    Found,
    Ignored,
    Recognised,
    Refused,
    describe,
    detect,
    format_named,
    recognise,
)
from chatledger.transfer.files import open_sources
from chatledger.transfer.records import Malformed, Record, Rejected

SAMPLES = Path(__file__).parent / "samples"

CHATGPT = {"id": "c", "mapping": {"m": {"message": {"author": {"role": "user"}, "content": {"parts": ["hi"]}}}}}
CLAUDE = {"uuid": "c", "chat_messages": [{"uuid": "m", "sender": "human", "text": "hi"}]}
GROK = {"conversations": [{"conversation": {"title": "x"}, "responses": [{"sender": "human", "message": "hi"}]}]}
DESIGN = {
    "uuid": "d",
    "project": {"uuid": "p"},
    "messages": [{"uuid": "m", "role": "user", "content": {"role": "user", "content": "hi", "authorName": "n"}}],
}
LINE = {"type": "user", "uuid": "u", "sessionId": "s", "message": {"role": "user", "content": "hi"}}


def records(*values: Any) -> list[Record]:
    return [Record(f"element {n}", value) for n, value in enumerate(values, 1)]


def look(path: Path, forced: str | None = None) -> list[tuple[str, str, str | None]]:
    """What becomes of each file: its name from the folder on, what was made of it, and the format or the reason."""

    def told(found: Found) -> tuple[str, str, str | None]:
        name = found.name.removeprefix(f"{path.parent}/")
        if isinstance(found, Recognised):
            list(found.outcomes)
            return name, "read", found.format.NAME
        return name, "ignored" if isinstance(found, Ignored) else "refused", found.reason

    with open_sources([path]) as sources:
        return [told(found) for found in recognise(sources, format_named(forced) if forced else None)]


def put(path: Path, **files: Any) -> Path:
    """A folder, or an archive where the name says so, of these files; values that are no text become JSON."""
    contents = {
        name.replace("__", "."): text if isinstance(text, str) else json.dumps(text) for name, text in files.items()
    }
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in contents.items():
                archive.writestr(name, text)
        return path
    path.mkdir()
    for name, text in contents.items():
        (path / name).write_text(text)
    return path


def one(tmp_path: Path, content: Any, name: str = "file.json") -> tuple[str, str | None]:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    ((_, what, why),) = look(path)
    return what, why


# ---- formats -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sample", "format"),
    [
        ("anthropic_messages.json", "anthropic-messages"),
        ("chatgpt_edge_cases.json", "chatgpt"),
        ("gemini_takeout_MyActivity.json", "gemini-takeout"),
        ("openai_finetune.jsonl", "openai-chat"),
        ("openai_responses_items.json", "openai-responses"),
        ("sharegpt.jsonl", "sharegpt"),
    ],
)
def test_samples_are_recognised_whatever_their_name_is(tmp_path: Path, sample: str, format: str) -> None:
    assert one(tmp_path, (SAMPLES / sample).read_text(), "x.bin") == ("read", format)


def test_two_programs_that_use_one_name_are_told_apart(tmp_path: Path) -> None:
    assert one(tmp_path, [CHATGPT], "conversations.json") == ("read", "chatgpt")
    assert one(tmp_path, [CLAUDE], "conversations.json") == ("read", "claude-ai")
    path = put(tmp_path / "conversations-000.zip", conversations__json=[CLAUDE])
    assert look(path) == [("conversations-000.zip: conversations.json", "read", "claude-ai")]


def test_a_transcript_is_known_by_any_of_its_first_lines() -> None:
    odd = [{"type": "summary-of-another-kind"}, 7, Malformed("is not valid JSON")]
    found = detect(records(*odd, *[{"n": 1}] * 30, LINE))
    assert found is not None
    assert found.NAME == "claude-code"


def test_lines_before_it_do_not_hide_a_transcript(tmp_path: Path) -> None:
    lines = [{"n": n} for n in range(LOOKED_AT - 1)]
    assert one(tmp_path, "\n".join(map(json.dumps, [*lines, LINE]))) == ("read", "claude-code")
    assert one(tmp_path, "\n".join(map(json.dumps, [*lines, {}, LINE])))[0] == "refused"


def test_what_plain_messages_are_is_decided_by_those_that_tell() -> None:
    plain = {"role": "user", "content": "hi"}
    use = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]}
    item = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    assert [detect(records(plain, *more)) for more in ([], [use], [item])] == [
        format_named("openai-chat"),
        format_named("anthropic-messages"),
        format_named("openai-responses"),
    ]


def test_every_record_reaches_the_reader_once(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps([CHATGPT | {"id": str(n)} for n in range(LOOKED_AT * 2)]))
    with open_sources([path]) as sources:
        (found,) = recognise(sources)
        assert isinstance(found, Recognised)
        assert [outcome.external_id for outcome in found.outcomes] == [str(n) for n in range(LOOKED_AT * 2)]


def test_names_and_titles_are_unique_and_no_format_takes_what_is_none() -> None:
    assert len({each.NAME for each in FORMATS}) == len({each.TITLE for each in FORMATS}) == len(FORMATS)
    assert format_named("nobody's") is None
    nobodys: list[Any] = [None, 1, "x", [], {}, [[]], Malformed("x"), {"id": "u", "email": "e"}]
    for value in nobodys:
        assert detect(records(value)) is None
    assert detect([]) is None


def test_a_forced_format_reads_a_file_that_was_named_whatever_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"uuid": "c"}]))
    assert look(path)[0][1] == "refused"
    assert look(path, "claude-ai") == [("x.json", "read", "claude-ai")]
    folder = put(tmp_path / "all", a__json=[CLAUDE], b__json=[{"uuid": "u"}])
    assert [what for _, what, _ in look(folder, "claude-ai")] == ["read", "ignored"]


# ---- what is not a format ------------------------------------------------------------------------------------------


def test_what_is_known_but_not_supported_is_refused_by_name(tmp_path: Path) -> None:
    assert one(tmp_path, GROK) == ("refused", "this looks like a Grok export, which is not supported")
    assert one(tmp_path, DESIGN) == ("refused", "this looks like a Claude design session, which is not supported")
    beside = put(tmp_path / "all", a__json=[CHATGPT], grok__json=GROK)
    assert [what for _, what, _ in look(beside)] == ["read", "refused"]
    assert [what for _, what, _ in look(put(tmp_path / "g.zip", grok__json=GROK))] == ["refused"]


def test_a_refusal_says_what_was_expected_and_what_was_found(tmp_path: Path) -> None:
    what, why = one(tmp_path, [{"a": 1, "b": 2}])
    assert what == "refused"
    assert why is not None
    assert why.startswith(
        "no known format: found an array of objects with the keys a, b; expected a chatledger export, "
    )
    assert all(each.TITLE in why for each in FORMATS)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("<!DOCTYPE html><html>", "found an HTML page"),
        (b"\x89PNG\r\n\x1a\n", "found a PNG image"),
        ("Dear diary", "found plain text"),
        ("{}", "found an object without keys"),
        ("[]", "found an empty array"),
        ('{"a":1}\n{"b":1}', "found lines of objects with the keys a"),
        ("[[1]]", "found an array of arrays"),
        ("[null]", "found an array of null"),
        ('{"a": 1', "found text that is almost JSON (document is cut off"),
        (json.dumps({f"k{n}": 1 for n in range(9)}), "found an object with the keys k0, k1, k2, k3, k4, k5, k6, k7, …"),
        (b"\x1f\x8b\x08", "a gzip archive, which is not read; unpack it first"),
    ],
)
def test_anything_else_is_described(tmp_path: Path, content: str | bytes, found: str) -> None:
    what, why = one(tmp_path, content)
    assert what == "refused"
    assert why is not None
    assert found in why


def test_a_description_is_fit_for_a_terminal() -> None:
    assert describe(records({"\x1b[31m" + "k" * 99: 1})) == f"an array of objects with the keys \ufffd[31m{'k' * 35}"


def test_other_files_of_an_export_are_ignored_and_say_why(tmp_path: Path) -> None:
    files = {
        "conversations__json": [CHATGPT],
        "user__json": {"id": "u", "email": "e"},
        "message_feedback__json": [],
        "shared_conversations__json": [{"id": "s", "conversation_id": "c", "title": "t"}],
        "projects__json": [{"uuid": "p", "name": "n", "docs": []}],
        "memories__json": [{"conversations_memory": "m", "account_uuid": "a"}],
        "chat__html": "<html>",
    }
    for path in (put(tmp_path / "export.zip", **files), put(tmp_path / "folder", **files)):
        found = {name.rpartition(" ")[2].rpartition("/")[2]: (what, why) for name, what, why in look(path)}
        assert found["conversations.json"] == ("read", "chatgpt")
        assert found["user.json"] == ("ignored", "no conversations: an object with the keys id, email")
        assert sorted(what for what, _ in found.values()) == ["ignored"] * 5 + ["read"]


def test_an_archive_in_which_nothing_is_known_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "x.zip", user__json={"id": "u"}, a__png="\x89", b__txt="text", c__html="<html>")
    ignored, refused = look(path)
    assert ignored[1] == "ignored"
    assert refused[:2] == ("x.zip", "refused")
    assert refused[2] is not None
    assert refused[2].startswith(
        "no known format: found a file of unknown kind; plain text; an HTML page and 1 other kind"
    )
    assert look(put(tmp_path / "none", a__png="text"))[0][:2] == ("none", "refused")


def test_what_was_named_is_judged_by_itself(tmp_path: Path) -> None:
    paths = [
        put(tmp_path / "a", conversations__json=[CHATGPT]),
        put(tmp_path / "b", user__json={"id": "u"}),
        put(tmp_path / "c.zip", user__json={"id": "u"}),
        put(tmp_path / "d", conversations__json=[CLAUDE]),
    ]
    with open_sources(paths) as sources:
        found = [(Path(each.name).name, type(each)) for each in recognise(sources)]
    assert found == [
        ("conversations.json", Recognised),
        ("user.json", Ignored),
        ("b", Refused),
        ("c.zip: user.json", Ignored),
        ("c.zip", Refused),
        ("conversations.json", Recognised),
    ]


def test_gemini_activity_as_a_page_is_refused_naming_the_choice(tmp_path: Path) -> None:
    page = "<html><head><title>My Activity History</title>"
    what, why = one(tmp_path, page, "MyActivity.html")
    assert what == "refused"
    assert why is not None
    assert "choose JSON as the format in Takeout" in why
    assert [each[1:] for each in look(put(tmp_path / "takeout.zip", MyActivity__html=page))] == [
        ("ignored", why),
        ("refused", why),
    ]


def test_a_source_that_fails_while_it_is_looked_at_is_refused_alone(tmp_path: Path) -> None:
    archive = put(tmp_path / "a.zip", a__json=json.dumps([{"n": "x" * 9_000}, CHATGPT]))
    archive.write_bytes(archive.read_bytes().replace(b"x" * 9_000, b"x" * 8_999 + b"y"))
    found = look(archive)
    assert found == [("a.zip", "refused", "a.json in it is damaged; download or copy it again")]


def test_a_record_that_should_be_a_conversation_fails_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(f'[{json.dumps(CHATGPT)}, {{"a": ]}}, {{"id": "d", "title": "t"}}, {json.dumps(CHATGPT)}]')
    with open_sources([path]) as sources:
        (found,) = recognise(sources)
        assert isinstance(found, Recognised)
        outcomes = list(found.outcomes)
    rejected = [each for each in outcomes if isinstance(each, Rejected)]
    assert [(each.place, each.failed, each.external_id, each.title) for each in rejected] == [
        ("element 2", True, None, None),
        ("element 3", True, "d", "t"),
    ]
    assert len(outcomes) == 4
    assert isinstance(look(path)[0], tuple)
    assert not isinstance(found, Refused)
