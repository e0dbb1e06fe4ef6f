"""Stores that are wrong in one way each. A checker that passes one of them proves nothing about the real store."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import ClassVar

from tests.reliability.history import UNAVAILABLE, Made, Receipt, Refused, Said, Stored, Unknown
from tests.reliability.model import Kept, Model


class Mutant(Model):
    """`caught_as` names the violations of which at least one must be found."""

    caught_as: ClassVar[set[str]]

    def __init__(self) -> None:
        super().__init__()
        self.chance = random.Random(5)

    def sometimes(self, share: float = 0.15) -> bool:
        return self.chance.random() < share


class OrderedByTime(Mutant):
    """Loads sort by a clock that two processes do not share exactly, and number what they find."""

    caught_as: ClassVar = {"unstable", "real time"}

    def now(self, kept: Kept) -> float:
        return next(self.clock) + self.chance.uniform(0, 6)

    def shown(self, kept: Kept) -> list[Stored]:
        ordered = sorted(kept.messages, key=lambda message: message.created_at)
        return [message._replace(seq=seq) for seq, message in enumerate(ordered, 1)]


class LostUpdate(Mutant):
    """The next number is read, and written a moment later: of two writers at once, one is overwritten."""

    caught_as: ClassVar = {"lost"}

    async def append(
        self, user: str, conversation: str, said: Sequence[Said], expected: int | None = None
    ) -> list[Receipt]:
        kept = self.owned(user, conversation)
        read = list(kept.messages)
        await asyncio.sleep(0)
        kept.messages = read
        return await super().append(user, conversation, said, expected)


class DoubledOnRetry(Mutant):
    """What was used as a key is forgotten after a while, so that a late repeat is a new message."""

    caught_as: ClassVar = {"doubled"}

    def prior(self, kept: Kept, said: Said) -> Stored | None:
        found = super().prior(kept, said)
        return None if found is not None and found.seq < len(kept.messages) - 3 else found


class KeyIgnored(Mutant):
    """Every call is a new message."""

    caught_as: ClassVar = {"doubled"}

    def prior(self, kept: Kept, said: Said) -> Stored | None:
        return None


class KeyWithoutBody(Mutant):
    """A key that was used gives the first receipt, whatever is said under it."""

    caught_as: ClassVar = {"key without body"}

    def prior(self, kept: Kept, said: Said) -> Stored | None:
        found = super().prior(kept, said)
        return None if found is None else found._replace(content=said.content)


class KeyOfTheUser(Mutant):
    """A key is looked for in all conversations of the user."""

    caught_as: ClassVar = {"lost", "wrong refusal"}

    def prior(self, kept: Kept, said: Said) -> Stored | None:
        own = [other for other in self.kept.values() if other.user == kept.user]
        return next((found for other in own if (found := super(KeyOfTheUser, self).prior(other, said))), None)


class Gap(Mutant):
    """A number is drawn from a sequence, and is gone when the append is refused."""

    caught_as: ClassVar = {"gap"}

    def __init__(self) -> None:
        super().__init__()
        self.gone: dict[str, int] = {}

    def now(self, kept: Kept) -> float:
        self.gone[kept.name] = self.gone.get(kept.name, 0) + self.sometimes(0.1)
        return super().now(kept)

    def add(self, kept: Kept, said: Said, now: float) -> Stored:
        stored = super().add(kept, said, now)
        kept.messages[-1] = stored._replace(seq=stored.seq + self.gone[kept.name])
        return kept.messages[-1]


class Unstable(Mutant):
    """Numbers are handed out anew when something is tidied up."""

    caught_as: ClassVar = {"unstable"}

    def add(self, kept: Kept, said: Said, now: float) -> Stored:
        stored = super().add(kept, said, now)
        if self.sometimes() and stored.seq > 2:
            one, other = kept.messages[-2:]
            kept.messages[-2:] = [other._replace(seq=one.seq), one._replace(seq=other.seq)]
        return stored


class Reserved(Mutant):
    """One process takes two numbers at a time, and uses the second one later: order by number is not order in time."""

    caught_as: ClassVar = {"real time", "gap"}

    def __init__(self) -> None:
        super().__init__()
        self.reserved: dict[str, list[int]] = {}
        self.next: dict[str, int] = {}

    def add(self, kept: Kept, said: Said, now: float) -> Stored:
        spare = self.reserved.setdefault(kept.name, [])
        if spare and self.sometimes(0.4):
            seq = spare.pop()
        else:
            seq = self.next.get(kept.name, 1)
            self.next[kept.name] = seq + 1
            if not spare and self.sometimes(0.4):
                spare.append(seq + 1)
                self.next[kept.name] += 1
        stored = Stored(seq, f"{kept.name}/{seq}", said.content, said.client_message_id, now)
        kept.messages.append(stored)
        kept.messages.sort()
        return stored


class StaleRead(Mutant):
    """Loads are answered by a replica, which the first of them after an append finds a little behind."""

    caught_as: ClassVar = {"stale"}

    def __init__(self) -> None:
        super().__init__()
        self.replicated: dict[str, int] = {}

    def shown(self, kept: Kept) -> list[Stored]:
        messages = super().shown(kept)
        behind = len(messages) > self.replicated.get(kept.name, 0)
        self.replicated[kept.name] = len(messages)
        return messages[:-1] if behind else messages


class LostAcknowledged(Mutant):
    """The answer comes before the message is safe, and sometimes the machine ends in between."""

    caught_as: ClassVar = {"lost", "stale"}

    async def append(
        self, user: str, conversation: str, said: Sequence[Said], expected: int | None = None
    ) -> list[Receipt]:
        receipts = await super().append(user, conversation, said, expected)
        if self.sometimes(0.05) and receipts[-1].seq == len(self.kept[conversation].messages):
            self.kept[conversation].messages.pop()
        return receipts


class Phantom(Mutant):
    """A message appears that nobody sent."""

    caught_as: ClassVar = {"phantom"}

    def add(self, kept: Kept, said: Said, now: float) -> Stored:
        stored = super().add(kept, said, now)
        if self.sometimes(0.05):
            super().add(kept, Said(f"nobody said {stored.seq}"), now)
        return stored


class Misplaced(Mutant):
    """A message ends up in another conversation of the same user as well."""

    caught_as: ClassVar = {"phantom"}

    def add(self, kept: Kept, said: Said, now: float) -> Stored:
        if self.sometimes(0.05):
            super().add(next(other for other in self.kept.values() if other.user == kept.user), said, now)
        return super().add(kept, said, now)


class HalfBatch(Mutant):
    """A batch is stored message by message, and others may look in between."""

    caught_as: ClassVar = {"half batch"}

    async def append(
        self, user: str, conversation: str, said: Sequence[Said], expected: int | None = None
    ) -> list[Receipt]:
        receipts = []
        for one in said:
            receipts += await super().append(user, conversation, [one], expected)
            expected = None
            await asyncio.sleep(0)
        return receipts


class HalfBatchKept(Mutant):
    """A batch that is refused leaves what came before the message for which it was."""

    caught_as: ClassVar = {"half batch", "refused but done"}

    async def append(
        self, user: str, conversation: str, said: Sequence[Said], expected: int | None = None
    ) -> list[Receipt]:
        try:
            return await super().append(user, conversation, said, expected)
        except Refused as refused:
            if refused.code == "idempotency_conflict" and len(said) > 1:
                await super().append(user, conversation, said[:1])
            raise


class ClockBackwards(Mutant):
    """The machine's clock is set back now and then, and the store believes it."""

    caught_as: ClassVar = {"clock"}

    def now(self, kept: Kept) -> float:
        return next(self.clock) - (50 if self.sometimes() else 0)


