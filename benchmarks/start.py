"""How long a start takes: until the list of tools is there, and until a message is stored on a fresh data directory.

uv run python benchmarks/start.py [--rounds 5]

Each round starts the server as a client does, as a process of its own, and speaks the protocol's lines itself. Times
are from the start of the process; compare them with the control, a bare interpreter that imports the SDK, taken in the
same round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

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


def control() -> float:
    """Seconds that a bare interpreter takes to import the SDK."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import mcp.server"], check=True)
    return time.perf_counter() - began


def main() -> None:
    """Print the median and the range of each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    figures: dict[str, list[float]] = {"import mcp.server (control)": [], "tools/list": [], "first append, fresh": []}
    figures["first append, second start"] = []
    control()  # writes the bytecode
    for _ in range(rounds):
        figures["import mcp.server (control)"].append(control())
        with tempfile.TemporaryDirectory() as folder:
            for place in ("first append, fresh", "first append, second start"):
                server = Server(Path(folder))
                listed = server.hello()
                figures[place].append(server.first_append())
                server.stop()
            figures["tools/list"].append(listed)
            subprocess.run(
                [Path(sys.executable).with_name("chatledger"), "database", "stop"],
                env={"PATH": os.environ["PATH"], "CHATLEDGER_DATA_DIR": folder},
                stderr=subprocess.DEVNULL,
                check=False,
            )
    for name, seconds in figures.items():
        print(f"{name:30} {statistics.median(seconds):6.2f} s  ({min(seconds):.2f} - {max(seconds):.2f})")


if __name__ == "__main__":
    main()
