"""What `chatledger doctor` prints: the database, the schema, the user, what is wrong and what mends it."""

from __future__ import annotations

import json
from typing import Any

from chatledger.server.settings import USER_CONFIG_FILE, Settings
from chatledger.storage.diagnosis import Diagnosis
from chatledger.storage.schema import REVISION


def report(diagnosis: Diagnosis, settings: Settings, *, as_json: bool) -> str:
    """The whole report; it holds no secret."""
    return json.dumps(_facts(diagnosis, settings), indent=2) if as_json else _words(diagnosis, settings)


def _facts(diagnosis: Diagnosis, settings: Settings) -> dict[str, Any]:
    return {
        "ok": not diagnosis.problems,
        "database": diagnosis.where,
        "server_version": diagnosis.server_version,
        "schema_revision": diagnosis.revision,
        "schema_revision_needed": REVISION,
        "user_id": settings.user_id,
        "toolset": settings.toolset,
        "config_file": str(USER_CONFIG_FILE),
        "problems": [problem._asdict() for problem in diagnosis.problems],
        "remarks": diagnosis.remarks,
    }


def _words(diagnosis: Diagnosis, settings: Settings) -> str:
    lines = [
        f"database   {diagnosis.where}",
        f"server     {'Postgres ' + diagnosis.server_version if diagnosis.server_version else 'not reached'}",
        f"schema     {_schema(diagnosis)}",
        f"user       {settings.user_id}  (over stdio; CHATLEDGER_USER_ID)",
        f"tools      {settings.toolset}",
        f"settings   environment, .env here, {USER_CONFIG_FILE}",
    ]
    lines += [f"note       {remark}" for remark in diagnosis.remarks]
    for problem in diagnosis.problems:
        lines += ["", f"problem    {problem.what}", f"mend       {problem.mend}"]
    lines += ["", "all is well" if not diagnosis.problems else f"{len(diagnosis.problems)} to mend"]
    return "\n".join(lines)


def _schema(diagnosis: Diagnosis) -> str:
    if diagnosis.server_version is None:
        return "unknown"
    if diagnosis.revision is None:
        return f"none yet, {REVISION} is needed" if diagnosis.problems else f"none yet; the first use makes {REVISION}"
    return diagnosis.revision if diagnosis.revision == REVISION else f"{diagnosis.revision}, but {REVISION} is needed"
