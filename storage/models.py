"""The tables, as SQLModel classes: columns, named constraints, indexes. No behaviour.

Every key leads with the user, so that a row which points at another user's conversation cannot exist, one user's rows
lie together, and the tables can be distributed by user. A constraint's name is part of the code: `errors` reads it.

What a single value must be is said by a domain, its type. Postgres reads the constraints of a table anew in every
statement that writes to it, those of untouched columns too, but keeps a domain's with the connection (measured: as
constraints of tables they were a third of an append's CPU).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar, Final
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Text,
    UniqueConstraint,
    Uuid,
    literal_column,
    text,
)
from sqlalchemy.dialects.postgresql import DOMAIN, JSONB
from sqlalchemy.types import TypeEngine
from sqlmodel import Field, SQLModel

from chatledger.storage import limits
from chatledger.storage.records import ROLES
from chatledger.storage.search_text import INDEXED

SCHEMA: Final = "chatledger"
metadata: Final = MetaData(schema=SCHEMA)

# The list index changes with every append, so no update of the row is "heap only" and dead versions must go early
# (measured: 6 % of an append). A page keeps a tenth free for the versions in between.
_OFTEN_UPDATED: Final = {
    "fillfactor": 90,
    "autovacuum_vacuum_scale_factor": 0.02,
    "autovacuum_vacuum_threshold": 500,
}


def _domain(name: str, constraint: str, data_type: type[TypeEngine[Any]], check: str) -> DOMAIN:
    return DOMAIN(name, data_type, constraint_name=constraint, check=check, schema=SCHEMA, metadata=metadata)


def _text(name: str, chars: int) -> DOMAIN:
    return _domain(name, f"{name}_length", Text, f"char_length(VALUE) BETWEEN 1 AND {chars}")


def _array(name: str) -> DOMAIN:
    check = f"jsonb_typeof(VALUE) = 'array' AND octet_length(VALUE::text) <= {limits.STORED_JSON_BYTES}"
    return _domain(name, f"{name}_size", JSONB, check)


_TITLE: Final = _text("title", limits.TITLE_CHARS)
_KEY: Final = _text("key", limits.KEY_CHARS)
_CLIENT_MESSAGE_ID: Final = _text("client_message_id", limits.CLIENT_MESSAGE_ID_CHARS)
_NUMBER: Final = _domain("number", "number_positive", BigInteger, "VALUE > 0")
_SEQ: Final = _domain("seq", "seq_positive", Integer, "VALUE > 0")
_LAST_SEQ: Final = _domain("last_seq", "last_seq_not_negative", Integer, "VALUE >= 0")
_ROLE: Final = _domain("role", "role_known", Text, f"VALUE IN ({', '.join(map(repr, ROLES))})")
_CONTENT: Final = _domain("content", "content_length", Text, f"char_length(VALUE) <= {limits.STORED_CONTENT_CHARS}")
_TOOL_CALLS: Final = _array("tool_calls")
_PARTS: Final = _array("parts")
# jsonb prints a space after each colon and comma, which do not count: the measure is that of compact JSON, as for what
# is sent. Where a string holds the same characters it counts less, never more.
_METADATA: Final = _domain(
    "metadata",
    "metadata_size",
    JSONB,
    "jsonb_typeof(VALUE) = 'object' AND "
    "octet_length(replace(replace(VALUE::text, '\": ', '\":'), ', ', ',')) "
    f"<= {limits.METADATA_BYTES}",
)


class _Table(SQLModel):
    metadata = metadata


def _time() -> Column[datetime]:
    return Column(DateTime(timezone=True), nullable=False, server_default=text("statement_timestamp()"))


class User(_Table, table=True):
    """A user who has written something, with the counters that hand out numbers and keep the quota."""

    __tablename__: ClassVar[Any] = "users"  # SQLModel declares it as a function
    __table_args__ = (
        PrimaryKeyConstraint("id", name="users_pkey"),
        CheckConstraint(f"char_length(id) BETWEEN 1 AND {limits.USER_ID_CHARS}", name="users_id_length"),
        {"schema": SCHEMA, "postgresql_with": {"fillfactor": 90}},
    )

    id: str = Field(sa_column=Column(Text, nullable=False))
    last_number: int = Field(sa_column=Column(BigInteger, nullable=False, server_default=text("0")))
    conversation_count: int = Field(sa_column=Column(BigInteger, nullable=False, server_default=text("0")))
    created_at: datetime = Field(sa_column=_time())


class Conversation(_Table, table=True):
    """A conversation. `last_seq` is also the number of its messages: none is ever deleted by itself."""

    __tablename__: ClassVar[Any] = "conversations"  # SQLModel declares it as a function
    __table_args__ = (
        PrimaryKeyConstraint("user_id", "id", name="conversations_pkey"),
        UniqueConstraint("user_id", "number", name="conversations_number"),
        ForeignKeyConstraint(["user_id"], [f"{SCHEMA}.users.id"], name="conversations_user", ondelete="CASCADE"),
        CheckConstraint("(forked_from_id IS NULL) = (forked_from_seq IS NULL)", name="conversations_fork"),
        # Partial: a conversation without a key costs no entry, and each of its appends writes none.
        Index("conversations_key", "user_id", "key", unique=True, postgresql_where=text("key IS NOT NULL")),
        Index("conversations_recent", "user_id", text("updated_at DESC"), text("id DESC")),
        {"schema": SCHEMA, "postgresql_with": _OFTEN_UPDATED},
    )

    user_id: str = Field(sa_column=Column(Text, nullable=False))
    id: UUID = Field(sa_column=Column(Uuid, nullable=False))
    number: int = Field(sa_column=Column(_NUMBER, nullable=False))
    key: str | None = Field(sa_column=Column(_KEY))
    title: str | None = Field(sa_column=Column(_TITLE))
    metadata_: dict[str, Any] | None = Field(sa_column=Column("metadata", _METADATA))
    last_seq: int = Field(sa_column=Column(_LAST_SEQ, nullable=False, server_default=text("0")))
    archived_at: datetime | None = Field(sa_column=Column(DateTime(timezone=True)))
    forked_from_id: UUID | None = Field(sa_column=Column(Uuid))
    forked_from_seq: int | None = Field(sa_column=Column(_LAST_SEQ))
    created_at: datetime = Field(sa_column=_time())
    updated_at: datetime = Field(sa_column=_time())


class Message(_Table, table=True):
    """A message, numbered under its conversation's row lock; `created_at` never runs backwards along `seq`."""

    __tablename__: ClassVar[Any] = "messages"  # SQLModel declares it as a function
    __table_args__ = (
        PrimaryKeyConstraint("user_id", "conversation_id", "seq", name="messages_pkey"),
        ForeignKeyConstraint(
            ["user_id", "conversation_id"],
            [f"{SCHEMA}.conversations.user_id", f"{SCHEMA}.conversations.id"],
            name="messages_conversation",
            ondelete="CASCADE",
        ),
        CheckConstraint(
            "content <> '' OR coalesce(jsonb_array_length(tool_calls), 0) + coalesce(jsonb_array_length(parts), 0) > 0",
            name="messages_not_empty",
        ),
        # Partial: a message without the id, the common case, costs no entry.
        Index(
            "messages_client_message_id",
            "user_id",
            "conversation_id",
            "client_message_id",
            unique=True,
            postgresql_where=text("client_message_id IS NOT NULL"),
        ),
        # One user's messages of all conversations, in the order in which search gives them.
        Index(
            "messages_recent",
            "user_id",
            text("created_at DESC"),
            text("conversation_id DESC"),
            text("seq DESC"),
        ),
        # Led by the user through btree_gin: the rows of all others are left out before they are fetched.
        Index(
            "messages_search",
            "user_id",
            literal_column(INDEXED).label("indexed"),
            postgresql_using="gin",
            postgresql_ops={"indexed": "gin_trgm_ops"},
        ),
        {"schema": SCHEMA},
    )

    user_id: str = Field(sa_column=Column(Text, nullable=False))
    conversation_id: UUID = Field(sa_column=Column(Uuid, nullable=False))
    seq: int = Field(sa_column=Column(_SEQ, nullable=False))
    id: UUID = Field(sa_column=Column(Uuid, nullable=False))
    role: str = Field(sa_column=Column(_ROLE, nullable=False))
    content: str = Field(sa_column=Column(_CONTENT, nullable=False))
    tool_calls: list[Any] | None = Field(sa_column=Column(_TOOL_CALLS))
    tool_call_id: str | None = Field(sa_column=Column(Text))
    name: str | None = Field(sa_column=Column(Text))
    parts: list[Any] | None = Field(sa_column=Column(_PARTS))
    metadata_: dict[str, Any] | None = Field(sa_column=Column("metadata", _METADATA))
    client_message_id: str | None = Field(sa_column=Column(_CLIENT_MESSAGE_ID))
    created_at: datetime = Field(sa_column=_time())


