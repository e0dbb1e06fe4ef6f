"""Judges a history by the contract's guarantees C1 to C10: what it finds is wrong with the store, not with the run.

Messages are recognised by their content, which a history never uses for two of them. The final load of a conversation
is its truth; what was acknowledged, what earlier loads showed and when each was said must all agree with it.
"""

from __future__ import annotations

import bisect
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from tests.reliability.history import UNAVAILABLE, Call, History, Made, Receipt, Said

DEADLINE = 30.0  # seconds for any call: the contract, C10
_EXPECTED_CODES = {UNAVAILABLE, "idempotency_conflict", "sequence_conflict"}


class Violation(NamedTuple):
    """A guarantee that was broken, by the name of the fault, and the evidence."""

    kind: str
    evidence: str


def violations(history: History, *, deadline: float = DEADLINE) -> list[Violation]:
    """All that is wrong, at most some dozens of each kind.

    Raises:
        ValueError: a conversation has no final load, so the history proves nothing about it.
    """
    found: dict[str, list[Violation]] = defaultdict(list)
    for violation in _all(history, deadline):
        if len(found[violation.kind]) < 24:
            found[violation.kind].append(violation)
    return [violation for kind in found.values() for violation in kind]


def _all(history: History, deadline: float) -> Iterator[Violation]:
    owners = {call.made.conversation: call.user for call in history.calls if call.made is not None}
    speakers = {said.content: call.user for call in history.calls for said in call.said}
    by_conversation: dict[str, list[Call]] = defaultdict(list)
    for call in history.calls:
        if call.end - call.start > deadline:
            yield Violation("late", f"{call.verb} of {call.user} took {call.end - call.start:.1f}")
        if call.conversation is None:
            continue
        if owners.get(call.conversation) == call.user:
            by_conversation[call.conversation].append(call)
        elif call.outcome == "acknowledged" or (call.outcome == "refused" and call.code != UNAVAILABLE):
            yield Violation("foreign", f"{call.user} had {call.outcome} {call.code} of a conversation not theirs")
    yield from _lists(history, owners)
    yield from _keys(history)
    for conversation in owners:
        yield from _Conversation(conversation, by_conversation[conversation], speakers).violations()


def _lists(history: History, owners: dict[str, str]) -> Iterator[Violation]:
    """C7: what was acknowledged or listed is in every later list. C8: nothing else is."""
    known: dict[str, dict[str, float]] = defaultdict(dict)
    for call in history.calls:
        shown = call.listed if call.made is None else {call.made.conversation}
        for conversation in shown:
            if call.verb == "list" and owners.get(conversation) != call.user:
                kind = "foreign" if conversation in owners else "phantom"
                yield Violation(kind, f"{call.user} was shown conversation {conversation}")
            own = known[call.user]
            own[conversation] = min(call.end, own.get(conversation, call.end))
    for call in history.calls:
        if call.verb == "list" and call.outcome == "acknowledged":
            for conversation, since in known[call.user].items():
                if since < call.start and conversation not in call.listed:
                    yield Violation("not listed", f"{conversation}, known at {since}, in a list begun at {call.start}")


def _keys(history: History) -> Iterator[Violation]:
    """A key is one conversation's, made once; a number is one conversation's."""
    made: dict[tuple[str, str | None], list[Made]] = defaultdict(list)
    numbers: dict[tuple[str, int], set[str]] = defaultdict(set)
    makers: dict[str, set[str]] = defaultdict(set)
    for call in history.calls:
        if call.made is not None:
            makers[call.made.conversation].add(call.user)
            made[call.user, call.key].append(call.made)
            numbers[call.user, call.made.number].add(call.made.conversation)
    for (user, key), answers in made.items():
        if len({answer.conversation for answer in answers}) > 1:
            yield Violation("key ignored", f"{user} has two conversations with key {key}")
        elif sum(answer.created for answer in answers) > 1:
            yield Violation("wrong receipt", f"conversation {key} of {user} was created twice, they say")
    for conversation, users in makers.items():
        if len(users) > 1:
            yield Violation("foreign", f"{conversation} was given to {sorted(users)}")
    for (user, number), conversations in numbers.items():
        if len(conversations) > 1:
            yield Violation("number reused", f"{number} of {user}")


