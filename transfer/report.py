"""What an import did: with each file, with each conversation, and in all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias
from uuid import UUID

Status: TypeAlias = Literal["created", "updated", "unchanged", "skipped", "failed"]
STATUSES: tuple[Status, ...] = ("created", "updated", "unchanged", "skipped", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileReport:
    """A file that was named or found. `reason` says why nothing was read of it; None where something was."""

    name: str
    format: str | None
    status: Literal["read", "ignored", "refused"]
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationReport:
    """What became of one conversation of a source.

    `messages` counts what was added, in forks too. `left_out` and `altered` count by reason, whatever the status.
    """

    status: Status
    file: str
    place: str
    format: str
    external_id: str | None = None
    title: str | None = None
    conversation_id: UUID | None = None
    number: int | None = None
    messages: int = 0
    forks: int = 0
    reason: str | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    altered: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class ImportReport:
    """Everything, in the order of the files. With `dry_run`, what would have become of it."""

    dry_run: bool
    files: list[FileReport] = field(default_factory=list)
    conversations: list[ConversationReport] = field(default_factory=list)

    @property
    def totals(self) -> Counter[str]:
        """How many conversations of each status, and how many messages and forks were added."""
        totals: Counter[str] = Counter(dict.fromkeys((*STATUSES, "messages", "forks"), 0))
        for each in self.conversations:
            totals[each.status] += 1
            totals["messages"] += each.messages
            totals["forks"] += each.forks
        return totals

    @property
    def ok(self) -> bool:
        """Something was imported or there already, and nothing failed or was refused."""
        totals = self.totals
        imported = totals["created"] + totals["updated"] + totals["unchanged"]
        return imported > 0 and not totals["failed"] and all(file.status != "refused" for file in self.files)

    def facts(self) -> dict[str, Any]:
        """The whole as JSON values; what is absent is left out."""
        return {
            "ok": self.ok,
            "dry_run": self.dry_run,
            "totals": dict(self.totals),
            "files": [_present(asdict(file)) for file in self.files],
            "conversations": [_present(asdict(each)) for each in self.conversations],
        }

    def words(self) -> str:
        """A line for each conversation and each file of which nothing was read, and a last line for all."""
        lines = [f"{file.status:<10} {file.name}: {file.reason}" for file in self.files if file.reason]
        lines += [_line(each) for each in self.conversations]
        totals = self.totals
        told = ", ".join(f"{totals[status]:,} {status}" for status in STATUSES if totals[status])
        forks = f", {totals['forks']:,} forks" if totals["forks"] else ""
        would = "would be " if self.dry_run else ""
        lines.append(f"{told or 'no conversation found'}; {totals['messages']:,} messages {would}added{forks}")
        return "\n".join(lines)


def _line(each: ConversationReport) -> str:
    number = f"#{each.number} " if each.number else ""
    title = f'"{each.title}"' if each.title else each.external_id or each.place
    title = "".join(char if char.isprintable() else "\ufffd" for char in title)  # a terminal would obey some of them
    told = []
    if each.messages:
        told.append(f"{each.messages:,} messages")
    if each.forks:
        told.append(f"{each.forks:,} forks")
    told += [f"left out: {count:,} × {reason}" for reason, count in each.left_out.items()]
    told += [f"altered: {count:,} × {reason}" for reason, count in each.altered.items()]
    if each.reason:
        told.insert(0, each.reason if each.status != "failed" else f"{each.place} {each.reason}")
    return f"{each.status:<10} {number}{title}" + (f": {'; '.join(told)}" if told else "")


def _present(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value not in (None, {})}
