"""The commands that end what is known of a user: `user erase`, and after a restore `user replay-erasures`."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatledger.server.output import output
from chatledger.server.settings import Settings

if TYPE_CHECKING:
    from chatledger.storage.erasures import Erasure
    from chatledger.storage.store import ConversationStore

# As in `cli`, imports that take a while stand inside the commands that need them.


def add_to(actions: Any) -> None:
    """Add the commands to the subcommands of `user`."""
    erase = actions.add_parser("erase", help="delete it for good, conversations and messages included")
    erase.add_argument("user", metavar="ID", help="the user's id")
    erase.add_argument("--yes", action="store_true", help="do not ask")
    erase.set_defaults(run=_erase)
    listing = actions.add_parser(
        "erasures",
        help="write out the list of erased users, which names none",
        description="Writes the list of erased users as JSON lines: a digest, when, and how much it was. Keep it apart "
        "from the backups: `user replay-erasures` erases these users again after an older one was restored.",
    )
    listing.add_argument("-o", dest="output", metavar="FILE", type=Path, help="where to (default: stdout)")
    listing.set_defaults(run=_list)
    replay = actions.add_parser(
        "replay-erasures",
        help="after a backup was restored: erase those again who were erased since it was made",
        description="Says which users of this database were erased after it was backed up, by the list that "
        "`user erasures` wrote. With --yes it erases them. Doing it twice is doing it once.",
    )
    replay.add_argument("list", metavar="FILE", type=Path, help="the list")
    replay.add_argument("--yes", action="store_true", help="do it; without it, nothing is changed")
    replay.set_defaults(run=_replay)


def _erase(args: argparse.Namespace, settings: Settings) -> int:
    from chatledger.storage.bulk import BulkStore
    from chatledger.storage.erasures import ErasureList

    async def run() -> int:
        async with _store(settings) as store:
            bulk = BulkStore(store)
            there = await bulk.count(args.user)
            if there is None:
                return _refuse(f"there is no user {args.user!r}; nothing was erased")
            if not args.yes and not _sure(args.user, there.conversations, there.messages):
                return _refuse("nothing was erased")
            gone = await bulk.erase_user(args.user)
            if gone is None:
                return _refuse(f"there is no user {args.user!r} any more; nothing was erased")
            await ErasureList(store).forget()
            print(f"erased {args.user!r}: {gone.conversations:,} conversations, {gone.messages:,} messages")
            return 0

    return asyncio.run(run())


def _sure(user_id: str, conversations: int, messages: int) -> bool:
    print(
        f"{user_id!r} has {conversations:,} conversations with {messages:,} messages. Erasing them cannot be undone.\n"
        "Type the user's id to erase all of it: ",
        end="",
        file=sys.stderr,
        flush=True,
    )
    return sys.stdin.readline().rstrip("\r\n") == user_id


def _list(args: argparse.Namespace, settings: Settings) -> int:
    from chatledger.storage.erasures import ErasureList

    async def run() -> tuple[str, list[Erasure]]:
        async with _store(settings) as store:
            erasures = ErasureList(store)
            return await erasures.name(), await erasures.read()

    name, found = asyncio.run(run())
    with output(args.output) as write:
        write(_line({"erasures_of": name}))
        for each in found:
            facts = each._asdict() | {"user_digest": each.user_digest.hex(), "erased_at": each.erased_at.isoformat()}
            write(_line(facts))
    print(f"{len(found):,} erasures", file=sys.stderr)
    return 0


def _line(facts: dict[str, Any]) -> bytes:
    return json.dumps(facts).encode() + b"\n"


def _replay(args: argparse.Namespace, settings: Settings) -> int:
    from chatledger.storage.erasures import ErasureList

    try:
        name, listed = _read(args.list)
    except OSError as exc:
        return _refuse(f"{args.list} cannot be read: {exc.strerror}")
    except ValueError as exc:
        return _refuse(f"{args.list} is not a list that `chatledger user erasures` wrote: {exc}")

    async def run() -> int:
        async with _store(settings) as store:
            erasures = ErasureList(store)
            if await erasures.name() != name:
                return _refuse("the list is of another database: the users in it cannot be known here")
            found = [each async for each in erasures.returned(listed)]
            if not args.yes:
                print(f"{len(found):,} users of this database were erased after it was backed up")
                if found:
                    print("nothing was changed; with --yes they are erased again", file=sys.stderr)
                return 0
            conversations = messages = 0
            for each in found:
                gone = await erasures.replay(each)
                conversations, messages = conversations + gone.conversations, messages + gone.messages
            await erasures.add(listed)
            if found:
                await erasures.forget()
            print(f"erased {len(found):,} users again: {conversations:,} conversations, {messages:,} messages")
            return 0

    return asyncio.run(run())


def _read(path: Path) -> tuple[str, list[Erasure]]:
    """The name of a list and what is in it. Raises ValueError, whose sentence names the line."""
    from chatledger.storage.erasures import Erasure

    name: str | None = None
    listed: list[Erasure] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                facts = json.loads(line)
                if name is None:
                    name = str(facts["erasures_of"])
                    continue
                digest, moment = bytes.fromhex(facts["user_digest"]), datetime.fromisoformat(facts["erased_at"])
                if len(digest) != 32 or moment.tzinfo is None:
                    raise ValueError
                listed.append(Erasure(digest, moment, int(facts["conversations"]), int(facts["messages"])))
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"line {number} is not one of it") from None
    if name is None:
        raise ValueError("it is empty")
    return name, listed


def _store(settings: Settings) -> ConversationStore:
    from chatledger.storage.store import ConversationStore

    return ConversationStore(settings.database_source, settings.limits)


def _refuse(sentence: str) -> int:
    print(f"chatledger: {sentence}", file=sys.stderr)
    return 1