class _Acknowledged(NamedTuple):
    call: Call
    said: Said
    receipt: Receipt


class _Conversation:
    """One conversation as its owner used it."""

    def __init__(self, name: str, calls: Sequence[Call], speakers: dict[str, str]) -> None:
        self.name, self.calls, self.speakers = name, calls, speakers
        finals = [call for call in calls if call.final and call.outcome != "unknown"]
        if not finals:
            raise ValueError(f"{name} has no final load")
        self.truth = finals[-1].stored  # nothing, where even that was refused
        self.at = {message.seq: message for message in self.truth}
        self.loads = [call for call in calls if call.verb == "load" and call.outcome == "acknowledged"]
        self.appends = [call for call in calls if call.verb == "append"]
        self.acknowledged = [
            _Acknowledged(call, said, receipt)
            for call in self.appends
            for said, receipt in zip(call.said, call.receipts, strict=False)
        ]
        self.begun: dict[str, float] = {}
        self.not_refused: set[str] = set()
        self.bodies: dict[str | None, set[str]] = defaultdict(set)
        for call in self.appends:
            for said in call.said:
                self.begun[said.content] = min(call.start, self.begun.get(said.content, call.start))
                self.bodies[said.client_message_id].add(said.content)
                if call.outcome != "refused":
                    self.not_refused.add(said.content)
        self.known: dict[str, float] = {}
        """When each message was first known to be stored: acknowledged, or shown by a load."""
        seen = ((message.content, load.end) for load in self.loads for message in load.stored)
        told = ((said.content, call.end) for call, said, _ in self.acknowledged)
        for content, end in itertools.chain(seen, told):
            self.known[content] = min(end, self.known.get(content, end))

    def violations(self) -> Iterator[Violation]:
        for rule in (
            self.receipts,
            self.repeats,
            self.refusals,
            self.strangers,
            self.order,
            self.batches,
            self.real_time,
            self.reads,
        ):
            for kind, evidence in rule():
                yield Violation(kind, f"{self.name}: {evidence}")

    def receipts(self) -> Iterator[tuple[str, str]]:
        """C1: what was acknowledged is there, where the receipt says, as it says."""
        for call in self.appends:
            if call.outcome == "acknowledged" and len(call.receipts) != len(call.said):
                yield "wrong receipt", f"{len(call.receipts)} receipts for {len(call.said)} messages"
        places = {message.content: message for message in self.truth}
        for call, said, receipt in self.acknowledged:
            at_seq, found = self.at.get(receipt.seq), places.get(said.content)
            if found is None:
                if at_seq is not None and said.client_message_id == at_seq.client_message_id is not None:
                    yield "key without body", f"{said} was acknowledged, {at_seq} is stored"
                else:
                    yield "lost", f"{said}, acknowledged as {receipt}"
            elif (found.seq, found.id, found.created_at) != receipt[:3]:
                moved = found.id == receipt.id
                yield "unstable" if moved else "wrong receipt", f"{said}: {receipt}, but it is {found}"
            if call.expected is not None and not receipt.deduplicated:
                behind = call.said.index(said)
                if receipt.seq != call.expected + 1 + behind:
                    yield "condition ignored", f"{receipt.seq} although {call.expected} was expected"

    def repeats(self) -> Iterator[tuple[str, str]]:
        """C2, C9: one message for each client_message_id, with one receipt, new at most once."""
        receipts: dict[Said, list[Receipt]] = defaultdict(list)
        for _, said, receipt in self.acknowledged:
            receipts[said].append(receipt)
        for said, got in receipts.items():
            if said.client_message_id is None:
                if got[0].deduplicated:
                    yield "wrong receipt", f"{said} has no id and was a repeat, they say"
            elif len({receipt[:3] for receipt in got}) > 1:
                yield "unstable receipt", f"{said}: {got}"
            elif sum(not receipt.deduplicated for receipt in got) > 1:
                yield "key ignored", f"{said} was new twice, they say"
        for load in self.loads:
            ids = [message.client_message_id for message in load.stored if message.client_message_id is not None]
            if len(set(ids)) < len(ids) or len({message.content for message in load.stored}) < len(load.stored):
                yield "doubled", f"a message, in a load begun at {load.start}"

    def refusals(self) -> Iterator[tuple[str, str]]:
        """A call is refused for a reason only."""
        for call in self.calls:
            conflicting = any(len(self.bodies[said.client_message_id]) > 1 for said in call.said)
            if call.outcome == "refused" and (
                call.code not in _EXPECTED_CODES
                or call.code == UNAVAILABLE
                or (call.code == "idempotency_conflict" and not conflicting)
                or (call.code == "sequence_conflict" and call.expected is None)
            ):
                yield "wrong refusal", f"{call.verb} of the owner: {call.code}"

    def strangers(self) -> Iterator[tuple[str, str]]:
        """C8, C9: a load shows what this user said here, and nothing that was refused."""
        for load in self.loads:
            for message in load.stored:
                if message.content not in self.begun:
                    ours = self.speakers.get(message.content) in (None, load.user)
                    yield "phantom" if ours else "foreign", f"{message}"
                elif message.content not in self.not_refused:
                    yield "refused but done", f"{message}"
                elif self.begun[message.content] > load.end:
                    yield "phantom", f"{message} was shown before it was said"

    def order(self) -> Iterator[tuple[str, str]]:
        """C3, C4: 1 to n, a contiguous slice in every load, each message where it was before; time never goes back."""
        for load in self.loads:
            seqs = [message.seq for message in load.stored]
            first = 1 if load.latest is None or not seqs else seqs[0]
            if seqs != list(range(first, first + len(seqs))):
                yield "gap", f"a load shows {_some(seqs)}"
            times = [message.created_at for message in load.stored]
            if any(later < earlier for earlier, later in itertools.pairwise(times)):
                yield "clock", f"created_at goes back in a load begun at {load.start}"
            for message in load.stored:
                if self.at.get(message.seq) != message:
                    yield "unstable", f"{message} was shown, {self.at.get(message.seq)} is there now"
                    break

    def batches(self) -> Iterator[tuple[str, str]]:
        """A batch is in a load whole and in one piece, or not at all."""
        sent = {call.said for call in self.appends if len(call.said) > 1}
        for load in self.loads:
            places = {message.content: message.seq for message in load.stored}
            for batch in sent:
                seqs = [places[said.content] for said in batch if said.content in places]
                cut_off = load.latest is not None and seqs and seqs[0] == min(places.values())
                if seqs and not cut_off and len(seqs) < len(batch):
                    yield "half batch", f"{len(seqs)} of {len(batch)} in a load begun at {load.start}"
                elif seqs != list(range(seqs[0] if seqs else 0, (seqs[0] if seqs else 0) + len(seqs))):
                    yield "half batch", f"in pieces: {seqs}"

    def real_time(self) -> Iterator[tuple[str, str]]:
        """C5: what was known before another was sent has the smaller seq."""
        earliest_behind = float("inf")
        for message in sorted(self.truth, key=lambda message: message.seq, reverse=True):
            begun = self.begun.get(message.content, float("inf"))
            if earliest_behind < begun < float("inf"):
                yield "real time", f"{message} was sent after one behind it was known"
            earliest_behind = min(earliest_behind, self.known.get(message.content, float("inf")))

    def reads(self) -> Iterator[tuple[str, str]]:
        """C6: a load shows what was known before it began."""
        places = {message.content: message.seq for message in self.truth}
        by_time = sorted((since, places.get(content, 0)) for content, since in self.known.items())
        highest = list(itertools.accumulate((seq for _, seq in by_time), max))
        for load in self.loads:
            before = bisect.bisect_left(by_time, (load.start, 0))
            last = load.stored[-1].seq if load.stored else 0
            if before and highest[before - 1] > last:
                yield "stale", f"a load begun at {load.start} ends at {last}, {highest[before - 1]} was known"


def _some(seqs: Iterable[int]) -> str:
    shown = list(itertools.islice(seqs, 13))
    return ", ".join(map(str, shown[:12])) + (" …" if len(shown) > 12 else "")
