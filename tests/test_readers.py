"""What holds for every reader: it takes its own files and no others, and no file, however wrong, makes it fail."""

from __future__ import annotations

import copy
import json
import pkgutil
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatledger.transfer import formats
from chatledger.transfer.records import Malformed, Origin, Outcome, ReadConversation, Record, Rejected
from tests.foreign_files import BROKEN, MINE, conversation, outcomes, reader, records_of, sample, spoken

ALL = sorted(module.name for module in pkgutil.iter_modules(formats.__path__))
AT = "2026-01-02T03:04:05Z"

HI = {"role": "user", "content": "hi"}
USE = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]}
ITEM = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}

# Per format: values that are records of a file, each of which its reader alone recognises.
VALUES: dict[str, list[Any]] = {
    "ai_studio": [
        {
            "id": "p",
            "chunkedPrompt": {
                "chunks": [
                    {"role": "user", "text": "hi", "driveImage": {"id": "d"}},
                    {"role": "model", "text": "hm", "isThought": True},
                    {"role": "model", "text": "ho", "parts": [{"text": "ho"}]},
                ]
            },
            "systemInstruction": {"text": "be kind"},
            "runSettings": {"model": "m"},
        }
    ],
    "anthropic_messages": [
        {"system": "be kind", "messages": [HI]},
        {"model": "claude-x", "messages": [HI]},
        {"messages": [HI, USE]},
        [HI, USE],
        USE,
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": ["x"], "is_error": True}]},
        {
            "id": "m",
            "type": "message",
            "role": "assistant",
            "content": [{"type": "text", "text": "x"}],
            "stop_reason": None,
        },
        {
            "request": {"messages": [HI]},
            "response": {"type": "message", "role": "assistant", "content": [], "stop_reason": None},
        },
    ],
    "claude_code": [
        {"type": "user", "uuid": "u", "parentUuid": None, "sessionId": "s", "timestamp": AT, "message": HI},
        {
            "type": "assistant",
            "uuid": "a",
            "parentUuid": "u",
            "sessionId": "s",
            "message": {**USE, "id": "m", "model": "x"},
        },
        {
            "type": "user",
            "uuid": "r",
            "parentUuid": "a",
            "sessionId": "s",
            "toolUseResult": {"stdout": "x"},
            "message": {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "x"}]},
        },
        {"type": "user", "uuid": "v", "parentUuid": "u", "isSidechain": True, "agentId": "b", "message": HI},
        {"type": "summary", "summary": "x", "leafUuid": "u"},
        {"type": "system", "uuid": "x", "parentUuid": "u", "sessionId": "s", "subtype": "compact_boundary"},
        {"type": "custom-title", "customTitle": "x", "sessionId": "s"},
        {"type": "file-history-snapshot", "messageId": "u", "snapshot": {}},
        {"type": "queue-operation", "operation": "enqueue", "sessionId": "s", "content": "x"},
    ],
    "codex": [
        {"timestamp": AT, "type": "session_meta", "payload": {"id": "s", "cwd": "/w"}},
        {"timestamp": AT, "type": "turn_context", "payload": {"model": "m"}},
        {"timestamp": AT, "type": "response_item", "payload": ITEM},
        {"timestamp": AT, "type": "response_item", "payload": {"type": "function_call_output", "output": "x"}},
        {"timestamp": AT, "type": "response_item", "payload": {"type": "message", **HI}},
        {"timestamp": AT, "type": "response_item", "payload": {"type": "reasoning", "summary": [{"text": "x"}]}},
        {"timestamp": AT, "type": "event_msg", "payload": {"type": "user_message", "message": "x", "images": []}},
        {"timestamp": AT, "type": "of the future", "payload": {}},
        {"id": "s", "timestamp": AT, "instructions": None},
        {"record_type": "state"},
    ],
    "gemini_cli": [
        {
            "sessionId": "s",
            "projectHash": "p",
            "messages": [
                {"id": "1", "timestamp": AT, "type": "user", "content": ["hi"]},
                {
                    "id": "2",
                    "timestamp": AT,
                    "type": "gemini",
                    "content": "ho",
                    "thoughts": [{"subject": "x"}],
                    "toolCalls": [
                        {"id": "c", "name": "f", "args": {}, "result": [{"functionResponse": {"response": {}}}]}
                    ],
                },
            ],
        },
        {"sessionId": "s", "messages": [{"id": "1", "timestamp": AT, "type": "user", "content": "hi"}]},
        {"sessionId": "s", "projectHash": "p", "startTime": AT},
        {"id": "1", "timestamp": AT, "type": "user", "content": "hi"},
        {"id": "2", "timestamp": AT, "type": "gemini", "content": [{"text": "ho"}], "toolCalls": []},
        {"id": "3", "timestamp": AT, "type": "info", "content": "x"},
        {"$rewindTo": "2"},
        {"$set": {"summary": "x"}},
    ],
    "gemini_takeout": [
        {
            "header": "Gemini Apps",
            "title": "Prompted x",
            "time": AT,
            "products": ["Gemini Apps"],
            "safeHtmlItem": [{"html": "<p>y</p>"}],
            "subtitles": [{"name": "x"}],
        },
        {"header": "Aplicaciones de Gemini", "title": "x", "time": AT},
        {"header": "x", "title": "y", "time": AT, "safeHtmlItem": [{"html": "z"}]},
    ],
    "openai_chat": [
        HI,
        [HI],
        {"messages": [HI]},
        {"id": "1", "timestamp": AT, "instructions": "x", "messages": [HI]},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "x"}]},
        {"system": "x", "messages": [{"role": "system", "content": "y"}]},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}, "x"]},
    ],
    "openai_responses": [
        ITEM,
        [HI, ITEM],
        {"type": "message", "role": "user", "content": "hi"},
        {"type": "message", "role": "assistant", "id": "m", "content": [{"type": "output_text", "text": "x"}]},
        {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "x"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "x"}]},
        {"type": "web_search_call", "id": "w", "action": {"type": "search"}},
        {"type": "mcp_call", "id": "w", "name": "f", "arguments": "{}", "output": "x"},
        {"role": "user", "content": [{"type": "input_text", "text": "x"}]},
        {"object": "response", "id": "r", "output": []},
        {"model": "m", "instructions": "x", "input": [HI]},
        {"input": "x", "output": [ITEM]},
        {"items": [ITEM]},
        {"object": "list", "data": [ITEM, {"type": "item_reference", "id": "x"}]},
    ],
    "sharegpt": [
        {"id": "1", "conversations": [{"from": "human", "value": "x"}, {"from": "function_call", "value": "{}"}]},
        {"conversations": [{"role": "user", "content": "x"}]},
        {"messages": [{"from": "human", "value": "x"}]},
        {"system": "x", "conversations": [{"from": "gpt", "value": None}, {"from": "observation", "value": "x"}]},
    ],
}

