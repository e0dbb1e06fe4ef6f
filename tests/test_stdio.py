"""`chatledger serve` as a process: its streams, its start, its end, and what survives it.

One client is the official SDK's, the other one a few lines that believe nothing: whatever they read must be a message.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from chatledger.server.stdio_pipes import LONGEST_LINE, PIPE_BYTES
from tests.patience import PATIENCE
from tests.postgres_processes import empty_root, ready_root
from tests.test_tools import call

CHATLEDGER = str(Path(sys.executable).with_name("chatledger"))
CANARY = "Wb7canaryWb7"
AT_ONCE = 10.0  # seconds: sooner than a connection is given up
ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}
HELLO = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
NOISY = """
import os, subprocess, sys, warnings
from chatledger.server import cli
from chatledger.storage import ConversationStore

quiet = ConversationStore.list_conversations
async def noisy(self, *args, **kwargs):
    print("a stray print")
    sys.stdout.write("a stray line without its end")
    os.write(1, b"a stray write\\n")
    subprocess.run(["echo", "a stray child"])
    warnings.warn("a stray warning")
    return await quiet(self, *args, **kwargs)
ConversationStore.list_conversations = noisy
cli.main(["serve"])
"""

ANYTHING = """
from chatledger.server import cli, stdio_pipes

stdio_pipes.usable = lambda: False  # as where stdin is a file or a terminal
"""

PLAIN = """
from chatledger.server import cli
cli.main(["serve"])
"""

IMPATIENT = """
from chatledger.server import cli
from chatledger.storage import engine

engine.WAKING_SECONDS = 0
cli.main(["serve"])
"""


def environment(home: Path, **settings: object) -> dict[str, str]:
    """What a host gives a server, and nothing of what is set here."""
    given = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONWARNINGS": "always"}
    return given | {f"CHATLEDGER_{name}": str(value) for name, value in settings.items()}


class Lines:
    """A server in a process of its own, and a client that writes and reads lines of JSON."""

    def __init__(self, era: str, home: Path, command: list[str], **settings: object) -> None:
        self.modern, self.last_id, self.unread = era == "auto", 0, b""
        self.log = home / f"stderr-{time.monotonic_ns()}"
        with self.log.open("wb") as stderr:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment(home, **settings),
                cwd=home,
                bufsize=0,
            )
        assert self.process.stdin
        assert self.process.stdout
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def send(self, method: str, **params: Any) -> int:
        """Send a request and do not wait; its id."""
        if self.last_id == 0 and not self.modern and method != "initialize":
            self.answer(self.send("initialize", **HELLO))
            self.write({"jsonrpc": "2.0", "method": "notifications/initialized"})
        self.last_id += 1
        params |= {"_meta": ENVELOPE} if self.modern else {}
        self.write({"jsonrpc": "2.0", "id": self.last_id, "method": method, "params": params})
        return self.last_id

    def write(self, message: object) -> None:
        self.stdin.write(json.dumps(message).encode() + b"\n")

    def message(self, within: float = PATIENCE) -> dict[str, Any]:
        """The next message; it must be one."""
        deadline = time.monotonic() + within
        while b"\n" not in self.unread:
            readable, _, _ = select.select([self.stdout], [], [], max(0.0, deadline - time.monotonic()))
            assert readable, f"no answer within {within} s"
            chunk = self.stdout.read(65536)
            assert chunk, self.log.read_text()
            self.unread += chunk
        line, _, self.unread = self.unread.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        assert message["jsonrpc"] == "2.0"
        return message

    def answer(self, id: int) -> dict[str, Any]:
        message = self.message()
        assert message["id"] == id
        result: dict[str, Any] = message["result"]
        return result

    def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """The structured result of a tool, whether it succeeded or not."""
        result = self.answer(self.send("tools/call", name=tool, arguments=arguments))
        structured: dict[str, Any] = result["structuredContent"]
        return structured

    def leave(self, within: float = PATIENCE) -> int:
        """End the input; the exit code. Nothing but messages may have come before the end."""
        self.stdin.close()
        code = self.process.wait(within)
        for line in (self.unread + self.stdout.read()).splitlines():
            assert json.loads(line)["jsonrpc"] == "2.0"
        return code


@contextlib.contextmanager
def served(era: str, home: Path, *, command: list[str] | None = None, **settings: object) -> Iterator[Lines]:
    lines = Lines(era, home, command or [CHATLEDGER, "serve"], **settings)
    try:
        yield lines
    finally:
        lines.process.kill()
        lines.process.wait()
        lines.stdin.close()
        lines.stdout.close()


@pytest.fixture
def silent_url() -> Iterator[str]:
    """The URL of something that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield f"postgresql://someone:{CANARY}@127.0.0.1:{silent.getsockname()[1]}/none"


