"""The tables of docs/reliability.md, out of what the long run and the comparison wrote.

`python -m tests.reliability.page` puts them between the marks in the page; the words around them are written by hand.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "reliability.md"
RESULTS = ROOT / "benchmarks" / "results"


def with_tables(page: str) -> str:
    """The page with the tables that belong to the results of the last runs."""
    told = json.loads((RESULTS / "reliability.json").read_text())
    tables = (
        ("run", _conditions(told)),
        ("attacks", _attacks(told["parts"])),
        ("recovery", _recovery(told["parts"])),
        ("peers", _compared(json.loads((RESULTS / "peers.json").read_text()))),
    )
    for mark, table in tables:
        pattern = re.compile(f"(?<=<!-- {mark} -->\\n).*?(?=<!-- /{mark} -->)", re.DOTALL)
        page, found = pattern.subn(table.replace("\\", r"\\"), page)
        assert found == 1, f"the page has no place for {mark}"
    return page


def _conditions(told: dict[str, Any]) -> str:
    failed = [f"{part}: {figures['failed']}" for part, figures in told["parts"].items() if "failed" in figures]
    again = "".join(
        f"\nRun again afterwards, alone: {part}, because {why}." for part, why in told.get("again", {}).items()
    )
    return (
        f"`uv run python -m tests.reliability --seed {told['seed']}` on {told['date']}: Postgres {told['postgres']} "
        f"with `fsync` {told['fsync']}, {told['machine']}, {told['cores']} cores shared with other work "
        f"(load {told['load before']:.1f} before, {told['load after']:.1f} after), "
        f"{told['seconds'] / 60:.0f} minutes.{again}\n"
        f"**{'Not all held: ' + '; '.join(failed) if failed else 'Every part held'}.**\n"
    )


def _attacks(parts: dict[str, Any]) -> str:
    rows = "".join(f"| {attack} | {often} | {seen} |\n" for attack, often, seen in _rows(parts))
    return f"| attack | how often | what was seen |\n|---|---|---|\n{rows}"


def _rows(parts: dict[str, Any]) -> list[tuple[str, str, str]]:
    rows = []
    for part, attack in _ATTACKS.items():
        figures = parts.get(part)
        if figures is not None and "failed" not in figures:
            rows.append((attack, *_told(part, figures)))
    return rows


_ATTACKS = {
    "kills_http": "SIGKILL of two servers over HTTP, of backends and of the postmaster, 0 to 30 ms after a request",
    "kills_stdio": "SIGKILL of servers over stdio",
    "instances": "Histories: three instances; connections cut, reset, refused, slow, swallowed; calls cancelled",
    "processes": "Histories: servers over HTTP and stdio, which are killed besides",
    "crowd": "Conversations begun at one moment, each created, appended to three times and loaded",
    "cuts": "The connection cut before the statement arrives, or after COMMIT and before the reply, up to 4 times",
    "cold_starts": "A port that refuses, or a stand-in that answers as a starting Postgres does (57P03), for up to 8 s",
    "stopped": "All of Postgres stopped (SIGSTOP) for up to 15 s, with 30 callers",
    "exhausted": "A pool of 4 stuck behind a lock, 200 more callers",
    "clock_jumps": "The clock an hour or a day off: stored times are moved, the clock itself is not set",
    "cancel_storm": "Cancel storm on the pool",
    "callers_gone": "Callers over HTTP and stdio who leave in the middle of a call",
    "same_key": "One `client_message_id` through two processes at one moment",
    "full_disk": "A file system of 64 MiB that runs full, and one of 96 that holds the log, too",
}


def _told(part: str, figures: dict[str, Any]) -> tuple[str, str]:
    """How often, and what was seen."""
    match part:
        case "kills_http" | "kills_stdio":
            kills = figures["kills"]
            often = f"{sum(kills.values())} kills ({', '.join(f'{count} {kind}' for kind, count in kills.items())})"
            seen = (
                f"{figures['lost']} lost and {figures['doubled']} doubled of {figures['acknowledged']:,} acknowledged "
                f"messages, most of them in appends of 20; {figures['unknown outcomes']:,} unknown outcomes, "
                "settled by repeating"
            )
        case "instances" | "processes":
            often = f"{figures['histories']} histories, {figures['calls']:,} calls"
            seen = (
                f"{figures['violations']} violations; {figures['unknown outcomes']:,} unknown outcomes, at least "
                f"{figures['least in one']} in each"
            )
        case "crowd":
            often = f"{figures['conversations']:,}, {figures['calls']:,} calls"
            seen = (
                f"{sum(figures['errors'].values())} errors; {figures['calls a second']:,.0f} calls a second, each in "
                f"its turn: median {figures['p50']:.1f} s, slowest {figures['slowest']:.1f} s"
            )
        case "cuts":
            often = f"{figures['appends']} appends"
            seen = f"each stored once; {figures['told unknown']} times the caller had to repeat it, else the store did"
        case "cold_starts":
            often = f"{figures['starts']} starts"
            seen = f"every call waited and was carried out once; the longest took {figures['longest wait']:.1f} s"
        case "stopped":
            often = f"{figures['stops']} times"
            seen = (
                f"the slowest call ended after {figures['slowest call']:.1f} s; calls were answered again within "
                f"{figures['slowest recovery']:.1f} s of its going on"
            )
        case "exhausted":
            often = "once"
            seen = (
                f"`unavailable` after at most {figures['told after at most']:.1f} s; when the lock was gone, 200 more "
                f"were served in {figures['all served in']:.1f} s"
            )
        case "clock_jumps":
            often, seen = f"{figures['jumps']} jumps", "order unchanged, no time goes back inside a conversation"
        case "cancel_storm":
            often = f"{figures['calls']:,} calls"
            seen = f"{figures['cancelled']:,} cancelled; no answer went astray, no connection was left over"
        case "callers_gone":
            http, stdio = figures["http"], figures["stdio"]
            often = f"{http['calls'] + stdio['calls']:,} calls"
            seen = (
                f"{http['given up'] + stdio['given up']:,} left in time; each message is there once after a repeat, no "
                "connection was left over"
            )
        case "same_key":
            often, seen = (
                f"{figures['keys']:,} keys",
                "one message and one receipt each, new for exactly one of the two",
            )
        case _:
            data, log = figures["data"], figures["data and log"]
            often = "once each"
            seen = (
                f"`unavailable`, nothing lost; loads went on: {_yes(data)}, and where the log had no room: {_yes(log)}"
                f"; appends again {data['recovery']:.1f} and {log['recovery']:.1f} s after there was room"
            )
    return often, seen


def _yes(figures: dict[str, Any]) -> str:
    return "yes" if figures["loads while full"] else "no"


def _recovery(parts: dict[str, Any]) -> str:
    text = "| killed | n | median | 99th percentile | slowest |\n|---|---|---|---|---|\n"
    for part, where in (("kills_http", ""), ("kills_stdio", " over stdio")):
        for kind, times in parts.get(part, {}).get("recovery", {}).items():
            name = "server over HTTP, until its host has started it again" if kind + where == "server" else kind + where
            text += f"| {name} | {times['n']} | {times['p50']:.2f} | {times['p99']:.2f} | {times['max']:.2f} |\n"
    return text


def _compared(peers: dict[str, Any]) -> str:
    text = (
        f"Postgres {peers['postgres']}, {peers['kills']} kills in each case with kills, seed {peers['seed']}, "
        f"{peers['date']}.\n\n"
        "| store | case | acknowledged | lost | doubled | out of order | unknown outcomes |\n"
        "|---|---|---|---|---|---|---|\n"
    )
    for name, found in peers["stores"].items():
        versions = ", ".join(f"{package} {number}" for package, number in found["versions"].items())
        for case, figures in found.items():
            if case != "versions":
                cells = [f"{figures[one]:,}" for one in ("acknowledged", "lost", "doubled", "out of order")]
                cells.append(f"{figures['with an unknown outcome']:,}")
                text += f"| {name} ({versions}) | {case} | {' | '.join(cells)} |\n"
    return text


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
