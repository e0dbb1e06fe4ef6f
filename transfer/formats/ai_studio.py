"""Prompts of Google AI Studio, as it keeps them on Drive: a document with `chunkedPrompt.chunks`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

from chatledger.transfer.blocks import Blocks, identifier, read_blocks, role_of, text_or_none
from chatledger.transfer.draft import Draft, first_text, malformed, small_metadata, told
from chatledger.transfer.records import Origin, Outcome, Record, Rejected
from chatledger.transfer.times import parse_time

NAME = "ai-studio"
TITLE = "a Google AI Studio prompt"

# Objects and lists of a chunk that tell nothing that was said: how it was made, and copies of the text in pieces.
_NOT_PARTS = frozenset({"parts", "branchParent", "branchChildren", "safetyRatings", "thoughtSignatures"})


def recognises(value: Any) -> bool:
    """Whether it is a document of a prompt."""
    if not isinstance(value, dict) or not isinstance(prompt := value.get("chunkedPrompt"), dict):
        return False
    return isinstance(prompt.get("chunks"), list)


def read(records: Iterable[Record], origin: Origin) -> Iterator[Outcome]:
    """A conversation per record, in their order. Its title is the file's name where it has none: so Drive shows it."""
    name = PurePosixPath(origin.name).name.removesuffix(".json")
    for record in records:
        yield _conversation(record.place, record.value, name) if isinstance(record.value, dict) else malformed(record)


def _conversation(place: str, value: dict[str, Any], name: str) -> Outcome:
    prompt, settings = value.get("chunkedPrompt"), value.get("runSettings")
    chunks = prompt.get("chunks") if isinstance(prompt, dict) else None
    external_id = identifier(value.get("id"))
    title = first_text(value, "title", "name", "displayName") or text_or_none(name)
    if not isinstance(chunks, list):
        return Rejected(place=place, reason="no list of chunks", failed=True, external_id=external_id, title=title)
    draft = Draft()
    if value.get("systemInstruction"):
        draft.add(None, told("system", read_blocks(_unwrapped(value["systemInstruction"]), draft.calls)))
    _add_chunks(draft, chunks)
    return draft.outcome(
        place,
        external_id=external_id,
        title=title,
        created_at=parse_time(value.get("createTime")),
        metadata=small_metadata(settings, "model") if isinstance(settings, dict) else {},
    )


def _unwrapped(instruction: Any) -> Any:
    """The content of an instruction, which older documents have in `parts`."""
    inner = instruction.get("parts") if isinstance(instruction, dict) and "text" not in instruction else None
    return instruction if inner is None else inner


def _add_chunks(draft: Draft, chunks: list[Any]) -> None:
    """Thoughts become parts of the answer that they lead to; without one they are a message of their own."""
    thoughts: list[dict[str, Any]] = []
    for chunk in chunks:
        if not isinstance(chunk, dict):
            draft.leave_out("not an object")
            continue
        role = role_of(chunk.get("role"))
        if role is None:
            draft.leave_out("unknown role", chunk.get("role", "none"))
        elif chunk.get("isThought") is True and role == "assistant":
            thoughts.append(chunk)
        else:
            if role != "assistant":
                _add_thoughts(draft, thoughts)
            found = _blocks(draft, chunk)
            parts = [*thoughts, *(found.parts or ())]
            thoughts = []
            found = found._replace(parts=parts or None)
            draft.add(identifier(chunk.get("id")), told(role, found, created_at=parse_time(chunk.get("createTime"))))
    _add_thoughts(draft, thoughts)


def _add_thoughts(draft: Draft, thoughts: list[dict[str, Any]]) -> None:
    if thoughts:
        at = parse_time(thoughts[0].get("createTime"))
        draft.add(identifier(thoughts[0].get("id")), told("assistant", Blocks("", [*thoughts]), created_at=at))
        thoughts.clear()


def _blocks(draft: Draft, chunk: dict[str, Any]) -> Blocks:
    """The text of a chunk, and as parts its files, code and sources, each under its name."""
    text = chunk.get("text")
    pieces = chunk.get("parts")
    # Beside `text` the pieces repeat it; what else is among them is not there twice.
    inside = [piece for piece in pieces if isinstance(piece, dict)] if isinstance(pieces, list) else []
    if isinstance(text, str) and text:
        inside = [piece for piece in inside if "text" not in piece]
        content: list[Any] = [text, *inside]
    else:
        content = [text, *inside]
    found = read_blocks(content, draft.calls)
    own: list[Any] = [
        {key: each} for key, each in chunk.items() if isinstance(each, dict | list) and key not in _NOT_PARTS
    ]
    if error := text_or_none(chunk.get("errorMessage")):
        own.append({"errorMessage": error})
    return found._replace(parts=[*(found.parts or ()), *own] or None)
