"""Write the README's table of tools from the snapshots of the tools, or check that it is as they are.

uv run python scripts/tool_table.py [--check]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from chatledger.server.tools import TOOLSETS

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- tools: written by scripts/tool_table.py -->", "<!-- end of tools -->"


def row(tool: dict[str, Any]) -> str:
    """One line of the table: what the tool is for, and its arguments, those that it needs in bold."""
    schema = tool["inputSchema"]
    needed = schema.get("required", [])
    arguments = [f"**`{name}`**" if name in needed else f"`{name}`" for name in schema.get("properties", {})]
    purpose = tool["description"].split(". ")[0].rstrip(".")
    return f"| `{tool['name']}` | {purpose}. | {', '.join(arguments)} |"


def table() -> str:
    """The table of all tools, in the order in which clients see them."""
    snapshots = [json.loads((ROOT / f"tests/snapshots/{name}.json").read_text()) for name in TOOLSETS["full"]]
    lines = ["| tool | what it is for | arguments (**needed**) |", "|---|---|---|", *map(row, snapshots)]
    return "\n".join(lines)


def main() -> int:
    """Write the table, or with `--check` only compare: 1 when it differs."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    wanted = f"{before}{BEGIN}\n{table()}\n{END}{after}"
    if "--check" in sys.argv[1:]:
        if text != wanted:
            print("README.md: the table of tools is out of date; run: uv run python scripts/tool_table.py")
        return int(text != wanted)
    readme.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
