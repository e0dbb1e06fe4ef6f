"""How much a value may hold. Bytes are those of the value as compact JSON in UTF-8; characters are code points."""

from __future__ import annotations

from dataclasses import dataclass

from chatledger.storage.records import ROLES

TITLE_CHARS = 200  # the contract
KEY_CHARS = 128  # the contract; a btree entry holds at most 2,704 bytes, and a character takes up to 4
CLIENT_MESSAGE_ID_CHARS = 128  # the contract, for the same reason
USER_ID_CHARS = 255  # OpenID Connect Core, 2: a subject identifier has at most 255 characters
TOOL_CALL_ID_CHARS = 256  # chosen: the ids of the providers have up to 64
NAME_CHARS = 128  # the longest tool name that MCP recommends (specification 2025-11-25, tools)
TOKEN_NAME_CHARS = 100  # chosen: a line of a list

METADATA_BYTES = 16 * 1024  # the contract
TOOL_CALLS_BYTES = 256 * 1024  # chosen: a call that writes a whole source file fits
PARTS_BYTES = 256 * 1024  # chosen: structured content fits, a photograph belongs elsewhere
JSON_DEPTH = 32  # the bad-input table; Postgres itself gives up at some thousand
JSON_KEYS = 1_000  # the bad-input table
JSON_INTEGER = 2**53  # RFC 8259, 6: beyond it implementations disagree

LAST_SEQ = 2**63 - 1  # the largest bound that a bigint can express

APPEND_MESSAGES = 100  # the contract
HISTORY_MESSAGES = 1_000  # the contract
HISTORY_TOKENS = 200_000  # the contract
HISTORY_TOKENS_DEFAULT = 8_000  # the contract
LIST_CONVERSATIONS = 100  # the contract
LIST_CONVERSATIONS_DEFAULT = 20  # the contract
SEARCH_MESSAGES = 50  # the contract
SEARCH_MESSAGES_DEFAULT = 10  # the contract
SEARCH_QUERY_CHARS = 512  # the contract
SEARCH_TERMS = 32  # the bad-input table; as many regular expressions as Postgres keeps compiled

# The database's own limits, for what does not come through a tool: an import, or a program of the host.
STORED_CONTENT_CHARS = 1_000_000  # the contract
STORED_JSON_BYTES = 4 * 1024 * 1024  # chosen: 16 times what a tool takes


@dataclass(frozen=True, slots=True)
class Limits:
    """What one installation narrows further."""

    max_content_chars: int = 10_000
    allowed_roles: tuple[str, ...] = ROLES
    max_conversations_per_user: int | None = None
    max_messages_per_conversation: int | None = None