class RefusedButDone(Mutant):
    """The condition is looked at when the message is already stored."""

    caught_as: ClassVar = {"refused but done"}

    async def append(
        self, user: str, conversation: str, said: Sequence[Said], expected: int | None = None
    ) -> list[Receipt]:
        receipts = await super().append(user, conversation, said)
        if expected is not None and receipts[0].seq != expected + 1 and not receipts[0].deduplicated:
            raise Refused("sequence_conflict")
        return receipts


class ConditionIgnored(Mutant):
    """expected_last_seq is not looked at."""

    caught_as: ClassVar = {"condition ignored"}

    async def append(
        self, user: str, conversation: str, said: Sequence[Said], expected: int | None = None
    ) -> list[Receipt]:
        return await super().append(user, conversation, said)


class ReceiptOfAnother(Mutant):
    """The answers of two calls are exchanged."""

    caught_as: ClassVar = {"wrong receipt"}

    def receipt(self, kept: Kept, said: Said, stored: Stored | None, repeated: bool) -> Receipt:
        return super().receipt(kept, said, kept.messages[-1] if self.sometimes(0.3) else stored, repeated)


class UnstableReceipt(Mutant):
    """A repeat of what is stored gets a receipt of its own making."""

    caught_as: ClassVar = {"unstable receipt"}

    def receipt(self, kept: Kept, said: Said, stored: Stored | None, repeated: bool) -> Receipt:
        receipt = super().receipt(kept, said, stored, repeated)
        return receipt._replace(id=receipt.id + "'") if repeated else receipt


