"""Can a caller tell a conversation of somebody else from one that does not exist by how long the refusal takes?

uv run python -m benchmarks.foreign_timing [--loads 2000] [--short]

Loads of a foreign conversation of 1,000 messages and of absent ones alternate, by id and by number, through the tool in
one process. The medians must lie within 5 % or 0.2 ms of each other (the bad-input table of the design).
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from typing import Any
from uuid import uuid4

from mcp import Client

from benchmarks import results
from chatledger.server.app import make_server
from chatledger.server.identity import local_user
from chatledger.storage import ConversationStore, NewMessage, schema
from chatledger.storage.embedded import temporary


async def measure(url: str, loads: int) -> list[dict[str, Any]]:
    found = []
    async with (
        ConversationStore.at(url) as store,
        Client(make_server(store, local_user("prober")), mode="auto") as client,
    ):
        owned = [(await store.create_conversation("owner", title=f"talk {number}"))[0] for number in range(1, 4)]
        for conversation in owned:
            for _ in range(10):
                await store.append_messages(
                    "owner", conversation.id, [NewMessage(role="user", content="x" * 300)] * 100
                )
        # A number is each user's own: the owner's third is as absent for the prober as the millionth.
        for how, foreign, absent in (
            ("by id", str(owned[2].id), lambda: str(uuid4())),
            ("by number", 3, lambda: 10**6),
        ):
            times: dict[str, list[float]] = {"foreign": [], "absent": []}
            for turn in range(loads):
                for kind in ("foreign", "absent") if turn % 2 else ("absent", "foreign"):
                    asked = foreign if kind == "foreign" else absent()
                    began = time.perf_counter()
                    answer = await client.call_tool("load_history", {"conversation_id": asked})
                    times[kind].append((time.perf_counter() - began) * 1e3)
                    assert answer.is_error
            medians = {kind: statistics.median(each) for kind, each in times.items()}
            apart = abs(medians["foreign"] - medians["absent"])
            within = apart <= max(0.2, 0.05 * medians["absent"])
            print(
                f"| {how} | {medians['foreign']:.3f} | {medians['absent']:.3f} | {apart:.3f} | "
                f"{'within' if within else 'OUTSIDE'} |",
                flush=True,
            )
            found.append({"how": how, "loads": loads, "apart_ms": round(apart, 4), "within": within} | medians)
    return found


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("--loads", type=int, default=2_000, help="of each kind")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    print("| a conversation | foreign, median ms | absent | apart | 5 % or 0.2 ms |\n|---|---|---|---|---|")
    with temporary() as url:
        schema.migrate(url)
        figures = asyncio.run(measure(url, 20 if args.short else args.loads))
    if not args.short:
        results.write("foreign_timing", figures, load_before=load)


if __name__ == "__main__":
    main()
