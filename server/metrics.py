"""Figures for Prometheus at `/metrics`, where the extra `metrics` is installed. No label holds a user or a text."""

from __future__ import annotations

from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from chatledger.server.observing import Call
from chatledger.storage.store import ConversationStore

PATH: Final = "/metrics"
# Seconds: a call takes a millisecond on a near database, and is ended after 28 s.
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_MESSAGES: Final = (1, 2, 5, 10, 25, 50, 100)  # up to the most that one append may bring


class Metrics:
    """Counts calls. One for each process, as its endpoint is."""

    def __init__(self, store: ConversationStore) -> None:
        registry = self._registry = CollectorRegistry()
        of = ["method", "tool"]
        self._calls = Counter("chatledger_calls", "Calls that ended, by code", [*of, "code"], registry=registry)
        self._seconds = Histogram(
            "chatledger_call_seconds", "How long they took", of, buckets=_SECONDS, registry=registry
        )
        self._messages = Histogram(
            "chatledger_append_messages", "Messages of one append", buckets=_MESSAGES, registry=registry
        )
        used = Gauge("chatledger_database_connections_used", "Connections that calls hold", registry=registry)
        used.set_function(lambda: store.database.connections()[0])
        idle = Gauge("chatledger_database_connections_idle", "Connections that wait for calls", registry=registry)
        idle.set_function(lambda: store.database.connections()[1])

    async def __call__(self, call: Call) -> None:
        tool = call.tool or ""
        self._calls.labels(call.method, tool, call.code).inc()
        self._seconds.labels(call.method, tool).observe(call.seconds)
        if call.messages:
            self._messages.observe(call.messages)

    def route(self) -> Route:
        """Where they are read."""

        async def metrics(_: Request) -> Response:
            body: Any = generate_latest(self._registry)
            return Response(body, media_type=CONTENT_TYPE_LATEST)

        return Route(PATH, metrics)
