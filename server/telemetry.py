"""Spans for OpenTelemetry: one for each message, inside it one for each statement.

Of what a client sends only the ids of its request and its trace are in one, where they have the form of such ids.
They are exported where the extra `telemetry` is installed and one of OpenTelemetry's own variables says where to, or
where whoever starts the process has set up a provider. Otherwise nothing of this file is in the way of a call.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from mcp import MCPError
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.types import CallToolResult
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from chatledger.server.app import LedgerServer
from chatledger.server.auth.scopes import TOOL_SCOPES
from chatledger.server.observing import REQUEST_ID
from chatledger.server.prompts import PROMPTS
from chatledger.storage.errors import StorageError
from chatledger.storage.query import Query
from chatledger.storage.store import ConversationStore

if TYPE_CHECKING:  # only with the extra
    from opentelemetry.sdk.trace import TracerProvider as SdkProvider

STOP_SECONDS: Final = 3.0  # chosen: for the last spans, when the server has stopped and its caller waits

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_EXPORTERS: Final = "OTEL_TRACES_EXPORTER"
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_METHODS: Final = frozenset(
    {
        "initialize",
        "ping",
        "server/discover",
        "tools/list",
        "tools/call",
        "resources/list",
        "resources/templates/list",
        "resources/read",
        "prompts/list",
        "prompts/get",
        "completion/complete",
        "notifications/initialized",
        "notifications/cancelled",
    }
)
_TARGETS: Final[Mapping[str, tuple[str, frozenset[str]]]] = {
    "tools/call": ("gen_ai.tool.name", frozenset(TOOL_SCOPES)),
    "prompts/get": ("gen_ai.prompt.name", frozenset(PROMPTS)),
}
_OPERATIONS: Final = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE", "WITH"})
_PARENTS: Final = TraceContextTextMapPropagator()


class Unusable(Exception):
    """Spans are asked for and cannot be had. The sentence says why."""


def is_asked_for(environment: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's variables say where spans go."""
    if environment.get(_EXPORTERS, "").strip() == "none" or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    return any(environment.get(name, "").strip() for name in (*_ENDPOINTS, _EXPORTERS))


def start(
    server: LedgerServer, store: ConversationStore, environment: Mapping[str, str]
) -> Callable[[], Awaitable[None]] | None:
    """Have the server and its store leave spans, if they are asked for. What it returns sends the last of them.

    Raises:
        Unusable: they are asked for and cannot be had.
    """
    provider = trace.get_tracer_provider()
    if not isinstance(provider, trace.ProxyTracerProvider):  # set up by whoever starts the process, who ends it, too
        watch(server, store, provider)
        return None
    if not is_asked_for(environment):
        return None
    made = _provider(environment)
    watch(server, store, made)

    async def stop() -> None:
        # It sends what is left, to a collector that may be gone, and cannot be told for how long to try.
        ending = threading.Thread(target=made.shutdown, daemon=True)
        ending.start()
        await asyncio.to_thread(ending.join, STOP_SECONDS)

    return stop


def _provider(environment: Mapping[str, str]) -> SdkProvider:
    """A provider that exports by OTLP over HTTP. Endpoint, headers, sampling and batches are set by the variables."""
    exporters = environment.get(_EXPORTERS, "").strip() or "otlp"
    protocol = next((value for name in _PROTOCOLS if (value := environment.get(name, "").strip())), "http/protobuf")
    if (exporters, protocol) != ("otlp", "http/protobuf"):
        raise Unusable("spans are exported by otlp over http/protobuf only, and OTEL_... asks for something else")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider as SdkProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError:
        raise Unusable("OTEL_... asks for spans, for which the extra `telemetry` is not installed") from None
    resource = Resource.create()
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "chatledger"}))
    resource = Resource({"service.version": version("chatledger")}).merge(resource)
    try:
        provider = SdkProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    except Exception as exc:  # noqa: BLE001  # a variable that it cannot read; its text may quote one that holds a key
        raise Unusable(f"spans cannot be exported as OTEL_... asks ({type(exc).__name__})") from None
    return provider


def watch(server: LedgerServer, store: ConversationStore, provider: TracerProvider) -> None:
    """Leave spans with this provider."""
    tracer = provider.get_tracer("chatledger", version("chatledger"))
    server.middleware.insert(0, _MessageSpans(tracer))
    for name in ("read", "write"):  # from outside, so that nothing of it is there unless it is asked for
        setattr(store.database, name, _traced(getattr(store.database, name), name, tracer))


class _MessageSpans:
    """A span round each message: what was asked for, by names that are ours, and how it ended."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        method = ctx.method if ctx.method in _METHODS else "unknown"
        name, attributes = method, {"rpc.system": "jsonrpc", "mcp.method.name": method}
        if method in _TARGETS:
            attribute, known = _TARGETS[method]
            sent = (ctx.params or {}).get("name")
            target = sent if isinstance(sent, str) and sent in known else "unknown"
            name, attributes = f"{method} {target}", attributes | {attribute: target}
        if (request := REQUEST_ID.get()) is not None:
            attributes["chatledger.request_id"] = request
        with self._tracer.start_as_current_span(
            name,
            context=_parent(ctx.meta),
            kind=SpanKind.SERVER,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                result = await call_next(ctx)
            except MCPError as exc:
                data = exc.error.data
                _failed(span, str(data["code"] if isinstance(data, dict) and "code" in data else exc.error.code))
                raise
            except BaseException as exc:
                _failed(span, type(exc).__name__)
                raise
            if (code := _code(result)) is not None:
                _failed(span, code)
            return result


def _parent(meta: Mapping[str, Any] | None) -> Context | None:
    """The client's span, if it names one. What it adds to that as a state of its own is text of its own."""
    sent = (meta or {}).get("traceparent")
    if not isinstance(sent, str):
        return None
    found = _PARENTS.extract({"traceparent": sent})
    return found if trace.get_current_span(found).get_span_context().is_valid else None


def _code(result: HandlerResult) -> str | None:
    """The code of a tool's refusal; None for what went well. Before it is written out, and after."""
    told: Any
    if isinstance(result, CallToolResult):
        refused, told = result.is_error, result.structured_content
    elif isinstance(result, dict):
        refused, told = bool(result.get("isError")), result.get("structuredContent")
    else:
        return None
    if not refused:
        return None
    return str(told["error"]["code"]) if isinstance(told, dict) and "error" in told else "error"


def _traced(run: Callable[..., Awaitable[list[Any]]], name: str, tracer: Tracer) -> Callable[..., Awaitable[list[Any]]]:
    """`Database.read` or `write` with a span round it. Its waits for a connection and its repeats are inside."""

    async def traced(query: Query, **options: Any) -> list[Any]:
        first = query.sql.split(None, 1)[0].upper()
        with tracer.start_as_current_span(
            f"database {name}",
            kind=SpanKind.CLIENT,
            attributes={
                "db.system.name": "postgresql",
                "db.operation.name": first if first in _OPERATIONS else "unknown",
            },
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                rows = await run(query, **options)
            except BaseException as exc:
                _failed(span, exc.code if isinstance(exc, StorageError) else type(exc).__name__)
                raise
            span.set_attribute("db.response.returned_rows", len(rows))
            return rows

    return traced


def _failed(span: Span, code: str) -> None:
    span.set_attribute("error.type", code)
    span.set_status(StatusCode.ERROR)
