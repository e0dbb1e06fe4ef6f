"""How long until the list of tools is there, and until a message is stored; and how much memory is taken then.

uv run python -m benchmarks.start [--rounds 5] [--short]

Each round starts the server twice as a client does, as a process of its own, and speaks the protocol's lines itself;
the first time the data directory is new, the second time the embedded Postgres runs already. Times are from the start
of the process; compare them with the control, a bare interpreter that imports the SDK, taken in the same round.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import results

INITIALIZE = {
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "start", "version": "1"}},
}


class Server:
    """`chatledger serve` in a process of its own, on a data directory."""

    def __init__(self, data_dir: Path) -> None:
        self.began = time.perf_counter()
        environment = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
        self.process = subprocess.Popen(
            [Path(sys.executable).with_name("chatledger"), "serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment | {"CHATLEDGER_DATA_DIR": str(data_dir)},
        )
        self.last = 0

    def request(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a request, wait for its answer."""
        assert self.process.stdout
        self.last += 1
        self._send({"id": self.last, **message})
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        if "error" in answer or answer.get("result", {}).get("isError"):
            raise SystemExit(f"unexpected answer: {answer}")
        return answer

    def _send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
        self.process.stdin.flush()

    def hello(self) -> float:
        """Seconds until the list of tools was there."""
        self.request(INITIALIZE)
        self._send({"method": "notifications/initialized"})
        self.request({"method": "tools/list"})
        return time.perf_counter() - self.began

    def first_append(self) -> float:
        """Seconds until the first message was stored."""
        self.request({"method": "tools/call", "params": {"name": "create_conversation", "arguments": {}}})
        arguments = {"conversation_id": 1, "role": "user", "content": "hello"}
        self.request({"method": "tools/call", "params": {"name": "append_message", "arguments": arguments}})
        return time.perf_counter() - self.began

    def stop(self) -> None:
        """Close its stdin and wait for its end."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(30)


def memory_mib(pid: int) -> float:
    """Of a process, what it shares with others counted in parts (Linux)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def database_mib(data_dir: Path) -> float:
    """Of all processes of the embedded Postgres."""
    postmaster = int(next(data_dir.rglob("postmaster.pid")).read_text().split()[0])
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    return memory_mib(postmaster) + sum(memory_mib(int(child)) for child in children)


def control() -> float:
    """Seconds that a bare interpreter takes to import the SDK."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import mcp.server"], check=True)
    return time.perf_counter() - began


def one_round(folder: Path) -> dict[str, float]:
    """Two starts on a data directory that is new."""
    seen = {"import mcp.server (control), s": control()}
    for place in ("first", "second"):
        server = Server(folder)
        seen[f"tools/list, {place} start, s"] = server.hello()
        seen[f"first append, {place} start, s"] = server.first_append()
        if place == "second":
            seen["memory of the server, MiB"] = memory_mib(server.process.pid)
            seen["memory of the embedded database, MiB"] = database_mib(folder)
        server.stop()
    subprocess.run(
        [Path(sys.executable).with_name("chatledger"), "database", "stop"],
        env={"PATH": os.environ["PATH"], "CHATLEDGER_DATA_DIR": str(folder)},
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return seen


def main() -> None:
    """Print the median and the range of each figure."""
    parser = results.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    control()  # writes the bytecode
    rounds = []
    for _ in range(1 if args.short else args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append(one_round(Path(folder)))
    print("| what | median (range) |\n|---|---|")
    for name in rounds[0]:
        print(f"| {name} | {results.told([seen[name] for seen in rounds])} |")
    if not args.short:
        medians = {name: round(statistics.median(seen[name] for seen in rounds), 2) for name in rounds[0]}
        results.write("start", medians, load_before=load)


if __name__ == "__main__":
    main()
