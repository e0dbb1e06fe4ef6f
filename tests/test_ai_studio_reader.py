"""A prompt of AI Studio becomes a conversation whose thoughts stand with the answers that they led to."""

from __future__ import annotations

from typing import Any

from chatledger.transfer.records import Rejected
from tests.foreign_files import conversation, outcomes, spoken

ASKED = {"role": "user", "text": "why?", "tokenCount": 2}
ANSWERED = {"role": "model", "text": "so", "finishReason": "STOP"}


def prompt(*chunks: Any, **more: Any) -> dict[str, Any]:
    return {"chunkedPrompt": {"chunks": list(chunks), "pendingInputs": []}, **more}


def test_chunks_are_messages_after_the_instruction() -> None:
    for instruction in ({"text": "be kind"}, {"parts": [{"text": "be kind"}]}, "be kind"):
        found = conversation(
            "ai_studio",
            prompt(
                {**ASKED, "id": "c1", "createTime": "2026-01-02T03:04:05Z"},
                ANSWERED,
                id="p1",
                systemInstruction=instruction,
                runSettings={"model": "models/g", "temperature": 1},
            ),
        )
        assert spoken(found.messages) == [("system", "be kind"), ("user", "why?"), ("assistant", "so")]
        assert (found.external_id, found.metadata) == ("p1", {"model": "models/g"})
        assert found.messages[1].external_id == "c1"
        assert found.messages[1].created_at is not None


def test_thoughts_are_parts_of_the_answer_that_follows() -> None:
    thoughts = [{"role": "model", "text": f"hm {n}", "isThought": True} for n in range(3)]
    found = conversation("ai_studio", prompt(ASKED, *thoughts[:2], ANSWERED, ASKED, thoughts[2]))
    assert spoken(found.messages) == [
        ("user", "why?"),
        ("assistant", "so"),
        ("user", "why?"),
        ("assistant", ""),
    ]
    assert found.messages[1].parts == thoughts[:2]
    assert found.messages[3].parts == thoughts[2:]
    interrupted = conversation("ai_studio", prompt(thoughts[0], ASKED, ANSWERED))
    assert [message.parts for message in interrupted.messages] == [thoughts[:1], None, None]


def test_files_code_and_errors_are_parts_under_their_names() -> None:
    chunk = {
        "role": "user",
        "driveImage": {"id": "d1"},
        "text": "",
        "branchParent": {"promptId": "p0"},
        "errorMessage": "blocked",
    }
    found = conversation("ai_studio", prompt(chunk, {"role": "model", "executableCode": {"code": "1"}}))
    assert found.messages[0].parts == [{"driveImage": {"id": "d1"}}, {"errorMessage": "blocked"}]
    assert found.messages[1].parts == [{"executableCode": {"code": "1"}}]


def test_pieces_that_repeat_the_text_are_read_once() -> None:
    pieces = [{"text": "w"}, {"text": "hy?"}, {"inlineData": {"data": "x"}}]
    found = conversation("ai_studio", prompt({**ASKED, "parts": pieces}, {"role": "model", "parts": pieces[:2]}))
    assert spoken(found.messages) == [("user", "why?"), ("assistant", "w\n\nhy?")]
    assert found.messages[0].parts == [{"inlineData": {"data": "x"}}]


def test_the_title_is_the_files_name_where_there_is_no_other() -> None:
    assert conversation("ai_studio", prompt(ASKED), file="Plan 2.0.json").title == "Plan 2.0"
    assert conversation("ai_studio", prompt(ASKED), file="Takeout/Plan 2.0").title == "Plan 2.0"
    assert conversation("ai_studio", prompt(ASKED, title="Mine"), file="x.json").title == "Mine"


def test_what_is_not_understood_is_counted() -> None:
    found = conversation("ai_studio", prompt(ASKED, 5, {"role": "narrator", "text": "x"}, {"role": "user"}))
    assert found.left_out == {"not an object": 1, "unknown role: narrator": 1, "no text, call or parts": 1}
    (failed,) = outcomes("ai_studio", {"chunkedPrompt": {"chunks": None}})
    assert isinstance(failed, Rejected)
    assert failed.failed
