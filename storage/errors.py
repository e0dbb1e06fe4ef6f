"""What can go wrong in the store, as its callers may act on it, and the one place that reads driver errors.

Every sentence may be shown to a caller: it holds limits and measured lengths, never content, SQL or a host's name.
"""

from __future__ import annotations

from typing import Any, ClassVar

from chatledger.storage import limits


class StorageError(Exception):
    """The base of all. `code` is the contract's word for it, `details` are further facts for a program."""

    code: ClassVar[str] = "internal"

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class ConversationUnavailable(StorageError):
    """It is not there or not the caller's, which is one and the same answer."""

    code = "conversation_unavailable"

    def __init__(
        self,
        message: str = "there is no such conversation of yours; list_conversations shows those that there are",
    ) -> None:
        super().__init__(message)


class InvalidArgument(StorageError):
    """A value of the wrong type, range or format, or a character that no text may hold."""

    code = "invalid_argument"


class ContentEmpty(StorageError):
    """A message without any text, tool call or part."""

    code = "content_empty"


class ContentTooLong(StorageError):
    """A text over the limit for content. Nothing is ever truncated."""

    code = "content_too_long"


class TooLarge(StorageError):
    """Metadata, parts or tool calls over their limit of bytes, depth or keys."""

    code = "too_large"


class InvalidCursor(StorageError):
    """A cursor that was not made by this store for this user, this list and these filters."""

    code = "invalid_cursor"

    def __init__(self) -> None:
        super().__init__(
            "the cursor is broken or was made for another query; start again without one, with the same filters"
        )


class SequenceConflict(StorageError):
    """Another writer was first. `last_seq` is the conversation's present one."""

    code = "sequence_conflict"

    def __init__(self, last_seq: int) -> None:
        super().__init__(
            f"the conversation's last seq is {last_seq}, not expected_last_seq: another writer was first. "
            "load_history shows what was added; then append again with the present value",
            last_seq=last_seq,
        )
        self.last_seq = last_seq


class IdempotencyConflict(StorageError):
    """A `client_message_id` that this conversation already has, with another body."""

    code = "idempotency_conflict"

    def __init__(self) -> None:
        super().__init__(
            "this client_message_id was used in this conversation for a message with another body; "
            "repeat it with the very same body, or use a new id for a new message"
        )


class QuotaExceeded(StorageError):
    """The user has as many conversations as one user may, or a conversation as many messages."""

    code = "quota_exceeded"

    def __init__(self, message: str, quota: int) -> None:
        super().__init__(message, quota=quota)


def too_many_conversations(quota: int | None) -> QuotaExceeded:
    """For a user who may not have another one."""
    return QuotaExceeded(
        f"a user may keep at most {quota} conversations here; delete_conversation makes room", quota or 0
    )


class Unavailable(StorageError):
    """The database cannot be reached, is waking up, busy or full. Repeating later is right.

    Where a write is concerned its outcome is unknown; repeating it with the same `client_message_id` settles it.
    """

    code = "unavailable"

    def __init__(self, message: str, *, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message, retry_after_seconds=retry_after_seconds)
        self.retry_after_seconds = retry_after_seconds


class SchemaOutOfDate(StorageError):
    """The database's tables are older or newer than this code, or not there."""

    code = "schema_out_of_date"


class UnknownUser(StorageError):
    """Users are those of a host application, and its table has no such user."""

    code = "unknown_user"

    def __init__(self) -> None:
        super().__init__(
            "the application's users table has no such user, and only its users can store conversations; sign up there "
            "first (over stdio CHATLEDGER_USER_ID says who the user is)"
        )


class UniqueViolation(StorageError):
    """Another call stored the same key at the same instant; this one was undone whole. The store runs it again."""

    code = "internal"


class Unforeseen(StorageError):
    """The database said something that no rule expects. The cause is for the log, never for the caller."""

    code = "internal"


UNKNOWN_OUTCOME = (
    "the connection to the database was lost during the call, so its outcome is unknown; repeat the call "
    "(an append with the same client_message_id is stored once)"
)

ROLLED_BACK = frozenset({"40001", "40P01", "55P03"})
"""Serialization failure, deadlock, lock time-out: the server undid the whole statement, which may run again."""

