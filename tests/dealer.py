"""Probes for what belongs to another user, dealt from what the server itself says it offers.

Tools, their arguments, resource templates, prompts and completions are read from the server, so that a new one is
probed as well; one that there is no card for is an `UnknownTarget`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from mcp import Client
from mcp.types import PromptReference, ResourceTemplateReference

from tests.two_worlds import COMMON, RARE, WORD, Owner

CURSOR: Final = "(the owner's cursor for this list)"

_VARIABLE = re.compile(r"\{(\w+)\}")
_LIKELY = {"content": 0.9, "expected_last_seq": 0.1}  # or most appends would be refused before they are tried


class UnknownTarget(AssertionError):
    """The server offers something that no card is for: say below how the rows of another user might be had by it."""


@dataclass(frozen=True)
class Probe:
    """One request."""

    method: str
    name: str = ""
    arguments: Any = None
    reads: bool = True
    """Whether it changes nothing, so that another may follow it in the same place."""

    def __str__(self) -> str:
        return f"{self.method} {self.name} {json.dumps(self.arguments)}"


# ---- cards: what is put into an argument of that name ---------------------------------------------------------------


class Hand:
    """Values of the owner's, and of everybody's, drawn at random."""

    def __init__(self, owner: Owner, chance: Random) -> None:
        self.owner, self.chance = owner, chance

    def conversation(self) -> str | int:
        pick, owner = self.chance.random(), self.owner
        if pick < 0.3:
            return self.chance.choice(owner.conversations)
        if pick < 0.5:
            number = self.chance.choice(owner.numbers)
            return number if pick < 0.4 else str(number)
        if pick < 0.6:
            return self.chance.choice([*owner.messages, owner.conversations[0].upper()])
        shared: list[str | int] = [1, 2, "3", *owner.namesakes]
        return self.chance.choice(shared)  # the prober's own, which the owner has as well

    def text(self) -> str:
        return self.chance.choice(self.owner.texts)

    def named(self, kind: str) -> str:
        return self.chance.choice([text for text in self.owner.texts if text.startswith(kind)])

    def call_id(self) -> str:
        return self.named("call-")

    def words(self) -> str:
        words = WORD.search(self.text())
        assert words is not None
        return self.chance.choice(
            [words[0], f'"{COMMON}"', COMMON, RARE, "my", f"{COMMON} {words[0]}", f"harbour -{words[0]}"]
        )

    def seq(self) -> int:
        return self.chance.randint(0, 13)

    def time(self) -> str:
        return self.chance.choice([*self.owner.times, "2020-01-01T00:00:00Z", "2099-01-01T00:00:00Z"])

    def switch(self) -> bool:
        return self.chance.random() < 0.5

    def note(self) -> dict[str, Any]:
        return {self.text(): self.chance.choice([self.text(), None])}


Card = Callable[[Hand], Any]
CARDS: Final[dict[str, Card]] = {
    "conversation_id": Hand.conversation,
    "title": Hand.text,
    "title_contains": lambda hand: hand.chance.choice([hand.text(), "harbour", "zq", "op"]),
    "key": lambda hand: hand.named("key-"),
    "metadata": Hand.note,
    "role": lambda hand: hand.chance.choice(["user", "assistant", "tool"]),
    "content": Hand.text,
    "tool_calls": lambda hand: [{"id": hand.call_id(), "name": hand.text()}],
    "tool_call_id": Hand.call_id,
    "name": Hand.text,
    "parts": lambda hand: [hand.note()],
    "client_message_id": lambda hand: hand.chance.choice([hand.named("id-"), *hand.owner.repeats]),
    "expected_last_seq": Hand.seq,
    "limit": lambda hand: hand.chance.randint(1, 4),
    "before_seq": Hand.seq,
    "after_seq": Hand.seq,
    "at_seq": lambda hand: hand.seq() + 1,
    "max_tokens": lambda hand: hand.chance.choice([1, 30, 400]),
    "detail": lambda hand: hand.chance.choice(["concise", "full"]),
    "cursor": lambda hand: CURSOR,
    "include_archived": Hand.switch,
    "archived": Hand.switch,
    "updated_after": Hand.time,
    "updated_before": Hand.time,
    "created_after": Hand.time,
    "created_before": Hand.time,
    "query": Hand.words,
    "seq": lambda hand: hand.seq() + 1,
}


def _dealt(hand: Hand, schema: dict[str, Any], chosen: set[str], defs: dict[str, Any]) -> dict[str, Any]:
    """An object for a schema with these of its properties and all that it requires."""
    dealt = {}
    for name, described in schema["properties"].items():
        if name not in chosen and name not in schema.get("required", ()):
            continue
        items = described.get("items", {})
        if "$ref" in items:  # an array of objects of our own
            inner = defs[items["$ref"].rsplit("/", 1)[1]]
            dealt[name] = [
                _dealt(hand, inner, {"content", *(each for each in inner["properties"] if hand.switch())}, defs)
                for _ in range(hand.chance.randint(1, 3))
            ]
        elif name in CARDS:
            dealt[name] = CARDS[name](hand)
        else:
            raise UnknownTarget(f"the argument {name}")
    return dealt


class Dealer:
    """Probes for everything that a server offers."""

    def __init__(self, hand: Hand, tools: list[Any], templates: list[Any], prompts: list[Any]) -> None:
        self._hand = hand
        self.tools, self.templates, self.prompts = tools, templates, prompts

    @classmethod
    async def of(cls, client: Client, owner: Owner, chance: Random) -> Dealer:
        """What this server offers at this moment."""
        return cls(
            Hand(owner, chance),
            (await client.list_tools()).tools,
            (await client.list_resource_templates()).resource_templates,
            (await client.list_prompts()).prompts,
        )

    def each(self, times: int = 4) -> Iterator[Probe]:
        """Every tool with each of its arguments, alone and all together, and all that is no tool, `times` over."""
        for _ in range(times):
            for tool in self.tools:
                names = list(tool.input_schema["properties"])
                for chosen in [set(), *({name} for name in names), {"conversation_id", "cursor"}, set(names)]:
                    yield self._call(tool, chosen)
            yield from self._lists()
            for template in self.templates:
                yield self._read(template)
            for prompt in self.prompts:
                yield self._prompt(prompt)
            for ref, argument, context in self._completed():
                yield self._complete(ref, argument, context)

    def any(self) -> Probe:
        """One at random."""
        chance = self._hand.chance
        kind = chance.choices(["tool", "list", "read", "prompt", "complete"], [70, 2, 10, 8, 10])[0]
        if kind == "tool":
            tool = chance.choice(self.tools)
            names = tool.input_schema["properties"]
            return self._call(tool, {name for name in names if chance.random() < _LIKELY.get(name, 0.35)})
        if kind == "list":
            return chance.choice(list(self._lists()))
        if kind == "read":
            return self._read(chance.choice(self.templates))
        if kind == "prompt":
            return self._prompt(chance.choice(self.prompts))
        return self._complete(*chance.choice(list(self._completed())))

    def _call(self, tool: Any, chosen: set[str]) -> Probe:
        schema = tool.input_schema
        arguments = _dealt(self._hand, schema, chosen, schema.get("$defs", {}))
        return Probe("tools/call", tool.name, arguments, reads=bool(tool.annotations.read_only_hint))

    def _lists(self) -> Iterator[Probe]:
        for method in ("tools/list", "resources/list", "resources/templates/list", "prompts/list"):
            yield Probe(method)

    def _read(self, template: Any) -> Probe:
        return Probe("resources/read", _VARIABLE.sub(lambda found: self._card(found[1]), template.uri_template))

    def _prompt(self, prompt: Any) -> Probe:
        named = {argument.name: self._card(argument.name) for argument in prompt.arguments or ()}
        return Probe("prompts/get", prompt.name, named)

    def _completed(self) -> Iterator[tuple[Any, str, list[str]]]:
        """Each argument that can be completed, with those that may be known already."""
        for template in self.templates:
            names = _VARIABLE.findall(template.uri_template)
            for name in names:
                yield (
                    ResourceTemplateReference(uri=template.uri_template),
                    name,
                    [other for other in names if other != name],
                )
        for prompt in self.prompts:
            names = [argument.name for argument in prompt.arguments or ()]
            for name in names:
                yield PromptReference(name=prompt.name), name, [other for other in names if other != name]

    def _complete(self, ref: Any, argument: str, context: list[str]) -> Probe:
        hand = self._hand
        typed = hand.chance.choice(["", str(hand.chance.choice(hand.owner.numbers)), "5", hand.text(), "harbour", "1"])
        known = {name: self._card(name) for name in context}
        return Probe("completion/complete", argument, {"ref": ref.model_dump(), "typed": typed, "known": known})

    def _card(self, name: str) -> str:
        if name not in CARDS:
            raise UnknownTarget(f"the variable {name}")
        return str(CARDS[name](self._hand))
