"""The tools: each parses its arguments, calls the store once, shapes the answer. Models read their docstrings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.tools import Tool
from mcp.types import CallToolResult, ToolAnnotations

from chatledger.server import schemas
from chatledger.server.answers import answer
from chatledger.server.identity import Caller
from chatledger.server.schemas import (
    ABSENT,
    ClientMessageId,
    Content,
    ConversationId,
    Cursor,
    ExpectedLastSeq,
    MessageIn,
    Metadata,
    Name,
    Parts,
    Role,
    Time,
    Title,
    ToolCallId,
    ToolCalls,
    given,
    says,
)
from chatledger.storage import limits
from chatledger.storage.records import NewMessage
from chatledger.storage.store import ConversationStore

Ctx = Context[Any, Any]


class ConversationTools:
    """The tools of one server, over one store. `caller` tells whose conversations they are about."""

    def __init__(self, store: ConversationStore, caller: Caller) -> None:
        self._store, self._caller = store, caller

    async def create_conversation(
        self,
        ctx: Ctx,
        title: Title = ABSENT,
        metadata: Metadata = None,
        key: Annotated[
            str,
            says(
                "Your name for it, such as a session id: with a key that exists, that conversation is returned.",
                minLength=1,
                maxLength=limits.KEY_CHARS,
            ),
        ] = ABSENT,
    ) -> CallToolResult:
        """Start a conversation, or get the one with this key: use it before the first append_message of a new talk.

        Returns the conversation with its id and number; created is false when the key existed already.
        """
        conversation, created = await self._store.create_conversation(
            await self._caller(ctx), title=given(title), metadata=metadata, key=given(key)
        )
        return answer({"conversation": schemas.conversation_view(conversation), "created": created})

    async def append_message(
        self,
        ctx: Ctx,
        conversation_id: ConversationId,
        role: Role,
        content: Content = "",
        tool_calls: ToolCalls = None,
        tool_call_id: ToolCallId = ABSENT,
        name: Name = ABSENT,
        parts: Parts = None,
        metadata: Metadata = None,
        client_message_id: ClientMessageId = ABSENT,
        expected_last_seq: ExpectedLastSeq = None,
    ) -> CallToolResult:
        """Save one message at the end of a conversation, as soon as it is said.

        It is durable when this returns, with its seq (1, 2, 3 …). Messages are never edited or deleted. After a lost
        connection repeat the call with the same client_message_id: it is stored once, and deduplicated says so.
        """
        receipt = await self._store.append_message(
            await self._caller(ctx),
            schemas.conversation_ref(conversation_id),
            NewMessage(
                role=role,
                content=content,
                tool_calls=tool_calls,
                tool_call_id=given(tool_call_id),
                name=given(name),
                parts=parts,
                metadata=metadata,
                client_message_id=given(client_message_id),
            ),
            expected_last_seq=expected_last_seq,
        )
        return answer({"conversation_id": str(receipt.conversation_id), **schemas.receipt_view(receipt)})

    async def append_messages(
        self,
        ctx: Ctx,
        conversation_id: ConversationId,
        messages: Annotated[
            list[MessageIn],
            says("In order, with the fields of append_message.", minItems=1, maxItems=limits.APPEND_MESSAGES),
        ],
        expected_last_seq: ExpectedLastSeq = None,
    ) -> CallToolResult:
        """Save several messages at once, all or none: a whole turn with its tool calls and results.

        They get consecutive seqs in the given order. Each may carry its own client_message_id; those stored before are
        not stored again.
        """
        receipts = await self._store.append_messages(
            await self._caller(ctx),
            schemas.conversation_ref(conversation_id),
            [message.message() for message in messages],
            expected_last_seq=expected_last_seq,
        )
        return answer(
            {
                "conversation_id": str(receipts[0].conversation_id),
                "messages": [schemas.receipt_view(receipt) for receipt in receipts],
                "last_seq": max(receipt.seq for receipt in receipts),
            }
        )

    async def load_history(
        self,
        ctx: Ctx,
        conversation_id: ConversationId = ABSENT,
        limit: Annotated[int, says("At most so many messages.", minimum=1, maximum=limits.HISTORY_MESSAGES)] = (
            limits.HISTORY_MESSAGES
        ),
        before_seq: Annotated[int | None, says("The window ends just before this seq.", minimum=0)] = None,
        after_seq: Annotated[int | None, says("The window starts just after this seq.", minimum=0)] = None,
        max_tokens: Annotated[
            int, says("At most so many estimated tokens.", minimum=1, maximum=limits.HISTORY_TOKENS)
        ] = (limits.HISTORY_TOKENS_DEFAULT),
        detail: Annotated[
            Literal["concise", "full"], says("full adds id, client_message_id, parts, metadata.")
        ] = "concise",
    ) -> CallToolResult:
        """Read a conversation's messages, oldest first: use it to resume a talk or to see what was said.

        Without conversation_id: the conversation updated last. Without bounds: the latest messages that fit max_tokens.
        Walk back with before_seq = next_before_seq, forward with after_seq = next_after_seq: each message comes exactly
        once. A tool call is never cut off from its results; an exchange that your own bound cuts is left out and named
        in omitted_exchange.
        """
        window = await self._store.load_history(
            await self._caller(ctx),
            None if conversation_id is ABSENT else schemas.conversation_ref(conversation_id),
            limit=limit,
            before_seq=before_seq,
            after_seq=after_seq,
            max_tokens=max_tokens,
            detail=detail,
        )
        return answer(schemas.window_view(window, max_tokens))

    async def list_conversations(
        self,
        ctx: Ctx,
        limit: Annotated[int, says("At most so many conversations.", minimum=1, maximum=limits.LIST_CONVERSATIONS)] = (
            limits.LIST_CONVERSATIONS_DEFAULT
        ),
        cursor: Cursor = ABSENT,
        include_archived: bool = False,
        title_contains: Annotated[
            str,
            says("Only titles with this in them, in any case.", minLength=1, maxLength=limits.TITLE_CHARS),
        ] = ABSENT,
        updated_after: Time = ABSENT,
        updated_before: Time = ABSENT,
    ) -> CallToolResult:
        """List your conversations, the one updated last first: use it to find one to continue.

        Each comes with its id, number, title, message_count and a preview of its latest text. While there is a
        next_cursor, more follow.
        """
        page = await self._store.list_conversations(
            await self._caller(ctx),
            limit=limit,
            cursor=given(cursor),
            include_archived=include_archived,
            title_contains=given(title_contains),
            updated_after=schemas.moment("updated_after", given(updated_after)),
            updated_before=schemas.moment("updated_before", given(updated_before)),
        )
        return answer(schemas.page_view(page))

    async def search_messages(
        self,
        ctx: Ctx,
        query: Annotated[
            str,
            says(
                'Words that must all be there, "phrases", -exclusions; any script, parts of words and code too.',
                minLength=1,
                maxLength=limits.SEARCH_QUERY_CHARS,
            ),
        ],
        conversation_id: ConversationId = ABSENT,
        role: Literal["user", "assistant", "system", "tool"] | None = None,
        created_after: Time = ABSENT,
        created_before: Time = ABSENT,
        limit: Annotated[int, says("At most so many hits.", minimum=1, maximum=limits.SEARCH_MESSAGES)] = (
            limits.SEARCH_MESSAGES_DEFAULT
        ),
        cursor: Cursor = ABSENT,
    ) -> CallToolResult:
        """Find messages by what was said in them, newest first, in all conversations or in one.

        Each hit names its conversation and seq, with a snippet around the first match: load_history with
        after_seq = seq - 1 shows it whole. While there is a next_cursor, more may follow.
        """
        page = await self._store.search_messages(
            await self._caller(ctx),
            query,
            conversation=None if conversation_id is ABSENT else schemas.conversation_ref(conversation_id),
            role=role,
            created_after=schemas.moment("created_after", given(created_after)),
            created_before=schemas.moment("created_before", given(created_before)),
            limit=limit,
            cursor=given(cursor),
        )
        return answer(schemas.search_view(page))

    async def update_conversation(
        self,
        ctx: Ctx,
        conversation_id: ConversationId,
        title: Title = ABSENT,
        metadata: Annotated[dict[str, Any] | None, says("Merged by key; a null value removes its key.")] = None,
        archived: Annotated[bool | None, says("true takes it out of the list, false brings it back.")] = None,
    ) -> CallToolResult:
        """Change a conversation's title or metadata, or archive it (which can be undone): messages stay as they are."""
        conversation = await self._store.update_conversation(
            await self._caller(ctx),
            schemas.conversation_ref(conversation_id),
            title=given(title),
            metadata=metadata,
            archived=archived,
        )
        return answer({"conversation": schemas.conversation_view(conversation)})

    async def fork_conversation(
        self,
        ctx: Ctx,
        conversation_id: ConversationId,
        at_seq: Annotated[int | None, says("The last message to copy; left out: all.", minimum=1)] = None,
        title: Title = ABSENT,
    ) -> CallToolResult:
        """Copy a conversation up to a message into a new one: use it to try another way without changing the first."""
        fork = await self._store.fork_conversation(
            await self._caller(ctx),
            schemas.conversation_ref(conversation_id),
            at_seq=at_seq,
            title=given(title),
        )
        view = schemas.conversation_view(fork.conversation)
        return answer({"conversation": view, "messages_copied": fork.messages_copied})

    async def delete_conversation(self, ctx: Ctx, conversation_id: ConversationId) -> CallToolResult:
        """Delete a conversation with all its messages, for good: only when asked to, as archiving can be undone."""
        deletion = await self._store.delete_conversation(
            await self._caller(ctx), schemas.conversation_ref(conversation_id)
        )
        return answer(
            {
                "conversation_id": str(deletion.conversation_id),
                "deleted": True,
                "messages_deleted": deletion.messages_deleted,
            }
        )