_BUSY = {
    "53100": "the database has no space left",
    "53200": "the database is out of memory",
    "53300": "the database has no free connection",
    "55P03": "the conversation is locked by another writer",
    "40001": "the database is busy",
    "40P01": "the database is busy",
    "57014": "the database took too long",
    "57P01": "the database is restarting",
    "57P02": "the database is restarting",
    "57P03": "the database is starting up",
    "25006": "the database is read-only at present",
}
_REFUSED_LOGIN = {
    "28000": "the database refuses the user or the encryption in the URL",
    "28P01": "the database refuses the user or the password in the URL",
    "3D000": "the database named in the URL does not exist",
    "42501": "the database role in the URL lacks a privilege on schema chatledger",
}
_EXTENSION = {  # raised by the migrations with the extension's name
    "CL001": (
        "this Postgres has no extension {name}, which search needs; install the contrib modules on its host "
        "(postgresql-contrib in most distributions), then run `chatledger migrate` again"
    ),
    "CL002": (
        "the role in the URL may not create the extension {name}, which search needs; let the database's owner or an "
        "administrator run `CREATE EXTENSION {name}` in it, then run `chatledger migrate` again"
    ),
}
_SIZES = {
    "metadata_size": ("metadata", limits.METADATA_BYTES),
    "tool_calls_size": ("tool_calls", limits.STORED_JSON_BYTES),
    "parts_size": ("parts", limits.STORED_JSON_BYTES),
}
# A user who is not in the adopted table, and an id that cannot be: it is not the text of a key.
_OF_THE_HOST = frozenset({"users_app_user", "users_app_user_form"})


def driver_error(exc: BaseException) -> BaseException:
    """What the driver raised, out of what SQLAlchemy wraps round it while connecting."""
    original = getattr(exc, "orig", None)
    return exc if original is None else original.__cause__ or original


def unreachable(exc: BaseException) -> StorageError:
    """As `translate`, for a connection that could not be had: nothing was sent, so no outcome is unknown."""
    error = translate(exc)
    if error.message == UNKNOWN_OUTCOME:
        return Unavailable("the database cannot be reached; `chatledger doctor` says more")
    return error


def may_pass(exc: BaseException) -> bool:
    """Whether a connection that could not be had may be had a little later."""
    import ssl  # not at the top, as the driver is not

    state = getattr(exc, "sqlstate", None)
    if isinstance(state, str):
        return state in _BUSY or state.startswith("08")
    return isinstance(exc, OSError | TimeoutError) and not isinstance(exc, ssl.SSLError)


def translate(exc: BaseException) -> StorageError:
    """The caller's error for what the driver raised, by SQLSTATE and constraint name, never by a text."""
    import asyncpg  # not at the top: the list of tools is answered before a driver is needed

    if isinstance(exc, StorageError):
        return exc
    exc = driver_error(exc)
    if isinstance(exc, asyncpg.PostgresError):
        state = str(getattr(exc, "sqlstate", "") or "")
        constraint = str(getattr(exc, "constraint_name", "") or "")
        if state == "23505":  # whichever constraint it was: a distributed Postgres does not name it
            return UniqueViolation("the database refused a second row with the same key")
        # A distributed Postgres names it in its sentence only; where rows were copied in, as an error of its own.
        if state in ("23514", "XX000") and not constraint:
            constraint = next((name for name in (*_SIZES, *_OF_THE_HOST) if f'"{name}"' in str(exc)), "")
        if constraint in _OF_THE_HOST:
            return UnknownUser()
        if sized := _SIZES.get(constraint):
            return TooLarge(f"{sized[0]} is over its limit of {sized[1]:,} bytes of JSON", limit=sized[1])
        if reason := _EXTENSION.get(state):
            return SchemaOutOfDate(reason.format(name=constraint))
        if reason := _BUSY.get(state):
            return Unavailable(f"{reason}; try again shortly")
        if reason := _REFUSED_LOGIN.get(state):
            return Unavailable(f"{reason}; `chatledger doctor` says more", retry_after_seconds=30)
        if state in ("42P01", "3F000", "42703"):  # a table, schema or column that this code expects
            return SchemaOutOfDate("the database's tables do not fit this version; run `chatledger migrate`")
        if state.startswith(("08", "57P")):
            return Unavailable(UNKNOWN_OUTCOME)
        return Unforeseen("the database refused the statement")
    if isinstance(exc, asyncpg.InterfaceError | asyncpg.InternalClientError | OSError | TimeoutError):
        return Unavailable(UNKNOWN_OUTCOME)
    return Unforeseen("the store failed")
