"""What went wrong -> what the caller sees: a tool result with the contract's code, never a driver's own text."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable
from typing import Any

from mcp.types import CallToolResult, TextContent
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
_RETRYABLE = {"unavailable", "rate_limited"}


def refusal(code: str, message: str, **details: Any) -> CallToolResult:
    """A failed call, in the contract's form."""
    error = {
        "code": code,
        "status": STATUS[code],
        "message": message,
        "retryable": code in _RETRYABLE,
        **details,
    }
    return CallToolResult(
        content=[TextContent(type="text", text=f"{code}: {message}")],
        structured_content={"error": error},
        is_error=True,
    )


def storage_refusal(exc: StorageError, tool: str) -> CallToolResult:
    """What the store refused; an error that no caller can act on becomes an opaque one."""
    if exc.code == "internal":
        return internal(exc, tool)
    if exc.code in ("unavailable", "schema_out_of_date"):
        cause = exc.__cause__
        logger.warning("%s: %s (%s)", tool, exc.message, type(cause).__name__ if cause else exc.code)
    return refusal(exc.code, exc.message, **exc.details)


def internal(exc: BaseException, tool: str) -> CallToolResult:
    """Anything unforeseen: logged under a reference, which is all that the caller learns."""
    reference = secrets.token_hex(6)
    # The traceback's lines are ours; the exception's own text may quote a statement's values, so only its type is said.
    logger.error("%s failed, reference %s: %s", tool, reference, _without_text(exc))
    return refusal("internal", f"something went wrong inside the server; its log says more under {reference}")


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
