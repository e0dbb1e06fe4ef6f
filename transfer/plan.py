"""What an import does about one conversation: a pure comparison of what is stored with what its source has.

A stored conversation is never rewritten. A path of the source that continues a stored one lengthens it; one that leaves
it becomes a fork, keyed by the first message that is its own, so that it is found again when it has grown, or when
another branch has become the active one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias
from uuid import UUID

from pydantic_core import to_json

from chatledger.storage.ids import uuid7
from chatledger.storage.records import ForkOrigin, Growth, StoredPath, WholeConversation, WholeMessage
from chatledger.transfer.preparation import PreparedConversation, PreparedMessage

Lookup: TypeAlias = str | UUID
"""A conversation's key or, where our own format brings it, its id."""


@dataclass(slots=True)
class _Line:
    """A conversation as a sequence of messages: stored, about to be, or both."""

    id: UUID
    key: str | None
    identities: list[str | None]
    stored: StoredPath | None
    origin: ForkOrigin | None = None
    path: list[PreparedMessage] = field(default_factory=list)
    """All of it where it is new; what is added where it is stored."""


@dataclass(slots=True)
class Plan:
    """What is to be stored for one conversation of a source."""

    prepared: PreparedConversation
    main: UUID | None = None
    """The conversation that the source's own becomes; None where it has no messages."""
    number: int | None = None
    """Its number, where it is stored already."""
    new: list[WholeConversation] = field(default_factory=list)
    grown: list[Growth] = field(default_factory=list)
    wanted: set[Lookup] = field(default_factory=set)
    """What must be looked up in the store, beyond what was known, before this plan may be carried out."""
    after: list[StoredPath] = field(default_factory=list)
    """What the store would tell of those that change, once they have."""
    active_is_fork: bool = False
    """The source's active branch has left what is stored, and is one of the forks now."""

    @property
    def messages(self) -> int:
        """How many messages are added, those that forks share with others among them."""
        return sum(len(each.messages) for each in self.new) + sum(len(each.messages) for each in self.grown)


def make_plan(prepared: PreparedConversation, known: Mapping[Lookup, StoredPath | None], now: datetime) -> Plan:
    """A plan for what `known` tells of the store: a path, or None where there is no such conversation."""
    plan = Plan(prepared)
    if prepared.lookup not in known:
        plan.wanted.add(prepared.lookup)
        return plan
    lines = _Lines()
    if stored := known[prepared.lookup]:
        main = lines.take(_Line(stored.id, stored.key, list(stored.identities), stored))
        plan.number = stored.number
    elif prepared.paths[0] or prepared.native is not None:
        main_id = uuid7() if prepared.native is None else prepared.native.id
        origin = None if prepared.native is None else prepared.native.forked_from
        main = lines.take(_Line(main_id, prepared.key, [], None, origin))
        lines.lengthen(main, prepared.paths[0])
    else:
        return plan
    plan.main = main.id
    for place, path in enumerate(prepared.paths):
        line = _settle(path, main, lines, known, plan)
        plan.active_is_fork |= place == 0 and line is not main
    if not plan.wanted:
        _write_down(plan, lines, now)
    return plan


def _settle(
    path: list[PreparedMessage], main: _Line, lines: _Lines, known: Mapping[Lookup, StoredPath | None], plan: Plan
) -> _Line:
    """Have one conversation begin with the path: one that has it, one that it lengthens, or a new fork."""
    while True:
        line, shared = lines.nearest(path)
        if shared == len(path):
            return line
        if shared == len(line.identities):
            lines.lengthen(line, path[shared:])
            return line
        key = plan.prepared.fork_key(path[shared])
        if key not in known:
            plan.wanted.add(key)
        fork = known.get(key)
        if fork is None or any(line.stored is fork for line in lines.all):
            break
        lines.take(_Line(fork.id, key, list(fork.identities), fork))  # it may be nearer: look again
    line = lines.take(_Line(uuid7(), key, [], None, ForkOrigin(main.id, _shared(main.identities, path))))
    lines.lengthen(line, path)
    return line


