#!/usr/bin/env python3
"""Look every locked package up for known vulnerabilities, what is shipped and what checks it: scripts/audit.py

Exit 1: there are findings, or a part could not be looked up. Where the service as a whole cannot be reached, as without
a network or behind a mirror of packages only, that is told loudly, and is no failure: nothing is known then.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
# The groups are audited as well: they run on the machines of those who develop, and on the one that publishes.
EXPORT = ["uv", "export", "--quiet", "--locked", "--all-extras", "--all-groups", "--no-emit-project", "--no-hashes"]
AUDIT = ["uv", "run", "--quiet", "--locked", "--isolated", "--only-group", "audit", "pip-audit"]
OPTIONS = ["--no-deps", "--disable-pip", "--progress-spinner=off", "--format=json"]
SECONDS = 300  # chosen: some hundred short requests
AWAY = re.compile(r"Connection|Timeout|resolve|dns error|Network|request failed|HTTP status", re.IGNORECASE)


def main() -> int:
    with tempfile.NamedTemporaryFile("w+", suffix=".txt") as requirements:
        requirements.write(run(EXPORT).stdout)
        requirements.flush()
        done = run([*AUDIT, *OPTIONS, "-r", requirements.name], check=False)
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        if AWAY.search(done.stderr):
            return not_reached(done.stderr.strip().splitlines()[-1:])
        say(done.stderr or f"pip-audit ended with {done.returncode} and said nothing")
        return 1
    return verdict(found)


def verdict(found: list[dict[str, Any]]) -> int:
    """What the answers mean; told on stderr."""
    skipped = [each for each in found if "skip_reason" in each]
    vulnerable = [each for each in found if each.get("vulns")]
    for package in vulnerable:
        for each in package["vulns"]:
            fixed = ", ".join(each["fix_versions"]) or "no version yet"
            say(f"{package['name']} {package['version']}: {each['id']}, mended in {fixed}")
    if vulnerable:
        return 1
    if len(skipped) == len(found):
        return not_reached([each["skip_reason"] for each in skipped[:1]])
    for package in skipped:
        say(f"not audited: {package['skip_reason']}")
    if skipped:
        return 1
    say(f"{len(found)} packages, no known vulnerability")
    return 0


def not_reached(why: list[str]) -> int:
    say("")
    say("!!! NOTHING WAS AUDITED: the service that knows of vulnerabilities cannot be reached from here !!!")
    say("".join(why)[:300])
    say("")
    return 0


def run(command: list[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=CHECKOUT, check=check, capture_output=True, text=True, timeout=SECONDS)


def say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
