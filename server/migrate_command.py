"""The command `migrate`: creates and changes the tables in the database."""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import Any

from chatledger.server.settings import Settings

# As in `cli`, imports that take a while stand inside the command.


def add_to(commands: Any) -> None:
    """Add the command to a parser's subcommands."""
    migrate = commands.add_parser("migrate", help="create or upgrade the tables in the database")
    how = migrate.add_mutually_exclusive_group()
    how.add_argument("--check", action="store_true", help="change nothing; exit 1 unless the schema is current")
    how.add_argument("--sql", action="store_true", help="print the SQL for an empty database, run nothing")
    how.add_argument(
        "--to", metavar="REV", default="head", help="the revision to end at, or base (default: the newest)"
    )
    migrate.add_argument(
        "--users-table",
        metavar="SCHEMA.TABLE",
        type=_table,
        help="make the users of this table, which is your application's, the only ones; they go with its rows",
    )
    rows = migrate.add_mutually_exclusive_group()
    rows.add_argument(
        "--with-rls",
        action="store_true",
        help="have Postgres itself hold each statement to one user's rows; the server then logs in as a member of the "
        "role chatledger_app",
    )
    rows.add_argument("--without-rls", action="store_true", help="take that away again")
    migrate.add_argument(
        "--distribute",
        action="store_true",
        help="lay the tables out by user over the Citus cluster whose coordinator the database is on",
    )
    migrate.set_defaults(run=_migrate)


def _table(text: str) -> str:
    from chatledger.storage.adoption import parse_name

    try:
        parse_name(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None
    return text


def _migrate(args: argparse.Namespace, settings: Settings) -> int:
    from chatledger.storage import schema

    if args.users_table and (args.sql or args.to not in ("head", schema.REVISION)):
        _say("chatledger: --users-table looks at a database with the newest tables: it goes without --sql and --to")
        return 2
    if (args.with_rls or args.without_rls) and (args.check or args.to not in ("head", schema.REVISION)):
        _say("chatledger: --with-rls and --without-rls change a database with the newest tables: no --check, no --to")
        return 2
    if args.distribute and (problem := _why_not_distributed(args, settings)):
        _say(f"chatledger: {problem}")
        return 2
    if args.sql:
        print(schema.migration_sql(with_row_security=args.with_rls))
        return 0
    if args.check:
        return _check(args, settings)
    if args.with_rls and settings.database_url is None:
        _say("chatledger: row security needs a role that cannot pass it; the embedded Postgres has its superuser only")
        return 2
    source = settings.database_source
    direct = settings.direct_database_url
    _say(f"database   {settings.database_place}")
    url = asyncio.run(source.url()) if direct is None else direct.get_secret_value()
    users = None
    try:
        if args.users_table:
            before, after, users = _adopt(url, args.users_table)
        else:
            before, after = schema.migrate(url, args.to)
        rows = _fence(url, up=args.with_rls) if args.with_rls or args.without_rls else None
        tables = _distribute(url) if args.distribute else None
    except ValueError as exc:
        _say(f"chatledger: {exc}")
        return 2
    if before == after:
        _say(f"schema     {after or 'none'}, nothing to do")
    else:
        _say(f"schema     {before or 'none'} -> {after or 'none'}")
    if users is not None:
        _say(f"users      {users}")
    if rows is not None:
        _say(f"rows       {rows}")
    if tables is not None:
        _say(f"tables     {tables}")
    return 0


def _why_not_distributed(args: argparse.Namespace, settings: Settings) -> str | None:
    """What `--distribute` does not go with."""
    from chatledger.storage import schema

    if args.check or args.sql or args.to not in ("head", schema.REVISION):
        return "--distribute lays out a database with the newest tables: it goes without --check, --sql and --to"
    if args.users_table or args.with_rls:
        return "--distribute goes neither with --users-table nor with --with-rls: a cluster has neither"
    if settings.database_url is None:
        return "--distribute needs a Citus cluster; the embedded Postgres is one machine"
    return None


def _distribute(url: str) -> str:
    """Lay the tables out; what is to be said of them."""
    from chatledger.storage import distribution, schema

    done: list[list[str]] = []
    schema.migrate(url, then=lambda connection: done.append(distribution.lay_out(connection)))
    if not done[0]:
        return "distributed by user, nothing to do"
    return f"distributed by user: {', '.join(done[0])}"


def _fence(url: str, *, up: bool) -> str:
    """Put row security up or take it down; what is to be said of it."""
    from chatledger.storage import row_security, schema

    schema.migrate(url, then=row_security.put_up if up else row_security.take_down)
    if not up:
        return f"no row security; the roles {row_security.APP} and {row_security.OWNER} stay, with no right here"
    return f"under row security; let the server log in as a role of its own that is in {row_security.APP}"


def _adopt(url: str, name: str) -> tuple[str | None, str | None, str]:
    """The revisions before and after, and what is to be said of the users."""
    from chatledger.storage.adoption import adopt

    done = adopt(url, name)
    found = done.users_table
    told = f"those of {found.name}, by {found.key} ({found.key_type})"
    return done.before, done.after, told if done.changed else f"{told}, nothing to do"


def _check(args: argparse.Namespace, settings: Settings) -> int:
    from chatledger.storage import schema
    from chatledger.storage.adoption import parse_name
    from chatledger.storage.diagnosis import diagnose

    found = asyncio.run(diagnose(settings.database_source, settings.database_place))
    if found.server_version is None:
        _say(f"chatledger: {found.problems[0].what}")
        return 1
    _say(f"schema     {found.revision or 'none'}; this version needs {schema.REVISION}")
    users = found.users_table
    if users is not None:
        _say(f"users      {users.problem or f'those of {users.name}, by {users.key} ({users.key_type})'}")
    elif args.users_table:
        _say("users      chatledger's own; no users table is adopted")
    if found.revision != schema.REVISION or (users is not None and users.problem):
        return 1
    if args.users_table:
        return 0 if users is not None and (users.schema, users.table) == parse_name(args.users_table) else 1
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr)
