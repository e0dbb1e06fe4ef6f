"""What the tests of the format readers share: records out of values, and conversations out of readers."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from chatledger.transfer.records import Malformed, Origin, Outcome, ReadConversation, ReadMessage, Record

SAMPLES = Path(__file__).parent / "samples"
MINE = (
    "ai_studio",
    "anthropic_messages",
    "claude_code",
    "codex",
    "gemini_cli",
    "gemini_takeout",
    "openai_chat",
    "openai_responses",
    "sharegpt",
)


def reader(name: str) -> ModuleType:
    return importlib.import_module(f"chatledger.transfer.formats.{name}")


def records_of(values: list[Any]) -> list[Record]:
    return [Record(f"record {place}", value) for place, value in enumerate(values, 1)]


def sample(name: str) -> list[Any]:
    """The records of a file: the elements of its array, its lines, or the one document."""
    text = (SAMPLES / name).read_text()
    if name.endswith(".jsonl"):
        return [json.loads(line) for line in text.splitlines()]
    document = json.loads(text)
    return document if isinstance(document, list) else [document]


def outcomes(name: str, *values: Any, file: str = "file.json") -> list[Outcome]:
    return list(reader(name).read(iter(records_of(list(values))), Origin(file)))


def conversations(name: str, *values: Any, file: str = "file.json") -> list[ReadConversation]:
    found = outcomes(name, *values, file=file)
    assert all(isinstance(each, ReadConversation) for each in found), found
    return [each for each in found if isinstance(each, ReadConversation)]


def conversation(name: str, *values: Any, file: str = "file.json") -> ReadConversation:
    (found,) = conversations(name, *values, file=file)
    return found


def spoken(messages: list[ReadMessage]) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages]


def call_names(message: ReadMessage) -> list[str]:
    return [call["function"]["name"] for call in message.tool_calls or ()]


BROKEN = Malformed("Expecting value: line 1 column 1 (char 0)")
