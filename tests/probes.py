"""Probes for what belongs to another user, asked with that user there and without, and what is told by the answers.

Many at once, and how many of them told anything:

    uv run python -m tests.probes [--count 20000] [--seed 1]
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import json
import re
import secrets
import sys
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import Any, Final
from uuid import UUID

from mcp import Client, MCPError
from mcp.types import PromptReference, ResourceTemplateReference

from tests.dealer import CURSOR, Dealer, Probe
from tests.two_worlds import FIRST_NUMBER, WORD, Owner, Worlds

A_BLOCK: Final = 25  # probes between two looks at the owner's rows (chosen: a look costs as much as three probes)

_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d{6})?Z")
_CURSOR = re.compile(r'(next_?[cC]ursor\\*":\\*")[A-Za-z0-9_-]+')
_OWNED = re.compile(r"(zq\d+)owned")
_NUMBER = re.compile(rf"\b{FIRST_NUMBER // 100}\d\d\b")


async def ask(client: Client, probe: Probe) -> tuple[str, bool]:
    """The whole answer as JSON, and whether it is a refusal."""
    answer: Any
    try:
        if probe.method == "tools/call":
            answer = await client.call_tool(probe.name, probe.arguments)
            return answer.model_dump_json(by_alias=True), bool(answer.is_error)
        if probe.method == "resources/read":
            answer = await client.read_resource(probe.name)
        elif probe.method == "prompts/get":
            answer = await client.get_prompt(probe.name, probe.arguments)
        elif probe.method == "completion/complete":
            kind = ResourceTemplateReference if "uri" in probe.arguments["ref"] else PromptReference
            argument = {"name": probe.name, "value": probe.arguments["typed"]}
            answer = await client.complete(
                kind.model_validate(probe.arguments["ref"]), argument, probe.arguments["known"] or None
            )
        else:
            lists = {
                "tools/list": client.list_tools,
                "resources/list": client.list_resources,
                "resources/templates/list": client.list_resource_templates,
                "prompts/list": client.list_prompts,
            }
            answer = await lists[probe.method]()
        return answer.model_dump_json(by_alias=True), False
    except MCPError as exc:
        return exc.error.model_dump_json(), True


def stand_in(value: Any, owner: Owner) -> Any:
    """The same value with everything that is the owner's alone replaced by what nobody has."""
    if isinstance(value, dict):
        return {stand_in(name, owner): stand_in(inner, owner) for name, inner in value.items()}
    if isinstance(value, list):
        return [stand_in(inner, owner) for inner in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return value + 9000 if value in owner.numbers else value
    if not isinstance(value, str):
        return value
    theirs = {*owner.conversations, *owner.messages}

    def nobodys(found: re.Match[str]) -> str:
        if found[0].lower() not in theirs:
            return found[0]
        made = str(UUID(bytes=hashlib.sha256(found[0].lower().encode()).digest()[:16]))
        return made.upper() if found[0].isupper() else made

    text = _OWNED.sub(r"\1noone", _ID.sub(nobodys, value))
    return _NUMBER.sub(lambda found: str(int(found[0]) + 9000) if int(found[0]) in owner.numbers else found[0], text)


class Inquiry:
    """Asks probes in both worlds, and notes what the prober learns or does that it should not."""

    def __init__(self, worlds: Worlds, chance: Random) -> None:
        self._worlds, self._chance = worlds, chance
        self.asked = 0
        self.found: list[str] = []

    async def block(self, probes: list[Probe]) -> None:
        """Ask some, one after the other, from a fresh start; then look whether the owner's rows are as they were."""
        await self._worlds.restore()
        before, found, sent = await self._worlds.both.others(), len(self.found), ""
        for probe in probes:
            aimed = await self.aimed(probe)
            await self._ask(aimed, sent)
            sent += json.dumps([aimed.name, aimed.arguments])
        if await self._worlds.both.others() != before:
            self.found.append(f"rows of the owner were changed by one of {[str(probe) for probe in probes]}")
        if len(self.found) > found + A_BLOCK:
            raise AssertionError(f"everything leaks: {self.found[found]}")

    async def aimed(self, probe: Probe) -> Probe:
        """With a cursor that the owner has from this list with these filters, or one from another list."""
        if not isinstance(probe.arguments, dict) or probe.arguments.get("cursor") != CURSOR:
            return probe
        filters = {name: value for name, value in probe.arguments.items() if name != "cursor"}
        told: dict[str, Any] = {}
        for asked in ({"limit": 1}, {}):
            answer = await self._worlds.owners_client.call_tool(probe.name, filters | asked)
            told = answer.structured_content or {}
            if "next_cursor" in told:
                break
        else:
            answer = await self._worlds.owners_client.call_tool("list_conversations", {"limit": 1})
            told = answer.structured_content or {}
        return replace(probe, arguments=filters | {"cursor": told["next_cursor"]})

    async def _ask(self, probe: Probe, earlier: str) -> None:
        owner, told_now = self._worlds.owner, json.dumps([probe.name, probe.arguments])
        self.asked += 1
        answer, refused = await ask(self._worlds.both.client, probe)
        expected, _ = await ask(self._worlds.alone.client, probe)
        if answer != expected and (refused or self.masked(answer) != self.masked(expected)):
            self.found.append(
                f"{probe}: another answer than where there is no owner: {answer:.600} instead of {expected:.600}"
            )
            return
        leaked = [secret for secret in owner.secrets if secret in answer and secret not in earlier + told_now]
        if leaked:
            self.found.append(f"{probe}: {leaked} in {answer:.600}")
            return
        if not (refused or probe.reads) or any(word in earlier for word in WORD.findall(told_now)):
            return  # it has done something, or by now the prober has such words as well
        absent = replace(probe, name=stand_in(probe.name, owner), arguments=stand_in(probe.arguments, owner))
        if isinstance(absent.arguments, dict) and "cursor" in absent.arguments:
            absent.arguments["cursor"] = "".join(
                self._chance.choices("abcdefghijklmnop", k=len(probe.arguments["cursor"]))
            )
        if absent == probe:
            return
        told, _ = await ask(self._worlds.both.client, absent)
        if refused and probe.method == "resources/read":  # the URI is named, as the specification asks
            told = told.replace(json.dumps(absent.name), json.dumps(probe.name))
        if told != answer and (refused or self.masked(told) != self.masked(answer)):  # a cursor is sealed for its query
            self.found.append(f"{probe}: foreign and absent are told apart: {answer:.600} and {told:.600}")

    def masked(self, answer: str) -> str:
        """Without what a server makes anew each time; the owner's are looked for before."""
        made: dict[str, str] = {}

        def mask(found: re.Match[str]) -> str:
            return (
                made.setdefault(found[0], f"(made {len(made)})")
                if found[0] not in self._worlds.owner.namesakes
                else found[0]
            )

        return _TIME.sub("(time)", _ID.sub(mask, _CURSOR.sub(r"\1", answer)))


async def inquire(worlds: Worlds, count: int, seed: int) -> Inquiry:
    """Ask so many at random."""
    chance = Random(seed)
    dealer, inquiry = await Dealer.of(worlds.both.client, worlds.owner, chance), Inquiry(worlds, chance)
    probes = (dealer.any() for _ in range(count))
    while block := list(itertools.islice(probes, A_BLOCK)):
        await inquiry.block(block)
    return inquiry


def main() -> None:
    from chatledger.storage import schema
    from chatledger.storage.embedded import temporary
    from tests.conftest import ERAS, database_at, run_sql
    from tests.two_worlds import opened, two_databases

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    found: list[str] = []
    asked = 0

    async def run(urls: tuple[str, str], era: str, count: int) -> None:
        nonlocal asked
        async with opened(urls, era) as worlds:
            inquiry = await inquire(worlds, count, args.seed)
        asked += inquiry.asked
        found.extend(inquiry.found)

    with temporary(fsync="off", full_page_writes="off") as server, suppress(KeyboardInterrupt):
        template = f"template_{secrets.token_hex(4)}"
        run_sql(server, f"CREATE DATABASE {template} TEMPLATE template0")
        schema.migrate(database_at(server, template))
        with two_databases(server, template) as urls:
            for place, era in enumerate(ERAS):
                share = args.count // len(ERAS) + (args.count % len(ERAS) if place == 0 else 0)
                asyncio.run(run(urls, era, share))
    sys.stdout.write("".join(f"{line}\n" for line in found[:20]) + f"foreign answers: {len(found)} of {asked}\n")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
