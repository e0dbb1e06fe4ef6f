"""Create the tables

Revision: 0001, the first
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import CreateDomainType
from sqlalchemy.types import TypeEngine

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SCHEMA = "chatledger"
NOW = sa.text("statement_timestamp()")
# What a single value must be: the base type, the constraint's name and the constraint of each domain.
DOMAINS: dict[str, tuple[TypeEngine[Any], str, str]] = {
    "title": (sa.Text(), "title_length", "char_length(VALUE) BETWEEN 1 AND 200"),
    "key": (sa.Text(), "key_length", "char_length(VALUE) BETWEEN 1 AND 128"),
    "client_message_id": (sa.Text(), "client_message_id_length", "char_length(VALUE) BETWEEN 1 AND 128"),
    "number": (sa.BigInteger(), "number_positive", "VALUE > 0"),
    "seq": (sa.Integer(), "seq_positive", "VALUE > 0"),
    "last_seq": (sa.Integer(), "last_seq_not_negative", "VALUE >= 0"),
    "role": (sa.Text(), "role_known", "VALUE IN ('user', 'assistant', 'system', 'tool')"),
    "content": (sa.Text(), "content_length", "char_length(VALUE) <= 1000000"),
    "tool_calls": (
        postgresql.JSONB(),
        "tool_calls_size",
        "jsonb_typeof(VALUE) = 'array' AND octet_length(VALUE::text) <= 4194304",
    ),
    "parts": (
        postgresql.JSONB(),
        "parts_size",
        "jsonb_typeof(VALUE) = 'array' AND octet_length(VALUE::text) <= 4194304",
    ),
    # The bytes of compact JSON: without the spaces that jsonb prints.
    "metadata": (
        postgresql.JSONB(),
        "metadata_size",
        (
            "jsonb_typeof(VALUE) = 'object' AND "
            "octet_length(replace(replace(VALUE::text, '\": ', '\":'), ', ', ',')) <= 16384"
        ),
    ),
}


def _type(name: str) -> postgresql.DOMAIN:
    """A domain as the type of a column."""
    base, constraint, check = DOMAINS[name]
    return postgresql.DOMAIN(name, base, constraint_name=constraint, check=check, schema=SCHEMA, create_type=False)


# The text by which search finds messages: a filler letter around each character of scripts that write no spaces, so
# that single ones and pairs of them are trigrams as well.
SPACELESS = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3031-\u3035\u3041-\u318f\u31a0-\u31bf"
    r"\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff66-\uffdc"
    r"\U00020000-\U0003ffff"
)
INDEXED = (
    f"regexp_replace(regexp_replace(left(content, 10000), '([{SPACELESS}]+)', ' \u01c2\\1 ', 'g'), "
    f"'([{SPACELESS}])', '\\1\u01c2', 'g')"
)

# An extension belongs to the whole database: where it is there already, it is used where it is, and otherwise it goes
# where others would look for it. The SQLSTATEs and the name beside them are what the program reads.
EXTENSION = f"""
DO $chatledger$
BEGIN
  IF EXISTS (SELECT FROM pg_extension WHERE extname = '{{name}}') THEN
    RETURN;
  END IF;
  IF NOT EXISTS (SELECT FROM pg_available_extensions WHERE name = '{{name}}') THEN
    RAISE EXCEPTION 'chatledger needs the extension {{name}}, which this Postgres does not have'
      USING ERRCODE = 'CL001', CONSTRAINT = '{{name}}', HINT = 'Install the contrib modules on its host.';
  END IF;
  EXECUTE 'CREATE EXTENSION {{name}} SCHEMA '
          || CASE WHEN to_regnamespace('public') IS NULL THEN '{SCHEMA}' ELSE 'public' END;
EXCEPTION WHEN insufficient_privilege THEN
  RAISE EXCEPTION 'chatledger needs the extension {{name}}, which this role may not create'
    USING ERRCODE = 'CL002', CONSTRAINT = '{{name}}',
          HINT = 'Let the owner of the database or an administrator run: CREATE EXTENSION {{name}}';
END $chatledger$
"""
# The operator class is named by its schema, whichever that is; a default one, as btree_gin's, is found without.
SEARCH_INDEX = f"""
DO $chatledger$
BEGIN
  EXECUTE 'CREATE INDEX messages_search ON {SCHEMA}.messages USING gin (user_id, ('
          || $indexed${INDEXED}$indexed$ || ') '
          || (SELECT extnamespace::regnamespace FROM pg_extension WHERE extname = 'pg_trgm') || '.gin_trgm_ops)';
