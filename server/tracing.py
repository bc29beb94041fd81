"""Spans for OpenTelemetry: one for each request, one for each WebSocket. Nothing of it runs, or is imported, where no
`OTEL_` variable asks for it; what it needs is the extra `otel`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import __version__, logs

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

log = logging.getLogger(__name__)

ASKS = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_TRACES_EXPORTER",
)


def wanted(environment: Mapping[str, str] = os.environ) -> bool:
    """Somebody asks for spans."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    return environment.get("OTEL_TRACES_EXPORTER") != "none" and any(
        environment.get(name) for name in ASKS
    )


def provider() -> TracerProvider | None:
    """What makes spans and sends them by OTLP over HTTP; None, with a warning, where the extra is not installed."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("OTEL_… is set and no spans are sent: pip install 'open-speech-server[otel]'")
        return None
    os.environ.setdefault("OTEL_SERVICE_NAME", "open-speech")
    made = TracerProvider(resource=Resource.create({"service.version": __version__}))
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    log.info("spans are sent by OpenTelemetry")
    return made


class Traced:
    """Pure ASGI: a span around each request and WebSocket, part of the client's trace if its headers name one."""

    def __init__(
        self,
        app: ASGIApp,
        provider: TracerProvider,
        route: Callable[[Scope], str],
        quiet: tuple[str, ...],
    ) -> None:
        """`route` says which route of the table a scope took; paths in `quiet` have no spans."""
        self._app = app
        self._tracer = provider.get_tracer("open-speech", __version__)
        self._route = route
        self._quiet = quiet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"] in self._quiet:
            await self._app(scope, receive, send)
            return
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind, format_trace_id

        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        method = scope.get("method", "WEBSOCKET")
        with self._tracer.start_as_current_span(
            method,
            extract(headers),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method},
        ) as span:
            token = logs.trace_id.set(format_trace_id(span.get_span_context().trace_id))

            async def told(message: Message) -> None:
                span.set_attributes(_attributes(message))
                await send(message)

            try:
                await self._app(scope, receive, told)
            finally:
                logs.trace_id.reset(token)
                route = self._route(scope)
                span.update_name(f"{method} {route}")
                span.set_attribute("http.route", route)


def _attributes(message: Message) -> dict[str, Any]:
    """What an answer says about itself."""
    match message["type"]:
        case "http.response.start":
            found: dict[str, Any] = {"http.response.status_code": message["status"]}
        case "websocket.accept":
            found = {"http.response.status_code": 101}
        case "websocket.close":
            return {"open_speech.close_code": message.get("code", 1000)}
        case _:
            return {}
    for name, value in message.get("headers", []):
        if name == b"x-request-id":
            found["open_speech.request"] = value.decode("latin-1")
    return found
