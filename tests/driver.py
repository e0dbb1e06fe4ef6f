"""Who logs in, and plain driver connections, for what tests do and look at behind the store's back."""

from __future__ import annotations

from typing import Any

import asyncpg
from sqlalchemy import make_url

from chatledger.storage.database_url import read_database_url
from tests.patience import PATIENCE


def logged_in(url: str, role: str) -> str:
    """The URL for a role that has its name for a password."""
    return make_url(url).set(username=role, password=role).render_as_string(hide_password=False)


async def connect(url: str, **settings: str) -> Any:
    """A connection without the store's settings: what it waits for may take as long as a busy machine needs."""
    target = read_database_url(url)
    place = target.url.translate_connect_args(username="user") | dict(target.url.query)
    arguments = target.connect_args | {"server_settings": settings, "command_timeout": PATIENCE, "timeout": PATIENCE}
    return await asyncpg.connect(**place, **arguments)
