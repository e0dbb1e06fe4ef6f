"""What the comparison with other stores counts: what is there of what was acknowledged, and every error."""

from collections import Counter
from collections.abc import Sequence

from benchmarks.peers import nothing
from benchmarks.peers.storage_rates import burst

NAMES = ["one"] * 8


class Forgetful:
    """Keeps what its last writer saw and wrote, as who reads, adds and writes without a lock does."""

    def __init__(self) -> None:
        self.stored: list[str] = []

    async def conversation(self, name: str) -> "Forgetful.View":
        return Forgetful.View(self)

    class View:
        def __init__(self, store: "Forgetful") -> None:
            self.store, self.seen = store, list(store.stored)

        async def append(self, content: str, message_id: str | None = None) -> None:
            self.seen.append(content)
            self.store.stored = list(self.seen)

        async def extend(self, contents: Sequence[str]) -> None:
            self.seen.extend(contents)

        async def load(self) -> list[str]:
            return self.store.stored


class Refusing(Forgetful):
    """Each view takes one append, as one that is held while others write."""

    opened = 0

    async def conversation(self, name: str) -> "Refusing.View":
        self.opened += 1
        return Refusing.View(self)

    class View(Forgetful.View):
        used = False

        async def append(self, content: str, message_id: str | None = None) -> None:
            if self.used:
                raise RuntimeError("stale")
            self.used = True
            self.store.stored.append(content)


async def test_a_store_that_keeps_everything_has_lost_nothing() -> None:
    async with nothing.opened("", False) as store:
        seen = await burst(store, NAMES, 0)
    assert (seen.acknowledged, seen.lost, seen.errors) == (8, 0, Counter())
    assert seen.rate > 0


async def test_what_was_acknowledged_and_is_not_there_is_lost_and_not_part_of_the_rate() -> None:
    seen = await burst(Forgetful(), NAMES, 0)
    assert (seen.acknowledged, seen.lost) == (8, 7)


async def test_who_is_refused_opens_the_conversation_anew_and_the_refusals_are_counted() -> None:
    store = Refusing()
    seen = await burst(store, NAMES, 0.01)
    refused = seen.errors["RuntimeError"]
    assert refused > 0
    assert store.opened == len(NAMES) + refused + 1  # the last is who counts what is there
    assert (seen.lost, seen.acknowledged) == (0, len(store.stored))