def test_the_tools_are_listed_before_the_database_answers_and_a_call_ends_without_it(
    era: str, tmp_path: Path, silent_url: str
) -> None:
    impatient, url = [sys.executable, "-c", IMPATIENT], f"{silent_url}?connect_timeout=1"
    with served(era, tmp_path, command=impatient, DATABASE_URL=url) as server:
        tools = server.answer(server.send("tools/list"))["tools"]
        assert {"create_conversation", "load_history"} <= {tool["name"] for tool in tools}
        error = server.call("load_history")["error"]
        assert (error["code"], error["status"], error["retryable"]) == ("unavailable", 503, True)
        assert error["retry_after_seconds"] > 0
        assert server.leave() == 0
        assert CANARY not in server.log.read_text() + str(error)


@pytest.mark.parametrize(
    ("era", "how"), [("auto", "end of input"), ("legacy", "end of input in mid-line"), ("auto", "SIGTERM")]
)
def test_it_ends_at_once_although_the_database_was_never_reached(
    tmp_path: Path, silent_url: str, era: str, how: str
) -> None:
    with served(era, tmp_path, DATABASE_URL=silent_url) as server:
        server.answer(server.send("tools/list"))
        server.send("tools/call", name="list_conversations", arguments={})
        if how == "SIGTERM":
            server.process.terminate()
            assert server.process.wait(AT_ONCE) in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
        else:
            if how == "end of input in mid-line":
                server.stdin.write(b'{"jsonrpc": "2.0", "id": 99, "met')
            assert server.leave(AT_ONCE) == 0
        assert "Traceback" not in server.log.read_text()


async def test_what_was_stored_is_there_after_a_restart(era: str, tmp_path: Path, database_url: str) -> None:
    text = "two\nlines, \u2028 \x85 \r \u202e \U0001f600 and \\n"
    env = environment(tmp_path, DATABASE_URL=database_url)
    parameters = StdioServerParameters(command=CHATLEDGER, args=["serve"], env=env, cwd=tmp_path)
    with (tmp_path / "stderr").open("w+") as log:
        async with Client(stdio_client(parameters, errlog=log), mode=era) as client:
            made = (await call(client, "create_conversation", title=text))["conversation"]
            await call(client, "append_message", conversation_id=1, role="user", content=text)
            before = await call(client, "load_history")
        async with Client(stdio_client(parameters, errlog=log), mode=era) as client:
            assert (await call(client, "list_conversations"))["conversations"][0]["title"] == text
            assert await call(client, "load_history", conversation_id=made["id"]) == before
            assert [message["content"] for message in before["messages"]] == [text]
        log.seek(0)
        assert "Traceback" not in log.read()


