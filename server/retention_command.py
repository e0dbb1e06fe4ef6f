"""The command `retention`: shows what is old, and deletes it where that is said. Nothing else ever does."""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from chatledger.server.progress import Progress
from chatledger.server.settings import Settings

if TYPE_CHECKING:
    from chatledger.storage.retention import OldConversations

# As in `cli`, imports that take a while stand inside the command.

_DAYS = 36_500  # a hundred years, which a date can express in any case


def add_to(commands: Any) -> None:
    """Add the command to a parser's subcommands."""
    retention = commands.add_parser(
        "retention",
        help="show conversations that are old, and delete them where you say so",
        description="Shows how many conversations were last updated so long ago, whole and of all users. With --yes it "
        "deletes them with their messages, for good. chatledger deletes nothing by itself.",
    )
    retention.add_argument(
        "--older-than", metavar="AGE", required=True, type=_age, help="365d, or a date such as 2025-01-31"
    )
    retention.add_argument("--archived-only", action="store_true", help="those only that are archived as well")
    retention.add_argument("--user", metavar="ID", help="one user's only")
    retention.add_argument("--by-user", action="store_true", help="a line for each user as well")
    retention.add_argument("--yes", action="store_true", help="delete them; without it, nothing is changed")
    retention.set_defaults(run=_retention)


def _age(text: str) -> timedelta | datetime:
    if counted := re.fullmatch(r"([1-9][0-9]{0,5})d", text):
        if int(counted[1]) <= _DAYS:
            return timedelta(days=int(counted[1]))
    else:
        try:
            moment = datetime.fromisoformat(text)
            moment = moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
        except (ValueError, OverflowError):
            pass
        else:
            if moment >= datetime.now(UTC):
                raise argparse.ArgumentTypeError("must be in the past")
            return moment
    raise argparse.ArgumentTypeError(f"must be 1d to {_DAYS}d, or a date such as 2025-01-31")


def _retention(args: argparse.Namespace, settings: Settings) -> int:
    from chatledger.storage.retention import Retention
    from chatledger.storage.store import ConversationStore

    async def run() -> int:
        async with ConversationStore(settings.database_source, settings.limits) as store:
            retention = Retention(store)
            age = args.older_than
            before = await retention.cutoff(age) if isinstance(age, timedelta) else age
            found = [each async for each in retention.find(before, user_id=args.user, archived_only=args.archived_only)]
            total = sum(each.conversations for each in found)
            if args.by_user:
                for each in found:
                    print(_of_user(each))
            print(_in_all(found, before, archived_only=args.archived_only))
            if not args.yes:
                if total:
                    print("nothing was changed; with --yes they are deleted, for good", file=sys.stderr)
                return 0
            conversations = messages = 0
            try:
                with Progress() as progress:
                    for each in found:
                        async for gone in retention.delete(each.user_id, before, archived_only=args.archived_only):
                            conversations, messages = conversations + gone.conversations, messages + gone.messages
                            progress.show(conversations, messages, min(1.0, conversations / total))
            finally:  # whatever ended it: what is gone is gone
                print(f"deleted {conversations:,} conversations, {messages:,} messages")
            return 0

    return asyncio.run(run())


def _of_user(old: OldConversations) -> str:
    return (
        f"{old.user_id!r}: {old.conversations:,} conversations, {old.messages:,} messages, from {_day(old.oldest)} on"
    )


def _in_all(found: list[OldConversations], before: datetime, *, archived_only: bool) -> str:
    what = "archived and not updated" if archived_only else "not updated"
    conversations, messages = sum(each.conversations for each in found), sum(each.messages for each in found)
    oldest = f", the oldest from {_day(min(each.oldest for each in found))}" if found else ""
    return (
        f"{conversations:,} conversations with {messages:,} messages of {len(found):,} users are {what} since "
        f"{before.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}{oldest}"
    )


def _day(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d}"