class ApiToken(_Table, table=True):
    """An access token made on the command line: its hash, whose it is and what it may do."""

    __tablename__: ClassVar[Any] = "api_tokens"  # SQLModel declares it as a function
    __table_args__ = (
        PrimaryKeyConstraint("user_id", "id", name="api_tokens_pkey"),
        ForeignKeyConstraint(["user_id"], [f"{SCHEMA}.users.id"], name="api_tokens_user", ondelete="CASCADE"),
        CheckConstraint("octet_length(hash) = 32", name="api_tokens_hash_length"),
        CheckConstraint(f"char_length(name) BETWEEN 1 AND {limits.TOKEN_NAME_CHARS}", name="api_tokens_name_length"),
        # By what a token says of itself; whose it is, this index tells. Not unique: keys lead with the user.
        Index("api_tokens_id", "id", "user_id"),
        {"schema": SCHEMA},
    )

    user_id: str = Field(sa_column=Column(Text, nullable=False))
    id: str = Field(sa_column=Column(Text, nullable=False))
    hash: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    name: str | None = Field(sa_column=Column(Text))
    scopes: list[str] = Field(sa_column=Column(ARRAY(Text), nullable=False))
    created_at: datetime = Field(sa_column=_time())
    expires_at: datetime | None = Field(sa_column=Column(DateTime(timezone=True)))
    last_used_at: datetime | None = Field(sa_column=Column(DateTime(timezone=True)))


class Erasure(_Table, table=True):
    """That a user was erased: who by a digest, when, and how much it was. For a backup that still has that user."""

    __tablename__: ClassVar[Any] = "erasures"  # SQLModel declares it as a function
    __table_args__ = (
        PrimaryKeyConstraint("user_digest", "erased_at", name="erasures_pkey"),
        CheckConstraint("octet_length(user_digest) = 32", name="erasures_digest_length"),
        {"schema": SCHEMA},
    )

    user_digest: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    erased_at: datetime = Field(sa_column=_time())
    conversations: int = Field(sa_column=Column(BigInteger, nullable=False))
    messages: int = Field(sa_column=Column(BigInteger, nullable=False))


class SigningKey(_Table, table=True):
    """A secret that every process on this database shares, so that a cursor made by one is understood by all."""

    __tablename__: ClassVar[Any] = "signing_keys"  # SQLModel declares it as a function
    __table_args__ = (
        PrimaryKeyConstraint("purpose", name="signing_keys_pkey"),
        CheckConstraint("octet_length(secret) >= 32", name="signing_keys_secret_length"),
        {"schema": SCHEMA},
    )

    purpose: str = Field(sa_column=Column(Text, nullable=False))
    secret: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    created_at: datetime = Field(sa_column=_time())
