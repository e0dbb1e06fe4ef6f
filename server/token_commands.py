"""The commands about access tokens: `token create`, `token list`, `token revoke`."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from chatledger.server.settings import Settings

if TYPE_CHECKING:
    from chatledger.storage.tokens import ApiToken, TokenStore

# As in `cli`, imports that take a while stand inside the commands that need them.

_SCOPES = ("read", "write", "delete")
_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}

_T = TypeVar("_T")


def add_to(commands: Any) -> None:
    """Add the commands to a parser's subcommands."""
    token = commands.add_parser("token", help="tokens by which clients are known over HTTP")
    actions = token.add_subparsers(metavar="ACTION", required=True)
    create = actions.add_parser(
        "create",
        help="make one and print it, once",
        description="Makes a token and prints it on stdout; only its hash is kept. Whoever bears it is that user.",
    )
    create.add_argument("--user", metavar="ID", required=True, help="the user that it stands for")
    create.add_argument(
        "--scope",
        metavar="SCOPE",
        action="append",
        type=_scope,
        help="read, write or delete, as often as needed (default: read and write)",
    )
    create.add_argument(
        "--expires", metavar="WHEN", type=_moment, help="30m, 12h, 90d, or a date such as 2030-01-31 (default: never)"
    )
    create.add_argument("--name", metavar="TEXT", help="what it is for, as `token list` shows it")
    create.set_defaults(run=_create)
    listing = actions.add_parser("list", help="show those that there are, without their secrets")
    listing.add_argument("--user", metavar="ID", help="one user's only")
    listing.add_argument("--json", action="store_true", help="for programs")
    listing.set_defaults(run=_list)
    revoke = actions.add_parser("revoke", help="end one, from the next request on")
    revoke.add_argument("id", metavar="ID", type=_token_id, help="its id, or the whole token")
    revoke.set_defaults(run=_revoke)


def _scope(text: str) -> str:
    short = text.removeprefix("conversations:")
    if short not in _SCOPES:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(_SCOPES)}")
    return f"conversations:{short}"


def _moment(text: str) -> datetime:
    now = datetime.now(UTC)
    try:
        if counted := re.fullmatch(r"([1-9][0-9]{0,5})([mhd])", text):
            moment = now + int(counted[1]) * _UNITS[counted[2]]
        else:
            moment = datetime.fromisoformat(text)
            moment = moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError("must be like 30m, 12h, 90d or 2030-01-31") from None
    if moment <= now:
        raise argparse.ArgumentTypeError("must be in the future")
    return moment


def _token_id(text: str) -> str:
    found = re.fullmatch(r"(?:chatledger_)?([0-9a-f]{12})(?:_[0-9a-f]*)?", text.strip())
    if found is None:
        raise argparse.ArgumentTypeError("must be the 12 digits that `chatledger token list` shows")
    return found[1]


def _create(args: argparse.Namespace, settings: Settings) -> int:
    scopes = list(dict.fromkeys(args.scope or [_scope("read"), _scope("write")]))

    async def create(tokens: TokenStore) -> tuple[ApiToken, str]:
        return await tokens.create(args.user, scopes=scopes, name=args.name, expires_at=args.expires)

    made, text = _with_tokens(settings, create)
    print(text)
    until = "never expires" if made.expires_at is None else f"expires {_time(made.expires_at)}"
    _say(f"token {made.id} for {made.user_id!r}: {', '.join(made.scopes)}; {until}. It is not shown again.")
    if settings.auth is None or not settings.auth.static_tokens:
        _say("servers take such tokens where CHATLEDGER_AUTH_STATIC_TOKENS=true is set")
    return 0


def _list(args: argparse.Namespace, settings: Settings) -> int:
    found = _with_tokens(settings, lambda tokens: tokens.list(args.user))
    if args.json:
        print(json.dumps([_facts(token) for token in found], indent=2))
        return 0
    if not found:
        _say("there are no tokens")
        return 0
    columns = [("id", "user", "scopes", "created", "expires", "last used", "name")]
    for token in found:
        facts = _facts(token)
        times = (_time(token.created_at), facts.get("expires_at", "never"), facts.get("last_used_at", "never"))
        short = ",".join(scope.removeprefix("conversations:") for scope in token.scopes)
        columns.append((token.id, _printable(token.user_id), short, *times, _printable(token.name or "")))
    widths = [max(map(len, column)) for column in zip(*columns, strict=True)]
    for line in columns:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return 0


def _revoke(args: argparse.Namespace, settings: Settings) -> int:
    gone = _with_tokens(settings, lambda tokens: tokens.revoke(args.id))
    if gone is None:
        _say(f"there is no token {args.id}; `chatledger token list` shows those that there are")
        return 1
    _say(f"revoked token {gone.id} of {gone.user_id!r}")
    return 0


def _facts(token: ApiToken) -> dict[str, Any]:
    """What is known of a token; absent values are left out."""
    times = {"created_at": token.created_at, "expires_at": token.expires_at, "last_used_at": token.last_used_at}
    facts: dict[str, Any] = {"id": token.id, "user_id": token.user_id, "scopes": list(token.scopes)}
    facts |= {} if token.name is None else {"name": token.name}
    return facts | {name: _time(time) for name, time in times.items() if time is not None}


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _printable(text: str) -> str:
    """In a terminal a stored text must not move the cursor or hide what follows."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _with_tokens(settings: Settings, work: Callable[[TokenStore], Awaitable[_T]]) -> _T:
    from chatledger.storage.store import ConversationStore
    from chatledger.storage.tokens import TokenStore

    async def run() -> _T:
        async with ConversationStore(settings.database_source, settings.limits) as store:
            return await work(TokenStore(store))

    return asyncio.run(run())


def _say(sentence: str) -> None:
    print(f"chatledger: {sentence}", file=sys.stderr)
