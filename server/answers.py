"""What a tool answers: its facts as JSON text, and the same once more as structured content.

On its way through the SDK structured content is copied twice, checked and written, which takes longer than to load it.
So a transport of ours asks for a stand-in, and puts the text itself in its place where the answer is written.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Final

import orjson
from mcp.types import CallToolResult, TextContent
from pydantic_core import from_json, to_json

from chatledger.server import schemas

STAND_IN: Final = {"same_as": "text"}
# As the SDK writes them, in this order. No value can look like them, for inside a JSON string every quotation mark has
# a backslash before it; and no key of an answer's envelope comes from a client.
_NO_TEXT: Final = b'"text":""'
_STAND_IN: Final = b'"structuredContent":{"same_as":"text"}'

STANDING_IN: ContextVar[bool] = ContextVar("STANDING_IN", default=False)
"""Set by a transport that has its answers `written` here."""


def answer(facts: dict[str, Any]) -> CallToolResult:
    """The facts in both forms."""
    text = schemas.compact_json(facts)
    structured = STAND_IN if STANDING_IN.get() else from_json(text)
    return CallToolResult(content=[TextContent(type="text", text=text)], structured_content=structured)


def written(response: dict[str, Any]) -> list[bytes]:
    """A JSON-RPC response in pieces: with the text in the place of a stand-in, as the JSON that it is.

    The text is written apart from the rest, by orjson, in a third of the time.
    """
    result = response.get("result")
    if result is None or result.get("structuredContent") != STAND_IN:
        return [to_json(response)]
    (block,) = result["content"]
    text: str = block["text"]
    rest = to_json(response | {"result": result | {"content": [block | {"text": ""}]}})
    before, _, after = rest.partition(_NO_TEXT)
    between, found, after = after.partition(_STAND_IN)
    if not found:  # in another order than expected
        return [to_json(response | {"result": result | {"structuredContent": from_json(text)}})]
    return [before, b'"text":', orjson.dumps(text), between, b'"structuredContent":', text.encode(), after]
