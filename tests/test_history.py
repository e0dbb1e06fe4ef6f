"""A window is a slice of the conversation that cuts no tool exchange, and windows that follow each other tile it."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chatledger.storage import ConversationStore, NewMessage
from chatledger.storage.errors import InvalidArgument
from chatledger.storage.history import Cut, Trace, call_ids, cut, exchanges
from chatledger.storage.records import HistoryWindow
from tests.conftest import database_at, run_sql

END = 2**63 - 1


def said(text: str = "hello") -> NewMessage:
    return NewMessage(role="user", content=text)


def calls(*ids: str | None, text: str = "ok") -> NewMessage:
    """An assistant message that makes these calls; None is a call without an id."""
    made = [{"name": "f"} if call is None else {"id": call} for call in ids]
    return NewMessage(role="assistant", content=text, tool_calls=made)


def result(call: str | None, text: str = "sunny") -> NewMessage:
    return NewMessage(role="tool", content=text, tool_call_id=call)


# ---- the oracle, which looks at the whole conversation for every question ------------------------------------------


def exchanges_in(messages: Sequence[NewMessage]) -> list[set[int]]:
    """The tool exchanges: the seqs of each call and of the results that answer it."""
    belongs: dict[int, int] = {}
    callers = [seq for seq, m in enumerate(messages, 1) if m.role == "assistant" and m.tool_calls is not None]
    for seq, message in enumerate(messages, 1):
        if message.role != "tool":
            continue
        if message.tool_call_id is None:
            found = [seq - 1] if seq - 1 in callers else [belongs[seq - 1]] if seq - 1 in belongs else []
        else:
            answered = {"id": message.tool_call_id}
            found = [call for call in callers if call < seq and answered in (messages[call - 1].tool_calls or [])]
        if found:
            belongs[seq] = found[-1]
    return [{call, *(seq for seq, of in belongs.items() if of == call)} for call in sorted(set(belongs.values()))]


def tokens(message: NewMessage, *, full: bool) -> int:
    fields = [message.tool_calls, message.parts if full else None, message.metadata if full else None]
    texts = [message.content, *(json.dumps(field, ensure_ascii=False) for field in fields if field is not None)]
    octets = sum(len(text.encode()) for text in texts)
    return 4 + -(-octets // 4)


@dataclass
class Request:
    after: int | None = None
    before: int | None = None
    limit: int = 1_000
    budget: int = 200_000
    full: bool = False


def expected(messages: list[NewMessage], ask: Request) -> tuple[int, int, tuple[int, int] | None]:
    """First and last message of the window, and the exchange left out, by the definition.

    Between the bounds, moved out of the exchanges that they cut: the largest whole run from the near end that fits, or
    the smallest one where none does.
    """
    spans = exchanges_in(messages)

    def cuts(place: int) -> bool:
        return any(min(span) <= place < max(span) for span in spans)

    def around(place: int) -> tuple[int, int]:
        first, last = place, place + 1
        while cuts(first - 1):
            first -= 1
        while cuts(last):
            last += 1
        return first, last

    def fits(first: int, last: int) -> bool:
        run = messages[first - 1 : last]
        return len(run) <= ask.limit and sum(tokens(message, full=ask.full) for message in run) <= ask.budget

    low, left_out = ask.after or 0, None
    high = len(messages) if ask.before is None else max(0, min(ask.before - 1, len(messages)))
    if low >= high:
        return min(low, high) + 1, min(low, high), None
    while ask.after is None and cuts(high):
        left_out, high = left_out or around(high), high - 1
    while ask.after is not None and cuts(low):
        left_out, low = left_out or around(low), low + 1
    if ask.after is None:
        runs = [(first, high) for first in range(high, low, -1) if not cuts(first - 1)]
    else:
        runs = [(low + 1, last) for last in range(low + 1, high + 1) if not cuts(last)]
    if not runs:
        place = high if ask.after is None else min(low, len(messages))
        return place + 1, place, left_out or (around(high) if ask.after is not None and low < high else None)
    first, last = [runs[0], *(run for run in runs if fits(*run))][-1]
    if last < high and fits(first, high):
        left_out = left_out or around(high)
    return first, last, left_out


# ---- against Postgres ----------------------------------------------------------------------------------------------


class Shelf:
    """One store for many conversations, for tests that make hundreds of them."""

    def __init__(self, runner: asyncio.Runner, url: str) -> None:
        self.runner = runner
        self.store = ConversationStore.at(url)

    def put(self, messages: list[NewMessage]) -> int:
        async def filled() -> int:
            made, _ = await self.store.create_conversation("alice")
            for start in range(0, len(messages), 100):
                await self.store.append_messages("alice", made.number, messages[start : start + 100])
            return made.number

        return self.runner.run(filled())

    def load(self, number: int, ask: Request) -> HistoryWindow:
        return self.runner.run(
            self.store.load_history(
                "alice",
                number,
                after_seq=ask.after,
                before_seq=ask.before,
                limit=ask.limit,
                max_tokens=ask.budget,
                detail="full" if ask.full else "concise",
            )
        )


@pytest.fixture(scope="module")
def shelf(postgres_url: str, template: str) -> Iterator[Shelf]:
    name = f"chatledger_history_{secrets.token_hex(4)}"
    run_sql(postgres_url, f"CREATE DATABASE {name} TEMPLATE {template}")
    with asyncio.Runner() as runner:
        opened = Shelf(runner, database_at(postgres_url, name))
        yield opened
        runner.run(opened.store.aclose())
    run_sql(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


TEXTS = st.sampled_from(["x", "é" * 20, "y" * 150])
IDS = st.sampled_from(["a", "b", "c", None])
MESSAGES = st.lists(
    st.one_of(
        st.builds(said, TEXTS),
        st.builds(lambda text: NewMessage(role="assistant", content=text, metadata={"m": text}), TEXTS),
        st.builds(lambda ids, text: calls(*ids, text=text), st.lists(IDS, max_size=3), TEXTS),
        st.builds(result, IDS, TEXTS),
        st.builds(result, IDS, TEXTS),
    ),
    max_size=20,
)
PLACES = st.none() | st.integers(0, 22)
REQUESTS = st.builds(Request, PLACES, PLACES, st.integers(1, 12), st.integers(1, 200), st.booleans())
PACES = st.builds(Request, limit=st.integers(1, 12), budget=st.integers(1, 200))
MANY = settings(max_examples=80, deadline=None, database=None)


def check(messages: list[NewMessage], ask: Request, window: HistoryWindow) -> None:
    first, last, left_out = expected(messages, ask)
    assert [message.seq for message in window.messages] == list(range(first, last + 1))
    assert (window.omitted_before, window.omitted_after) == (first - 1, len(messages) - last)
    assert window.omitted_exchange == left_out
    shown = messages[first - 1 : last]
    assert [(m.role, m.content, m.tool_calls, m.tool_call_id) for m in window.messages] == [
        (m.role, m.content, m.tool_calls, m.tool_call_id) for m in shown
    ]
    assert [m.metadata for m in window.messages] == [m.metadata if ask.full else None for m in shown]
    assert window.estimated_tokens == sum(tokens(message, full=ask.full) for message in shown)
    assert window.conversation.message_count == len(messages)


BROKEN_INTO = [said(), calls("a"), said(), said(), result("a"), said()]
CLOSELY = [Request(low, high, limit) for low in (None, 0, 1, 2, 3) for high in (None, 4, 5) for limit in (1, 9)]


@MANY
@example(BROKEN_INTO, CLOSELY)
@given(MESSAGES, st.lists(REQUESTS, min_size=4, max_size=8))
def test_a_window_is_what_the_definition_says(shelf: Shelf, messages: list[NewMessage], asks: list[Request]) -> None:
    number = shelf.put(messages)
    for ask in asks:
        if ask.after is not None and ask.before is not None and ask.after >= ask.before:
            with pytest.raises(InvalidArgument, match="after_seq must be less than before_seq"):
                shelf.load(number, ask)
        else:
            check(messages, ask, shelf.load(number, ask))


@MANY
@given(MESSAGES, PACES)
def test_a_walk_either_way_yields_every_message_once(shelf: Shelf, messages: list[NewMessage], pace: Request) -> None:
    number = shelf.put(messages)
    everything = list(range(1, len(messages) + 1))
    seen: list[int] = []
    ask = pace
    while True:
        window = shelf.load(number, ask)
        check(messages, ask, window)
        seen = [message.seq for message in window.messages] + seen
        if window.omitted_before == 0:
            break
        assert window.messages
        ask = Request(before=window.omitted_before + 1, limit=pace.limit, budget=pace.budget)
    assert seen == everything
    seen, place = [], 0
    while place < len(messages):
        window = shelf.load(number, Request(after=place, limit=pace.limit, budget=pace.budget))
        seen += [message.seq for message in window.messages]
        assert window.messages
        place = window.omitted_before + len(window.messages)
    assert seen == everything


def test_an_exchange_is_whole_even_when_it_is_far_larger_than_asked(shelf: Shelf) -> None:
    ids = [str(n) for n in range(200)]
    parallel = [said(), calls(*ids), *map(result, reversed(ids)), said()]
    number = shelf.put(parallel)
    for ask in (Request(before=203, limit=3), Request(after=1, budget=1), Request(before=203, limit=1, budget=1)):
        window = shelf.load(number, ask)
        assert (window.omitted_before, len(window.messages), window.omitted_after) == (1, 201, 1)
    distant = [calls("a"), *[said()] * 254, result("a")]
    assert len(shelf.load(shelf.put(distant), Request(limit=1)).messages) == 256


def test_a_message_over_the_budget_is_given_alone_and_whole(shelf: Shelf) -> None:
    number = shelf.put([said("x" * 9_000), said("y" * 9_000), said("z")])
    window = shelf.load(number, Request(before=3, budget=100))
    assert [(message.seq, len(message.content)) for message in window.messages] == [(2, 9_000)]
    assert window.estimated_tokens == 4 + 9_000 // 4
    assert [m.seq for m in shelf.load(number, Request(budget=2_254 + 5)).messages] == [2, 3]


def test_a_bound_far_beyond_the_end_is_an_ordinary_one(shelf: Shelf) -> None:
    number = shelf.put([said(), said()])
    assert len(shelf.load(number, Request(before=END)).messages) == 2
    past = shelf.load(number, Request(after=END - 1))
    assert (list(past.messages), past.omitted_before, past.omitted_after) == ([], 2, 0)
    wrong = [Request(after=-1), Request(before=-1), Request(after=END + 1), Request(limit=0), Request(limit=1_001)]
    for ask in [*wrong, Request(budget=0), Request(budget=200_001)]:
        with pytest.raises(InvalidArgument, match="must be between"):
            shelf.load(number, ask)


# ---- pure ----------------------------------------------------------------------------------------------------------


def traces_of(messages: Sequence[NewMessage]) -> list[Trace]:
    return [Trace(seq, m.role, m.tool_call_id, call_ids(m.tool_calls)) for seq, m in enumerate(messages, 1)]


@MANY
@given(MESSAGES)
def test_exchanges_are_those_of_the_definition(messages: list[NewMessage]) -> None:
    assert sorted(exchanges(traces_of(messages))) == [(min(span), max(span)) for span in exchanges_in(messages)]


def test_ids_are_read_from_whole_calls_and_from_ids_alone() -> None:
    assert call_ids(None) is None
    assert call_ids([]) == ()
    assert call_ids([{"id": "a"}, "b", {"id": 7}, {"function": {}}, None, 5, ["c"]]) == ("a", "b")
    assert exchanges([Trace(1, "user", None, ("a",)), Trace(2, "tool", "a", None)]) == []


def test_a_cut_says_what_is_to_be_fetched() -> None:
    traces = traces_of([said(), calls("a", "b"), result("a"), result("b"), said(), said()])

    def where(first: int, last: int, *, after: int = 0, before: int = END, forward: bool = False) -> Cut:
        return cut((first, last), traces, after_seq=after, before_seq=before, forward=forward)

    assert where(5, 6) == Cut("give", 5, 6)
    assert where(3, 6) == Cut("give", 5, 6)
    assert where(4, 4, before=5) == Cut("fetch whole", 2, 4)
    assert where(1, 3, before=4) == Cut("look again between", 1, 1, (2, 4))
    assert where(1, 3, forward=True) == Cut("give", 1, 1)
    assert where(2, 3, after=1, forward=True) == Cut("fetch whole", 2, 4)
    assert where(3, 6, after=2, forward=True) == Cut("look again between", 5, END - 1, (2, 4))
    assert where(2, 3, after=1, before=4, forward=True) == Cut("give", 2, 1, (2, 4))