# Which reader the files written for this project are for, whichever others there will be.
SAMPLES = {
    "anthropic_messages.json": "anthropic_messages",
    "chatgpt_edge_cases.json": "chatgpt",
    "gemini_takeout_MyActivity.json": "gemini_takeout",
    "openai_finetune.jsonl": "openai_chat",
    "openai_responses_items.json": "openai_responses",
    "sharegpt.jsonl": "sharegpt",
}

# Nobody's: formats that are not read, and data that looks like one.
NOBODYS: list[Any] = [
    None,
    True,
    5,
    "user",
    [],
    {},
    [[]],
    {"messages": []},
    {"messages": [{"uuid": "m", "role": "user", "content": {"role": "user", "content": "hi"}}], "uuid": "d"},
    {"conversations": [{"conversation": {"title": "x"}, "responses": [{"sender": "human", "message": "x"}]}]},
    {"conversations": []},
    {"instruction": "x", "input": "y", "output": "z"},
    {"prompt": "x", "completion": "y"},
    {"title": "Searched for x", "time": AT, "header": "Search", "products": ["Search"]},
    {"sessionId": "s", "messageId": 0, "type": "user", "message": "x", "timestamp": AT},
    {"role": "user", "parts": [{"text": "x"}]},
    {"type": "human", "data": {"content": "x"}},
    {"chatledger": 1, "end": {"conversations": 1}},
    {"record_type": "invoice"},
    {"seq": 1, "role": "user", "content": "x"},
    {"object": "list", "data": [{"object": "chat.completion"}]},
]


