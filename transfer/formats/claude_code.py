"""Claude Code's transcripts: JSONL, a line per event, of one session or of several.

Lines name their session, and a sub-agent's work stands in its session's file or in an `agent-<id>` file of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

from chatledger.transfer.blocks import identifier, text_or_none
from chatledger.transfer.claude_session import ClaudeSession
from chatledger.transfer.records import Malformed, Origin, Outcome, Record, Rejected

NAME = "claude-code"
TITLE = "a Claude Code transcript"

_AGENT_FILE = re.compile(r"agent-([\w-]+)\.jsonl", re.ASCII)
# Where each kind of title line has it, the strongest first: the user's own, the model's, and the older `summary`.
_TITLE_KEYS = {"custom-title": "customTitle", "ai-title": "aiTitle", "summary": "summary"}


def recognises(value: Any) -> bool:
    """Whether it is a line of a transcript: an event of a session, or one of the few that name none."""
    if not isinstance(value, dict) or not isinstance(kind := value.get("type"), str):
        return False
    if "projectHash" in value or "messageId" in value:  # Gemini CLI's header and its log of prompts
        return kind == "file-history-snapshot"
    if kind in ("user", "assistant") and not isinstance(value.get("message"), dict):
        return False
    if isinstance(value.get("sessionId"), str):
        return True
    if kind == "summary":
        return "leafUuid" in value
    return kind in ("user", "assistant") and ("uuid" in value or "parentUuid" in value)


def read(records: Iterable[Record], origin: Origin) -> Iterator[Outcome]:
    """A conversation per session, and one per run of a sub-agent, in the order in which they begin.

    The whole file is read before the first comes: the lines of sessions mix, and titles stand anywhere.
    """
    transcript = _Transcript(PurePosixPath(origin.name))
    place: str | None = None
    for record in records:
        place = place or record.place
        transcript.add(record)
    if place is not None:
        yield from transcript.outcomes(place)


class _Transcript:
    """The sessions of one file, while its lines come."""

    def __init__(self, file: PurePosixPath) -> None:
        self.sessions: dict[tuple[str, str | None], ClaudeSession] = {}
        agent = _AGENT_FILE.fullmatch(file.name)
        self._file_agent = agent[1] if agent else None
        self._session_id = file.stem  # of the line before, and at first what the program names the file after
        self._latest: ClaudeSession | None = None
        self._agent_of: dict[tuple[str, str], str] = {}
        self._summaries: list[tuple[str, str]] = []
        self._early: list[tuple[str, Any]] = []
        """What was left out before there was a session."""

    def add(self, record: Record) -> None:
        """Adds a line to the session that it names; one that names none belongs to the session of the line before."""
        value = record.value
        if not isinstance(value, dict):
            self._leave_out("malformed line" if isinstance(value, Malformed) else "not an object")
            return
        kind = value.get("type")
        self._session_id = session_id = identifier(value.get("sessionId")) or self._session_id
        if isinstance(kind, str) and (title := text_or_none(value.get(_TITLE_KEYS.get(kind, "")))):
            if kind == "summary":
                self._summaries.append((identifier(value.get("leafUuid")) or "", title))
            else:
                self._session(session_id, None, record.place).titles[kind] = title
            return
        is_turn = kind in ("user", "assistant")
        if not is_turn and identifier(value.get("sessionId")) is None and identifier(value.get("uuid")) is None:
            self._leave_out("record type", kind)
            return
        agent = self._agent(session_id, value, is_turn=is_turn)
        self._latest = self._session(session_id, agent, record.place)
        self._latest.add(value)

    def outcomes(self, place: str) -> Iterator[Outcome]:
        if not self.sessions:
            yield Rejected(place=place, reason="it has no messages", failed=False)
        for session in self.sessions.values():
            for leaf, title in self._summaries:
                if leaf in session:
                    session.titles["summary"] = title
            session.title = next((session.titles[kind] for kind in _TITLE_KEYS if kind in session.titles), None)
        for key in list(self.sessions):
            yield self.sessions.pop(key).outcome()  # and its lines can go

    def _session(self, session_id: str, agent: str | None, place: str) -> ClaudeSession:
        found = self.sessions.get((session_id, agent))
        if found is None:
            external_id = ":".join(filter(None, (session_id, agent)))
            found = self.sessions[session_id, agent] = ClaudeSession(external_id or None, place)
            if agent is not None and session_id:
                found.metadata["sessionId"] = session_id
            for reason, detail in self._early:
                found.draft.leave_out(reason, detail)
            self._early.clear()
        return found

    def _agent(self, session_id: str, value: dict[str, Any], *, is_turn: bool) -> str | None:
        """Which sub-agent's a line is; None for the session itself.

        Older versions have no `agentId`: there a line belongs to what it answers, and one that answers no other line
        of a sub-agent begins a run, which its own id names.
        """
        if value.get("isSidechain") is not True and self._file_agent is None:
            return None
        uuid, parent = identifier(value.get("uuid")), identifier(value.get("parentUuid"))
        agent = identifier(value.get("agentId")) or self._file_agent or self._agent_of.get((session_id, parent or ""))
        if agent is None and is_turn:
            agent = uuid or f"sidechain-{sum(of is not None for _, of in self.sessions) + 1}"
        if agent is not None and uuid is not None:
            self._agent_of.setdefault((session_id, uuid), agent)
        return agent

    def _leave_out(self, reason: str, detail: Any = None) -> None:
        if self._latest is not None:
            self._latest.draft.leave_out(reason, detail)
        else:
            self._early.append((reason, detail))
