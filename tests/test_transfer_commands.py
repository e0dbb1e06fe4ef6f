"""`import`, `export`, `user export`, `user erase`: what they print, what they leave, and how they end."""

from __future__ import annotations

import hashlib
import json
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Run

SAMPLES = Path(__file__).parent / "samples"

SHAREGPT = [
    {"id": "one", "conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
    {"id": "two", "conversations": [{"from": "human", "value": "Grüße, 你好"}]},
]


@pytest.fixture
def sharegpt(tmp_path: Path) -> Path:
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in SHAREGPT))
    return path


def test_an_import_tells_what_became_of_each_conversation_and_again_changes_nothing(run: Run, sharegpt: Path) -> None:
    code, out, err = run("import", sharegpt)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "created    #1 one: 2 messages",
        "created    #2 two: 1 messages",
        "2 created; 3 messages added",
    ]
    code, out, _ = run("import", sharegpt)
    assert (code, out.splitlines()[-1]) == (0, "2 unchanged; 0 messages added")


def test_a_report_for_programs_is_json(run: Run, sharegpt: Path) -> None:
    code, out, _ = run("import", sharegpt, "--json", "--user", "alice")
    report = json.loads(out)
    assert code == 0
    assert report["totals"] == {
        "created": 2, "updated": 0, "unchanged": 0, "skipped": 0, "failed": 0, "messages": 3, "forks": 0,
    }  # fmt: skip
    assert report["files"] == [{"name": str(sharegpt), "format": "sharegpt", "status": "read"}]
    assert [each["status"] for each in report["conversations"]] == ["created", "created"]
    assert run("export", "--user", "bob")[1] == ""


