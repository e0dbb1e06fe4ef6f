"""What `chatledger doctor` prints: the database, the schema, the user, what is wrong and what mends it."""

from __future__ import annotations

import json
from typing import Any

from chatledger.server.auth.diagnosis import AuthDiagnosis
from chatledger.server.auth.diagnosis import diagnose as diagnose_auth
from chatledger.server.settings import USER_CONFIG_FILE, Settings
from chatledger.storage.diagnosis import Diagnosis
from chatledger.storage.errors import StorageError
from chatledger.storage.schema import REVISION
from chatledger.storage.store import ConversationStore
from chatledger.storage.tokens import ApiToken, TokenStore


async def examine(diagnosis: Diagnosis, settings: Settings) -> tuple[Diagnosis, AuthDiagnosis]:
    """What was found of the database, with what there is to mend and to note about authentication beside it."""
    rules = settings.auth
    tokens: list[ApiToken] | None = None
    if rules is not None and rules.static_tokens and diagnosis.revision == REVISION:
        try:
            async with ConversationStore(settings.database_source) as store:
                tokens = await TokenStore(store).list()
        except StorageError:
            tokens = None  # what keeps them from being read is told of the database
    auth = await diagnose_auth(rules, tokens, public_url=settings.public_url)
    together = diagnosis._replace(
        problems=[*diagnosis.problems, *auth.problems], remarks=[*diagnosis.remarks, *auth.remarks]
    )
    return together, auth


def report(diagnosis: Diagnosis, auth: AuthDiagnosis, settings: Settings, *, as_json: bool) -> str:
    """The whole report; it holds no secret."""
    return json.dumps(_facts(diagnosis, auth, settings), indent=2) if as_json else _words(diagnosis, auth, settings)


def _facts(diagnosis: Diagnosis, auth: AuthDiagnosis, settings: Settings) -> dict[str, Any]:
    return {
        "ok": not diagnosis.problems,
        "database": diagnosis.where,
        "server_version": diagnosis.server_version,
        "schema_revision": diagnosis.revision,
        "schema_revision_needed": REVISION,
        "users_table": _users_table(diagnosis),
        "row_security": diagnosis.row_security,
        "distributed": diagnosis.distributed,
        "user_id": settings.user_id,
        "authentication": auth.facts,
        "toolset": settings.toolset,
        "config_file": str(USER_CONFIG_FILE),
        "problems": [problem._asdict() for problem in diagnosis.problems],
        "remarks": diagnosis.remarks,
    }


def _words(diagnosis: Diagnosis, auth: AuthDiagnosis, settings: Settings) -> str:
    ways = auth.ways or [f"none: only loopback is served, and everybody there is {settings.user_id}"]
    lines = [
        f"database   {diagnosis.where}",
        f"server     {'Postgres ' + diagnosis.server_version if diagnosis.server_version else 'not reached'}",
        f"schema     {_schema(diagnosis)}",
        f"user       {settings.user_id}  (over stdio; CHATLEDGER_USER_ID)",
        *(f"http       {way}" for way in ways),
        f"tools      {settings.toolset}",
        f"settings   environment, .env here, {USER_CONFIG_FILE}",
    ]
    if diagnosis.users_table is not None:
        lines.insert(3, f"users      those of {_users_table(diagnosis) or 'a table that is gone'}")
    lines += [f"note       {remark}" for remark in diagnosis.remarks]
    for problem in diagnosis.problems:
        lines += ["", f"problem    {problem.what}", f"mend       {problem.mend}"]
    lines += ["", "all is well" if not diagnosis.problems else f"{len(diagnosis.problems)} to mend"]
    return "\n".join(lines)


def _users_table(diagnosis: Diagnosis) -> str | None:
    return None if diagnosis.users_table is None else diagnosis.users_table.name


def _schema(diagnosis: Diagnosis) -> str:
    if diagnosis.server_version is None:
        return "unknown"
    if diagnosis.revision is None:
        return f"none yet, {REVISION} is needed" if diagnosis.problems else f"none yet; the first use makes {REVISION}"
    return diagnosis.revision if diagnosis.revision == REVISION else f"{diagnosis.revision}, but {REVISION} is needed"
