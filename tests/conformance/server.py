"""`chatledger serve --transport http --port 0` with the conformance suite's fixtures, on a database of its own.

    python -m tests.conformance.server

Everything but the fixtures is the program itself: settings, store, server, guard, transport.
"""

from __future__ import annotations

import os
from typing import Any
from unittest.mock import patch

from chatledger.server import app, cli
from chatledger.server.app import LedgerServer, make_server
from chatledger.server.identity import Caller
from chatledger.storage import ConversationStore, schema
from chatledger.storage.embedded import temporary
from tests.conformance.fixtures import add_fixtures


def with_fixtures(store: ConversationStore, caller: Caller, **options: Any) -> LedgerServer:
    """The server as it is, and what the suite wants to find on it."""
    server = make_server(store, caller, **options)
    add_fixtures(server, store, caller)
    return server


def main() -> None:
    """Serve until SIGTERM. The environment has no say: nobody's own database gets the suite's calls."""
    for name in [*os.environ]:
        if name.startswith("CHATLEDGER_"):
            del os.environ[name]
    with temporary(fsync="off") as url, patch.object(app, "make_server", with_fixtures):
        schema.migrate(url)
        os.environ["CHATLEDGER_DATABASE_URL"] = url
        cli.main(["serve", "--transport", "http", "--port", "0"])


if __name__ == "__main__":
    main()
