"""The long form: `uv run python -m tests.reliability [--seed N] [--scale 0.1] [--only PART …] [--json FILE]`.

Each part is a line of figures as soon as it is done, or says what it found; the exit code is 0 where all held.
Postgres runs with fsync on.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import platform
import sys
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from chatledger.storage import ConversationStore, schema
from chatledger.storage.embedded import EmbeddedPostgres, temporary
from chatledger.storage.engine import CALL_SECONDS
from tests.postgres_processes import ask, empty_root
from tests.reliability import faults, full_disk, kills, real
from tests.reliability.checker import violations
from tests.reliability.crowd import crowd
from tests.reliability.doors import HttpDoor, StdioDoor
from tests.reliability.history import History
from tests.reliability.model import Model
from tests.reliability.mutants import MUTANTS
from tests.reliability.page import RESULTS
from tests.reliability.server_processes import http_servers
from tests.reliability.simulated import simulate

WANTED_UNKNOWN = 20  # a history with fewer unknown outcomes tested nothing
RECOVERY_SECONDS = 5.0  # the contract, C10
Figures = dict[str, Any]


class Run:
    """One run: the Postgres that all parts but the kills share, the seed, and which share of the full counts."""

    def __init__(self, url: str, seed: int, scale: float) -> None:
        self.url, self.seed, self.scale = url, seed, scale

    def count(self, full: int) -> int:
        return max(2, round(full * self.scale))

    async def simulated(self) -> Figures:
        """Histories of the right store in memory: the checker finds nothing."""
        number = self.count(1_000)
        seen = Seen()
        for seed in range(self.seed, self.seed + number):
            seen.add(await asyncio.to_thread(simulate, Model(), seed), deadline=float("inf"))
        return seen.figures()

    async def mutants(self) -> Figures:
        """Histories of wrong stores in memory: the checker finds something in nearly all of them."""
        each, caught = self.count(20), {}
        for mutant in MUTANTS:
            found = 0
            for seed in range(self.seed, self.seed + each):
                history = await asyncio.to_thread(simulate, mutant(), seed)
                kinds = {violation.kind for violation in violations(history, deadline=float("inf"))}
                found += bool(mutant.caught_as & kinds)
            assert found, f"{mutant.__name__} was never caught"
            caught[mutant.__name__] = found
        return {
            "mutants": len(caught),
            "caught": sum(bool(n) for n in caught.values()),
            "of histories": {"each": each} | caught,
        }

    async def instances(self) -> Figures:
        """Histories of three instances of the store behind proxies."""
        seen = Seen()
        for seed in range(self.seed, self.seed + self.count(35)):
            seen.add(await real.history_of_instances(self.url, seed))
        return seen.figures()

    async def processes(self) -> Figures:
        """Histories of server processes that are killed."""
        seen = Seen()
        async with real.processes(self.url) as servers:
            for seed in range(self.seed, self.seed + self.count(15)):
                seen.add(await servers.history(seed))
        return seen.figures()

    async def kills_http(self) -> Figures:
        counts = {"server": self.count(30), "postmaster": self.count(90), "backend": self.count(70)}
        return await self._kills(kills.over_http, counts, self.count(50_000))

    async def kills_stdio(self) -> Figures:
        users = kills.names_of(self.seed, 2)
        counts = {"server": self.count(10)}
        return await self._kills(lambda root: kills.over_stdio(root, users), counts, self.count(2_000), users=2)

    async def _kills(
        self,
        ground: Callable[[Path], AbstractAsyncContextManager[kills.Ground]],
        counts: dict[str, int],
        messages: int,
        **how: int,
    ) -> Figures:
        with empty_root() as root:
            server = EmbeddedPostgres(root)  # with its own settings: what it promises is what is proven
            await asyncio.to_thread(server.start)
            async with ConversationStore.embedded(root) as store:
                await store.ping()
            async with ground(root) as where:
                campaign = kills.Campaign(where, self.seed, **how)
                history = await campaign.run(counts, messages=messages)
            url = await asyncio.to_thread(server.start)
            fsync = await asyncio.to_thread(ask, url, "SHOW fsync")
            server.release()
        found = Counter(violation.kind for violation in violations(history))
        recovered = campaign.figures.recovery
        late = sum(seconds > RECOVERY_SECONDS for seconds in recovered.get("postmaster", []))
        wrong = [f"{count} x {kind}" for kind, count in found.items()]
        wrong += [f"{late} times a killed postmaster was back after more than {RECOVERY_SECONDS:g} s"] if late else []
        wrong += [f"fsync was {fsync}"] if fsync != "on" else []
        return {
            "kills": campaign.figures.kills,
            "acknowledged": campaign.figures.acknowledged,
            "lost": found["lost"],
            "doubled": found["doubled"],
            "unknown outcomes": campaign.figures.unknown,
            "recovery": {kind: spread(times) for kind, times in recovered.items()},
        } | ({"failed": "; ".join(wrong)} if wrong else {})

    async def crowd(self) -> Figures:
        figures = await crowd(self.url, self.count(10_000))
        assert not figures["errors"], figures
        return figures

    async def cuts(self) -> Figures:
        return await faults.cuts(self.url, self.seed, self.count(200))

    async def cold_starts(self) -> Figures:
        return await faults.cold_starts(self.url, self.seed, self.count(10), longest=8.0)

    async def stopped(self) -> Figures:
        with empty_root() as root:
            return await faults.stopped(root, self.seed, self.count(3), deadline=CALL_SECONDS, longest=15.0)

    async def exhausted(self) -> Figures:
        return await faults.exhausted(self.url)

    async def clock_jumps(self) -> Figures:
        return await faults.clock_jumps(self.url, self.seed, self.count(100))

    async def cancel_storm(self) -> Figures:
        return await faults.cancel_storm(self.url, self.seed, self.count(150) * 40)

    async def callers_gone(self) -> Figures:
        async with http_servers(1, DATABASE_URL=self.url) as [server]:
            over_http = await faults.callers_gone(HttpDoor(server), "gone", self.url, self.seed, self.count(500))
        door = StdioDoor("gone", DATABASE_URL=self.url)
        try:
            over_stdio = await faults.callers_gone(door, "gone", self.url, self.seed + 1, self.count(500))
        finally:
            await door.aclose()
        left = await faults.client_leaves(self.url, self.seed, self.count(5))
        return {"http": over_http, "stdio": over_stdio, "stdio ended": left}

    async def same_key(self) -> Figures:
        async with http_servers(2, DATABASE_URL=self.url) as servers:
            return await faults.same_key([HttpDoor(each) for each in servers], "twin", self.seed, self.count(1_000))

    async def full_disk(self) -> Figures:
        return {case: await asyncio.to_thread(full_disk.run, case) for case in full_disk.CASES}


class Seen:
    """What a number of histories had in them, none of them wrong."""

    def __init__(self) -> None:
        self.histories = self.calls = self.acknowledged = self.unknown = 0
        self.least_unknown = 10**9

    def add(self, history: History, **how: float) -> None:
        found = violations(history, **how)
        assert not found, f"{history.name}: {found[:3]}"
        unknown = history.count("unknown")
        assert unknown > WANTED_UNKNOWN, f"{history.name} had {unknown} unknown outcomes only"
        self.histories += 1
        self.calls += len(history.calls)
        self.acknowledged += history.acknowledged_messages()
        self.unknown += unknown
        self.least_unknown = min(self.least_unknown, unknown)

    def figures(self) -> Figures:
        return {
            "histories": self.histories,
            "violations": 0,
            "calls": self.calls,
            "acknowledged": self.acknowledged,
            "unknown outcomes": self.unknown,
            "least in one": self.least_unknown,
        }


def spread(times: list[float]) -> Figures:
    ordered = sorted(times)
    return {
        "n": len(ordered),
        "p50": ordered[len(ordered) // 2],
        "p99": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))],
        "max": ordered[-1],
    }


PARTS = (
    "kills_http",
    "kills_stdio",
    "instances",
    "processes",
    "crowd",
    "cuts",
    "cold_starts",
    "stopped",
    "exhausted",
    "clock_jumps",
    "cancel_storm",
    "callers_gone",
    "same_key",
    "full_disk",
    "mutants",
    "simulated",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full counts (default: 1)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--json", type=Path, help="where the figures go (default: of a whole run, benchmarks/results)")
    args = parser.parse_args()
    whole = tuple(args.only) == PARTS and args.scale == 1
    file = args.json or (RESULTS / "reliability.json" if whole else None)
    with temporary(max_connections="300") as url:
        schema.migrate(url)
        told: dict[str, Any] = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "seed": args.seed,
            "scale": args.scale,
            "postgres": ask(url, "SHOW server_version"),
            "fsync": ask(url, "SHOW fsync"),
            "cores": os.cpu_count(),
            "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
            "load before": os.getloadavg()[0],
            "parts": {},
        }
        run, began = Run(url, args.seed, args.scale), time.monotonic()
        for part in args.only:
            figures = asyncio.run(_timed(getattr(run, part)))
            told["parts"][part] = figures
            _say(f"{part:14} {figures['seconds']:6.1f} s  {_line(figures)}")
        failed = [part for part, figures in told["parts"].items() if "failed" in figures]
        told["seconds"], told["load after"] = time.monotonic() - began, os.getloadavg()[0]
    if file is not None:
        file.write_text(json.dumps(told, indent=1) + "\n")
    verdict = f"{' and '.join(failed)} failed" if failed else "all held"
    _say(f"{verdict}: {told['seconds']:.0f} s, load {told['load before']:.1f} to {told['load after']:.1f}")
    return 1 if failed else 0


async def _timed(part: Callable[[], Awaitable[Figures]]) -> Figures:
    began = time.monotonic()
    try:
        figures = await part()
    except Exception as exc:
        traceback.print_exc()
        figures = {"failed": f"{type(exc).__name__}: {exc}"}
    return figures | {"seconds": time.monotonic() - began, "load": os.getloadavg()[0]}


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _line(figures: Figures) -> str:
    return ", ".join(f"{name} {_value(value)}" for name, value in figures.items() if name != "seconds")


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return f"({_line(value)})"
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    sys.exit(main())
