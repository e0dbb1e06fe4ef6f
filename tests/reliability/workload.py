"""Several users with several writers each, who do anything at once through any door of one store, by a seed.

What they do is recorded as it looks from outside: a call that was cancelled, or that was not answered, is unknown, and
is repeated with the same client_message_id, or left open.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.reliability.history import Call, Door, History, Made, Refused, Said, Unknown

Pause = Callable[[random.Random], Awaitable[None]]
"""Wait for a moment that chance chooses."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is done. `cancelled` and `abandoned` are shares of the calls, and of the unknown outcomes."""

    writers: int = 3
    conversations: int = 2
    steps: int = 16
    cancelled: float = 0.12
    abandoned: float = 0.4


# What a writer does next, and how often.
_WEIGHTS = {
    "say": 30,
    "say without id": 20,
    "say a batch": 12,
    "say at both doors": 8,
    "say on condition": 10,
    "repeat": 8,
    "repeat with another body": 5,
    "batch with another body": 4,
    "load": 10,
    "load the latest": 5,
    "list": 4,
    "create": 8,
    "intrude": 8,
}
_INSISTENCE = 40  # repeats before the run ends because something is never answered (chosen)


class Workload:
    """One history in the making. `doors` gives each user ways into the same store."""

    def __init__(
        self,
        history: History,
        seed: object,
        doors: Mapping[str, Sequence[Door]],
        *,
        clock: Callable[[], float],
        pause: Pause,
        plan: Plan | None = None,
    ) -> None:
        self.history, self.doors, self.clock, self.pause = history, doors, clock, pause
        self.plan, self.seed = plan or Plan(), seed
        self.own: dict[str, list[str]] = {user: [] for user in doors}
        self.creating: set[tuple[str, str]] = set()
        self.said: dict[str, list[tuple[Said, ...]]] = defaultdict(list)
        """What was said with ids in each conversation, a batch as it was sent."""
        self.open: list[tuple[str, str, tuple[Said, ...]]] = []
        self.last: dict[str, int] = defaultdict(int)
        self._texts = 0

    async def run(self) -> None:
        """Make each user's conversations, then let all writers go on at once."""
        chance = random.Random(f"{self.seed}/first")
        for user in self.doors:
            for number in range(self.plan.conversations):
                await self._insist_on_create(user, f"first {number}", chance)
        await asyncio.gather(
            *(self._writer(user, number) for user in self.doors for number in range(self.plan.writers))
        )

    async def finish(self) -> None:
        """When all has healed: settle half of what is open by repeating it, then look at everything for good."""
        chance = random.Random(f"{self.seed}/last")
        for user, conversation, said in self.open[::2]:
            call = Call(user=user, verb="append", start=0, conversation=conversation, said=said)
            await self._insist(call, chance)
        for user, key in sorted(self.creating):
            await self._insist_on_create(user, key, chance)
        for user in self.doors:
            await self._insist(Call(user=user, verb="list", start=0), chance)
            for conversation in self.own[user]:
                load = Call(user=user, verb="load", start=0, conversation=conversation, final=True)
                await self._insist(load, chance)
            for stranger in self.doors:
                if stranger != user:
                    for conversation in self.own[stranger]:
                        await self._call(Call(user=user, verb="load", start=0, conversation=conversation), chance)

    # ---- a writer --------------------------------------------------------------------------------------------------

    async def _writer(self, user: str, number: int) -> None:
        chance = random.Random(f"{self.seed}/{user}/{number}")
        ids: dict[str, int] = defaultdict(int)
        acts = chance.choices(list(_WEIGHTS), list(_WEIGHTS.values()), k=self.plan.steps)
        for act in acts:
            conversation = chance.choice(self.own[user])

            def named(conversation: str = conversation) -> str:
                ids[conversation] += 1  # counted in each conversation, so that two of them share ids
                return f"{number}-{ids[conversation]}"

            call = Call(user=user, verb="append", start=0, conversation=conversation)
            used = self.said[conversation]
            match act:
                case "say" | "say at both doors" | "say on condition":
                    call.said = (Said(self._text(user), named()),)
                case "say without id":
                    call.said = (Said(self._text(user)),)
                case "say a batch":
                    call.said = tuple(Said(self._text(user), named()) for _ in range(chance.randint(2, 4)))
                case "repeat" if used:
                    call.said = chance.choice(used)
                case "repeat with another body" if used:
                    call.said = (chance.choice(used)[0]._replace(content=self._text(user)),)
                case "batch with another body" if used:
                    taken = chance.choice(used)[-1]._replace(content=self._text(user))
                    call.said = (Said(self._text(user), named()), taken)
                case "load":
                    call.verb = "load"
                case "load the latest":
                    call.verb, call.latest = "load", chance.randint(1, 5)
                case "create":
                    call.verb, call.key, call.conversation = "create", f"more {chance.randrange(3)}", None
                    self.creating.add((user, call.key))
                case "intrude":
                    call.conversation = chance.choice(
                        [c for other, own in self.own.items() if other != user for c in own]
                    )
                    call.verb = chance.choice(["load", "append"])
                    call.said = (Said(self._text(user), named()),) if call.verb == "append" else ()
                    await self._call(call, chance)
                    continue
                case _:
                    call.verb, call.conversation = "list", None
            if act == "say on condition":
                call.expected = max(0, self.last[conversation] - chance.randrange(2))
            if act == "say at both doors":
                twin = Call(user=user, verb="append", start=0, conversation=conversation, said=call.said)
                await asyncio.gather(self._call(twin, chance, 0), self._call(call, chance, -1))
            else:
                await self._call(call, chance)
            if call.verb == "append":
                await self._settle(call, act, chance)

    async def _settle(self, call: Call, act: str, chance: random.Random) -> None:
        """Repeat what is unknown, or leave it open: a message without an id is never repeated."""
        conversation = call.conversation
        assert conversation is not None
        if any(said.client_message_id is None for said in call.said):
            return
        if not act.endswith("another body"):
            self.said[conversation].append(call.said)
        while call.outcome == "unknown":
            if chance.random() < self.plan.abandoned:
                self.open.append((call.user, conversation, call.said))
                return
            call = _again(call)
            await self._call(call, chance)

    def _text(self, user: str) -> str:
        self._texts += 1
        return f"{self.seed} {user} {self._texts}"

    # ---- a call ----------------------------------------------------------------------------------------------------

    async def _call(self, call: Call, chance: random.Random, door: int | None = None) -> None:
        """Make the call and record how it ended; perhaps cancel it."""
        doors = self.doors[call.user]
        chosen = chance.choice(doors) if door is None else doors[door]
        cancelled = chance.random() < self.plan.cancelled
        call.start = self.clock()
        work = asyncio.ensure_future(_answer(chosen, call))
        if cancelled:
            await self.pause(chance)
            work.cancel()
        try:
            self._note(call, await work)
            call.outcome = "acknowledged"
        except Refused as refused:
            call.outcome, call.code = "refused", refused.code
        except (Unknown, asyncio.CancelledError) as unknown:
            call.code = "cancelled" if isinstance(unknown, asyncio.CancelledError) else "unanswered"
        call.end = self.clock()
        self.history.calls.append(call)

    def _note(self, call: Call, answer: Any) -> None:
        match call.verb:
            case "create":
                made: Made = answer
                call.made = made
                if made.conversation not in self.own[call.user]:
                    self.own[call.user].append(made.conversation)
            case "append":
                call.receipts = tuple(answer)
                self._moved(call.conversation, *(receipt.seq for receipt in call.receipts))
            case "load":
                call.stored = tuple(answer)
                self._moved(call.conversation, *(message.seq for message in call.stored))
            case "list":
                call.listed = frozenset(answer)

    def _moved(self, conversation: str | None, *seqs: int) -> None:
        if conversation is not None:
            self.last[conversation] = max(self.last[conversation], *seqs, 0)

    async def _insist(self, call: Call, chance: random.Random) -> Call:
        """Make the call until it is answered.

        Raises:
            AssertionError: it was not, as often as that.
        """
        for _ in range(_INSISTENCE):
            await self._call(call, chance)
            if call.outcome != "unknown":
                return call
            await self.pause(chance)
            call = _again(call)
        raise AssertionError(f"{self.history.name}: a {call.verb} of {call.user} was never answered: {call.code}")

    async def _insist_on_create(self, user: str, key: str, chance: random.Random) -> None:
        await self._insist(Call(user=user, verb="create", start=0, key=key), chance)


def _again(call: Call) -> Call:
    return Call(
        user=call.user,
        verb=call.verb,
        start=0,
        conversation=call.conversation,
        said=call.said,
        expected=call.expected,
        key=call.key,
        final=call.final,
    )


async def _answer(door: Door, call: Call) -> Any:
    match call.verb:
        case "create":
            return await door.create(call.user, call.key or "")
        case "append":
            return await door.append(call.user, call.conversation or "", call.said, call.expected)
        case "load":
            return await door.load(call.user, call.conversation or "", call.latest)
        case "list":
            return await door.list_conversations(call.user)
