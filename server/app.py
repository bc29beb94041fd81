"""The route table, and what surrounds every request: an id, limits, a key, a log line."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from server import (
    asr,
    borders,
    catalogue,
    errors,
    health,
    logs,
    management,
    metrics,
    openapi,
    pages,
    realtime,
    sessions,
    sockets,
    tracing,
    transcription_socket,
    transcriptions,
)
from server.context import Context, context
from server.gate import Gate, gate
from server.routes import Endpoint
from streaming.errors import OpenSpeechError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

log = logging.getLogger("server.access")

ENDPOINTS: tuple[Endpoint, ...] = (
    *transcriptions.ENDPOINTS,
    *catalogue.ENDPOINTS,
    *management.ENDPOINTS,
    *asr.ENDPOINTS,
    *health.ENDPOINTS,
    *metrics.ENDPOINTS,
    *realtime.ENDPOINTS,
    *pages.ENDPOINTS,
)
QUIET = ("/health", "/livez", "/readyz", "/metrics")
"""Not in the access log: probes and scrapes come every few seconds."""
FILES = ("/docs/", "/client/", "/assets/")
"""Paths of static files, which say nothing about who asks."""
PACE = 1024
"""Bytes a second that a body has to come at on average, beside the patience for a pause: 408 below."""
_POLICY = (
    "default-src 'self'; connect-src 'self'; img-src 'self' data:; media-src 'self' blob:; form-action 'none';"
    " frame-ancestors 'none'; base-uri 'none'; object-src 'none'"
)
"""Nothing inline, nothing from elsewhere; recordings are played from the browser's own memory."""

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


def create_app(
    here: Context, lifespan: Lifespan | None = None, spans: TracerProvider | None = None
) -> Starlette:
    """The whole face. `here.engine` is closed by whoever made it, or by `lifespan`; so are `spans`, which OpenTelemetry
    gets where somebody asks for them."""
    guard = Gate(here.settings)
    by_path: dict[str, dict[str, Endpoint]] = {}
    for endpoint in ENDPOINTS:
        by_path.setdefault(endpoint.path, {})[endpoint.method] = endpoint
    # One route a path, so that a 405 lists all its methods.
    routes: list[Any] = [
        Route(path, _Guarded(endpoints), methods=list(endpoints))
        for path, endpoints in by_path.items()
    ]
    middleware = [
        Middleware(
            _Surroundings,
            limit=here.settings.max_upload_mb * 2**20,
            patience=here.settings.body_timeout,
            figures=here.metrics,
        ),
        Middleware(
            borders.Guarded,
            borders=borders.Borders(
                here.settings.allowed_hosts,
                here.settings.allow_origins,
                bound=here.settings.host,
            ),
            keyed=lambda: guard.keys.required,
        ),
    ]
    if spans is not None:
        traced = Middleware(tracing.Traced, provider=spans, route=_template, quiet=QUIET)
        middleware.insert(0, traced)
    if here.settings.trusted_proxies:
        # Outermost, so that all others see the client's address and scheme.
        middleware.insert(
            0, Middleware(ProxyHeadersMiddleware, trusted_hosts=list(here.settings.trusted_proxies))
        )
    if here.settings.allow_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(here.settings.allow_origins),
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["*"],
                expose_headers=["x-request-id", "retry-after", "ratelimit", "ratelimit-policy"],
            ),
        )
    held = sessions.Sessions(here)

    @asynccontextmanager
    async def living(app: Starlette) -> AsyncGenerator[None, None]:
        async with (lifespan or _nothing)(app):
            try:
                yield
            finally:
                await held.aclose()
                await guard.limits.aclose()

    app = Starlette(
        routes=[
            *routes,
            *sockets.ROUTES,
            *realtime.ROUTES,
            *transcription_socket.ROUTES,
            *pages.static(),
        ],
        middleware=middleware,
        exception_handlers={
            OpenSpeechError: errors.on_fault,
            HTTPException: errors.on_http,
            Exception: errors.on_crash,
        },
        lifespan=living,
    )
    app.router.redirect_slashes = False
    app.router.default = _nowhere
    app.state.context = here
    app.state.gate = guard
    app.state.sessions = held
    app.state.secrets = realtime.Secrets()
    app.state.openapi = openapi.document(ENDPOINTS, transcriptions.SCHEMAS)
    return app


