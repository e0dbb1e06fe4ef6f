"""Whether a body posted to `/mcp` or `/messages/` is one JSON-RPC message, checked before the SDK looks at it.

For the older revisions the SDK takes a request with a malformed id for a notification, answers it with 202, and repeats
what was sent in the error for a batch or for parameters that are no object. Over SSE it writes it into the log as well.
"""

from __future__ import annotations

import json
from typing import Any, Final

from pydantic_core import from_json

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
ID_CHARS: Final = 256  # chosen: clients count, or send a UUID

_SENTENCES: Final = {
    PARSE_ERROR: "the body is not JSON",
    INVALID_REQUEST: "the body must be a single JSON-RPC message; its id, if any, is a string or an integer, "
    "its params or its result, if any, an object",
}


class NoMessage(Exception):
    """A body that is no message; `answer` is the JSON-RPC error for it, which goes with status 400."""

    def __init__(self, code: int) -> None:
        error = {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": _SENTENCES[code]}}
        self.answer = json.dumps(error, separators=(",", ":")).encode()


def read_message(body: bytes) -> dict[str, Any]:
    """The message.

    Raises:
        NoMessage: it is none.
    """
    try:
        message: Any = from_json(body)
    except ValueError:
        raise NoMessage(PARSE_ERROR) from None
    if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
        raise NoMessage(INVALID_REQUEST)
    if "id" in message and not _is_id(message["id"]):
        raise NoMessage(INVALID_REQUEST)
    if not (_is_asked(message) if "method" in message else _is_answered(message)):
        raise NoMessage(INVALID_REQUEST)
    return message


def _is_asked(message: dict[str, Any]) -> bool:
    return isinstance(message["method"], str) and isinstance(message.get("params"), dict | None)


def _is_answered(message: dict[str, Any]) -> bool:
    if "id" not in message:
        return False
    if "result" in message:
        return isinstance(message["result"], dict)
    error = message.get("error")
    return isinstance(error, dict) and _is_int(error.get("code")) and isinstance(error.get("message"), str)


def _is_id(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= ID_CHARS
    return _is_int(value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 2**53
