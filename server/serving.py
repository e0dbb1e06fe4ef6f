"""`chatledger serve`: the parts put together for a transport, from the settings."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from chatledger.server.auth.rules import is_loopback
from chatledger.server.settings import Settings, SettingsError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.routing import Route

    from chatledger.server.app import LedgerServer
    from chatledger.storage.store import ConversationStore

# Imports of the protocol stand inside the functions: the database starts while they run.


async def over_stdio(settings: Settings, toolset: str) -> None:
    """Serve the process's own parent, on stdin and stdout, until stdin ends."""
    from chatledger.storage.store import ConversationStore

    async with ConversationStore(settings.database_source, settings.limits) as store:
        store.wake()
        await asyncio.sleep(0)  # lets it begin; the imports that follow keep this process busy for as long as it takes
        from chatledger.server.app import make_server
        from chatledger.server.identity import local_user
        from chatledger.server.stdio import serve_stdio

        server = make_server(store, local_user(settings.user_id), toolset=toolset, rate=settings.rate)
        send_last_spans = _spans(server, store)
        store.start()
        try:
            await serve_stdio(server)
            if send_last_spans is not None:
                await send_last_spans()
        finally:
            # Something may have printed meanwhile; what is still in Python's buffer is not for the client either.
            with contextlib.suppress(OSError):
                os.dup2(2, 1)


async def over_http(settings: Settings, toolset: str, *, host: str, port: int, sse_first: bool) -> None:
    """Serve anyone whose token is verified; without authentication, one user on a loopback address.

    Raises:
        SettingsError: the address may not be served like that, or cannot be bound.
    """
    rules = settings.auth
    if rules is None and not is_loopback(host):
        raise SettingsError(
            f"without authentication only loopback addresses are served, not {host}: configure CHATLEDGER_AUTH_..., "
            "or use --host 127.0.0.1"
        )
    if rules is None and (elsewhere := [name for name in _names(settings) if not is_loopback(name)]):
        raise SettingsError(
            f"without authentication everybody who comes through {elsewhere[0]} would be the same user: configure "
            "CHATLEDGER_AUTH_..., or unset CHATLEDGER_PUBLIC_URL and CHATLEDGER_ALLOWED_HOSTS"
        )
    listener = _bound(host, port)
    from chatledger.storage.store import ConversationStore

    async with contextlib.AsyncExitStack() as stack:
        stack.callback(listener.close)
        store = await stack.enter_async_context(ConversationStore(settings.database_source, settings.limits))
        store.wake()
        await asyncio.sleep(0)
        from chatledger.server.app import make_server
        from chatledger.server.auth.resource_server import ResourceServer
        from chatledger.server.http import make_app, serve_http
        from chatledger.server.http_guard import LOOPBACK
        from chatledger.server.identity import loopback_user, verified_user
        from chatledger.server.observing import CallLog

        caller = loopback_user(settings.user_id) if rules is None else verified_user()
        server = make_server(store, caller, toolset=toolset, rate=settings.rate)
        public = settings.public_url
        if public is None:
            if not is_loopback(host):
                raise SettingsError("CHATLEDGER_PUBLIC_URL must say at which URL clients reach this server")
            public = f"http://{host if ':' not in host else f'[{host}]'}:{listener.getsockname()[1]}"
        address = urlsplit(public)
        hosts, origins = {*LOOPBACK, address.netloc}, {f"http://{name}" for name in LOOPBACK}
        metrics = _metrics(server, store)
        if (send_last_spans := _spans(server, store)) is not None:
            stack.push_async_callback(send_last_spans)
        auth = None if rules is None else ResourceServer(rules, store, public_url=public)
        if auth is not None:
            stack.push_async_callback(auth.aclose)  # before the store is closed, which it notes in
        app = make_app(
            server,
            open_routes=[] if metrics is None else [metrics],
            ready=store.ping,
            hosts=hosts | set(settings.allowed_hosts),
            origins=origins | {f"{address.scheme}://{address.netloc}"} | set(settings.allowed_origins),
            auth=auth,
        )
        server.observers.add(CallLog(store.database.known_secret, _log))
        store.start()
        await serve_http(app, listener, sse_first=sse_first)


def _metrics(server: LedgerServer, store: ConversationStore) -> Route | None:
    try:
        from chatledger.server.metrics import Metrics
    except ModuleNotFoundError:  # the extra is not installed
        return None
    metrics = Metrics(store)
    server.observers.add(metrics)
    return metrics.route()


def _spans(server: LedgerServer, store: ConversationStore) -> Callable[[], Awaitable[None]] | None:
    """Have them left where they are asked for; a call is not refused because it could not be."""
    from chatledger.server import telemetry

    try:
        return telemetry.start(server, store, os.environ)
    except telemetry.Unusable as exc:
        _log(f"chatledger: {exc}; it goes on without spans")
        return None


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _names(settings: Settings) -> list[str]:
    """The names by which the settings say that clients reach this server, without ports."""
    hosts = [host.rpartition(":")[0] if re.search(r":\d+$", host) else host for host in settings.allowed_hosts]
    public = None if settings.public_url is None else urlsplit(settings.public_url).hostname
    return [host.strip("[]") for host in (*hosts, *([] if public is None else [public]))]


def _bound(host: str, port: int) -> socket.socket:
    """uvicorn itself would end the process where it cannot bind."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as exc:
        listener.close()
        reason = getattr(exc, "strerror", None) or "no such address"
        raise SettingsError(f"{host}:{port} cannot be served: {reason}") from None
    return listener