def test_an_acknowledged_append_outlives_a_kill_of_the_server(era: str, tmp_path: Path) -> None:
    body = {"role": "user", "content": "said once", "client_message_id": "c1"}
    with ready_root() as root:
        with served(era, tmp_path, DATA_DIR=root) as server:
            made = server.call("create_conversation")["conversation"]
            receipt = server.call("append_message", conversation_id=made["id"], **body)
            server.process.kill()
        with served(era, tmp_path, DATA_DIR=root) as server:
            window = server.call("load_history", conversation_id=made["id"])
            assert [message["content"] for message in window["messages"]] == ["said once"]
            repeat = server.call("append_message", conversation_id=made["number"], **body)
            assert repeat == receipt | {"deduplicated": True}
            assert server.leave() == 0
        stop, settings = [CHATLEDGER, "database", "stop"], environment(tmp_path, DATA_DIR=root)
        stopped = subprocess.run(stop, env=settings, capture_output=True, text=True, timeout=PATIENCE)
        assert (stopped.returncode, stopped.stdout, stopped.stderr) == (0, "", "stopped\n")


def test_two_servers_that_start_at_once_on_a_fresh_directory_share_it_and_mix_nothing_up(tmp_path: Path) -> None:
    with (
        empty_root() as root,
        served("auto", tmp_path, DATA_DIR=root, USER_ID="alice") as alice,
        served("legacy", tmp_path, DATA_DIR=root, USER_ID="bob") as bob,
    ):
        users = {"alice": alice, "bob": bob}
        for server in users.values():
            server.send("tools/call", name="create_conversation", arguments={"title": "mine"})
        for server in users.values():
            server.answer(server.last_id)
            server.last_id = 100  # from here on both count alike
        for n in range(10):
            for name, server in users.items():
                arguments = {"conversation_id": 1, "role": "user", "content": f"{name} {n}"}
                server.send("tools/call", name="append_message", arguments=arguments)
        for server in users.values():
            answers = [server.message() for _ in range(10)]
            assert sorted(message["id"] for message in answers) == list(range(101, 111))
            seqs = {message["result"]["structuredContent"]["seq"] for message in answers}
            assert seqs == set(range(1, 11))
        for name, server in users.items():
            window = server.call("load_history")
            assert {message["content"] for message in window["messages"]} == {f"{name} {n}" for n in range(10)}
        foreign = alice.call("load_history")["conversation"]["id"]
        assert bob.call("load_history", conversation_id=foreign)["error"]["code"] == "conversation_unavailable"
        assert [alice.leave(), bob.leave()] == [0, 0]


@pytest.fixture(params=["", ANYTHING], ids=["pipes", "anything"])
def transport(request: pytest.FixtureRequest) -> str:
    """What comes before a server's own code to choose how it reads and writes."""
    return str(request.param)


def test_nothing_but_messages_reaches_stdout_whatever_is_printed(
    era: str, tmp_path: Path, database_url: str, transport: str
) -> None:
    command = [sys.executable, "-c", transport + NOISY]
    with served(era, tmp_path, command=command, DATABASE_URL=database_url) as server:
        for _ in range(2):
            assert server.call("list_conversations") == {"conversations": []}
        assert server.leave() == 0
        log = server.log.read_text()
        for stray in ("print", "line without its end", "write", "child", "warning"):
            assert f"a stray {stray}" in log


def test_a_line_that_is_no_message_does_not_end_it(era: str, tmp_path: Path, database_url: str, transport: str) -> None:
    command = [sys.executable, "-c", transport + PLAIN]
    with served(era, tmp_path, command=command, DATABASE_URL=database_url) as server:
        server.call("create_conversation")
        for junk in (b"", b"junk", b"[]", b"\xff\xfe", b"\x00", b'{"jsonrpc": "2.0"', b"[" * 10_000, b'"\\ud800"'):
            server.stdin.write(junk + b"\n")
        asked = server.send("tools/call", name="list_conversations", arguments={"limit": 1})
        while (message := server.message()).get("id") != asked:
            assert "error" in message
        assert len(message["result"]["structuredContent"]["conversations"]) == 1
        assert server.leave() == 0
        assert "Traceback" not in server.log.read_text()


