"""The chart of the README, from what `peers.http_rates` wrote: appends a second over HTTP, of 64 callers.

uv run python -m benchmarks.chart
"""

from __future__ import annotations

import argparse
import json
from html import escape
from pathlib import Path
from typing import Any, Final

from benchmarks.results import FOLDER

CHART: Final = Path(__file__).parent.parent / "docs" / "append-rates.svg"
CALLERS: Final = 64
LEFT, BAR, STEP, WIDE = 390, 20, 30, 920  # in pixels: where the bars begin, how high each is, and how far apart
NOTHING: Final = "an MCP tool that does nothing"


def bars(found: dict[str, Any]) -> list[tuple[str, int, float | None]]:
    """The store, its rate, and how many times as fast chatledger was in the same rounds; the fastest first."""
    servers = next(row["servers"] for row in found["rows"] if row["callers"] == CALLERS)
    named = []
    for name, seen in servers.items():
        store, _, kept = name.partition(", ")
        title = NOTHING if store == "nothing" else found["stores"][store]["title"]
        ratio = seen.get("our_rate_over_it", [None])[0]
        named.append((f"{title}, sessions kept" if kept else title, seen["a_second"], ratio))
    return sorted(named, key=lambda bar: -bar[1])


def drawn(rows: list[tuple[str, int, float | None]], conditions: dict[str, Any]) -> str:
    """A picture for light and dark pages."""
    most, high = max(rate for _, rate, _ in rows), 70 + STEP * len(rows)
    said = (
        f"{conditions['date']}, Postgres 18, {conditions['cores']} shared cores with the clients and Postgres on them; "
        "the other stores behind the SDK's MCPServer"
    )
    font = 'font-family="system-ui, sans-serif" font-size="13"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {high}" {font} role="img">',
        f'<rect width="{WIDE}" height="{high}" rx="6" fill="#ffffff"/>',
        f'<text x="16" y="26" font-weight="600">Appends a second over HTTP, {CALLERS} callers</text>',
    ]
    for place, (name, rate, ratio) in enumerate(rows):
        top = 44 + STEP * place
        long = (WIDE - LEFT - 170) * rate / most
        colour = "#1a7f5a" if ratio is None else "#c9ced6" if name == NOTHING else "#7d8590"
        told = f"{rate:,}" if ratio is None else f"{rate:,} (chatledger {ratio:.1f} x)"
        parts += [
            f'<text x="{LEFT - 10}" y="{top + 15}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{LEFT}" y="{top}" width="{long:.0f}" height="{BAR}" rx="3" fill="{colour}"/>',
            f'<text x="{LEFT + long + 8:.0f}" y="{top + 15}">{told}</text>',
        ]
    parts += [f'<text x="16" y="{high - 12}" font-size="11" fill="#57606a">{escape(said)}</text>', "</svg>"]
    return "\n".join(parts) + "\n"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    measured = json.loads((FOLDER / "peers_http.json").read_text())
    CHART.write_text(drawn(bars(measured["figures"]), measured["conditions"]))
    print(f"written to docs/{CHART.name}")


if __name__ == "__main__":
    main()