async def _nowhere(scope: Scope, receive: Receive, send: Send) -> None:
    """Where no route leads; told to a WebSocket's handshake too."""
    if scope["type"] == "http":
        raise HTTPException(404)
    socket = WebSocket(scope, receive, send)
    await socket.receive()
    sockets_here = ", ".join(
        each.path for each in socket.app.routes if isinstance(each, WebSocketRoute)
    )
    await socket.send_denial_response(
        errors.problem(
            404,
            f"there is no WebSocket at {scope['path'][:200]}; there is one at {sockets_here}",
            code="unknown_url",
        )
    )


@asynccontextmanager
async def _nothing(app: Starlette) -> AsyncGenerator[None, None]:
    del app
    yield


class _Guarded:
    """The endpoints of a path behind a key, each request counted as work until the last byte of its answer."""

    def __init__(self, endpoints: Mapping[str, Endpoint]) -> None:
        self.path = next(iter(endpoints.values())).path
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        here = context(request)
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        endpoint = self._endpoints[method]
        refused = None if endpoint.public else await self._refusal(request, endpoint, here)
        if refused is not None:
            await refused(scope, receive, send)
            return
        here.working += 1
        try:
            response = await self._answer(endpoint, request)
            await response(scope, receive, send)
        finally:
            here.working -= 1

    async def _refusal(
        self, request: Request, endpoint: Endpoint, here: Context
    ) -> Response | None:
        try:
            await gate(request).admit(request, endpoint.scope)
        except OpenSpeechError as fault:
            return errors.respond(fault)
        if here.draining and not endpoint.always:
            return errors.problem(
                503,
                "the server is stopping; try again in a moment",
                code="stopping",
                headers={"retry-after": "5"},
            )
        return None

    async def _answer(self, endpoint: Endpoint, request: Request) -> Response:
        try:
            return await endpoint.handle(request)
        except (transcriptions.Gone, ClientDisconnect):
            return Response(status_code=499)
        except (OpenSpeechError, HTTPException):
            raise
        except Exception as error:
            logging.getLogger("server").exception("%s %s failed", request.method, endpoint.path)
            return await errors.on_crash(request, error)


def _misread(scope: Scope) -> Response | None:
    """The answer to what a proxy before us may take for another request than we do (RFC 9112, 6.1)."""
    headers = {"connection": "close"}
    if {b"content-length", b"transfer-encoding"} <= {*dict(scope["headers"])}:
        told = "the request has both Content-Length and Transfer-Encoding; send one of them"
        return errors.problem(400, told, code="bad_request", headers=headers)
    if scope["http_version"] not in ("1.0", "1.1"):
        told = "this server speaks HTTP/1.1"
        return errors.problem(505, told, code="bad_request", headers=headers)
    return None