def test_a_request_with_a_lone_surrogate_is_answered(
    era: str, tmp_path: Path, database_url: str, transport: str
) -> None:
    command = [sys.executable, "-c", transport + PLAIN]
    with served(era, tmp_path, command=command, DATABASE_URL=database_url) as server:
        broken = server.send("tools/call", name="create_conversation", arguments={"title": "half \ud800"})
        good = server.send("tools/call", name="list_conversations", arguments={})
        answers = [server.message()]
        while answers[-1].get("id") != good:
            answers.append(server.message())
        assert broken in [answer.get("id") for answer in answers]
        assert answers[0]["result"]["structuredContent"]["error"]["code"] == "invalid_argument"
        for sent, method, told in (
            ("\ud800", "tools/list", None),
            (77, "\udfff/list", 77),
        ):  # an answer would repeat it
            server.write({"jsonrpc": "2.0", "id": sent, "method": method, "params": {}})
            refused = server.message()
            assert (refused["id"], refused["error"]["code"]) == (told, -32700)
        assert server.leave() == 0


def test_a_file_is_served_to_a_file(tmp_path: Path) -> None:
    request = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": HELLO}
    (tmp_path / "in").write_text(json.dumps(request) + "\n")
    with (tmp_path / "in").open() as stdin, (tmp_path / "out").open("w") as stdout:
        code = subprocess.run(
            [CHATLEDGER, "serve"], stdin=stdin, stdout=stdout, env=environment(tmp_path), timeout=PATIENCE, check=False
        ).returncode
    assert code == 0
    answer = json.loads((tmp_path / "out").read_text())
    assert answer["result"]["serverInfo"]["name"] == "chatledger"


def test_a_line_over_the_limit_is_refused_and_the_next_one_served(tmp_path: Path, database_url: str) -> None:
    with served("legacy", tmp_path, DATABASE_URL=database_url) as server:
        server.call("create_conversation")
        writing = threading.Thread(target=server.stdin.write, args=(b"x" * (LONGEST_LINE + 5_000_000) + b"\n",))
        writing.start()
        refused = server.message()
        writing.join()
        assert (refused["id"], refused["error"]["code"]) == (None, -32700)
        assert server.call("append_message", conversation_id=1, role="user", content="next")["seq"] == 1
        assert server.leave() == 0


def test_a_client_that_is_behind_with_reading_gets_every_answer_in_the_end(tmp_path: Path, database_url: str) -> None:
    with served("legacy", tmp_path, DATABASE_URL=database_url) as server:
        server.call("create_conversation")
        for _ in range(5):
            server.call("append_message", conversation_id=1, role="user", content="x" * 10_000)
        asked = [server.send("tools/call", name="load_history", arguments={"max_tokens": 200_000}) for _ in range(100)]
        found = [server.message() for _ in asked]  # ten megabytes, which no pipe holds
        assert sorted(message["id"] for message in found) == asked
        assert all(len(message["result"]["structuredContent"]["messages"]) == 5 for message in found)
        assert server.leave() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the size of a pipe is the system's")
def test_the_pipe_to_the_client_holds_a_long_history(tmp_path: Path, database_url: str) -> None:
    with served("legacy", tmp_path, DATABASE_URL=database_url) as server:
        server.call("create_conversation")
        reading, writing = os.pipe()
        try:
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except PermissionError:
            pytest.skip("this user's pipes are spent")
        finally:
            os.close(reading)
            os.close(writing)
        assert fcntl.fcntl(server.stdout, fcntl.F_GETPIPE_SZ) == PIPE_BYTES
        assert server.leave() == 0


def test_a_client_that_never_reads_does_not_keep_the_server_from_ending(tmp_path: Path, database_url: str) -> None:
    with served("legacy", tmp_path, DATABASE_URL=database_url) as server:
        server.call("create_conversation")
        for _ in range(5):
            server.call("append_message", conversation_id=1, role="user", content="x" * 10_000)
        for _ in range(20):
            server.send("tools/call", name="load_history", arguments={"max_tokens": 200_000})
        server.stdin.close()
        assert server.process.wait(PATIENCE) == 0
