"""Conversations as resources: the latest in a list, a transcript as Markdown, one message as JSON.

Whatever was stored stands in them as a value or in a fence. Names and descriptions are ours alone: hosts show them to
models as the server's own words.
"""

from __future__ import annotations

import re
from typing import Any, Final

from mcp.server.mcpserver import Context
from mcp.types import (
    Annotations,
    ListResourcesResult,
    ListResourceTemplatesResult,
    PaginatedRequestParams,
    ReadResourceRequestParams,
    ReadResourceResult,
    Resource,
    ResourceTemplate,
    TextResourceContents,
)

from chatledger.server import schemas
from chatledger.server.identity import Caller
from chatledger.storage.errors import InvalidArgument
from chatledger.storage.records import Conversation, ConversationRef, HistoryWindow
from chatledger.storage.store import ConversationStore

Ctx = Context[Any, Any]

LISTED = 20  # the contract
URI_CHARS = 128  # chosen: the longest that can name anything, a UUID and a seq of 19 digits, has 80

TRANSCRIPT: Final = ResourceTemplate(
    uri_template="conversation://{conversation_id}",
    name="conversation",
    title="Conversation",
    description=(
        "The latest messages of one of your conversations, as Markdown: those that fit 8,000 tokens. It says how to "
        "read earlier ones. conversation_id is the conversation's number (12) or its id."
    ),
    mime_type="text/markdown",
)
MESSAGE: Final = ResourceTemplate(
    uri_template="conversation://{conversation_id}/messages/{seq}",
    name="message",
    title="Message of a conversation",
    description="One message, whole and exact, as JSON. seq is its place in the conversation: 1, 2, 3 …",
    mime_type="application/json",
)
TEMPLATES: Final = (TRANSCRIPT, MESSAGE)

_URI = re.compile(r"conversation://([^/]+)(?:/messages/([1-9][0-9]{0,18}))?", re.ASCII)


class ConversationResources:
    """The resources of one server, over one store. `caller` tells whose conversations they are."""

    def __init__(self, store: ConversationStore, caller: Caller) -> None:
        self._store, self._caller = store, caller

    async def list_latest(self, ctx: Ctx, params: PaginatedRequestParams) -> ListResourcesResult:
        """The caller's conversations that are not archived, the one updated last first, at most 20."""
        page = await self._store.list_conversations(await self._caller(ctx), limit=LISTED)
        return ListResourcesResult(resources=[_resource(entry.conversation) for entry in page.conversations])

    async def list_templates(self, ctx: Ctx, params: PaginatedRequestParams) -> ListResourceTemplatesResult:
        """Both, whoever asks."""
        return ListResourceTemplatesResult(resource_templates=list(TEMPLATES))

    async def read(self, ctx: Ctx, params: ReadResourceRequestParams) -> ReadResourceResult:
        """The transcript or the message that a URI names among the caller's own.

        Raises:
            InvalidArgument: the URI is of neither form. Nothing was looked up.
            ConversationUnavailable: the conversation or message is not there or not the caller's.
        """
        conversation, seq = named(params.uri)
        user = await self._caller(ctx)
        if seq is None:
            template, text = TRANSCRIPT, transcript(await self._store.load_history(user, conversation))
        else:
            message = await self._store.load_message(user, conversation, seq)
            view = {"message": schemas.message_view(message), "notice": schemas.NOTICE}
            template, text = MESSAGE, schemas.compact_json(view)
        content = TextResourceContents(uri=params.uri, mime_type=template.mime_type, text=text)
        return ReadResourceResult(contents=[content])


def named(uri: str) -> tuple[ConversationRef, int | None]:
    """The conversation that a URI names, and the message in it where it names one.

    One spelling for each: what RFC 3986 would have us decode or normalise first is refused as it stands.

    Raises:
        InvalidArgument: the URI is of neither form.
    """
    found = _URI.fullmatch(uri) if len(uri) <= URI_CHARS else None
    if found is None:
        known = " and ".join(template.uri_template for template in TEMPLATES)
        raise InvalidArgument(f"there is no such resource; the resources are {known}")
    return schemas.conversation_ref(found[1]), None if found[2] is None else int(found[2])


def _resource(conversation: Conversation) -> Resource:
    """An entry of the list. The title is a value for a picker to show; the name and the rest are ours."""
    title = " ".join((conversation.title or "").split())
    return Resource(
        uri=f"conversation://{conversation.id}",
        name=f"conversation {conversation.number}",
        title=schemas.visible(title) or None,
        description=f"Messages: {conversation.message_count}",
        mime_type=TRANSCRIPT.mime_type,
        annotations=Annotations(last_modified=schemas.iso(conversation.updated_at)),
    )


def transcript(window: HistoryWindow) -> str:
    """A window as Markdown: first what it is and how to go on, then each message in fences, invisible characters seen.

    Whoever forges a heading in a message forges it inside a fence.
    """
    from chatledger.transfer import markdown  # not at the top: its package brings every reader of files along

    conversation = window.conversation
    opening = (
        f"# Conversation {conversation.number}\n\n"
        f"{schemas.NOTICE} What was stored stands in fences, with invisible characters written as \\u escapes; "
        f"conversation://{conversation.id}/messages/{{seq}} gives one message exactly, with its parts and metadata."
        f"\n\n{_extent(window)}\n\n"
    )
    messages = "".join(map(markdown.quoted_message, window.messages))
    return schemas.visible(markdown.front_matter(conversation) + opening + messages)


def _extent(window: HistoryWindow) -> str:
    if not window.messages:
        return "There are no messages yet."
    first, last = window.messages[0].seq, window.messages[-1].seq
    told = f"Messages {first} to {last} of {window.conversation.message_count}, oldest first."
    if window.omitted_before:
        told += (
            f" To go on to earlier ones, call load_history with conversation_id {window.conversation.number} and "
            f"before_seq {first}."
        )
    return told