def recognised_by(value: Any) -> set[str]:
    found = {name: reader(name).recognises(value) for name in ALL}
    assert all(isinstance(each, bool) for each in found.values())
    return {name for name, each in found.items() if each}


@pytest.mark.parametrize("name", MINE)
def test_a_value_is_recognised_by_its_reader_alone(name: str) -> None:
    for value in VALUES[name]:
        assert recognised_by(value) == {name}, value


@pytest.mark.parametrize("file", SAMPLES)
def test_every_record_of_a_sample_is_recognised_by_one_reader_alone(file: str) -> None:
    for value in sample(file):
        assert recognised_by(value) == {SAMPLES[file]} & set(ALL)


def test_what_is_nobodys_is_recognised_by_nobody() -> None:
    for value in NOBODYS:
        assert recognised_by(value) - {"native"} == set(), value


def test_every_reader_has_a_name_of_its_own() -> None:
    names = [reader(name).NAME for name in ALL]
    assert len(set(names)) == len(names)
    assert all(name == name.lower() and " " not in name and "_" not in name for name in names)
    assert {name: reader(name).NAME for name in MINE} == {name: name.replace("_", "-") for name in MINE}


def test_bare_messages_read_the_same_whichever_of_the_three_they_are_taken_for() -> None:
    """A list that begins with plain messages may be anybody's: a wrong guess must cost nothing."""
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    lists: list[list[Any]] = [
        [HI, USE, {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "x"}]}],
        [HI, called, {"role": "tool", "tool_call_id": "c", "content": "x"}],
        [HI, {"role": "user", "content": [{"type": "input_text", "text": "x"}, {"type": "input_image"}]}],
    ]
    for messages in lists:
        for arranged in (messages, [messages]):
            names = ("openai_chat", "anthropic_messages", "openai_responses")
            found = [conversation(name, *arranged).messages for name in names]
            assert found[0] == found[1] == found[2]


def test_records_are_consumed_once_and_an_empty_file_has_no_conversation() -> None:
    for name in MINE:
        assert outcomes(name) == []
        values = iter(records_of(VALUES[name]))
        assert list(reader(name).read(values, Origin("x")))
        assert next(values, None) is None


def test_reading_twice_gives_the_same() -> None:
    for name in MINE:
        kept = copy.deepcopy(VALUES[name])
        first, second = (outcomes(name, *VALUES[name]) for _ in range(2))
        assert [comparable(each) for each in first] == [comparable(each) for each in second]
        assert kept == VALUES[name]  # and changes nothing


def comparable(outcome: Outcome) -> Any:
    if isinstance(outcome, Rejected):
        return outcome
    return (outcome.external_id, outcome.title, outcome.messages, list(outcome.branches), outcome.left_out)


# ---- files that are wrong ------------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    [
        "",
        "x",
        "user",
        "assistant",
        "tool_use",
        "tool_result",
        "text",
        "call_1",
        "t",
        "u",
        AT,
        "\x00",
        "\ud800",
        "system",
    ]
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-5, 2**60), st.floats(), WORDS)
ANYTHING = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside: list[tuple[Any, Any]] = []
    if isinstance(value, dict | list):
        inside = list(value.items() if isinstance(value, dict) else enumerate(value))
    return [path, *(found for key, each in inside for found in places(each, (*path, key)))]


