"""What a run of the suite that passed amounts to, in one line.

python -m tests.conformance.summary REVISION RESULTS
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "node_modules/@modelcontextprotocol/conformance/requirements"


def summary(revision: str, results: Path) -> str:
    """The suite accepts what did not run: what is required must have left results, and the baseline name no other."""
    scored = yaml.safe_load((REQUIREMENTS / f"{revision}.yaml").read_text())["server"]
    baseline = yaml.safe_load((HERE / f"baseline.{revision}.yml").read_text())["server"]
    missing = [name for name in scored if not [*results.glob(f"server-{name}-2*/checks.json")]]
    if missing:
        sys.exit(f"{revision}: did not run: {', '.join(missing)}")
    expected = {entry.split(":")[0] for entry in baseline}
    if unknown := expected - set(scored):
        sys.exit(f"{revision}: the baseline names what is not scored: {', '.join(sorted(unknown))}")
    return (
        f"{revision}: of {len(scored)} scored scenarios {len(scored) - len(expected)} pass, "
        f"{len(expected)} fail as the baseline says"
    )


if __name__ == "__main__":
    sys.stdout.write(summary(sys.argv[1], Path(sys.argv[2])) + "\n")
