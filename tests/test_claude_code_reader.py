"""Claude Code's lines become the conversation that the user had, whatever tree the program wrote them as."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from chatledger.transfer.records import ReadConversation, ReadMessage, Rejected
from tests.foreign_files import BROKEN, conversation, conversations, outcomes, spoken


def line(kind: str, uuid: str | None, parent: str | None, content: Any = None, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"type": kind, "uuid": uuid, "parentUuid": parent, "sessionId": "s", "isSidechain": False}
    if content is not None:
        found["message"] = {"role": kind, "content": content}
    return {**found, **more}


def prompt(uuid: str | None, parent: str | None, text: Any, **more: Any) -> dict[str, Any]:
    return line("user", uuid, parent, text, **more)


def answer(uuid: str | None, parent: str | None, *blocks: Any, of: str | None = None, **more: Any) -> dict[str, Any]:
    found = line("assistant", uuid, parent, list(blocks), **more)
    found["message"] |= {"id": of, "model": "claude-x"}
    return found


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def call(number: int) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"t{number}", "name": "Read", "input": {"n": number}}


def result(uuid: str, parent: str | None, number: int, *more: Any) -> dict[str, Any]:
    block = {"type": "tool_result", "tool_use_id": f"t{number}", "content": f"r{number}"}
    return line("user", uuid, parent, [block, *more], toolUseResult={"stdout": f"r{number}"})


def ids(messages: list[ReadMessage]) -> list[str | None]:
    return [message.external_id for message in messages]


def branches(found: ReadConversation) -> list[list[str | None]]:
    return [ids(each) for each in found.branches]


PARALLEL = [
    prompt("u1", None, "do both"),
    answer("a0", "u1", {"type": "thinking", "thinking": "hm", "signature": "s"}, of="m1"),
    answer("a1", "a0", text("Both."), call(1), of="m1"),
    answer("a2", "a1", call(2), of="m1"),
    result("r1", "a1", 1),
    result("r2", "a2", 2),
    answer("a3", "r2", text("Done."), of="m2"),
]


def test_lines_with_one_message_id_are_one_message() -> None:
    found = conversation("claude_code", *PARALLEL)
    assert ids(found.messages) == ["u1", "a2", "r1", "r2", "a3"]
    merged = found.messages[1]
    assert merged.content == "Both."
    assert merged.parts == [{"type": "thinking", "thinking": "hm", "signature": "s"}]
    assert [each["id"] for each in merged.tool_calls or ()] == ["t1", "t2"]
    assert merged.tool_calls is not None
    assert merged.tool_calls[0] == {
        "id": "t1",
        "type": "function",
        "function": {"name": "Read", "arguments": '{"n": 1}'},
    }
    assert merged.metadata == {"model": "claude-x"}


def test_parallel_calls_are_no_branches() -> None:
    found = conversation("claude_code", *PARALLEL)
    assert branches(found) == []
    assert [(m.tool_call_id, m.content) for m in found.messages if m.role == "tool"] == [("t1", "r1"), ("t2", "r2")]


def test_what_follows_any_result_follows_them_all() -> None:
    """The answer may hang below the result that came first, and a result may be written after what follows it."""
    for parent in ("a0", "a1", "a2", "r1", "r2"):
        found = conversation("claude_code", *PARALLEL[:6], answer("a3", parent, text("Done."), of="m2"))
        assert ids(found.messages) == ["u1", "a2", "r1", "r2", "a3"], parent
        assert branches(found) == []
    late = [*PARALLEL[:5], answer("a3", "r1", text("Done."), of="m2"), result("r2", "a2", 2)]
    assert ids(conversation("claude_code", *late).messages) == ["u1", "a2", "r1", "r2", "a3"]


def test_a_result_between_the_lines_of_a_message_splits_nothing() -> None:
    lines = [PARALLEL[0], PARALLEL[1], PARALLEL[2], PARALLEL[4], answer("a2", "r1", call(2), of="m1"), PARALLEL[5]]
    found = conversation("claude_code", *lines, answer("a3", "r2", text("Done."), of="m2"))
    assert ids(found.messages) == ["u1", "a2", "r1", "r2", "a3"]
    assert branches(found) == []


def test_two_prompts_below_one_answer_are_branches_and_the_last_in_the_file_is_active() -> None:
    rewound = [
        *PARALLEL,
        prompt("u2", "a3", "first way"),
        answer("a4", "u2", text("one"), of="m3"),
        prompt("u3", "a3", "second way"),
        answer("a5", "u3", text("two"), of="m4"),
    ]
    found = conversation("claude_code", *rewound)
    shared = ["u1", "a2", "r1", "r2", "a3"]
    assert ids(found.messages) == [*shared, "u3", "a5"]
    assert branches(found) == [[*shared, "u2", "a4"]]
    assert next(iter(found.branches))[0] is found.messages[0]
    back = conversation("claude_code", *rewound, prompt("u4", "a4", "the first after all"))
    assert ids(back.messages) == [*shared, "u2", "a4", "u4"]
    assert branches(back) == [[*shared, "u3", "a5"]]


def test_skipped_records_are_passed_through() -> None:
    found = conversation(
        "claude_code",
        line("system", "s0", None, subtype="informational"),
        prompt("u1", "s0", "hi"),
        line("attachment", "x1", "u1"),
        line("progress", "x2", "x1"),
        answer("a1", "x2", text("ho"), of="m1"),
        prompt("x3", "a1", "<command-name>/clear</command-name>"),
        prompt("x4", "x3", "Caveat: The messages below were generated by the user"),
        prompt("x5", "x4", "\n<local-command-stdout>ok</local-command-stdout>"),
        prompt("x6", "x5", "shown to the model only", isMeta=True),
        prompt("x7", "x6", "<task-notification><task-id>b</task-id></task-notification>"),
        prompt("u2", "x7", "go on"),
        {"type": "file-history-snapshot", "messageId": "u2", "snapshot": {}},
        {"type": "queue-operation", "sessionId": "s", "operation": "enqueue", "content": "x"},
    )
    assert ids(found.messages) == ["u1", "a1", "u2"]
    assert branches(found) == []
    assert found.left_out == {
        "record type: system": 1,
        "record type: attachment": 1,
        "record type: progress": 1,
        "record type: file-history-snapshot": 1,
        "record type: queue-operation": 1,
        "command": 1,
        "command output": 2,
        "meta": 1,
        "task notification": 1,
    }


def test_a_compaction_continues_the_conversation() -> None:
    for boundary in (
        {"parentUuid": None, "logicalParentUuid": "a1"},
        {"parentUuid": None, "logicalParentUuid": "elsewhere"},
        {"parentUuid": "elsewhere"},
    ):
        found = conversation(
            "claude_code",
            prompt("u1", None, "hi"),
            answer("a1", "u1", text("ho"), of="m1"),
            line("system", "c", None, None, **boundary),
            prompt("u2", "c", "This session is being continued", isCompactSummary=True),
            answer("a2", "u2", text("on"), of="m2"),
        )
        assert ids(found.messages) == ["u1", "a1", "u2", "a2"]
        assert found.messages[2].metadata == {"isCompactSummary": True}
        assert branches(found) == []


def test_a_compaction_continues_the_branch_that_it_names() -> None:
    found = conversation(
        "claude_code",
        prompt("u1", None, "hi"),
        answer("a1", "u1", text("ho"), of="m1"),
        prompt("u2", "a1", "given up"),
        line("system", "c", None, logicalParentUuid="a1"),
        prompt("u3", "c", "This session is being continued"),
    )
    assert ids(found.messages) == ["u1", "a1", "u3"]
    assert branches(found) == [["u1", "a1", "u2"]]


def test_lines_without_parents_stay_in_the_order_of_the_file() -> None:
    found = conversation(
        "claude_code",
        prompt("u1", None, "a"),
        answer("a1", None, text("b"), of="m1"),
        prompt("u2", "gone", "c"),
        answer("a2", "a2", text("d"), of="m2"),
    )
    assert ids(found.messages) == ["u1", "a1", "u2", "a2"]


def test_a_line_before_its_parent_is_put_behind_it() -> None:
    found = conversation(
        "claude_code",
        prompt("u1", None, "a"),
        prompt("u2", "a1", "c"),
        answer("a1", "u1", text("b"), of="m1"),
    )
    assert ids(found.messages) == ["u1", "a1", "u2"]
    assert branches(found) == []


def test_circles_end_and_lose_nothing() -> None:
    lines = [prompt(f"u{n}", f"u{(n * 7 + 3) % 10}", str(n)) for n in range(10)]
    found = conversation("claude_code", *lines)
    seen = {each for path in (found.messages, *found.branches) for each in ids(path)}
    assert seen == {f"u{n}" for n in range(10)}


def test_an_interruption_without_uuid_stands_in_the_line() -> None:
    found = conversation(
        "claude_code",
        prompt("u1", None, "a"),
        prompt(None, "u1", "[Request interrupted by user]"),
        prompt("u2", "u1", "b"),
    )
    assert spoken(found.messages) == [("user", "a"), ("user", "[Request interrupted by user]"), ("user", "b")]
    assert branches(found) == []


def test_a_repeated_uuid_is_left_out() -> None:
    found = conversation("claude_code", prompt("u1", None, "first"), prompt("u1", None, "second"))
    assert spoken(found.messages) == [("user", "first")]
    assert found.left_out == {"repeated id": 1}


def test_a_repeated_line_of_a_call_makes_no_second_call() -> None:
    found = conversation("claude_code", *PARALLEL[:4], answer("a9", "a2", call(2), of="m1"), *PARALLEL[4:])
    assert [each["id"] for each in found.messages[1].tool_calls or ()] == ["t1", "t2"]
    assert found.left_out == {"repeated call": 1}


def test_results_come_first_and_share_the_id_of_their_line() -> None:
    both = line(
        "user",
        "r",
        "a1",
        [
            text("and by the way"),
            {"type": "tool_result", "tool_use_id": "t1", "content": [text("one"), {"type": "image", "source": {}}]},
            {"type": "tool_result", "tool_use_id": "t2", "content": "", "is_error": True},
        ],
    )
    found = conversation("claude_code", prompt("u1", None, "x"), answer("a1", "u1", call(1), call(2), of="m"), both)
    assert ids(found.messages) == ["u1", "a1", "r", "r#1", "r#2"]
    first, second, aside = found.messages[2:]
    assert (first.role, first.content, first.parts) == ("tool", "one", [{"type": "image", "source": {}}])
    assert second.parts == [{"type": "tool_result", "tool_use_id": "t2", "content": "", "is_error": True}]
    assert second.metadata == {"is_error": True}
    assert (aside.role, aside.content) == ("user", "and by the way")


def test_a_tool_result_without_a_block_stays_in_parts() -> None:
    with_block = conversation("claude_code", *PARALLEL[:5])
    assert with_block.messages[2].parts is None
    alone = conversation("claude_code", prompt("u", None, "x", toolUseResult={"stdout": "y"}))
    assert alone.messages[0].parts == [{"toolUseResult": {"stdout": "y"}}]


def test_sessions_in_one_file_are_conversations_in_order_of_appearance() -> None:
    found = conversations(
        "claude_code",
        prompt(
            "u1",
            None,
            "a",
            sessionId="one",
            cwd="/w",
            gitBranch="main",
            version="2.0",
            timestamp="2026-01-02T03:04:05Z",
        ),
        prompt("u2", None, "b", sessionId="two"),
        answer("a1", "u1", text("c"), of="m1", sessionId="one", cwd="/elsewhere", timestamp="2026-01-02T03:04:06Z"),
        BROKEN,
        "no object",
    )
    assert [(each.external_id, len(each.messages)) for each in found] == [("one", 2), ("two", 1)]
    assert found[0].metadata == {"cwd": "/w", "gitBranch": "main", "version": "2.0"}
    assert found[0].created_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert found[0].updated_at == datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC)
    assert found[0].left_out == {"malformed line": 1, "not an object": 1}


def test_each_run_of_a_sub_agent_is_a_conversation() -> None:
    found = conversations(
        "claude_code",
        prompt("u1", None, "main"),
        prompt("x1", None, "old agent", isSidechain=True),
        prompt("y1", None, "new agent", isSidechain=True, agentId="abc"),
        answer("x2", "x1", text("old done"), of="m1", isSidechain=True),
        answer("y2", "y1", text("new done"), of="m2", isSidechain=True, agentId="abc"),
        prompt("z1", "u1", "another", isSidechain=True),
        answer("a1", "u1", text("all done"), of="m3"),
    )
    assert [(each.external_id, ids(each.messages)) for each in found] == [
        ("s", ["u1", "a1"]),
        ("s:x1", ["x1", "x2"]),
        ("s:abc", ["y1", "y2"]),
        ("s:z1", ["z1"]),
    ]
    assert found[2].metadata == {"sessionId": "s"}


def test_a_file_of_a_sub_agent_is_its_own_conversation() -> None:
    lines = [prompt("u1", None, "task"), answer("a1", "u1", text("done"), of="m")]
    assert conversation("claude_code", *lines, file="agent-a1b2.jsonl").external_id == "s:a1b2"
    marked = [{**each, "isSidechain": True, "agentId": "a1b2"} for each in lines]
    assert conversation("claude_code", *marked).external_id == "s:a1b2"


def test_the_title_is_the_users_then_the_models_then_a_summary() -> None:
    summary = {"type": "summary", "summary": "of this", "leafUuid": "u1"}
    other = {"type": "summary", "summary": "of another", "leafUuid": "gone"}
    model = {"type": "ai-title", "aiTitle": "by the model", "sessionId": "s"}
    user = {"type": "custom-title", "customTitle": "by the user", "sessionId": "s"}
    said = prompt("u1", None, "hi")
    assert conversation("claude_code", other, said).title is None
    assert conversation("claude_code", summary, other, said).title == "of this"
    assert conversation("claude_code", model, said, summary).title == "by the model"
    assert conversation("claude_code", user, model, said, summary).title == "by the user"
    assert not conversation("claude_code", user, said).left_out


def test_a_file_without_a_message_is_rejected_but_no_failure() -> None:
    (found,) = outcomes("claude_code", {"type": "summary", "summary": "x", "leafUuid": "y"})
    assert found == Rejected(place="record 1", reason="it has no messages", failed=False)
    (found,) = outcomes("claude_code", prompt("u", None, "x", isMeta=True))
    assert isinstance(found, Rejected)
    assert (found.failed, found.external_id, found.reason) == (False, "s", "it has no messages (1 × meta)")


def test_the_messages_of_an_api_error_are_kept() -> None:
    failed = answer("a1", "u1", text("API Error: 529"), of="m", isApiErrorMessage=True)
    found = conversation("claude_code", prompt("u1", None, "x"), failed)
    assert found.messages[1].content == "API Error: 529"
    assert found.messages[1].metadata == {"isApiErrorMessage": True, "model": "claude-x"}


def test_an_answer_that_was_still_being_written_is_another_message_once_it_is_whole() -> None:
    """Taken for the same, what was written later would never come in."""
    partial, whole = (ids(conversation("claude_code", *PARALLEL[:lines]).messages) for lines in (3, 4))
    assert partial[0] == whole[0] == "u1"
    assert partial[1] != whole[1]