class _Lines:
    """The conversations of one source conversation, found by the messages in them."""

    def __init__(self) -> None:
        self.all: list[_Line] = []
        self._having: dict[tuple[int, str | None], list[_Line]] = {}

    def take(self, line: _Line) -> _Line:
        self.all.append(line)
        for place, identity in enumerate(line.identities):
            self._having.setdefault((place, identity), []).append(line)
        return line

    def lengthen(self, line: _Line, messages: list[PreparedMessage]) -> None:
        for message in messages:
            self._having.setdefault((len(line.identities), message.identity), []).append(line)
            line.identities.append(message.identity)
        line.path += messages

    def nearest(self, path: list[PreparedMessage]) -> tuple[_Line, int]:
        """The one that has most of the path's beginning, and how much; rather one that ends there."""
        for place in range(len(path) - 1, -1, -1):
            having = self._having.get((place, path[place].identity), ())
            for line in sorted(having, key=lambda line: len(line.identities) != place + 1):
                if _shared(line.identities, path) > place:
                    return line, place + 1
        return next((line for line in self.all if not line.identities), self.all[0]), 0


def _shared(identities: list[str | None], path: list[PreparedMessage]) -> int:
    """How many messages the two have in common from the first one on."""
    count = 0
    for identity, message in zip(identities, path, strict=False):
        if identity != message.identity:
            break
        count += 1
    return count


# ---- rows -----------------------------------------------------------------------------------------------------------


def _write_down(plan: Plan, lines: _Lines, now: datetime) -> None:
    prepared = plan.prepared
    ceiling = None if prepared.native is not None else now
    for line in lines.all:
        if line.path or line.stored is None:
            plan.after.append(StoredPath(line.id, 0, line.key, line.identities, None))
        if line.stored is not None:
            if line.path:
                earliest = _begun(prepared, line.path, now, ceiling)
                messages = _rows(line, len(line.stored.identities), earliest, line.stored.last_created_at, ceiling)
                updated_at = messages[-1].created_at
                if line.id == plan.main:
                    updated_at = max(updated_at, _at_most(prepared.updated_at, ceiling) or updated_at)
                plan.grown.append(Growth(line.id, len(line.stored.identities), updated_at, messages))
            continue
        plan.new.append(_whole(plan, line, now, ceiling))


def _whole(plan: Plan, line: _Line, now: datetime, ceiling: datetime | None) -> WholeConversation:
    prepared, main = plan.prepared, line.id == plan.main
    begun = _begun(prepared, line.path, now, ceiling)
    messages = _rows(line, 0, begun, None, ceiling)
    if not main and line.origin is not None and line.origin.seq < len(messages):
        begun = messages[line.origin.seq].created_at  # a fork begins with the first message of its own
    last = messages[-1].created_at if messages else begun
    native = prepared.native if main else None
    archived_at = native.archived_at if native is not None else None
    updated_at = max(begun, last)
    if main:
        updated_at = max(updated_at, _at_most(prepared.updated_at, ceiling) or updated_at)
        if prepared.archived and archived_at is None:
            archived_at = updated_at
    return WholeConversation(
        id=line.id,
        number=None if native is None else native.number,
        key=line.key,
        title=prepared.title,
        metadata=prepared.metadata,
        archived_at=archived_at,
        forked_from=line.origin,
        created_at=begun,
        updated_at=updated_at,
        messages=messages,
    )


def _begun(
    prepared: PreparedConversation, own: list[PreparedMessage], now: datetime, ceiling: datetime | None
) -> datetime:
    first = next((message.created_at for message in own if message.created_at is not None), None)
    return _at_most(prepared.created_at or first or prepared.updated_at, ceiling) or now


def _at_most(time: datetime | None, ceiling: datetime | None) -> datetime | None:
    return time if time is None or ceiling is None else min(time, ceiling)


def _rows(
    line: _Line, stored: int, earliest: datetime, floor: datetime | None, ceiling: datetime | None
) -> list[WholeMessage]:
    """The messages as rows; `stored` are there before them, the last at `floor`.

    A time never lies before the one in front of it, nor in the future of this machine; one that did is kept in the
    metadata. A message without a time has that of the one in front of it, the first one `earliest`.
    """
    rows = []
    for seq, message in enumerate(line.path, stored + 1):
        time = message.created_at or floor or earliest
        if ceiling is not None and time > ceiling:
            time = ceiling
        if floor is not None and time < floor:
            time = floor
        floor = time
        metadata = message.metadata
        if message.created_at is not None and time != message.created_at:
            metadata = {**(metadata or {}), "source_created_at": message.created_at.isoformat()}
        rows.append(
            WholeMessage(
                line.id,
                seq,
                message.id or uuid7(),
                message.role,
                message.content,
                message.tool_calls,
                message.tool_call_id,
                message.name,
                message.parts,
                None if metadata is None else to_json(metadata).decode(),
                message.client_message_id,
                time,
            )
        )
    return rows
