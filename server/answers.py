"""What a tool answers: its facts as JSON text, and the same once more as structured content.

On its way through the SDK structured content is copied twice, checked and written, which takes longer than to load it.
So a transport of ours asks for a stand-in, and puts the text itself in its place where the answer is written.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final

from mcp.types import CallToolResult, TextContent
from pydantic_core import from_json

from chatledger.server import schemas

STAND_IN: Final = {"same_as": "text"}
# No text can look like it: inside a JSON string every quotation mark has a backslash before it.
_OBJECT: Final = b'{"same_as":"text"}'
_WRITTEN: Final = b'"structuredContent":' + _OBJECT

ON_STAND_IN: ContextVar[Callable[[str], object] | None] = ContextVar("ON_STAND_IN", default=None)
"""Set by a transport that calls `completed` on what it writes: told of each text that a stand-in was made for."""


def answer(facts: dict[str, Any]) -> CallToolResult:
    """The facts in both forms."""
    text = schemas.compact_json(facts)
    noted = ON_STAND_IN.get()
    if noted is not None:
        noted(text)
    structured = from_json(text) if noted is None else STAND_IN
    return CallToolResult(content=[TextContent(type="text", text=text)], structured_content=structured)


def text_of(result: dict[str, Any]) -> str | None:
    """The text of an answer with a stand-in, as the SDK hands it over; None for one without."""
    if result.get("structuredContent") != STAND_IN:
        return None
    text: str = result["content"][0]["text"]
    return text


def completed(written: bytes, text: str) -> list[bytes | memoryview]:
    """The pieces of what was written with the text in the place of its stand-in, as the JSON that it is.

    Without a stand-in it is the one piece. Nothing is copied that can be as long as a history.
    """
    found = written.find(_WRITTEN)
    if found < 0:
        return [written]
    start = found + len(_WRITTEN) - len(_OBJECT)
    whole = memoryview(written)
    return [whole[:start], text.encode(), whole[start + len(_OBJECT) :]]
