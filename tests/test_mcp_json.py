"""The configurations that come with the checkout: all say the same, and the command in them starts the server."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from tests.postgres_processes import ready_root
from tests.test_tools import call

CHECKOUT = Path(__file__).resolve().parent.parent
COPIES = (".mcp.json", ".cursor/mcp.json")


def configured(path: str, key: str) -> dict[str, Any]:
    """The only server in the file."""
    file: dict[str, dict[str, dict[str, Any]]] = json.loads((CHECKOUT / path).read_text(encoding="utf-8"))
    assert list(file) == [key]
    ((name, server),) = file[key].items()
    assert name == "chatledger"
    return server


@pytest.fixture
def root() -> Iterator[Path]:
    with ready_root() as ready:
        yield ready


def test_each_copy_is_the_file_at_the_top_byte_for_byte() -> None:
    original = (CHECKOUT / "mcp.json").read_bytes()
    assert [path for path in COPIES if (CHECKOUT / path).read_bytes() != original] == []


def test_the_form_for_vs_code_differs_in_the_key_alone() -> None:
    original = (CHECKOUT / "mcp.json").read_text(encoding="utf-8")
    expected = original.replace('"mcpServers"', '"servers"')
    assert (CHECKOUT / ".vscode/mcp.json").read_text(encoding="utf-8") == expected
    assert configured(".vscode/mcp.json", "servers") == configured("mcp.json", "mcpServers")


def test_it_names_no_environment_and_nothing_that_a_client_would_have_to_expand() -> None:
    server = configured("mcp.json", "mcpServers")
    assert set(server) == {"type", "command", "args"}
    assert "$" not in (CHECKOUT / "mcp.json").read_text(encoding="utf-8")
    assert server["type"] == "stdio"
    assert not Path(server["command"]).is_absolute()


async def test_the_very_command_in_it_starts_the_server(era: str, tmp_path: Path, root: Path) -> None:
    server = configured("mcp.json", "mcpServers")
    uv = shutil.which(server["command"])
    assert uv is not None, "pip install uv"
    settings = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "CHATLEDGER_DATA_DIR": str(root)}
    parameters = StdioServerParameters(command=uv, args=server["args"], env=settings, cwd=CHECKOUT)
    with (tmp_path / "stderr").open("w+") as log:
        async with Client(stdio_client(parameters, errlog=log), mode=era) as client:
            tools = {tool.name for tool in (await client.list_tools()).tools}
            assert tools >= {"create_conversation", "append_message", "load_history", "list_conversations"}
            made = (await call(client, "create_conversation", title="By mcp.json"))["conversation"]
            await call(client, "append_message", conversation_id=made["id"], role="user", content="hello")
            window = await call(client, "load_history")
            assert (window["conversation"]["id"], window["messages"][0]["content"]) == (made["id"], "hello")
        log.seek(0)
        assert "Traceback" not in log.read()
