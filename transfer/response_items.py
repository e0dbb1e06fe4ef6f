"""Items of OpenAI's Responses API, which Codex writes too: messages, reasoning, calls and what they returned."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from chatledger.transfer.blocks import Blocks, Result, identifier, read_blocks, read_result, role_of, without_ciphertext
from chatledger.transfer.chat_messages import add_message, time_of
from chatledger.transfer.draft import Draft, answer, told
from chatledger.transfer.records import ReadMessage

# Where a call has its arguments; one of a hosted tool has none, and its own fields stand for them.
_ARGUMENT_KEYS = ("arguments", "input", "action")
# Where an item of a hosted tool has what came out, as it is a call and a result in one.
_OUTCOME_KEYS = ("output", "outputs", "results", "result", "error")
_ENVELOPE = frozenset({"id", "type", "status", "call_id", "name", *_OUTCOME_KEYS})


def is_item(value: Any) -> bool:
    """Whether it is an item that says so by its type."""
    if not isinstance(value, dict) or not isinstance(kind := value.get("type"), str) or "payload" in value:
        return False
    if kind == "message":
        content = value.get("content")
        return role_of(value.get("role")) is not None and isinstance(content, str | list) and "stop_reason" not in value
    if kind == "reasoning":
        return isinstance(value.get("summary"), list) or "encrypted_content" in value
    return kind.endswith(("_call", "_call_output")) and ("call_id" in value or "id" in value or "action" in value)


def add_item(draft: Draft, item: Any, *, at: datetime | None = None) -> None:
    """Adds what one item is; what is none is counted. `at` is when the source has it, if not the item itself."""
    if not isinstance(item, dict):
        draft.leave_out("not an object")
        return
    kind = item.get("type")
    at = at or time_of(item)
    record_id = identifier(item.get("id"))
    if kind is None:
        add_message(draft, item)
    elif kind == "message":
        role = role_of(item.get("role"))
        if role is None:
            draft.leave_out("unknown role", item.get("role", "none"))
        else:
            found = read_blocks(item.get("content"), draft.calls, calling=role == "assistant")
            draft.add(record_id, told(role, found, created_at=at))
    elif kind == "reasoning":
        if item.get("summary") or item.get("content"):
            draft.add(record_id, [ReadMessage("assistant", created_at=at, parts=[without_ciphertext(item)])])
        else:
            draft.leave_out("encrypted reasoning" if item.get("encrypted_content") else "empty reasoning")
    elif isinstance(kind, str) and kind.endswith("_output"):
        draft.add(record_id, [answer(_result(draft, item), created_at=at)])
    elif isinstance(kind, str) and kind.endswith("_call"):
        draft.add(record_id, _called(draft, kind, item, at))
    else:
        draft.leave_out("unknown record type", kind)


def _result(draft: Draft, item: dict[str, Any]) -> Result:
    output = item.get("output")
    failed = False
    # Codex once wrote {"content": …, "success": …} where the API has the text alone.
    if isinstance(output, dict) and "type" not in output and isinstance(output.get("content"), str | list):
        failed = output.get("success") is False
        output = output["content"]
    result = read_result(item, output, draft.calls, item.get("call_id"))
    return result._replace(is_error=True) if failed else result


def _called(draft: Draft, kind: str, item: dict[str, Any], at: datetime | None) -> list[ReadMessage]:
    """The call, and its result where the item has it."""
    name = item.get("name")
    if not isinstance(name, str):
        name = kind.removesuffix("_call")
    arguments = next((item[key] for key in _ARGUMENT_KEYS if item.get(key) is not None), None)
    if arguments is None:
        arguments = {key: value for key, value in item.items() if key not in _ENVELOPE}
    call = draft.calls.made(item.get("call_id") or item.get("id"), name, arguments)
    made = told("assistant", Blocks("", calls=[call]), created_at=at)
    outcome = {key: item[key] for key in _OUTCOME_KEYS if item.get(key) not in (None, "", [])}
    if outcome:
        draft.calls.answered(call["id"])
        text = outcome.pop("output") if isinstance(outcome.get("output"), str) else ""
        failed = outcome.get("error") is not None
        made.append(answer(Result(call["id"], text, [outcome] if outcome else None, failed), created_at=at))
    return made
