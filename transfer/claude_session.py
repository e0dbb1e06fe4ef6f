"""The lines of one Claude Code session, and the conversation with its branches that they make.

Lines form a tree by `parentUuid`, but not one of messages. A message is written as a line per block, each the child of
the one before; results of calls that ran at once are children of the lines of their calls. So the tree has a branch for
every parallel call, and none of them is one. Here an answer, all its lines and all results of its calls, is one node;
what is left are the branches that the user made by going back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from chatledger.transfer.blocks import identifier, read_blocks, text_or_none, visible_text
from chatledger.transfer.draft import EMPTY, Draft, has_substance, numbered, told
from chatledger.transfer.records import Outcome, ReadMessage
from chatledger.transfer.rewinds import settle
from chatledger.transfer.times import parse_time

# What the program writes into the user's mouth; the reason that is reported for it.
_NOT_SAID = {
    "<command-name>": "command",
    "<command-message>": "command",
    "<local-command-stdout>": "command output",
    "<local-command-stderr>": "command output",
    "<local-command-caveat>": "command output",
    "Caveat: The messages below": "command output",
    "<task-notification>": "task notification",
}
_FLAGS = ("isApiErrorMessage", "isCompactSummary")


@dataclass(slots=True)
class _Node:
    """A message of the user, or an answer with the results of its calls."""

    role: str
    uuid: str | None
    up: int
    """The line above its first line; -1: none."""
    created_at: datetime | None
    metadata: dict[str, Any] | None
    blocks: list[Any]
    answers: list[tuple[str | None, datetime | None, list[Any]]] = field(default_factory=list)
    """Lines of the user with results of its calls, as uuid, time and blocks."""


class ClaudeSession:
    """The lines come in the order of the file, each once."""

    def __init__(self, external_id: str | None, place: str) -> None:
        self.draft = Draft()
        self.titles: dict[str, str] = {}
        self.title: str | None = None
        self.metadata: dict[str, Any] = {}
        self._external_id = external_id
        self._place = place
        self._first_time: datetime | None = None
        self._last_time: datetime | None = None
        self._line_of: dict[str, int] = {}
        self._parents: list[int | str | None] = []
        """Of every line in the tree: the line of its parent, or the uuid of one that has not come yet."""
        self._node_at: list[int | None] = []
        self._nodes: list[_Node] = []
        self._node_of_message: dict[str, int] = {}
        self._node_of_call: dict[str, int] = {}

    def __contains__(self, uuid: str) -> bool:
        return uuid in self._line_of

    def add(self, value: dict[str, Any]) -> None:
        """Adds a line of this session; one whose uuid was there before is left out."""
        uuid, at = identifier(value.get("uuid")), parse_time(value.get("timestamp"))
        if not self.draft.is_new(uuid):
            return
        for key in ("cwd", "gitBranch", "version"):
            if text := text_or_none(value.get(key)):
                self.metadata.setdefault(key, text)
        if at is not None:
            self._first_time = self._first_time or at
            self._last_time = at
        is_turn = value.get("type") in ("user", "assistant")
        if uuid is None and not is_turn:  # not in the tree: queues, titles, modes
            self.draft.leave_out("record type", value.get("type"))
            return
        line = len(self._parents)
        parent = identifier(value.get("parentUuid")) or identifier(value.get("logicalParentUuid"))
        self._parents.append(parent if parent is None else self._line_of.get(parent, parent))
        if uuid is not None:
            self._line_of[uuid] = line
        elif parent in self._line_of:  # no line can name this one: what comes after its parent comes after it
            self._line_of[parent] = line
        self._node_at.append(None)
        if not is_turn:
            self.draft.leave_out("record type", value.get("type"))
        elif value.get("isMeta") is True:
            self.draft.leave_out("meta")
        elif value.get("type") == "assistant":
            self._node_at[line] = self._answer(line, uuid, at, value)
        else:
            self._node_at[line] = self._prompt(line, uuid, at, value)

    def _answer(self, line: int, uuid: str | None, at: datetime | None, value: dict[str, Any]) -> int:
        message = value.get("message")
        message = message if isinstance(message, dict) else {"content": message}
        message_id = identifier(message.get("id"))
        place = self._node_of_message.get(message_id) if message_id is not None else None
        if place is None:
            place = len(self._nodes)
            metadata = {key: value[key] for key in _FLAGS if value.get(key) is True}
            if model := text_or_none(message.get("model")):
                metadata["model"] = model
            self._nodes.append(_Node("assistant", uuid, line, at, metadata or None, []))
            if message_id is not None:
                self._node_of_message[message_id] = place
        elif uuid is not None:
            # The last line's, so that an answer imported while it was being written is not taken for the whole one.
            self._nodes[place].uuid = uuid
        for block in _blocks(message.get("content")):
            call = identifier(block.get("id")) if isinstance(block, dict) and block.get("type") == "tool_use" else None
            if call is not None and self._node_of_call.get(call) == place:
                self.draft.leave_out("repeated call")
                continue
            if call is not None:
                self._node_of_call[call] = place
            self._nodes[place].blocks.append(block)
        return place

    def _prompt(self, line: int, uuid: str | None, at: datetime | None, value: dict[str, Any]) -> int | None:
        message = value.get("message")
        blocks = _blocks(message.get("content") if isinstance(message, dict) else message)
        results = [each for each in blocks if isinstance(each, dict) and each.get("type") == "tool_result"]
        rest = [each for each in blocks if not (isinstance(each, dict) and each.get("type") == "tool_result")]
        if reason := _not_said(rest):
            self.draft.leave_out(reason)
            if not results:
                return None
            blocks = results
        # Beside a result `toolUseResult` is the same once more, as the program's own structure.
        if not results and value.get("toolUseResult") is not None:
            blocks = [*blocks, {"toolUseResult": value["toolUseResult"]}]
        asked = (self._node_of_call.get(identifier(each.get("tool_use_id")) or "") for each in results)
        place = next((found for found in asked if found is not None), None)
        if place is not None:
            self._nodes[place].answers.append((uuid, at, blocks))
            return place
        metadata = {key: value[key] for key in _FLAGS if value.get(key) is True}
        self._nodes.append(_Node("user", uuid, line, at, metadata or None, blocks))
        return len(self._nodes) - 1

    def outcome(self) -> Outcome:
        """The conversation. Its active branch is the one whose leaf is the last in the file."""
        messages = [self._messages(node) for node in self._nodes]
        branches = settle(self.draft, messages, self._node_parents())
        return self.draft.outcome(
            self._place,
            external_id=self._external_id,
            title=self.title,
            created_at=self._first_time,
            updated_at=self._last_time,
            metadata=self.metadata,
            branches=branches,
        )

    def _messages(self, node: _Node) -> list[ReadMessage]:
        """The messages of a node: what was said, every result of its calls, and last what the user said with them."""
        calling = node.role == "assistant"
        said = read_blocks(node.blocks, self.draft.calls, calling=calling)
        made = _with_ids(node.uuid, told(node.role, said, created_at=node.created_at, metadata=node.metadata))
        results: list[ReadMessage] = []
        asides: list[ReadMessage] = []
        for uuid, at, blocks in node.answers:
            for message in _with_ids(uuid, told("user", read_blocks(blocks, self.draft.calls), created_at=at)):
                (results if message.role == "tool" else asides).append(message)
        if not made:
            self.draft.leave_out(EMPTY)
        return [*made, *results, *asides]

    def _node_parents(self) -> list[int | None]:
        """The node above each node; None for one that begins the conversation.

        A parent that nobody knows stands for the line before: so it is after a compaction, and in old files. No node is
        above itself, however wrong the file: a parent is an earlier node, or a later one whose own parent is earlier.
        """
        above: list[int | None] = []  # the node of every line, or where it is passed over the one that it hangs below
        for line, node in enumerate(self._node_at):
            up = self._line_above(line)
            above.append(node if node is not None else above[up if up < line else line - 1] if line else None)
        wanted = [above[up] if (up := self._line_above(node.up)) >= 0 else None for node in self._nodes]
        parents: list[int | None] = []
        for place, parent in enumerate(wanted):
            if parent is not None and parent >= place:
                beyond = wanted[parent]
                if parent == place or (beyond is not None and beyond >= place):
                    parent = place - 1 if place else None
            parents.append(parent)
        return parents

    def _line_above(self, line: int) -> int:
        """The line of its parent, else the line before; -1 for the first line."""
        found = self._parents[line]
        if isinstance(found, str):
            found = self._line_of.get(found)
        return line - 1 if found is None or found == line else found


def _with_ids(uuid: str | None, messages: list[ReadMessage]) -> list[ReadMessage]:
    return list(numbered(uuid, filter(has_substance, messages)))


def _blocks(content: Any) -> list[Any]:
    return content if isinstance(content, list) else [] if content is None else [content]


def _not_said(blocks: list[Any]) -> str | None:
    """Why a prompt that begins with these blocks is none of the user's; None if it is."""
    text = next((found for block in blocks if (found := visible_text(block))), "").lstrip()
    return next((reason for start, reason in _NOT_SAID.items() if text.startswith(start)), None)
