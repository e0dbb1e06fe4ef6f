"""A session of Gemini CLI, as a document or as a log that was gone back in."""

from __future__ import annotations

from typing import Any

from tests.foreign_files import BROKEN, conversation, conversations, outcomes, spoken

HEAD = {
    "sessionId": "s",
    "projectHash": "p",
    "startTime": "2026-01-02T03:04:05Z",
    "lastUpdated": "2026-01-02T03:04:09Z",
}


def said(kind: str, number: int | str, content: Any, **more: Any) -> dict[str, Any]:
    return {"id": f"m{number}", "timestamp": "2026-01-02T03:04:06Z", "type": kind, "content": content, **more}


def ran(call_id: str | None, result: Any, **more: Any) -> dict[str, Any]:
    return {"id": call_id, "name": "read", "args": {"n": 1}, "status": "success", "result": result, **more}


def responded(response: Any) -> list[dict[str, Any]]:
    return [{"functionResponse": {"id": "x", "name": "read", "response": response}}]


def test_a_document_is_a_conversation() -> None:
    document = {
        **HEAD,
        "summary": "A title",
        "kind": "main",
        "messages": [
            said("user", 1, ["a", {"text": "b"}, {"inlineData": {"data": "x"}}]),
            said("gemini", 2, "c", model="g", thoughts=[{"subject": "hm", "description": "so"}], tokens={"total": 1}),
            said("info", 3, "Request cancelled."),
            said("gemini", 2, "again"),
        ],
    }
    found = conversation("gemini_cli", document)
    assert spoken(found.messages) == [("user", "a\n\nb"), ("assistant", "c")]
    assert found.messages[0].parts == [{"inlineData": {"data": "x"}}]
    assert found.messages[1].parts == [{"subject": "hm", "description": "so"}]
    assert found.messages[1].metadata == {"model": "g"}
    assert (found.external_id, found.title) == ("s", "A title")
    assert found.metadata == {"projectHash": "p", "kind": "main"}
    assert found.created_at is not None
    assert found.updated_at is not None
    assert found.left_out == {"record type: info": 1, "repeated id": 1}


def test_every_call_has_its_result_behind_it() -> None:
    calls = [
        ran("c1", responded({"output": "plain"})),
        ran(None, responded({"error": "broken"}), status="error"),
        ran("c3", responded({"other": "ü"})),
        ran("c4", "as text"),
        ran("c5", None, resultDisplay="as shown"),
        ran("c6", [{"inlineData": {"data": "x"}}]),
        ran("c7", None, status="cancelled"),
        "junk",
    ]
    found = conversation("gemini_cli", {**HEAD, "messages": [said("gemini", 1, "", toolCalls=calls)]})
    assert [call["id"] for call in found.messages[0].tool_calls or ()] == ["c1", "call_2", "c3", "c4", "c5", "c6", "c7"]
    assert found.messages[0].parts == [{"toolCalls": "junk"}]
    assert [(m.tool_call_id, m.content, m.metadata) for m in found.messages[1:]] == [
        ("c1", "plain", None),
        ("call_2", "broken", {"is_error": True}),
        ("c3", '{"other": "ü"}', None),
        ("c4", "as text", None),
        ("c5", "as shown", None),
        ("c6", "", None),
    ]
    assert [message.external_id for message in found.messages[:3]] == ["m1", "m1#1", "m1#2"]
    assert found.messages[6].parts == [{"inlineData": {"data": "x"}}]


def test_in_a_log_a_message_that_comes_again_replaces_its_earlier_self() -> None:
    found = conversation(
        "gemini_cli",
        HEAD,
        said("user", 1, "a"),
        said("gemini", 2, ""),
        said("gemini", 2, "b"),
        BROKEN,
        {"$set": {"summary": "T", "lastUpdated": "2026-01-02T03:05:00Z"}},
        said("user", 3, "c"),
    )
    assert spoken(found.messages) == [("user", "a"), ("assistant", "b"), ("user", "c")]
    assert (found.title, list(found.branches)) == ("T", [])
    assert found.left_out == {"malformed line": 1}


def test_going_back_makes_a_branch() -> None:
    log = [HEAD, said("user", 1, "a"), said("gemini", 2, "b"), said("user", 3, "c"), said("gemini", 4, "d")]
    found = conversation("gemini_cli", *log, {"$rewindTo": "m3"}, said("user", 5, "e"))
    assert spoken(found.messages) == [("user", "a"), ("assistant", "b"), ("user", "e")]
    assert [spoken(each)[2:] for each in found.branches] == [[("user", "c"), ("assistant", "d")]]
    only_back = conversation("gemini_cli", *log, {"$rewindTo": "m3"})
    assert spoken(only_back.messages) == [("user", "a"), ("assistant", "b")]
    assert [len(each) for each in only_back.branches] == [4]
    lost = conversation("gemini_cli", *log, {"$rewindTo": "gone"}, said("user", 5, "e"))
    assert spoken(lost.messages) == [("user", "e")]
    assert [len(each) for each in lost.branches] == [4]


def test_a_session_that_is_written_anew_has_no_branch() -> None:
    first = [said("user", 1, "a"), said("gemini", 2, "b")]
    found = conversation("gemini_cli", HEAD, *first, {"$set": {"messages": [*first, said("user", 3, "c")]}})
    assert spoken(found.messages) == [("user", "a"), ("assistant", "b"), ("user", "c")]
    assert list(found.branches) == []


def test_documents_of_one_array_are_conversations_of_their_own() -> None:
    documents = [{**HEAD, "sessionId": each, "messages": [said("user", 1, each)]} for each in ("x", "y")]
    assert [each.external_id for each in conversations("gemini_cli", *documents)] == ["x", "y"]


def test_a_session_without_messages_is_rejected_but_no_failure() -> None:
    (found,) = outcomes("gemini_cli", HEAD, said("info", 1, "hello"))
    assert (getattr(found, "failed", None), found.external_id) == (False, "s")
