"""Completions: the caller's own conversations for every `conversation_id`, the messages in one for `seq`.

A host puts the value that is picked into the argument, so each is one that the argument takes: a number. What is typed
is looked for in titles, too; titles themselves are never offered.
"""

from __future__ import annotations

from itertools import chain, islice
from typing import Any, Final

from mcp.server.mcpserver import Context
from mcp.types import CompleteRequestParams, CompleteResult, Completion, PromptReference

from chatledger.server import schemas
from chatledger.server.identity import Caller
from chatledger.server.prompts import PROMPTS
from chatledger.server.resources import MESSAGE, TRANSCRIPT
from chatledger.storage.errors import ConversationUnavailable, InvalidArgument
from chatledger.storage.store import ConversationStore

Ctx = Context[Any, Any]

MOST = 100  # the protocol: a completion has at most 100 values

_OF_PROMPTS: Final = {
    name: frozenset(argument.name for argument in prompt.arguments or ()) for name, prompt in PROMPTS.items()
}
_OF_TEMPLATES: Final = {
    TRANSCRIPT.uri_template: frozenset({"conversation_id"}),
    MESSAGE.uri_template: frozenset({"conversation_id", "seq"}),
}


class Completions:
    """The completions of one server, over one store. `caller` tells whose conversations are offered."""

    def __init__(self, store: ConversationStore, caller: Caller) -> None:
        self._store, self._caller = store, caller

    async def complete(self, ctx: Ctx, params: CompleteRequestParams) -> CompleteResult:
        """At most 100 values, latest first; `total` only where all of them are given, as counting more is a scan.

        What nothing can match is offered nothing; a conversation that is not there or not the caller's has no `seq`.

        Raises:
            InvalidArgument: there is no such prompt or template, or no such argument of it.
        """
        ref, typed = params.ref, params.argument.value
        known = _OF_PROMPTS.get(ref.name) if isinstance(ref, PromptReference) else _OF_TEMPLATES.get(ref.uri)
        if known is None or params.argument.name not in known:
            raise InvalidArgument("there is no such prompt or resource template with such an argument")
        user = await self._caller(ctx)
        try:
            if params.argument.name == "seq":
                named = (params.context and params.context.arguments) or {}
                conversation = schemas.conversation_ref(named.get("conversation_id", ""))
                window = await self._store.load_history(user, conversation, before_seq=0)  # the head alone
                return _completed(*seqs(typed, window.conversation.message_count))
            numbers, more = await self._store.list_numbers(user, typed, limit=MOST)
        except (ConversationUnavailable, InvalidArgument):
            return _completed([], 0)
        return _completed(numbers, None if more else len(numbers))


def seqs(typed: str, last: int) -> tuple[list[int], int]:
    """Of the seqs 1 to `last` those that begin with what was typed, the latest 100, and how many there are."""
    if not typed:
        return list(range(last, max(0, last - MOST), -1)), last
    if not typed.isascii() or not typed.isdigit() or typed[0] == "0" or len(typed) > len(str(last)):
        return [], 0
    first, end = int(typed), int(typed) + 1
    spans: list[range] = []
    while first <= last:
        spans.append(range(first, min(end, last + 1)))
        first, end = first * 10, end * 10
    latest = chain.from_iterable(map(reversed, reversed(spans)))
    return list(islice(latest, MOST)), sum(map(len, spans))


def _completed(values: list[int], total: int | None) -> CompleteResult:
    more = total is None or total > len(values)
    return CompleteResult(completion=Completion(values=list(map(str, values)), total=total, has_more=more))
