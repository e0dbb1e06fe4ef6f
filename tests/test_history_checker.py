"""The checker of histories passes a store that is right, and catches each that is wrong in one way."""

from __future__ import annotations

from typing import Any

import pytest

from tests.reliability.checker import violations
from tests.reliability.history import UNAVAILABLE, Call, History, Made, Receipt, Said, Stored
from tests.reliability.model import Model
from tests.reliability.mutants import MUTANTS, Mutant
from tests.reliability.simulated import simulate

SEEDS = range(50)
ENDLESS = float("inf")  # ticks are no seconds
WANTED_UNKNOWN = 20  # a history with fewer unknown outcomes tested nothing


def test_50_histories_of_a_right_store_are_right_and_each_had_more_than_20_unknown_outcomes() -> None:
    for seed in SEEDS:
        history = simulate(Model(), seed)
        assert violations(history, deadline=ENDLESS) == []
        assert history.count("unknown") > WANTED_UNKNOWN, history.name
        assert history.count("acknowledged", "append") > WANTED_UNKNOWN
        assert history.count("refused") > 0


def test_a_seed_makes_the_same_history_again() -> None:
    assert simulate(Model(), 7).calls == simulate(Model(), 7).calls


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_wrong_store_is_caught_in_nearly_every_history(mutant: type[Mutant]) -> None:
    found = [
        {violation.kind for violation in violations(simulate(mutant(), seed), deadline=ENDLESS)} for seed in range(6)
    ]
    assert sum(bool(mutant.caught_as & kinds) for kinds in found) >= 5, found


def test_there_are_mutants_enough_and_none_is_caught_for_the_mere_running() -> None:
    assert len(MUTANTS) >= 16
    assert len({mutant.__doc__ for mutant in MUTANTS}) == len(MUTANTS)
    kinds = set().union(*(mutant.caught_as for mutant in MUTANTS))
    assert {"lost", "doubled", "phantom", "gap", "stale", "foreign", "refused but done", "half batch", "clock"} <= kinds


# ---- rules that no mutant can break alone: histories by hand ---------------------------------------------------------


def story(*calls: Call, truth: tuple[Stored, ...] = ()) -> list[str]:
    """The kinds of violation in a history of one conversation of alice's that ends with this truth."""
    create = Call(user="alice", verb="create", start=0, end=1, outcome="acknowledged", made=Made("c", 1, True), key="k")
    last = Call(
        user="alice",
        verb="load",
        conversation="c",
        start=98,
        end=99,
        outcome="acknowledged",
        stored=truth,
        final=True,
    )
    return [violation.kind for violation in violations(History("by hand", [create, *calls, last]))]


def said(content: str, start: float, end: float, **more: Any) -> Call:
    """An append of alice's."""
    return Call(user="alice", verb="append", conversation="c", start=start, end=end, said=(Said(content),), **more)


def seen(seq: int, content: str) -> Stored:
    return Stored(seq, f"id {content}", content, None, seq)


def at(seq: int, content: str) -> dict[str, Any]:
    return {"outcome": "acknowledged", "receipts": (Receipt(seq, f"id {content}", seq, False),)}


def test_a_call_that_takes_longer_than_the_deadline_is_late_however_it_ends() -> None:
    assert story(said("a", 2, 32.5)) == ["late"]
    assert story(said("a", 2, 31.5)) == []


def test_order_in_real_time_holds_for_messages_whose_outcome_was_unknown_too() -> None:
    truth = (seen(1, "b"), seen(2, "a"))
    assert story(said("a", 2, 3, **at(2, "a")), said("b", 4, 5), truth=truth) == ["real time"]
    assert story(said("a", 2, 5, **at(2, "a")), said("b", 4, 6), truth=truth) == []


def test_a_message_that_a_load_showed_is_known_from_then_on() -> None:
    load = Call(user="alice", verb="load", conversation="c", start=3, end=4, outcome="acknowledged")
    load.stored = (seen(1, "a"),)
    later = Call(user="alice", verb="load", conversation="c", start=5, end=6, outcome="acknowledged")
    assert story(said("a", 2, 9), load, later, truth=(seen(1, "a"),)) == ["stale"]
    later.start = 3.5
    assert story(said("a", 2, 9), load, later, truth=(seen(1, "a"),)) == []


def test_a_message_cannot_be_shown_before_it_was_said() -> None:
    early = Call(user="alice", verb="load", conversation="c", start=2, end=3, outcome="acknowledged")
    early.stored = (seen(1, "a"),)
    assert "phantom" in story(early, said("a", 4, 5, **at(1, "a")), truth=(seen(1, "a"),))


def test_receipts_must_be_as_many_as_the_messages() -> None:
    assert story(said("a", 2, 3, outcome="acknowledged"), truth=(seen(1, "a"),)) == ["wrong receipt"]


def test_a_refusal_without_a_reason_is_wrong() -> None:
    for code in (UNAVAILABLE, "idempotency_conflict", "sequence_conflict", "internal", "invalid_argument"):
        assert story(said("a", 2, 3, outcome="refused", code=code)) == ["wrong refusal"]


def test_a_history_without_a_last_look_at_a_conversation_proves_nothing() -> None:
    create = Call(user="alice", verb="create", start=0, end=1, outcome="acknowledged", made=Made("c", 1, True), key="k")
    with pytest.raises(ValueError, match="has no final load"):
        violations(History("unfinished", [create]))