def test_a_dry_run_changes_nothing(run: Run, sharegpt: Path) -> None:
    code, out, _ = run("import", sharegpt, "--dry-run")
    assert (code, out.splitlines()[-1]) == (0, "2 created; 3 messages would be added")
    code, out, err = run("export")
    assert (code, out) == (0, "")
    assert "there are no conversations of the user 'local'" in err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "it is empty"),
        (b"\x89PNG\r\n\x1a\n", "found a PNG image"),
        (b"hello\n", "found plain text"),
        (b'{"a": 1}', "found an object with the keys a"),
        (json.dumps(SHAREGPT).encode()[:-40], "it is truncated"),
        (b"PK\x03\x04 and nothing else", "it is damaged or incomplete"),
        (b'{"conversations": [{"conversation": {}, "responses": []}]}', "looks like a Grok export"),
    ],
    ids=["empty", "picture", "text", "other JSON", "truncated", "broken archive", "Grok"],
)
def test_what_is_no_export_is_refused_with_a_reason_and_changes_nothing(
    content: bytes, told: str, run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "conversations.json"
    path.write_bytes(content)
    code, out, _ = run("import", path)
    assert code == 1
    first, last = out.splitlines()
    assert first.startswith(f"refused    {path}: ")
    assert told in first
    assert last == "no conversation found; 0 messages added"
    assert run("export")[1] == ""


def test_a_path_that_is_not_there_keeps_the_others_out_too(run: Run, sharegpt: Path) -> None:
    code, out, _ = run("import", sharegpt, "missing.zip")
    assert (code, out.splitlines()[0]) == (1, "refused    missing.zip: there is no such file or folder")
    assert run("export")[1] == ""


def test_a_hostile_archive_is_refused_whole(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "export.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("conversations.json", json.dumps(SHAREGPT))
        archive.writestr("../outside.json", "[]")
    code, out, _ = run("import", path)
    assert code == 1
    assert "leads out of the archive" in out
    assert run("export")[1] == ""


def test_an_archive_may_have_any_name_and_hold_other_things(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "download"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("conversations-000.json", (SAMPLES / "chatgpt_edge_cases.json").read_text())
        archive.writestr("user.json", '{"id": "u", "email": "x@example.invalid"}')
        archive.writestr("picture.png", b"\x89PNG\r\n\x1a\n")
    code, out, _ = run("import", path)
    assert code == 0
    assert "user.json: no conversations" in out
    assert out.splitlines()[-1] == "2 created; 6 messages added, 1 forks"


def test_a_format_may_be_given_and_an_unknown_one_is_refused(run: Run, sharegpt: Path) -> None:
    assert run("import", sharegpt, "--format", "sharegpt")[0] == 0
    code, _, err = run("import", sharegpt, "--format", "floppy")
    assert code == 2
    assert "--format must be one of" in err


def test_one_bad_conversation_makes_the_exit_code_tell_and_the_rest_is_stored(run: Run, tmp_path: Path) -> None:
    bad = {"id": "bad", "conversations": [{"from": "human", "value": "x" * 1_000_001}]}
    path = tmp_path / "talks.json"
    path.write_text(json.dumps([SHAREGPT[0], bad, SHAREGPT[1]]))
    code, out, _ = run("import", path)
    assert code == 1
    assert "failed     bad: element 2 message 1 has 1,000,001 characters; the limit is 1,000,000" in out
    assert out.splitlines()[-1] == "2 created, 1 failed; 3 messages added"


def test_an_export_goes_out_and_comes_in_again_as_it_was(run: Run, sharegpt: Path, tmp_path: Path) -> None:
    run("import", sharegpt)
    code, out, err = run("export")
    assert code == 0
    assert err.startswith("2 conversations, 3 messages, SHA-256 ")
    assert hashlib.sha256(out.encode()).hexdigest() in err
    file = tmp_path / "mine.jsonl"
    assert run("export", "-o", file)[1] == ""
    assert file.read_text() == out
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert run("import", file, "--user", "bob")[0] == 0
    assert run("export", "--user", "bob")[1] == out


def test_one_conversation_may_be_exported_as_markdown(run: Run, sharegpt: Path) -> None:
    run("import", sharegpt)
    code, out, _ = run("export", "--conversation", "2", "--format", "markdown")
    assert code == 0
    assert "Grüße, 你好" in out
    assert "2+2?" not in out
    code, out, err = run("export", "--conversation", "3")
    assert (code, out) == (1, "")
    assert "there is no such conversation" in err
    assert run("export", "--conversation", "012")[0] == 2


def test_a_failed_export_leaves_the_file_that_was_there(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text("before")
    assert run("export", "--conversation", "3", "-o", file)[0] == 1
    assert file.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_user_may_be_exported_whole_with_counts_and_digest(run: Run, sharegpt: Path) -> None:
    run("import", sharegpt, "--user", "alice")
    code, out, _ = run("user", "export", "alice")
    *lines, last = out.splitlines(keepends=True)
    assert code == 0
    assert json.loads(last)["end"] == {
        "conversations": 2,
        "messages": 3,
        "sha256": hashlib.sha256("".join(lines).encode()).hexdigest(),
    }
    code, out, err = run("user", "export", "nobody")
    assert (code, out) == (1, "")
    assert "there is no user 'nobody'" in err


@pytest.mark.parametrize(("typed", "gone"), [("alice\n", True), ("yes\n", False), ("", False)])
def test_erasing_a_user_asks_for_the_id_first(typed: str, gone: bool, run: Run, sharegpt: Path) -> None:
    run("import", sharegpt, "--user", "alice")
    code, out, err = run("user", "erase", "alice", typed=typed)
    assert "'alice' has 2 conversations with 3 messages" in err
    assert code == (0 if gone else 1)
    assert out == ("erased 'alice': 2 conversations, 3 messages\n" if gone else "")
    assert (run("export", "--user", "alice")[1] == "") == gone


def test_erasing_with_yes_asks_nothing_and_spares_others(run: Run, sharegpt: Path) -> None:
    for user in ("alice", "bob"):
        run("import", sharegpt, "--user", user)
    code, out, err = run("user", "erase", "alice", "--yes")
    assert (code, out, err) == (0, "erased 'alice': 2 conversations, 3 messages\n", "")
    code, out, err = run("user", "erase", "alice", "--yes")
    assert (code, out) == (1, "")
    assert "there is no user 'alice'" in err
    assert run("export", "--user", "bob")[2].startswith("2 conversations, 3 messages")


def test_every_sample_comes_in_once(run: Run) -> None:
    code, out, _ = run("import", SAMPLES, "--json")
    first: dict[str, Any] = json.loads(out)
    assert code == 0
    assert {each["status"] for each in first["conversations"]} <= {"created", "skipped"}
    code, out, _ = run("import", SAMPLES, "--json")
    again = json.loads(out)
    assert (code, again["totals"]["messages"]) == (0, 0)
    assert again["totals"]["unchanged"] == first["totals"]["created"]


def test_whoever_watches_sees_how_far_it_is(sharegpt: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    _, out, err = run("import", sharegpt)
    assert "[####################] 100%  2 conversations, 3 messages" in err
    assert err.endswith("\r\x1b[K")
    assert "\x1b" not in out
