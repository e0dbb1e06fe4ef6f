"""What went wrong -> what the caller sees: a tool result with the contract's code, never a driver's own text."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any

from mcp import MCPError
from mcp.types import INTERNAL_ERROR, INVALID_PARAMS, CallToolResult, TextContent
from pydantic import ValidationError

from chatledger.storage.errors import StorageError

logger = logging.getLogger("chatledger")

STATUS = {
    "conversation_unavailable": 403,
    "unknown_user": 403,
    "invalid_argument": 422,
    "content_empty": 422,
    "content_too_long": 422,
    "too_large": 422,
    "invalid_cursor": 422,
    "sequence_conflict": 409,
    "idempotency_conflict": 409,
    "rate_limited": 429,
    "quota_exceeded": 429,
    "unavailable": 503,
    "schema_out_of_date": 503,
    "internal": 500,
}
# Where a transport wants to know when a refused call may be repeated: a list that it looks at afterwards.
RETRY_AFTER: ContextVar[list[float] | None] = ContextVar("RETRY_AFTER", default=None)
_RETRYABLE = {"unavailable", "rate_limited"}


def refusal(code: str, message: str, **details: Any) -> CallToolResult:
    """A failed call, in the contract's form."""
    return CallToolResult(
        content=[TextContent(type="text", text=f"{code}: {message}")],
        structured_content={"error": _error(code, message, details)},
        is_error=True,
    )


def protocol_error(code: str, message: str, **details: Any) -> MCPError:
    """The same for a request that is no tool call: JSON-RPC's number tells whose fault it is, `data` is the error."""
    number = INTERNAL_ERROR if STATUS[code] in (429, 500, 503) else INVALID_PARAMS
    return MCPError(number, f"{code}: {message}", _error(code, message, details))


def _error(code: str, message: str, details: dict[str, Any]) -> dict[str, Any]:
    noted = RETRY_AFTER.get()
    if noted is not None and "retry_after_seconds" in details:
        noted.append(details["retry_after_seconds"])
    return {"code": code, "status": STATUS[code], "message": message, "retryable": code in _RETRYABLE, **details}


def storage_refusal(exc: StorageError, tool: str) -> CallToolResult:
    """What the store refused; an error that no caller can act on becomes an opaque one."""
    code, message, details = _told(exc, tool)
    return refusal(code, message, **details)


def internal(exc: BaseException, tool: str) -> CallToolResult:
    """Anything unforeseen: logged under a reference, which is all that the caller learns."""
    return refusal("internal", _reference(exc, tool))


def request_failure(exc: Exception, method: str, **details: Any) -> MCPError:
    """What any failure of a request that is no tool call becomes; `details` are added to the error."""
    code, message, more = _told(exc, method)
    return protocol_error(code, message, **more, **details)


def _told(exc: BaseException, what: str) -> tuple[str, str, dict[str, Any]]:
    if not isinstance(exc, StorageError) or exc.code == "internal":
        return "internal", _reference(exc, what), {}
    if exc.code in ("unavailable", "schema_out_of_date"):
        cause = exc.__cause__
        logger.warning("%s: %s (%s)", what, exc.message, type(cause).__name__ if cause else exc.code)
    return exc.code, exc.message, exc.details


def _reference(exc: BaseException, what: str) -> str:
    reference = secrets.token_hex(6)
    # The traceback's lines are ours; the exception's own text may quote a statement's values, so only its type is said.
    logger.error("%s failed, reference %s: %s", what, reference, _without_text(exc))
    return f"something went wrong inside the server; its log says more under {reference}"


def _without_text(exc: BaseException) -> str:
    """Types and places of an exception and its causes."""
    told: list[str] = []
    seen: BaseException | None = exc
    while seen is not None and len(told) < 5:
        last = seen.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        place = f" at {last.tb_frame.f_code.co_name}:{last.tb_lineno}" if last is not None else ""
        state = getattr(seen, "sqlstate", None)
        told.append(f"{type(seen).__name__}{f' [{state}]' if state else ''}{place}")
        seen = seen.__cause__ or seen.__context__
    return " <- ".join(told)


def invalid_arguments(exc: ValidationError, known: Iterable[str], fields: Iterable[str]) -> CallToolResult:
    """Arguments that are not of the tool's form, each named with what it must be; the values sent are not repeated."""
    told: list[str] = []
    for error in exc.errors(include_input=False, include_url=False, include_context=True):
        place = _place(error["loc"])
        if error["type"] == "extra_forbidden":
            told.append(f"unknown argument {place}" if len(error["loc"]) == 1 else f"unknown field {place}")
        elif error["type"] == "missing":
            told.append(f"{place} is required")
        else:
            told.append(f"{place}: {_expected(error)}")
    sentences = list(dict.fromkeys(told))[:5]
    if any(sentence.startswith("unknown argument") for sentence in sentences):
        sentences.append(f"the arguments are {', '.join(known)}")
    if any(sentence.startswith("unknown field") for sentence in sentences):
        sentences.append(f"the fields of a message are {', '.join(fields)}")
    return refusal("invalid_argument", "; ".join(sentences))


def _place(loc: tuple[int | str, ...]) -> str:
    """`messages[3].role`; the arm of a union that pydantic names behind it is left out, and so is a strange name."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part in ("str", "int", "constrained-str", "constrained-int"):
            continue
        else:
            word = part if part.isidentifier() and len(part) <= 40 else "(not a name)"
            text += f".{word}" if text else word
    return text or "arguments"


def _expected(error: Any) -> str:
    """What was expected. A length that was measured is said; a value never is."""
    context = error.get("ctx") or {}
    if error["type"] == "string_too_long":
        return f"must have at most {context['max_length']:,} characters"
    if error["type"] == "string_too_short":
        return f"must have at least {context['min_length']:,} character"
    if error["type"] == "literal_error":
        return f"must be {context['expected']}"
    if error["type"] == "value_error":
        return str(context.get("error", "is not valid"))
    message = str(error["msg"])
    return message.removeprefix("Input ").removeprefix("Value error, ")
