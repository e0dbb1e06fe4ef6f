"""Files of conversations into the store, whatever program they come from.

Importing the same file again changes nothing, and one that has grown brings only what is new. One conversation is one
step, whole or not at all; a bad one never stops the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias
from uuid import UUID

from chatledger.storage.bulk import BulkStore
from chatledger.storage.errors import SchemaOutOfDate, StorageError, Unavailable, UniqueViolation, UnknownUser
from chatledger.storage.message_log import MessageLog
from chatledger.storage.records import StoredPath
from chatledger.storage.validation import check_user
from chatledger.transfer.archive import UnreadableSource
from chatledger.transfer.detection import FORMATS, Ignored, Recognised, format_named, recognise
from chatledger.transfer.files import open_sources
from chatledger.transfer.plan import Lookup, Plan, make_plan
from chatledger.transfer.preparation import PreparedConversation, Unstorable, prepare
from chatledger.transfer.records import Outcome, Rejected
from chatledger.transfer.report import ConversationReport, FileReport, ImportReport, Status

BATCH_MESSAGES: Final = 2_000  # chosen: a commit costs as much as some hundred messages; a larger batch gains little
BATCH_CHARS: Final = 4 * 1024 * 1024  # chosen: a few tens of MB in memory, with all that is made of it
BATCH_CONVERSATIONS: Final = 500  # chosen: as BATCH_MESSAGES, for conversations with few of them
ATTEMPTS: Final = 3  # at a plan that another writer overtook; a second one has always been enough

_Entry: TypeAlias = PreparedConversation | ConversationReport
Progress: TypeAlias = Callable[[int, int, float], None]
"""Told after each step how many conversations and messages were looked at so far, and how much of the file, 0 to 1."""


async def import_paths(
    store: MessageLog,
    user_id: str,
    paths: Iterable[Path],
    *,
    format: str | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> ImportReport:
    """Import files, folders and archives for a user, each file's format found out by what is in it, or given by name.

    A path that cannot be read, or that is damaged, is found before anything is stored, and refuses all.

    Raises:
        ValueError: there is no format of that name.
        Unavailable, SchemaOutOfDate: the database failed; running it again goes on from there.
        UnknownUser: the user is not in the application's users table.
    """
    forced = None
    if format is not None and (forced := format_named(format)) is None:
        raise ValueError(f"the formats are {', '.join(each.NAME for each in FORMATS)}")
    importer = Importer(store, user_id, dry_run=dry_run, progress=progress)
    report = importer.report
    try:
        with open_sources(paths) as sources:
            for found in recognise(sources, forced):
                if isinstance(found, Recognised):
                    report.files.append(FileReport(name=found.name, format=found.format.NAME, status="read"))
                    try:
                        await importer.take(found.outcomes, file=found.name, format=found.format.NAME, part=found.part)
                    except UnreadableSource as exc:  # what was read before stays; the other files are read
                        report.files.append(FileReport(name=exc.name, format=None, status="refused", reason=exc.reason))
                else:
                    status: Literal["ignored", "refused"] = "ignored" if isinstance(found, Ignored) else "refused"
                    report.files.append(FileReport(name=found.name, format=None, status=status, reason=found.reason))
    except UnreadableSource as exc:
        report.files.append(FileReport(name=exc.name, format=None, status="refused", reason=exc.reason))
    return report


class _Reading(NamedTuple):
    """The file that is being read."""

    file: str
    format: str


class Importer:
    """One import for one user: files go in one after the other, the report grows."""

    def __init__(
        self, store: MessageLog, user_id: str, *, dry_run: bool = False, progress: Progress | None = None
    ) -> None:
        check_user(user_id)
        self.report = ImportReport(dry_run=dry_run)
        self._bulk, self._user_id, self._progress = BulkStore(store), user_id, progress
        self._pretended: dict[Lookup, StoredPath] = {}  # what a dry run would have stored
        self._seen = (0, 0)

    async def take(
        self, outcomes: Iterable[Outcome], *, file: str, format: str, part: Callable[[], float] = lambda: 1.0
    ) -> None:
        """Store what a reader makes of a file. The next batch is read while the last one is stored.

        `part` says how much of the file has been read, for the progress.

        Raises:
            Unavailable, SchemaOutOfDate: the database failed; what was stored before stays, and running it again
                goes on from there.
        """
        batches = _batches(outcomes, _Reading(file, format))
        upcoming = asyncio.create_task(asyncio.to_thread(next, batches, None))
        try:
            while (batch := await upcoming) is not None:
                upcoming = asyncio.create_task(asyncio.to_thread(next, batches, None))
                self.report.conversations += await self._take_batch(batch, _Reading(file, format))
                if self._progress is not None:
                    self._progress(*self._seen, part())
        finally:
            await asyncio.wait([upcoming])

    async def _take_batch(self, batch: list[_Entry], reading: _Reading) -> list[ConversationReport]:
        prepared = [entry for entry in batch if isinstance(entry, PreparedConversation)]
        stored = dict(zip(map(id, prepared), await self._store(prepared, reading), strict=True))
        messages = sum(len(path) for entry in prepared for path in entry.paths)
        self._seen = self._seen[0] + len(batch), self._seen[1] + messages
        return [stored[id(entry)] if isinstance(entry, PreparedConversation) else entry for entry in batch]

    async def _store(self, prepared: list[PreparedConversation], reading: _Reading) -> list[ConversationReport]:
        """All of them in one step; each by itself if that fails, so that the one at fault fails alone."""
        if not prepared:
            return []
        try:
            return await self._store_together(prepared, reading)
        except (Unavailable, SchemaOutOfDate, UnknownUser):  # no other one would fare better
            raise
        except StorageError as exc:
            if len(prepared) == 1:
                reason = "its id or key belongs to another conversation" if isinstance(exc, UniqueViolation) else None
                return [_report(reading, prepared[0], "failed", reason=reason or exc.message)]
        reports = []
        for each in prepared:
            reports += await self._store([each], reading)
        return reports

    async def _store_together(
        self, prepared: list[PreparedConversation], reading: _Reading
    ) -> list[ConversationReport]:
        for attempt in range(1, ATTEMPTS + 1):
            plans = await self._plans(prepared)
            new = [each for plan in plans for each in plan.new]
            grown = [each for plan in plans for each in plan.grown]
            try:
                numbers = await self._carry_out(plans) if new or grown else {}
            except UniqueViolation:  # another writer was first: look again
                if attempt == ATTEMPTS:
                    raise
                continue
            return [_done(reading, plan, numbers) for plan in plans]
        raise AssertionError

    async def _plans(self, prepared: list[PreparedConversation]) -> list[Plan]:
        now = datetime.now(UTC)
        known: dict[Lookup, StoredPath | None] = {}
        plans = [make_plan(each, known, now) for each in prepared]
        while wanted := set().union(*(plan.wanted for plan in plans)):
            native = prepared[0].native is not None
            found = await self._bulk.find(
                self._user_id,
                keys=[each for each in wanted if isinstance(each, str)],
                ids=[each for each in wanted if isinstance(each, UUID)],
                by_message_id=native,
            )
            known.update(dict.fromkeys(wanted))
            for path in found:
                known.update(
                    (lookup, path) for lookup in (path.key, path.id) if lookup is not None and lookup in wanted
                )
            known |= {lookup: self._pretended[lookup] for lookup in wanted & self._pretended.keys()}
            plans = [
                make_plan(each, known, now) if plan.wanted else plan for each, plan in zip(prepared, plans, strict=True)
            ]
        return plans

    async def _carry_out(self, plans: list[Plan]) -> dict[UUID, int]:
        new = [each for plan in plans for each in plan.new]
        grown = [each for plan in plans for each in plan.grown]
        if not self.report.dry_run:
            return await self._bulk.store(self._user_id, new, grown)
        for plan in plans:
            for path in plan.after:
                self._pretended |= {lookup: path for lookup in (path.key, path.id) if lookup is not None}
        return {}


def _batches(outcomes: Iterable[Outcome], reading: _Reading) -> Iterator[list[_Entry]]:
    """What a reader yields, prepared, some thousand messages at a time; no conversation twice in one batch."""
    batch: list[_Entry] = []
    lookups: set[Lookup] = set()
    messages = chars = 0
    for entry in _entries(outcomes, reading):
        if isinstance(entry, PreparedConversation):
            if entry.lookup in lookups:
                yield batch
                batch, lookups, messages, chars = [], set(), 0, 0
            lookups.add(entry.lookup)
            for path in entry.paths:
                messages += len(path)
                chars += sum(len(message.content) + len(message.parts or "") for message in path)
        batch.append(entry)
        if messages >= BATCH_MESSAGES or chars >= BATCH_CHARS or len(batch) >= BATCH_CONVERSATIONS:
            yield batch
            batch, lookups, messages, chars = [], set(), 0, 0
    if batch:
        yield batch


def _entries(outcomes: Iterable[Outcome], reading: _Reading) -> Iterator[_Entry]:
    for outcome in outcomes:
        if isinstance(outcome, Rejected):
            yield _not_taken(outcome, reading, "failed" if outcome.failed else "skipped", outcome.reason)
            continue
        try:
            prepared = prepare(outcome, reading.format)
        except Unstorable as exc:
            yield _not_taken(outcome, reading, "failed", str(exc))
            continue
        if any(prepared.paths) or prepared.native is not None:
            yield prepared
        else:
            yield _report(reading, prepared, "skipped", reason="no messages")


def _not_taken(outcome: Outcome, reading: _Reading, status: Status, reason: str) -> ConversationReport:
    return ConversationReport(
        status=status,
        file=reading.file,
        place=outcome.place,
        format=reading.format,
        external_id=outcome.external_id,
        title=outcome.title,
        reason=reason,
    )


def _done(reading: _Reading, plan: Plan, numbers: dict[UUID, int]) -> ConversationReport:
    forks = [each for each in plan.new if each.id != plan.main]
    made = any(each.id == plan.main for each in plan.new)
    status: Status = "created" if made else "updated" if plan.new or plan.grown else "unchanged"
    return _report(
        reading,
        plan.prepared,
        status,
        conversation_id=plan.main,
        number=plan.number or (numbers.get(plan.main) if plan.main is not None else None),
        messages=plan.messages,
        forks=len(forks),
        reason="its active branch has left the stored one, and is a fork" if plan.active_is_fork else None,
    )


def _report(
    reading: _Reading,
    prepared: PreparedConversation,
    status: Status,
    *,
    conversation_id: UUID | None = None,
    number: int | None = None,
    messages: int = 0,
    forks: int = 0,
    reason: str | None = None,
) -> ConversationReport:
    return ConversationReport(
        status=status,
        file=reading.file,
        place=prepared.place,
        format=reading.format,
        external_id=prepared.external_id,
        title=prepared.title,
        conversation_id=conversation_id,
        number=number,
        messages=messages,
        forks=forks,
        reason=reason,
        left_out=dict(prepared.left_out),
        altered=dict(prepared.altered),
    )
