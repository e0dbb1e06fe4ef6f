"""The command line: reads the settings, puts the parts together, and runs one command."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import NoReturn

from chatledger.server import migrate_command, retention_command, serving, token_commands, transfer_commands
from chatledger.server.event_loop import run
from chatledger.server.settings import Settings, SettingsError, load_settings
from chatledger.storage.embedded import EmbeddedError, EmbeddedPostgres
from chatledger.storage.errors import StorageError

# Imports that only some commands need stand inside them: `serve` answers sooner for it, and so does --help.


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0 when it succeeded, 1 when it did not, 2 when it was not understood."""
    args = _parser().parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="chatledger: %(levelname)s %(message)s")
    try:
        sys.exit(args.run(args, load_settings()))
    except SettingsError as exc:
        _fail(str(exc), 2)
    except (StorageError, EmbeddedError) as exc:
        _fail(str(exc), 1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)


def _fail(sentence: str, code: int) -> NoReturn:
    print(f"chatledger: {sentence}", file=sys.stderr)
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="chatledger",
        description="An MCP server that keeps conversations in Postgres and gives them back, to their owner only.",
        epilog="Settings are environment variables, CHATLEDGER_...; `chatledger doctor` shows what is in force.",
    )
    parser.add_argument("--version", action="version", version=f"chatledger {version('chatledger')}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    serve = commands.add_parser("serve", help="serve MCP: over stdin and stdout, as a client starts it, or over HTTP")
    serve.add_argument(
        "--transport",
        choices=["stdio", "http", "sse"],
        default="stdio",
        help="how clients connect; http and sse serve both Streamable HTTP and SSE (default: stdio)",
    )
    serve.add_argument("--host", default="127.0.0.1", help="the address to serve over HTTP (default: 127.0.0.1)")
    serve.add_argument("--port", type=int, default=8000, help="0 picks a free one (default: 8000)")
    serve.add_argument("--toolset", choices=["core", "full", "readonly"], help="which tools to offer (default: full)")
    serve.set_defaults(run=_serve)

    migrate_command.add_to(commands)

    doctor = commands.add_parser("doctor", help="say which database is used, and what is wrong with it")
    doctor.add_argument("--json", action="store_true", help="for programs")
    doctor.set_defaults(run=_doctor)

    transfer_commands.add_to(commands)
    retention_command.add_to(commands)
    token_commands.add_to(commands)

    database = commands.add_parser("database", help="the embedded Postgres")
    actions = database.add_subparsers(metavar="ACTION", required=True)
    url = actions.add_parser("url", help="start it and print its URL, for psql and the like")
    url.set_defaults(run=_database_url)
    stop = actions.add_parser("stop", help="stop it; the next call of a running server starts it again")
    stop.set_defaults(run=_database_stop)
    return parser


def _serve(args: argparse.Namespace, settings: Settings) -> int:
    toolset = args.toolset or settings.toolset
    if args.transport != "stdio":
        sse_first = args.transport == "sse"
        run(serving.over_http(settings, toolset, host=args.host, port=args.port, sse_first=sse_first))
        return 0
    if sys.stdin.isatty():
        print(
            "chatledger: this speaks MCP on stdin and stdout and waits for a client. Put the command into your "
            "client's configuration (the README shows how), or end it with Ctrl-C.",
            file=sys.stderr,
        )
    run(serving.over_stdio(settings, toolset))
    return 0


def _doctor(args: argparse.Namespace, settings: Settings) -> int:
    from chatledger.server.doctor import examine, report
    from chatledger.storage.diagnosis import diagnose

    found = asyncio.run(diagnose(settings.database_source, settings.database_place))
    found, auth = asyncio.run(examine(found, settings))
    print(report(found, auth, settings, as_json=args.json))
    return 1 if found.problems else 0


def _database_url(_: argparse.Namespace, settings: Settings) -> int:
    _mind_external(settings)
    print(EmbeddedPostgres(settings.data_dir).start())
    return 0


def _database_stop(_: argparse.Namespace, settings: Settings) -> int:
    _mind_external(settings)
    stopped = EmbeddedPostgres(settings.data_dir).stop()
    print("stopped" if stopped else "it was not running", file=sys.stderr)
    return 0


def _mind_external(settings: Settings) -> None:
    if settings.database_url is not None:
        print("chatledger: CHATLEDGER_DATABASE_URL is set, so servers use that, not the embedded one", file=sys.stderr)