class _Surroundings:
    """Pure ASGI: the request id, the size and patience for bodies, security headers, the access log."""

    def __init__(self, app: ASGIApp, limit: int, patience: float, figures: metrics.Metrics) -> None:
        self._app = app
        self._figures = figures
        self._limit = limit
        self._patience = patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._socket(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, _secured(send))
            return
        # Files here are small and served whole: a server may ignore Range, whatever it says (RFC 9110, 14.2).
        scope["headers"] = [header for header in scope["headers"] if header[0] != b"range"]
        started = time.monotonic()
        scope.setdefault("state", {})["began"] = started
        request_id = "req_" + uuid.uuid4().hex
        token = logs.request_id.set(request_id)
        status = 500

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["openai-processing-ms"] = str(round((time.monotonic() - started) * 1000))
                for name, value in scope.get("state", {}).get("limits", {}).items():
                    headers.setdefault(name, value)
            await send(message)

        body = _Body(scope, receive, self._limit, self._patience)
        try:
            await (_misread(scope) or self._app)(scope, body.receive, _secured(send_with_headers))
        finally:
            took = time.monotonic() - started
            if scope["path"] not in QUIET:
                log.info("%s %s %d in %.0f ms", scope["method"], _route(scope), status, took * 1000)
            logs.request_id.reset(token)
            self._figures.answered(_template(scope), scope["method"], status, took)

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An id for a WebSocket, too: in the headers of its handshake, in its errors and in all that is logged."""
        request_id = "req_" + uuid.uuid4().hex
        token = logs.request_id.set(request_id)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "websocket.accept":
                headers = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._app(scope, receive, _secured(send_with_id))
        finally:
            logs.request_id.reset(token)


def _template(scope: Scope) -> str:
    """The route a request took, of a closed set."""
    if scope["type"] == "websocket" and scope.get("endpoint") is not None:
        return str(scope["path"])  # their routes have no parameters
    found = _route(scope)
    return found if not found.startswith(FILES) else "(files)"


def _secured(send: Send) -> Send:
    """With the headers that keep browsers from guessing, framing and telling; on refused WebSockets, too."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            headers = MutableHeaders(scope=message)
            headers["x-content-type-options"] = "nosniff"
            headers["x-frame-options"] = "DENY"
            headers["referrer-policy"] = "no-referrer"
            headers["permissions-policy"] = "microphone=(self), display-capture=(self)"
            headers.setdefault("content-security-policy", _POLICY)
        await send(message)

    return send_with_headers


def _route(scope: Scope) -> str:
    """The route a request took, as the table has it: what else is in a path or a query is nobody's business."""
    endpoint = scope.get("endpoint")
    if isinstance(endpoint, _Guarded):
        return endpoint.path.replace(":path}", "}")
    if endpoint is None:
        return "(unknown)"
    return str(scope["path"])[:100] if scope["path"].startswith(FILES) else "(other)"


class _Body:
    """The body of a request, within limits of size, silence and pace."""

    def __init__(self, scope: Scope, receive: Receive, limit: int, patience: float) -> None:
        length = Headers(scope=scope).get("content-length", "0")
        self._announced = int(length) if length.isdecimal() and len(length) < 20 else 0
        self._receive = receive
        self._limit = limit
        self._patience = patience
        self._taken = 0
        self._waited = 0.0
        self._complete = False

    async def receive(self) -> Message:
        """ASGI's. Raises HTTPException: 413, before reading where the length says so; 408 for what comes too slowly."""
        if self._complete:
            return await self._receive()
        if self._announced > self._limit:
            raise self._too_large(self._announced)
        # Only the time spent waiting counts: a server that is slow to take a body is not the client's fault.
        left = self._patience + self._taken / PACE - self._waited
        began = time.monotonic()
        try:
            async with asyncio.timeout(min(self._patience, left)):
                message = await self._receive()
        except TimeoutError:
            raise self._too_slow(left < self._patience) from None
        self._waited += time.monotonic() - began
        if message["type"] == "http.request":
            self._taken += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
            if self._taken > self._limit:
                raise self._too_large(self._taken)
        return message

    def _too_large(self, size: int) -> HTTPException:
        # The connection stays open: what the client still sends is thrown away until it reads this.
        return HTTPException(
            413,
            f"Maximum content size limit ({self._limit}) exceeded ({size} bytes read);"
            " send it in pieces or compressed, or raise STT_MAX_UPLOAD_MB",
        )

    def _too_slow(self, dripping: bool) -> HTTPException:
        found = (
            f"came at less than {PACE} bytes a second"
            if dripping
            else f"stopped coming for {self._patience:g} s"
        )
        return HTTPException(
            408, f"the request body {found}; send it again", {"connection": "close"}
        )
