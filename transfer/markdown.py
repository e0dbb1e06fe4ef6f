"""A conversation as Markdown, for reading: what was said in full, calls and other parts as fenced JSON."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any

from chatledger.storage.records import Conversation, Message

_BACKTICKS = re.compile("`{3,}")


def head(conversation: Conversation) -> str:
    """The front matter, and the title as a heading."""
    title = " ".join((conversation.title or f"Conversation {conversation.number}").split())
    return front_matter(conversation) + f"# {title}\n\n"


def front_matter(conversation: Conversation) -> str:
    """Facts in YAML, whose values are JSON."""
    source = (conversation.metadata or {}).get("source")
    facts = {
        "id": str(conversation.id),
        "number": conversation.number,
        "title": conversation.title,
        "created_at": _time(conversation.created_at),
        "updated_at": _time(conversation.updated_at),
        "messages": conversation.message_count,
        "source": source.get("format") if isinstance(source, dict) else None,
    }
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in facts.items() if value is not None]
    return "---\n" + "\n".join(lines) + "\n---\n\n"


def message(message: Message) -> str:
    """A heading with role and time, the text as it is, then calls and parts."""
    who = message.role.capitalize() + (f" ({message.name})" if message.name else "")
    blocks = [f"## {' '.join(who.split())} · {_time(message.created_at)}"]
    if message.content:
        # A result is a program's output, not Markdown.
        blocks.append(fenced("text", message.content) if message.role == "tool" else message.content)
    if message.tool_calls:
        blocks.append(fenced("json", _json(message.tool_calls)))
    if message.parts:
        blocks.append(fenced("json", _json(message.parts)))
    return "\n\n".join(blocks) + "\n\n"


def quoted_message(message: Message) -> str:
    """A heading with seq, role and time, then all that was stored in fences, so that none of it passes for a heading.

    Its metadata and parts are left out.
    """
    blocks = [f"## {message.seq} · {message.role} · {_time(message.created_at)}"]
    said = {"name": message.name, "tool_call_id": message.tool_call_id, "tool_calls": message.tool_calls}
    if found := {field: value for field, value in said.items() if value is not None}:
        blocks.append(fenced("json", _json(found)))
    if message.content:
        blocks.append(fenced("text", message.content))
    return "\n\n".join(blocks) + "\n\n"


def _time(time: datetime) -> str:
    return time.isoformat(sep=" ", timespec="seconds").replace("+00:00", "Z")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)


def fenced(language: str, text: str) -> str:
    """Text in a fence that is longer than any run of backticks inside."""
    fence = "`" * max((len(run) + 1 for run in _BACKTICKS.findall(text)), default=3)
    return f"{fence}{language}\n{text}\n{fence}"