END $chatledger$
"""


def upgrade() -> None:
    for name in ("btree_gin", "pg_trgm"):
        op.execute(EXTENSION.format(name=name))
    for name in DOMAINS:
        op.execute(CreateDomainType(_type(name)))
    op.create_table(
        "users",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("last_number", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("conversation_count", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=NOW),
        sa.PrimaryKeyConstraint("id", name="users_pkey"),
        sa.CheckConstraint("char_length(id) BETWEEN 1 AND 255", name="users_id_length"),
        schema=SCHEMA,
        postgresql_with={"fillfactor": 90},
    )
    op.create_table(
        "conversations",
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("number", _type("number"), nullable=False),
        sa.Column("key", _type("key")),
        sa.Column("title", _type("title")),
        sa.Column("metadata", _type("metadata")),
        sa.Column("last_seq", _type("last_seq"), nullable=False, server_default=sa.text("0")),
        sa.Column("archived_at", sa.DateTime(timezone=True)),
        sa.Column("forked_from_id", sa.Uuid()),
        sa.Column("forked_from_seq", _type("last_seq")),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=NOW),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=NOW),
        sa.PrimaryKeyConstraint("user_id", "id", name="conversations_pkey"),
        sa.UniqueConstraint("user_id", "number", name="conversations_number"),
        sa.ForeignKeyConstraint(["user_id"], [f"{SCHEMA}.users.id"], name="conversations_user", ondelete="CASCADE"),
        sa.CheckConstraint("(forked_from_id IS NULL) = (forked_from_seq IS NULL)", name="conversations_fork"),
        schema=SCHEMA,
        postgresql_with={
            "fillfactor": 90,
            "autovacuum_vacuum_scale_factor": 0.02,
            "autovacuum_vacuum_threshold": 500,
        },
    )
    op.create_index(
        "conversations_key",
        "conversations",
        ["user_id", "key"],
        unique=True,
        schema=SCHEMA,
        postgresql_where=sa.text("key IS NOT NULL"),
    )
    op.create_index(
        "conversations_recent",
        "conversations",
        ["user_id", sa.text("updated_at DESC"), sa.text("id DESC")],
        schema=SCHEMA,
    )
    op.create_table(
        "messages",
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("conversation_id", sa.Uuid(), nullable=False),
        sa.Column("seq", _type("seq"), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("role", _type("role"), nullable=False),
        sa.Column("content", _type("content"), nullable=False),
        sa.Column("tool_calls", _type("tool_calls")),
        sa.Column("tool_call_id", sa.Text()),
        sa.Column("name", sa.Text()),
        sa.Column("parts", _type("parts")),
        sa.Column("metadata", _type("metadata")),
        sa.Column("client_message_id", _type("client_message_id")),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=NOW),
        sa.PrimaryKeyConstraint("user_id", "conversation_id", "seq", name="messages_pkey"),
        sa.ForeignKeyConstraint(
            ["user_id", "conversation_id"],
            [f"{SCHEMA}.conversations.user_id", f"{SCHEMA}.conversations.id"],
            name="messages_conversation",
            ondelete="CASCADE",
        ),
        sa.CheckConstraint(
            "content <> '' OR coalesce(jsonb_array_length(tool_calls), 0) + coalesce(jsonb_array_length(parts), 0) > 0",
            name="messages_not_empty",
        ),
        schema=SCHEMA,
    )
    op.create_index(
        "messages_client_message_id",
        "messages",
        ["user_id", "conversation_id", "client_message_id"],
        unique=True,
        schema=SCHEMA,
        postgresql_where=sa.text("client_message_id IS NOT NULL"),
    )
    op.create_index(
        "messages_recent",
        "messages",
        ["user_id", sa.text("created_at DESC"), sa.text("conversation_id DESC"), sa.text("seq DESC")],
        schema=SCHEMA,
    )
    op.execute(SEARCH_INDEX)
    op.create_table(
        "api_tokens",
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("name", sa.Text()),
        sa.Column("scopes", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=NOW),
        sa.Column("expires_at", sa.DateTime(timezone=True)),
        sa.Column("last_used_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("user_id", "id", name="api_tokens_pkey"),
        sa.ForeignKeyConstraint(["user_id"], [f"{SCHEMA}.users.id"], name="api_tokens_user", ondelete="CASCADE"),
        sa.CheckConstraint("octet_length(hash) = 32", name="api_tokens_hash_length"),
        sa.CheckConstraint("char_length(name) BETWEEN 1 AND 100", name="api_tokens_name_length"),
        schema=SCHEMA,
    )
    op.create_index("api_tokens_id", "api_tokens", ["id", "user_id"], schema=SCHEMA)
    op.create_table(
        "erasures",
        sa.Column("user_digest", sa.LargeBinary(), nullable=False),
        sa.Column("erased_at", sa.DateTime(timezone=True), nullable=False, server_default=NOW),
        sa.Column("conversations", sa.BigInteger(), nullable=False),
        sa.Column("messages", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("user_digest", "erased_at", name="erasures_pkey"),
        sa.CheckConstraint("octet_length(user_digest) = 32", name="erasures_digest_length"),
        schema=SCHEMA,
    )
    op.create_table(
        "signing_keys",
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=NOW),
        sa.PrimaryKeyConstraint("purpose", name="signing_keys_pkey"),
        sa.CheckConstraint("octet_length(secret) >= 32", name="signing_keys_secret_length"),
        schema=SCHEMA,
    )
    # gen_random_uuid() draws 122 strong random bits; three of them are more than the hash can hold.
    op.execute(
        f"INSERT INTO {SCHEMA}.signing_keys (purpose, secret) SELECT 'cursor', sha256(convert_to("
        "gen_random_uuid()::text || gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8'))"
    )


def downgrade() -> None:
    # The extensions stay: others may use them by now.
    for table in ("signing_keys", "erasures", "api_tokens", "messages", "conversations", "users"):
        op.drop_table(table, schema=SCHEMA)
    for name in DOMAINS:
        op.execute(f"DROP DOMAIN {SCHEMA}.{name}")
