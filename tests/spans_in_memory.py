"""Spans kept in memory, for tests that look into them."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from chatledger.server import telemetry
from chatledger.server.app import LedgerServer
from chatledger.storage import ConversationStore


class Spans:
    """What a provider was left, in memory."""

    def __init__(self) -> None:
        self._kept = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._kept))

    def taken(self) -> list[ReadableSpan]:
        """Those that have ended since the last time."""
        found = list(self._kept.get_finished_spans())
        self._kept.clear()
        return found

    def messages(self) -> list[ReadableSpan]:
        return [span for span in self.taken() if span.kind is SpanKind.SERVER]

    def observing(self, server: LedgerServer, store: ConversationStore) -> list[Any]:
        telemetry.watch(server, store, self.provider)
        return []
