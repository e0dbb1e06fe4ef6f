"""What was asked of a store and what it answered, as those who asked saw it: the evidence that the checker judges.

A door is a way into a store: one of its processes, or one instance of it. All doors of a store must give one answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

Verb: TypeAlias = Literal["create", "append", "load", "list"]
Outcome: TypeAlias = Literal["acknowledged", "refused", "unknown"]
UNAVAILABLE = "conversation_unavailable"


class Said(NamedTuple):
    """A message as it is sent. Its content is unique in a history: by it a stored one is recognised."""

    content: str
    client_message_id: str | None = None


class Receipt(NamedTuple):
    """What an append answered for one message."""

    seq: int
    id: str
    created_at: Any
    deduplicated: bool


class Stored(NamedTuple):
    """A message as a load shows it."""

    seq: int
    id: str
    content: str
    client_message_id: str | None
    created_at: Any


class Made(NamedTuple):
    """What a create answered."""

    conversation: str
    number: int
    created: bool


class Refused(Exception):
    """The store said no, which promises that nothing was done."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Unknown(Exception):
    """No answer, or one that leaves it open whether anything was done."""


class Door(Protocol):
    """What a history needs of a store. Any method may raise Refused, or Unknown."""

    async def create(self, user: str, key: str) -> Made: ...

    async def append(
        self, user: str, conversation: str, said: Sequence[Said], expected: int | None = None
    ) -> list[Receipt]: ...

    async def load(self, user: str, conversation: str, latest: int | None = None) -> list[Stored]:
        """All messages, or the `latest` so many, oldest first."""
        ...

    async def list_conversations(self, user: str) -> list[str]: ...


@dataclass(slots=True, kw_only=True)
class Call:
    """One call: who, when, what, and how it ended. Times are of one clock, whoever called."""

    user: str
    verb: Verb
    start: float
    end: float = 0.0
    outcome: Outcome = "unknown"
    code: str | None = None
    conversation: str | None = None
    said: tuple[Said, ...] = ()
    expected: int | None = None
    key: str | None = None
    latest: int | None = None
    receipts: tuple[Receipt, ...] = ()
    stored: tuple[Stored, ...] = ()
    listed: frozenset[str] = frozenset()
    made: Made | None = None
    final: bool = False
    """A load by the owner when everything had healed and nothing was under way: it is the truth."""


@dataclass(slots=True)
class History:
    """All calls of a run, in no order, and what to call it."""

    name: str
    calls: list[Call] = field(default_factory=list)

    def count(self, outcome: Outcome, verb: Verb | None = None) -> int:
        return sum(call.outcome == outcome and verb in (None, call.verb) for call in self.calls)

    def acknowledged_messages(self) -> int:
        """How many different messages were acknowledged."""
        return len({said.content for call in self.calls if call.receipts for said in call.said})
