"""The embedded Postgres: one server for all processes of one user, started by the first and stopped after the last.

`postgres` is what the rest of the program uses, `supervisor` the process that keeps the server, `cluster` the files of
the database, `run_as` what changes where we are root.
"""

from chatledger.storage.embedded.postgres import EmbeddedPostgres, temporary
from chatledger.storage.embedded.supervisor import EmbeddedError

__all__ = ["EmbeddedError", "EmbeddedPostgres", "temporary"]
