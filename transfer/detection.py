"""Which format a file has, by what is in it: names lie, and several programs call their export `conversations.json`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

from chatledger.transfer.content import HTML, JSON, ZIP
from chatledger.transfer.files import Source, UnreadableSource
from chatledger.transfer.formats import (
    ai_studio,
    anthropic_messages,
    chatgpt,
    claude_ai,
    claude_code,
    codex,
    gemini_cli,
    gemini_takeout,
    native,
    openai_chat,
    openai_responses,
    sharegpt,
)
from chatledger.transfer.records import Malformed, Origin, Outcome, Record

# Chosen: transcripts begin with up to some ten lines of other types, and a single odd record must not hide the rest.
LOOKED_AT = 50
_KEYS = 8  # chosen: enough to recognise a file by; one line
_KEY_CHARS = 40  # chosen: as _KEYS
_FOUND = 3  # chosen: kinds of files named where nothing in a folder is known


class Format(Protocol):
    """A module of `formats`."""

    @property
    def NAME(self) -> str: ...  # noqa: N802 - a constant there

    @property
    def TITLE(self) -> str: ...  # noqa: N802

    def recognises(self, value: Any) -> bool: ...

    def read(self, records: Iterable[Record], origin: Origin) -> Iterator[Outcome]: ...


# One record tells. Ours first, then the exports of web pages, whose marks nobody else has.
_DISTINCT: tuple[Format, ...] = (
    native,
    chatgpt,
    claude_ai,
    gemini_takeout,
    ai_studio,
    gemini_cli,
    claude_code,
    codex,
    sharegpt,
)
# A plain message belongs to each of these, so all records looked at decide. The one that demands least comes last.
_ALIKE: tuple[Format, ...] = (anthropic_messages, openai_responses, openai_chat)
FORMATS: tuple[Format, ...] = (*_DISTINCT, *_ALIKE)


class Recognised(NamedTuple):
    """A file that holds conversations."""

    name: str
    format: Format
    outcomes: Iterator[Outcome]
    """Read while they are asked for, before the next file is. May raise UnreadableSource."""
    part: Callable[[], float]
    """How much of the file has been read, 0 to 1."""


class Ignored(NamedTuple):
    """A file beside conversations that holds none."""

    name: str
    reason: str


class Refused(NamedTuple):
    """A file, folder or archive of which nothing is read, though it was named, or holds what is not supported."""

    name: str
    reason: str


Found: TypeAlias = Recognised | Ignored | Refused


def format_named(name: str) -> Format | None:
    return next((each for each in FORMATS if name == each.NAME), None)


def detect(records: Sequence[Record]) -> Format | None:
    """The format of a file that begins with these records."""
    for record in records:
        for each in _DISTINCT:
            if each.recognises(record.value):
                return each
    return next((each for each in _ALIKE if any(each.recognises(record.value) for record in records)), None)


def recognise(sources: Iterable[Source | UnreadableSource], forced: Format | None = None) -> Iterator[Found]:
    """What each file is, in order, and at the end of a folder or archive that it is refused if nothing was recognised.

    In folders and archives, files that are no JSON (pictures, pages) are passed over. `forced` decides about every file
    that was named itself, and about those in which it recognises something.
    """
    given: Path | None = None
    beside: list[Ignored | str] | None = None  # what the folder or archive has; None once there is more to say of it
    for source in sources:
        if isinstance(source, UnreadableSource):
            yield Refused(source.name, source.reason)
            continue
        if source.given != given:
            yield from _nothing_in(given, beside)
            given, beside = source.given, None if source.alone else []
        found = _look(source, forced)
        if isinstance(found, str):
            if beside is not None:
                beside.append(found)
            continue
        yield found
        if not isinstance(found, Ignored):
            beside = None
        elif beside is not None:
            beside.append(found)
    yield from _nothing_in(given, beside)


def _look(source: Source, forced: Format | None) -> Found | str:
    """What it is; for a file that need not be reported, its kind."""
    if source.kind != JSON:
        if hint := _hint(source):
            return Refused(source.name, hint) if source.alone else Ignored(source.name, hint)
        if source.alone:
            return Refused(source.name, _unknown(source.kind))
        return Ignored(source.name, source.kind) if source.kind.startswith(ZIP) else source.kind
    read = [0]
    records = source.records(lambda so_far: read.__setitem__(0, so_far))
    try:
        first = list(islice(records, LOOKED_AT))
    except UnreadableSource as exc:
        return Refused(exc.name, exc.reason)
    if forced is not None:
        known = forced if source.alone or any(forced.recognises(record.value) for record in first) else None
    elif unsupported := next(filter(None, (_unsupported(record.value) for record in first)), None):
        return Refused(source.name, f"this looks like {unsupported}, which is not supported")
    else:
        known = detect(first)
    if known is not None:
        try:
            if source.is_cut_off():
                return Refused(source.name, "it ends in the middle of its array: it is truncated; export it again")
        except UnreadableSource as exc:
            return Refused(exc.name, exc.reason)
        return Recognised(
            source.name,
            known,
            known.read(chain(first, records), source.origin),
            lambda: min(1.0, read[0] / max(1, source.size)),
        )
    found = describe(first)
    return Refused(source.name, _unknown(found)) if source.alone else Ignored(source.name, f"no conversations: {found}")


def describe(records: Sequence[Record]) -> str:
    """What a JSON file holds that begins with these records: `an array of objects with the keys id, name`."""
    if not records:
        return "an empty array"
    record = next((each for each in records if not isinstance(each.value, Malformed)), None)
    if record is None:
        return f"text that is almost JSON ({records[0].place} {records[0].value.reason})"
    value = record.value
    alone = record.place == "document"
    outer = "an array of " if record.place.startswith("element") else "" if alone else "lines of "
    if isinstance(value, dict):
        keys = [_shown(key) for key in islice(value, _KEYS)]
        told = f" with the keys {', '.join(keys)}{', …' if len(value) > _KEYS else ''}" if keys else " without keys"
        return f"{outer}{'an object' if alone else 'objects'}{told}"
    kinds = {list: "arrays", str: "strings", bool: "booleans", int: "numbers", float: "numbers"}
    return f"{outer or 'JSON with nothing but '}{kinds.get(type(value), 'null')}"


def _unsupported(value: Any) -> str | None:
    """The name of a program whose conversations are known to us by sight only."""
    if not isinstance(value, dict):
        return None
    conversations, messages = value.get("conversations"), value.get("messages")
    if isinstance(conversations, list) and any(
        isinstance(each, dict) and {"conversation", "responses"} <= each.keys() for each in conversations[:LOOKED_AT]
    ):
        return "a Grok export"
    for message in messages[:LOOKED_AT] if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, dict) and not content.keys().isdisjoint(("authorName", "authorAccountUuid")):
            return "a Claude design session"
    return None


def _hint(source: Source) -> str | None:
    name = source.origin.name.lower()
    if source.kind == HTML and name == "myactivity.html":
        return "an activity page of Google Takeout; choose JSON as the format in Takeout, and export My Activity again"
    if source.alone and source.kind == HTML and name == "chat.html":
        return "ChatGPT's page for reading; take conversations.json from the same export, or the whole zip archive"
    if source.alone and source.kind.endswith("archive"):
        return f"{source.kind}, which is not read; unpack it first"
    return None


def _nothing_in(given: Path | None, beside: list[Ignored | str] | None) -> Iterator[Refused]:
    if given is None or beside is None:
        return
    hints = [each for each in beside if isinstance(each, Ignored) and not each.reason.startswith("no conversations")]
    if hints:
        yield Refused(_shown(str(given), 200), hints[0].reason)
        return
    kinds = list(dict.fromkeys(each if isinstance(each, str) else each.reason.partition(": ")[2] for each in beside))
    more = f" and {len(kinds) - _FOUND} other kinds of files" if len(kinds) > _FOUND else ""
    yield Refused(_shown(str(given), 200), _unknown("; ".join(kinds[:_FOUND]) + more))


def _unknown(found: str) -> str:
    return f"no known format: found {found}; expected {', '.join(each.TITLE for each in FORMATS)}"


def _shown(text: str, most: int = _KEY_CHARS) -> str:
    """For a terminal, which would obey some characters."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text[:most])
