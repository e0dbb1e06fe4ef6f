"""Calls with bad values for every argument of every tool, dealt from what the server publishes, by a seed.

`uv run python -m tests.bad_inputs [--count 20000] [--seed 1]` is the long form; the suite runs a quick one. Each call
must be answered, by a result or by an error of the contract that repeats nothing of what was sent; none may be
`internal`, nothing sent may stand in a log, and a good call must work after it.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from mcp import Client, MCPError

from chatledger.server.app import make_server
from chatledger.server.errors import STATUS
from chatledger.server.identity import local_user
from chatledger.storage import ConversationStore, schema
from chatledger.storage.embedded import temporary

CANARY = "zqcanary"
Value = Callable[[random.Random, str], Any]

TEXTS: list[Value] = [
    lambda _, word: word,
    lambda _, word: "",
    lambda _, word: " \t\u00a0\u2003" * 3,
    lambda _, word: f"{word}\x00{word}",
    lambda _, word: f"{word}\ud800",
    lambda _, word: f"\udfff{word}",
    lambda _, word: f"\u202e{word}\u2066\u200d\ufeff\U000e0041",
    lambda _, word: f"e\u0301\u0327{word}" * 40,
    lambda chance, word: word * chance.choice([17, 60, 1_300, 40_000]),
    lambda _, word: f"'; DROP TABLE chatledger.messages; -- {word}",
    lambda _, word: f"{word}') OR '1'='1",
    lambda _, word: f"$1 $$ %s {{0}} %(x)s {word} \\",
    lambda _, word: f"../../{word}/%2e%2e%00",
    lambda _, word: f"conversation://{word}",
    lambda _, word: f'"{word}',
    lambda _, word: f"-{word} -{word}",
    lambda _, word: f":* ! & | ( ) <-> {word}:*",
    lambda _, word: f'{{"a": "{word}"}}',
    lambda _, word: f'["{word}"]',
    lambda _, word: "null",
    lambda _, word: "1e999",
    lambda _, word: "{" * 2_000,
    lambda _, word: " ".join(f"{word}{n}" for n in range(40)),
    lambda _, word: "\uff11\uff12",
    lambda _, word: "012",
    lambda _, word: "+1",
    lambda _, word: "9" * 40,
    lambda _, word: "{00000000-0000-4000-8000-000000000000}",
    lambda _, word: "urn:uuid:00000000-0000-4000-8000-000000000000",
    lambda _, word: "00000000000040008000000000000000",
    lambda _, word: "294277-01-01T00:00:00Z",
    lambda _, word: "-infinity",
    lambda _, word: "2026-01-01T00:00:61Z",
    lambda _, word: "2026-01-01T00:00:00",
    lambda _, word: "yesterday",
    lambda _, word: "USER",
    lambda _, word: "root",
    lambda chance, word: (
        "".join(
            chr(chance.choice([chance.randrange(1, 0xD800), chance.randrange(0xE000, 0x110000)]))
            for _ in range(chance.randrange(1, 60))
        )
        + word
    ),
]
NUMBERS: list[Any] = [
    *(-1, 0, 1, 101, 1_001, 200_001, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 10**30, -(10**30)),
    *(1.5, -0.0, 1e308, 5e-324, True, False),
]


def nested(depth: int, inner: Any) -> Any:
    """The value inside so many objects."""
    for _ in range(depth):
        inner = {"a": inner}
    return inner


OTHERS: list[Value] = [
    lambda _, word: None,
    lambda _, word: [],
    lambda _, word: {},
    lambda _, word: [word],
    lambda _, word: {word: word},
    lambda _, word: {"a\x00": word},
    lambda _, word: {"a": f"{word}\x00"},
    lambda _, word: {"a": f"{word}\ud800"},
    lambda chance, word: nested(chance.choice([30, 33, 150]), word),
    lambda _, word: {f"{word}{n}": n for n in range(1_200)},
    lambda _, word: {"a": word * 3_000},
    lambda _, word: [{"type": word}] * 101,
    lambda _, word: [[[[word]]], None, 1e300, 2**60],
    lambda _, word: {"__proto__": {"$ref": word}},
    lambda _, word: [{"id": word, "function": {"name": word, "arguments": "x" * 400_000}}],
    lambda _, word: {"role": word, "content": word},
    lambda _, word: [{"role": "user", "content": word, f"{word} key": 1}],
]


def bad_value(chance: random.Random, word: str) -> Any:
    """A value of any type, with the word in it where it has room for one."""
    kind = chance.random()
    if kind < 0.5:
        return chance.choice(TEXTS)(chance, word)
    return chance.choice(NUMBERS) if kind < 0.7 else chance.choice(OTHERS)(chance, word)


GOOD: dict[str, Any] = {
    "conversation_id": 1,
    "role": "user",
    "content": "hello",
    "query": "hello",
    "messages": [{"role": "user", "content": "hello"}],
}
"""What a tool needs beside the bad value."""


def calls(tools: list[Any], chance: random.Random) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Without end: a tool, arguments of which one or more are bad, and the word that nothing may repeat."""
    number = 0
    while True:
        tool = chance.choice(tools)
        properties = tool.input_schema["properties"]
        number += 1
        word = f"{CANARY}{number}x"
        arguments = {name: GOOD[name] for name in tool.input_schema.get("required", ())}
        for name in chance.sample(sorted(properties), min(len(properties), chance.choice([1, 1, 1, 2, 3]))):
            arguments[name] = bad_value(chance, word)
        if "messages" in properties and chance.random() < 0.5:
            fields = (
                properties["messages"]["items"].get("properties")
                or tool.input_schema["$defs"]["MessageIn"]["properties"]
            )
            message = {"role": "user", "content": "hello", chance.choice(sorted(fields)): bad_value(chance, word)}
            arguments["messages"] = [GOOD["messages"][0], message]
        if chance.random() < 0.03:
            # A name that could be one is named in the refusal; others are not.
            arguments[chance.choice([f"{word} key", f"{word}\u202e", "user_id", "user", "\x00", "a b"])] = word
        yield tool.name, arguments, word