def _hints(title: str, *, reads: bool = False, destroys: bool = False, repeatable: bool = False) -> ToolAnnotations:
    """All four, as the defaults say that a tool destroys. The world of these tools is closed: one database."""
    return ToolAnnotations(
        title=title, read_only_hint=reads, destructive_hint=destroys, idempotent_hint=repeatable, open_world_hint=False
    )


ANNOTATIONS: Final = {
    "create_conversation": _hints("Create a conversation"),
    "append_message": _hints("Append a message"),
    "append_messages": _hints("Append several messages"),
    "load_history": _hints("Load history", reads=True, repeatable=True),
    "list_conversations": _hints("List conversations", reads=True, repeatable=True),
    "search_messages": _hints("Search messages", reads=True, repeatable=True),
    "update_conversation": _hints("Update a conversation", repeatable=True),
    "fork_conversation": _hints("Fork a conversation"),
    "delete_conversation": _hints("Delete a conversation", destroys=True, repeatable=True),
}
TOOLSETS: Final[dict[str, tuple[str, ...]]] = {
    "full": tuple(ANNOTATIONS),
    "core": ("create_conversation", "append_message", "load_history", "list_conversations"),
    "readonly": tuple(name for name, hints in ANNOTATIONS.items() if hints.read_only_hint),
}
# Claude Code moves a result above 25,000 tokens to a file unless the tool says how large it may be.
_META: Final = {"load_history": {"anthropic/maxResultSizeChars": 500_000}}


def make_tools(store: ConversationStore, caller: Caller, toolset: str) -> list[Tool]:
    """The tools of a toolset, always in the same order."""
    tools = ConversationTools(store, caller)
    return [_strict(getattr(tools, name)) for name in TOOLSETS[toolset]]


def _strict(method: Callable[..., Any]) -> Tool:
    """A tool that refuses what the SDK would let pass: unknown arguments, and values of another type."""
    name = method.__name__
    hints = ANNOTATIONS[name]
    tool = Tool.from_function(
        method,
        title=hints.title,
        description=" ".join((method.__doc__ or "").split()),
        annotations=hints,
        meta=_META.get(name),
        structured_output=False,
    )
    base = tool.fn_metadata.arg_model
    config = {"extra": "forbid", "strict": True, "hide_input_in_errors": True}
    model = type(base.__name__, (base,), {"__module__": base.__module__, "model_config": config})
    tool.fn_metadata.arg_model = model  # documented as read live
    tool.parameters = schemas.input_schema(model)
    tool.fn_metadata.output_schema = schemas.OUTPUT_SCHEMAS[name]  # published; results are ours, and tested against it
    return tool
