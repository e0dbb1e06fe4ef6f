"""A conversation as Markdown, for reading: what was said in full, calls and other parts as fenced JSON."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any

from chatledger.storage.records import Conversation, Message

_BACKTICKS = re.compile("`{3,}")


def head(conversation: Conversation) -> str:
    """Front matter in YAML, whose values are JSON, and the title as a heading."""
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
    title = " ".join((conversation.title or f"Conversation {conversation.number}").split())
    return "---\n" + "\n".join(lines) + f"\n---\n\n# {title}\n\n"


def message(message: Message) -> str:
    """A heading with role and time, the text as it is, then calls and parts."""
    who = message.role.capitalize() + (f" ({message.name})" if message.name else "")
    blocks = [f"## {' '.join(who.split())} · {_time(message.created_at)}"]
    if message.content:
        # A result is a program's output, not Markdown.
        blocks.append(_fenced("text", message.content) if message.role == "tool" else message.content)
    if message.tool_calls:
        blocks.append(_fenced("json", _json(message.tool_calls)))
    if message.parts:
        blocks.append(_fenced("json", _json(message.parts)))
    return "\n\n".join(blocks) + "\n\n"


def _time(time: datetime) -> str:
    return time.isoformat(sep=" ", timespec="seconds").replace("+00:00", "Z")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)


def _fenced(language: str, text: str) -> str:
    """In a fence that is longer than any run of backticks inside."""
    fence = "`" * max((len(run) + 1 for run in _BACKTICKS.findall(text)), default=3)
    return f"{fence}{language}\n{text}\n{fence}"