class _Heard(logging.Handler):
    """All that is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


async def attack(client: Client, count: int, seed: int) -> Counter[str]:
    """So many bad calls; how each ended. Raises AssertionError at the first that ended as none may."""
    tools = [tool for tool in (await client.list_tools()).tools if tool.name != "delete_conversation"]
    heard = _Heard()
    logging.getLogger().addHandler(heard)
    ended: Counter[str] = Counter()
    try:
        dealt = calls(tools, random.Random(seed))
        for number in range(count):
            tool, arguments, word = next(dealt)
            told = (
                f"seed {seed}, call {number}: {tool}({ {name: repr(value)[:80] for name, value in arguments.items()} })"
            )
            try:
                result = await client.call_tool(tool, arguments)
            except MCPError as exc:
                refused = exc.error
                ended[f"JSON-RPC {refused.code}"] += 1
                if refused.code not in (-32602, -32600, -32700) or CANARY in str(refused):
                    raise AssertionError(told) from exc
                continue
            if not result.is_error:
                ended["ok"] += 1
                continue
            error = (result.structured_content or {})["error"]
            ended[error["code"]] += 1
            assert error["code"] in STATUS, told
            assert error["code"] != "internal", told
            shown = repr(result.content) + repr(error)
            assert word not in shown, told
            assert not any(
                str(value) in shown for value in arguments.values() if isinstance(value, int) and abs(value) > 10**6
            ), told
            if number % 50 == 0:
                good = await client.call_tool(
                    "append_message", {"conversation_id": 1, "role": "user", "content": "good"}
                )
                assert not good.is_error, told
        assert not [line for line in heard.lines if CANARY in line], "what was sent stands in a log"
    finally:
        logging.getLogger().removeHandler(heard)
    return ended


async def _long_form(url: str, count: int, seed: int) -> None:
    for era in ("auto", "legacy"):
        async with (
            ConversationStore.at(url) as store,
            Client(make_server(store, local_user(f"user of {era}")), mode=era) as client,
        ):
            await client.call_tool("create_conversation", {})
            ended = await attack(client, count // 2, seed + (era == "legacy"))
            told = (
                f"{era}: {sum(ended.values()):,} bad calls, {ended['internal']} internal: {dict(ended.most_common())}"
            )
            sys.stdout.write(told + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with temporary(fsync="off") as url:
        schema.migrate(url)
        asyncio.run(_long_form(url, args.count, args.seed))


if __name__ == "__main__":
    main()
