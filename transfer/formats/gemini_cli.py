"""Gemini CLI's sessions: a document with `messages`, or JSONL that appends to a session, corrects and rewinds it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from chatledger.transfer.blocks import Calls, Result, identifier, json_text, read_blocks, text_or_none
from chatledger.transfer.draft import EMPTY, Draft, answer, first_text, has_substance, numbered, small_metadata, told
from chatledger.transfer.records import Malformed, Origin, Outcome, ReadMessage, Record
from chatledger.transfer.rewinds import settle
from chatledger.transfer.times import parse_time

NAME = "gemini-cli"
TITLE = "a Gemini CLI session"

# The program's own notices (`info`, `error`, `warning`) were never part of what the model was told: they are left out.
_ROLES = {"user": "user", "gemini": "assistant"}
_TYPES = frozenset({*_ROLES, "info", "error", "warning"})


def recognises(value: Any) -> bool:
    """Whether it is a session, or a line of one."""
    if not isinstance(value, dict):
        return False
    if isinstance(value.get("$set"), dict) or isinstance(value.get("$rewindTo"), str):
        return True
    if isinstance(value.get("sessionId"), str):
        messages = value.get("messages")
        typed = isinstance(messages, list) and any(map(_is_message, messages))
        return "type" not in value and ("projectHash" in value or typed)
    return _is_message(value) and value.keys().isdisjoint(("role", "message", "payload", "uuid", "sessionId"))


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(kind := value.get("type"), str)
        and kind in _TYPES
        and "id" in value
        and "timestamp" in value
        and "content" in value
    )


def read(records: Iterable[Record], origin: Origin) -> Iterator[Outcome]:
    """A conversation per session; a line belongs to the session whose header came last."""
    session: _Session | None = None
    for record in records:
        value = record.value
        if session is None or (isinstance(value, dict) and "sessionId" in value and session.is_another(value)):
            if session is not None:
                yield session.outcome()
            session = _Session(record.place)
        session.add(value)
    if session is not None:
        yield session.outcome()


@dataclass(slots=True)
class _Session:
    """A log of messages. Going back to one begins a branch; a message that comes again replaces its earlier self."""

    place: str
    draft: Draft = field(default_factory=Draft)
    head: dict[str, Any] = field(default_factory=dict)
    values: list[dict[str, Any]] = field(default_factory=list)
    parents: list[int | None] = field(default_factory=list)
    latest: int | None = None
    """The node that the next message follows."""
    nodes: dict[str, int] = field(default_factory=dict)
    """Where each message of the current branch stands, in its order."""

    def is_another(self, header: dict[str, Any]) -> bool:
        return bool(self.head or self.values) and header["sessionId"] != self.head.get("sessionId")

    def add(self, value: Any) -> None:
        if not isinstance(value, dict):
            self.draft.leave_out("malformed line" if isinstance(value, Malformed) else "not an object")
        elif "$rewindTo" in value:
            self._rewind(identifier(value["$rewindTo"]))
        elif "sessionId" in value or "messages" in value or isinstance(value.get("$set"), dict):
            update = value["$set"] if isinstance(value.get("$set"), dict) else value
            self.head.update((key, each) for key, each in update.items() if key != "messages")
            messages = update.get("messages")
            if isinstance(messages, list):
                if self.nodes and messages:  # the list is the whole session anew
                    self._rewind(None)
                for message in messages:
                    self._append(message, again=False)
        else:
            self._append(value, again=True)

    def _append(self, value: Any, *, again: bool) -> None:
        """Adds a message. `again`: one with an id that the branch has already is a later state of it."""
        if not isinstance(value, dict):
            self.draft.leave_out("not an object")
            return
        if not isinstance(kind := value.get("type"), str) or kind not in _ROLES:
            known = isinstance(kind, str) and kind in _TYPES
            self.draft.leave_out("record type" if known else "unknown record type", kind)
            return
        message_id = identifier(value.get("id"))
        if message_id is not None and message_id in self.nodes:
            if again:
                self.values[self.nodes[message_id]] = value
            else:
                self.draft.leave_out("repeated id")
            return
        if message_id is not None:
            self.nodes[message_id] = len(self.values)
        self.parents.append(self.latest)
        self.latest = len(self.values)
        self.values.append(value)

    def _rewind(self, message_id: str | None) -> None:
        """Goes back to before this message; to the beginning where the branch does not have it."""
        node = self.nodes.get(message_id) if message_id is not None else None
        self.latest = None if node is None else self.parents[node]
        while self.nodes:
            _, removed = self.nodes.popitem()
            if removed == node:
                break

    def outcome(self) -> Outcome:
        """The conversation. Its active branch is the one that the log ends with."""
        messages = [_messages(self.draft, value) for value in self.values]
        branches = settle(self.draft, messages, self.parents, current=self.latest)
        return self.draft.outcome(
            self.place,
            external_id=identifier(self.head.get("sessionId")),
            title=first_text(self.head, "summary", "title"),
            created_at=parse_time(self.head.get("startTime")),
            updated_at=parse_time(self.head.get("lastUpdated")),
            metadata=small_metadata(self.head, "projectHash", "directories", "kind"),
            branches=branches,
        )


def _messages(draft: Draft, value: dict[str, Any]) -> list[ReadMessage]:
    """What was said, and the result of every call that came with it."""
    role, at, model = _ROLES[value["type"]], parse_time(value.get("timestamp")), text_or_none(value.get("model"))
    found = read_blocks(value.get("content"), draft.calls)
    thoughts = value.get("thoughts")
    parts = [*(thoughts if isinstance(thoughts, list) else [thoughts] if thoughts else []), *(found.parts or ())]
    calls: list[Any] = []
    results: list[ReadMessage] = []
    listed = value.get("toolCalls")
    for each in listed if isinstance(listed, list) else [listed] if listed else []:
        if not isinstance(each, dict):
            parts.append({"toolCalls": each})
            continue
        call = draft.calls.made(each.get("id"), each.get("name"), each.get("args"))
        calls.append(call)
        if (result := _result(draft.calls, each, call["id"])) is not None:
            results.append(answer(result, created_at=parse_time(each.get("timestamp")) or at))
    own = found._replace(parts=parts or None, calls=calls or None)
    metadata = {"model": model} if model and role == "assistant" else None
    made = list(filter(has_substance, [*told(role, own, created_at=at, metadata=metadata), *results]))
    if not made:
        draft.leave_out(EMPTY)
    return list(numbered(identifier(value.get("id")), made))


def _result(calls: Calls, call: dict[str, Any], call_id: str) -> Result | None:
    """What a call returned: the text for the model, else the one that was shown; None where there is neither."""
    given = call.get("result")
    texts: list[str] = []
    parts: list[Any] = []
    for each in given if isinstance(given, list) else [given]:
        response = each.get("functionResponse") if isinstance(each, dict) else None
        body = response.get("response") if isinstance(response, dict) else None
        if isinstance(body, dict):
            said = next((body[key] for key in ("output", "error") if isinstance(body.get(key), str)), None)
            texts.append(json_text(body) if said is None else said)
        else:
            found = read_blocks(each, calls, answering=False)
            texts.append(found.text)
            parts += found.parts or ()
    text = "\n\n".join(filter(None, texts)) or text_or_none(call.get("resultDisplay")) or ""
    if not text.strip() and not parts:
        if given is None:
            return None
        parts = [given]
    calls.answered(call_id)
    return Result(call_id, text, parts or None, call.get("status") == "error")
