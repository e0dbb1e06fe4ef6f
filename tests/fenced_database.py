"""Row security put up in a database, and the way into it as the server has it.

The server logs in as a member of `chatledger_app`, which owns nothing. Roles are of all databases of a Postgres, so the
one that the tests log in as is made once and left.
"""

from __future__ import annotations

from chatledger.storage import row_security, schema
from tests.conftest import run_sql
from tests.driver import logged_in

LOGIN = "chatledger_test_server"  # a role with its name for a password, in chatledger_app


def log_in_role(url: str) -> None:
    run_sql(
        url,
        f"""DO $$ BEGIN
          IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{LOGIN}') THEN
            CREATE ROLE {LOGIN} LOGIN PASSWORD '{LOGIN}' IN ROLE {row_security.APP};
          END IF;
        END $$""",
    )


def as_app(url: str) -> str:
    return logged_in(url, LOGIN)


def put_up(url: str) -> None:
    schema.migrate(url, then=row_security.put_up)
    log_in_role(url)
