"""A store in memory that keeps the contract's guarantees: what the checker must pass, and what its mutants break."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.reliability.history import UNAVAILABLE, Made, Receipt, Refused, Said, Stored


@dataclass
class Kept:
    """A conversation."""

    name: str
    user: str
    number: int
    key: str
    messages: list[Stored] = field(default_factory=list)


class Model:
    """Every method is one atomic step: there is no await in it. What a mutant may replace are the small ones below."""

    def __init__(self) -> None:
        self.kept: dict[str, Kept] = {}
        self.clock = itertools.count(1)

    async def create(self, user: str, key: str) -> Made:
        own = [kept for kept in self.kept.values() if kept.user == user]
        for kept in own:
            if kept.key == key:
                return Made(kept.name, kept.number, False)
        kept = Kept(f"{user}/{len(own) + 1}", user, len(own) + 1, key)
        self.kept[kept.name] = kept
        return Made(kept.name, kept.number, True)

    async def append(
        self, user: str, conversation: str, said: Sequence[Said], expected: int | None = None
    ) -> list[Receipt]:
        kept = self.owned(user, conversation)
        prior = {one: self.prior(kept, one) for one in said}
        if any(found is not None and found.content != one.content for one, found in prior.items()):
            raise Refused("idempotency_conflict")
        new = [one for one in said if prior[one] is None]
        if new and expected is not None and expected != len(kept.messages):
            raise Refused("sequence_conflict")
        now = self.now(kept)
        for one in new:
            prior[one] = self.add(kept, one, now)
        return [self.receipt(kept, one, prior[one], one not in new) for one in said]

    async def load(self, user: str, conversation: str, latest: int | None = None) -> list[Stored]:
        messages = self.shown(self.owned(user, conversation))
        return messages if latest is None else messages[-latest:]

    async def list_conversations(self, user: str) -> list[str]:
        return [kept.name for kept in self.kept.values() if kept.user == user]

    # ---- what mutants replace --------------------------------------------------------------------------------------

    def owned(self, user: str, conversation: str) -> Kept:
        kept = self.kept.get(conversation)
        if kept is None or kept.user != user:
            raise Refused(UNAVAILABLE)
        return kept

    def prior(self, kept: Kept, said: Said) -> Stored | None:
        if said.client_message_id is None:
            return None
        return next((found for found in kept.messages if found.client_message_id == said.client_message_id), None)

    def now(self, kept: Kept) -> float:
        return next(self.clock)

    def add(self, kept: Kept, said: Said, now: float) -> Stored:
        seq = len(kept.messages) + 1
        stored = Stored(seq, f"{kept.name}/{seq}", said.content, said.client_message_id, now)
        kept.messages.append(stored)
        return stored

    def receipt(self, kept: Kept, said: Said, stored: Stored | None, repeated: bool) -> Receipt:
        assert stored is not None
        return Receipt(stored.seq, stored.id, stored.created_at, repeated)

    def shown(self, kept: Kept) -> list[Stored]:
        return list(kept.messages)