@st.composite
def wrong_files(draw: st.DrawFn, name: str) -> list[Any]:
    """Valid records in any order and number, with up to five values in them replaced, removed or doubled."""
    values = draw(st.lists(st.sampled_from([*VALUES[name], BROKEN]), min_size=1, max_size=6))
    values = [each if isinstance(each, Malformed) else copy.deepcopy(each) for each in values]
    for _ in range(draw(st.integers(0, 5))):
        inside = places(values)[1:]
        if not inside:
            break
        path = draw(st.sampled_from(inside))
        holder: Any = values
        for step in path[:-1]:
            holder = holder[step]
        change = draw(st.sampled_from(["replace", "remove", "wrap", "other"]))
        if change == "replace":
            holder[path[-1]] = draw(ANYTHING)
        elif change == "remove":
            del holder[path[-1]]
        elif change == "wrap":
            holder[path[-1]] = [holder[path[-1]]]
        else:
            other = draw(st.sampled_from([each for format_ in MINE for each in VALUES[format_]]))
            holder[path[-1]] = copy.deepcopy(other)
    return values


def check(outcome: Outcome, places_of_records: set[str]) -> None:
    assert outcome.place in places_of_records
    assert outcome.external_id is None or (isinstance(outcome.external_id, str) and outcome.external_id)
    assert outcome.title is None or (isinstance(outcome.title, str) and outcome.title.strip())
    if isinstance(outcome, Rejected):
        assert outcome.reason
        return
    assert isinstance(outcome, ReadConversation)
    assert outcome.messages
    assert sum(reason.count(":") > 0 for reason in outcome.left_out) <= 25
    for path in (outcome.messages, *outcome.branches):
        ids = [message.external_id for message in path if message.external_id is not None]
        assert len(set(ids)) == len(ids)
        for message in path:
            assert message.role in ("user", "assistant", "system", "tool")
            assert isinstance(message.content, str)
            assert message.content.strip() or message.tool_calls or message.parts
            assert message.created_at is None or message.created_at.tzinfo is not None
            assert isinstance(message.metadata, dict | None)
            assert isinstance(message.parts, list | None)
            assert "encrypted_content" not in [
                key for part in message.parts or () if isinstance(part, dict) for key in part
            ]
            for text in (message.external_id, message.tool_call_id, message.name):
                assert text is None or (isinstance(text, str) and text)
            for call in message.tool_calls or ():
                assert isinstance(call["id"], str)
                assert call["id"]
                assert message.role == "assistant"
            json.dumps([message.tool_calls, message.parts, message.metadata])


@pytest.mark.parametrize("name", MINE)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_file_makes_a_reader_fail(name: str, data: st.DataObject) -> None:
    values = data.draw(wrong_files(name))
    for value in values:
        if not isinstance(value, Malformed):
            recognised_by(value)
    records = records_of(values)
    for outcome in reader(name).read(iter(records), Origin(data.draw(WORDS))):
        check(outcome, {record.place for record in records})


@pytest.mark.parametrize("name", MINE)
def test_nesting_makes_no_reader_fail(name: str) -> None:
    """As deep as the parser of JSON goes."""
    for deep in ('{"content":' * 300 + "1" + "}" * 300, "[" * 900 + "]" * 900):
        inner = json.loads(deep)
        for value in VALUES[name]:
            for path in places(value):
                changed = copy.deepcopy([value])
                holder: Any = changed
                for key in (0, *path)[:-1]:
                    holder = holder[key]
                holder[(0, *path)[-1]] = inner
                list(reader(name).read(iter([Record("1", changed[0])]), Origin("x")))
                reader(name).recognises(changed[0])


def test_plain_messages_are_openai_chat_messages_in_every_arrangement() -> None:
    for values in ([HI, HI], [[HI, HI]], [{"messages": [HI, HI]}]):
        assert {name for value in values for name in recognised_by(value)} == {"openai_chat"}
        assert spoken(conversation("openai_chat", *values).messages) == [("user", "hi")] * 2
