"""The commands that move whole conversations: `import`, `export`, `user export`."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from chatledger.server import erasure_commands
from chatledger.server.output import output
from chatledger.server.progress import Progress
from chatledger.server.settings import Settings

if TYPE_CHECKING:
    from chatledger.storage.store import ConversationStore
    from chatledger.transfer.exporting import ExportFormat, ExportSummary

# As in `cli`, imports that take a while stand inside the commands that need them.


def add_to(commands: Any) -> None:
    """Add the commands to a parser's subcommands."""
    taken = commands.add_parser(
        "import",
        help="bring in conversations from exports of other programs",
        description="Reads ChatGPT and Claude.ai exports (zip or JSON), Claude Code transcripts (a file or the whole "
        "projects folder), Codex rollouts, Gemini (Takeout, AI Studio, CLI), OpenAI chat and Responses JSON, Anthropic "
        "Messages JSON, ShareGPT, and chatledger's own JSONL. What is there already is not imported twice.",
    )
    taken.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a file, a zip archive or a folder")
    _user_option(taken)
    taken.add_argument("--format", metavar="NAME", help="the format, where it should not be found out by itself")
    taken.add_argument("--dry-run", action="store_true", help="say what would be imported; change nothing")
    taken.add_argument("--json", action="store_true", help="the report for programs")
    taken.set_defaults(run=_import)

    given = commands.add_parser("export", help="write conversations out, as JSONL without loss or as Markdown")
    _user_option(given)
    given.add_argument("--conversation", metavar="ID", type=_conversation, help="one only, by its id or number")
    given.add_argument("--format", choices=["jsonl", "markdown"], default="jsonl", help="(default: jsonl)")
    given.add_argument("-o", dest="output", metavar="FILE", type=Path, help="where to (default: stdout)")
    given.set_defaults(run=_export)

    user = commands.add_parser("user", help="everything of one user")
    actions = user.add_subparsers(metavar="ACTION", required=True)
    whole = actions.add_parser("export", help="write it out as JSONL that ends with its counts and its SHA-256")
    whole.add_argument("user", metavar="ID", help="the user's id")
    whole.add_argument("-o", dest="output", metavar="FILE", type=Path, help="where to (default: stdout)")
    whole.set_defaults(run=_user_export)
    erasure_commands.add_to(actions)


def _user_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--user", metavar="ID", help="whose conversations (default: CHATLEDGER_USER_ID, or local)")


def _conversation(text: str) -> UUID | int:
    if text.isascii() and text.isdigit() and not text.startswith("0"):
        return int(text)
    try:
        return UUID(text)
    except ValueError:
        raise argparse.ArgumentTypeError("must be a conversation's id (a UUID) or its number") from None


def _import(args: argparse.Namespace, settings: Settings) -> int:
    from chatledger.transfer import import_paths
    from chatledger.transfer.detection import FORMATS

    names = {known.NAME for known in FORMATS}
    if args.format is not None and args.format not in names:
        return _refuse(f"--format must be one of {', '.join(sorted(names))}", 2)

    async def run() -> Any:
        async with _store(settings) as store:
            with Progress() as progress:
                return await import_paths(
                    store,
                    args.user or settings.user_id,
                    args.paths,
                    format=args.format,
                    dry_run=args.dry_run,
                    progress=progress.show,
                )

    report = asyncio.run(run())
    print(json.dumps(report.facts(), default=str, indent=2) if args.json else report.words())
    return 0 if report.ok else 1


def _export(args: argparse.Namespace, settings: Settings) -> int:
    user_id = args.user or settings.user_id
    summary = _write_out(args, settings, user_id, format=args.format, conversation=args.conversation)
    if summary.conversations == 0:
        print(f"chatledger: there are no conversations of the user {user_id!r}", file=sys.stderr)
    return 0


def _user_export(args: argparse.Namespace, settings: Settings) -> int:
    async def known() -> bool:
        async with _store(settings) as store:
            return await _bulk(store).count(args.user) is not None

    if not asyncio.run(known()):
        return _refuse(f"there is no user {args.user!r}; nothing was written", 1)
    _write_out(args, settings, args.user, counted=True)
    return 0


def _write_out(
    args: argparse.Namespace,
    settings: Settings,
    user_id: str,
    *,
    format: ExportFormat = "jsonl",
    conversation: UUID | int | None = None,
    counted: bool = False,
) -> ExportSummary:
    from chatledger.transfer.exporting import export_conversations

    async def run() -> ExportSummary:
        async with _store(settings) as store:
            with output(args.output) as write:
                return await export_conversations(
                    store, user_id, write, format=format, conversation=conversation, counted=counted
                )

    summary = asyncio.run(run())
    print(
        f"{summary.conversations:,} conversations, {summary.messages:,} messages, SHA-256 {summary.sha256}",
        file=sys.stderr,
    )
    return summary


def _store(settings: Settings) -> ConversationStore:
    from chatledger.storage.store import ConversationStore

    return ConversationStore(settings.database_source, settings.limits)


def _bulk(store: ConversationStore) -> Any:
    from chatledger.storage.bulk import BulkStore

    return BulkStore(store)


def _refuse(sentence: str, code: int) -> int:
    print(f"chatledger: {sentence}", file=sys.stderr)
    return code
