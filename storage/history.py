"""Which messages a window of a conversation holds: pure functions over what the database found.

A tool exchange is an assistant message with tool calls and the tool messages that answer it. A window never begins or
ends inside one: a model refuses a result without its call, and misreads a call without its result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple


class Trace(NamedTuple):
    """What decides about tool exchanges in one message."""

    seq: int
    role: str
    tool_call_id: str | None
    calls: tuple[str, ...] | None
    """The ids of an assistant message's calls: empty where they have none, None where it calls nothing."""


class Cut(NamedTuple):
    """What to do about messages `first` to `last`; they are none when `last` is the smaller."""

    step: Literal["give", "look again between", "fetch whole"]
    """Give them, all found; or choose anew inside them, by the same limit and budget; or fetch and give them all."""
    first: int
    last: int
    left_out: tuple[int, int] | None = None
    """The exchange that a bound of the caller cuts."""


def call_ids(tool_calls: Sequence[Any] | None) -> tuple[str, ...] | None:
    """The ids in a message's tool calls, whether they are whole calls or ids alone."""
    if tool_calls is None:
        return None
    ids = (call.get("id") if isinstance(call, dict) else call for call in tool_calls)
    return tuple(found for found in ids if isinstance(found, str))


def exchanges(traces: Iterable[Trace]) -> list[tuple[int, int]]:
    """The tool exchanges among messages in the order of `seq`, each as the seq of its call and of its last result.

    A result belongs to the nearest earlier call with its id. One without an id belongs to what it follows directly: a
    call or another result of it. A result that matches no call stands for itself.
    """
    spans: dict[int, int] = {}
    caller_of: dict[str, int] = {}
    previous: tuple[int, int] | None = None  # the last message that is part of an exchange, and its call
    for trace in traces:
        if trace.role == "assistant" and trace.calls is not None:
            spans[trace.seq] = trace.seq
            caller_of.update(dict.fromkeys(trace.calls, trace.seq))
            previous = (trace.seq, trace.seq)
        elif trace.role == "tool":
            call = caller_of.get(trace.tool_call_id) if trace.tool_call_id is not None else None
            if call is None and trace.tool_call_id is None and previous and previous[0] == trace.seq - 1:
                call = previous[1]
            if call is not None:
                spans[call] = trace.seq
                previous = (trace.seq, call)
    return [(first, last) for first, last in spans.items() if last > first]


def cut(
    found: tuple[int, int],
    traces: Iterable[Trace],
    *,
    after_seq: int,
    before_seq: int,
    forward: bool,
) -> Cut:
    """Where to cut, given the first and last message that fit, and the traces of tool messages in and around them.

    A bound that the caller chose inside an exchange moves to the near side of it: a window never holds what lies
    beyond a bound. An end that the limit or the budget chose inside an exchange moves back out of it; where nothing
    would be left, the whole exchange is given, however large it is.
    """
    spans = exchanges(sorted(traces))
    if forward:
        first = after_seq + 1
        if (later := _later(spans, first)) > first:
            return Cut("look again between", later, before_seq - 1, _grown(spans, first))
        last = _earlier(spans, found[1])
        if last >= first:
            by_bound = last < found[1] == before_seq - 1
            return Cut("give", first, last, _grown(spans, found[1]) if by_bound else None)
        exchange = _grown(spans, first)
        if exchange[1] >= before_seq:
            return Cut("give", first, first - 1, exchange)
        return Cut("fetch whole", *exchange)
    last = min(before_seq - 1, found[1])
    if (earlier := _earlier(spans, last)) < last:
        return Cut("look again between", after_seq + 1, earlier, _grown(spans, last))
    first = _later(spans, found[0])
    if first <= last:
        return Cut("give", first, last)
    return Cut("fetch whole", *_grown(spans, last))


def _later(spans: list[tuple[int, int]], start: int) -> int:
    """The first place at or after `start` where no exchange is cut by beginning there."""
    while crossed := [last for first, last in spans if first < start <= last]:
        start = max(crossed) + 1
    return start


def _earlier(spans: list[tuple[int, int]], end: int) -> int:
    """The last place at or before `end` where no exchange is cut by ending there."""
    while crossed := [first for first, last in spans if first <= end < last]:
        end = min(crossed) - 1
    return end


def _grown(spans: list[tuple[int, int]], seq: int) -> tuple[int, int]:
    """The smallest slice around message `seq` that cuts no exchange."""
    first = last = seq
    while crossed := [(a, b) for a, b in spans if a <= last and b >= first and not (first <= a and b <= last)]:
        first, last = min(first, *(a for a, _ in crossed)), max(last, *(b for _, b in crossed))
    return first, last
