"""The route table, and what surrounds every request: an id, limits, a key, a log line."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import (
    asr,
    auth,
    catalogue,
    errors,
    health,
    logs,
    management,
    openapi,
    pages,
    sockets,
    transcriptions,
)
from server.context import Context, context
from server.routes import Endpoint, Handler
from streaming.errors import OpenSpeechError

log = logging.getLogger("server.access")

ENDPOINTS: tuple[Endpoint, ...] = (
    *transcriptions.ENDPOINTS,
    *catalogue.ENDPOINTS,
    *management.ENDPOINTS,
    *asr.ENDPOINTS,
    *health.ENDPOINTS,
    *pages.ENDPOINTS,
)
QUIET = ("/health", "/livez", "/readyz")
"""Not in the access log: probes come every few seconds."""
_POLICY = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; media-src 'self' blob:;"
    " connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; object-src 'none'"
)
# Swagger UI sets style attributes; scripts are never inline.

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


def create_app(here: Context, lifespan: Lifespan | None = None) -> Starlette:
    """The whole face. `here.engine` is closed by whoever made it, or by `lifespan`."""
    keys = auth.Keys(here.settings.api_keys)
    by_path: dict[str, list[Endpoint]] = {}
    for endpoint in ENDPOINTS:
        by_path.setdefault(endpoint.path, []).append(endpoint)
    routes: list[Any] = [
        Route(endpoint.path, _guarded(endpoint, keys), methods=[endpoint.method])
        for same in by_path.values()
        for endpoint in same
    ]
    middleware = [
        Middleware(
            _Surroundings,
            limit=here.settings.max_upload_mb * 2**20,
            patience=here.settings.body_timeout,
        )
    ]
    if here.settings.allow_origins:
        middleware.insert(
            0,
            Middleware(
                CORSMiddleware,
                allow_origins=list(here.settings.allow_origins),
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["*"],
                expose_headers=["x-request-id"],
            ),
        )
    app = Starlette(
        routes=[*routes, *sockets.ROUTES, *pages.static()],
        middleware=middleware,
        exception_handlers={
            OpenSpeechError: errors.on_fault,
            HTTPException: errors.on_http,
            Exception: errors.on_crash,
        },
        lifespan=lifespan or _nothing,
    )
    app.router.redirect_slashes = False
    app.state.context = here
    app.state.keys = keys
    app.state.openapi = openapi.document(ENDPOINTS, transcriptions.SCHEMAS)
    return app


@asynccontextmanager
async def _nothing(app: Starlette) -> AsyncGenerator[None, None]:
    del app
    yield


def _guarded(endpoint: Endpoint, keys: auth.Keys) -> Handler:
    """The handler, behind a key and counted as work."""

    async def handle(request: Request) -> Response:
        if not endpoint.public:
            key = auth.presented(request)
            if not keys.accept(key):
                return auth.refusal(key)
        here = context(request)
        if here.draining and not endpoint.public:
            return errors.problem(
                503,
                "the server is stopping; try again in a moment",
                code="stopping",
                headers={"retry-after": "5"},
            )
        here.working += 1
        try:
            return await endpoint.handle(request)
        except transcriptions.Gone:
            return Response(status_code=499)
        except (OpenSpeechError, HTTPException):
            raise
        except Exception as error:
            logging.getLogger("server").exception("%s %s failed", request.method, endpoint.path)
            return await errors.on_crash(request, error)
        finally:
            here.working -= 1

    return handle


class _Surroundings:
    """Pure ASGI: the request id, the size and patience for bodies, security headers, the access log."""

    def __init__(self, app: ASGIApp, limit: int, patience: float) -> None:
        self._app = app
        self._limit = limit
        self._patience = patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        request_id = "req_" + uuid.uuid4().hex
        token = logs.request_id.set(request_id)
        status = 500
        taken = 0
        complete = False

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["openai-processing-ms"] = str(round((time.monotonic() - started) * 1000))
                headers["x-content-type-options"] = "nosniff"
                headers["referrer-policy"] = "no-referrer"
                headers["content-security-policy"] = _POLICY
                headers["permissions-policy"] = "microphone=(self)"
            await send(message)

        async def receive_within_limits() -> Message:
            nonlocal taken, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout(self._patience):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(
                    408,
                    f"the request body stopped coming for {self._patience:g} s; send it again",
                    {"connection": "close"},
                ) from None
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if taken > self._limit:
                    raise self._too_large(taken)
            return message

        try:
            length = Headers(scope=scope).get("content-length", "0")
            if length.isdecimal() and int(length) > self._limit:
                response = await errors.on_http(Request(scope), self._too_large(int(length)))
                await response(scope, receive, send_with_headers)
            else:
                await self._app(scope, receive_within_limits, send_with_headers)
        finally:
            logs.request_id.reset(token)
            if scope["path"] not in QUIET:
                log.info(
                    "%s %s %d in %.0f ms (%s)",
                    scope["method"],
                    scope["path"][:200],
                    status,
                    (time.monotonic() - started) * 1000,
                    request_id,
                )

    def _too_large(self, size: int) -> HTTPException:
        return HTTPException(
            413,
            f"Maximum content size limit ({self._limit}) exceeded ({size} bytes read)",
            {"connection": "close"},
        )