class CrossUserRead(Mutant):
    """Whose conversation it is is not looked at when it is loaded."""

    caught_as: ClassVar = {"foreign"}

    async def load(self, user: str, conversation: str, latest: int | None = None) -> list[Stored]:
        kept = self.kept.get(conversation)
        return await super().load(user if kept is None else kept.user, conversation, latest)


class CrossUserWrite(Mutant):
    """Whose conversation it is is not looked at when something is appended."""

    caught_as: ClassVar = {"foreign"}

    async def append(
        self, user: str, conversation: str, said: Sequence[Said], expected: int | None = None
    ) -> list[Receipt]:
        kept = self.kept.get(conversation)
        return await super().append(user if kept is None else kept.user, conversation, said, expected)


class ExistenceTold(Mutant):
    """What is another's is refused otherwise than what does not exist."""

    caught_as: ClassVar = {"foreign"}

    def owned(self, user: str, conversation: str) -> Kept:
        kept = self.kept.get(conversation)
        if kept is not None and kept.user != user:
            raise Refused("forbidden")
        return super().owned(user, conversation)


class ForeignListed(Mutant):
    """A list forgets whose it is when it is long."""

    caught_as: ClassVar = {"foreign"}

    async def list_conversations(self, user: str) -> list[str]:
        return list(self.kept) if self.sometimes() else await super().list_conversations(user)


class NotListed(Mutant):
    """Lists come from a cache that learns of a conversation late."""

    caught_as: ClassVar = {"not listed"}

    async def list_conversations(self, user: str) -> list[str]:
        return (await super().list_conversations(user))[: -1 if self.sometimes() else None]


class ConversationKeyIgnored(Mutant):
    """Each create makes another conversation."""

    caught_as: ClassVar = {"key ignored"}

    async def create(self, user: str, key: str) -> Made:
        return await super().create(user, f"{key} {self.chance.random()}")


class NumberReused(Mutant):
    """Two creates at once count the same conversations."""

    caught_as: ClassVar = {"number reused"}

    async def create(self, user: str, key: str) -> Made:
        made = await super().create(user, key)
        return made._replace(number=max(1, made.number - 1))


class Forgetful(Mutant):
    """A conversation is not found for a moment, by its own user."""

    caught_as: ClassVar = {"wrong refusal"}

    def owned(self, user: str, conversation: str) -> Kept:
        if self.sometimes(0.05):
            raise Refused(UNAVAILABLE)
        return super().owned(user, conversation)


class Fragile(Mutant):
    """What nobody foresaw becomes an internal error."""

    caught_as: ClassVar = {"wrong refusal"}

    def now(self, kept: Kept) -> float:
        if self.sometimes(0.05):
            raise Refused("internal")
        return super().now(kept)


class Torn(Mutant):
    """An append that fails in its middle has stored some of its messages, and a repeat adds the rest elsewhere."""

    caught_as: ClassVar = {"half batch"}

    async def append(
        self, user: str, conversation: str, said: Sequence[Said], expected: int | None = None
    ) -> list[Receipt]:
        if len(said) > 1 and self.sometimes(0.3):
            await super().append(user, conversation, said[:1], expected)
            raise Unknown
        return await super().append(user, conversation, said, expected)


MUTANTS: list[type[Mutant]] = Mutant.__subclasses__()
