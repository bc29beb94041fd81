"""Every fault as OpenAI's envelope: ``{"error": {"message", "type", "param", "code"}}``. One mapping for all routes."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import WebSocketRoute

from streaming.errors import (
    AudioError,
    BackendError,
    InputError,
    ModelBusy,
    ModelGone,
    ModelResting,
    ModelUnavailable,
    NoAudio,
    NotAllowed,
    OpenSpeechError,
    Overloaded,
    StorageFull,
    TooLong,
    TooShort,
    UnknownModel,
    Unsupported,
)

log = logging.getLogger(__name__)


SOON = 60.0
"""Seconds that a client may be asked to wait and try again by itself."""


class BadRequest(InputError):
    """A field of a request is wrong."""


class Refused(InputError):
    """The caller may not do that: no key, a wrong one, or one for other things."""


class KeyMissing(Refused):
    """A key is needed and none came."""


class KeyWrong(Refused):
    """The key is none of this server's."""


class ScopeMissing(Refused):
    """The key is good, for other things."""


class RateLimited(Overloaded):
    """The caller asked for more than its share; others are served."""

    def __init__(
        self,
        message: str,
        *,
        retry_after: float,
        kind: str = "requests",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.kind = kind
        """OpenAI's `type`: what there was too much of."""
        self.headers = dict(headers or {})


_TABLE: tuple[tuple[type[OpenSpeechError], int, str | None], ...] = (
    # the most special first
    (KeyMissing, 401, None),
    (KeyWrong, 401, "invalid_api_key"),
    (ScopeMissing, 403, "missing_scope"),
    (RateLimited, 429, "rate_limit_exceeded"),
    (TooLong, 413, "audio_too_long"),
    (TooShort, 400, "audio_too_short"),
    (NoAudio, 400, "no_audio"),
    (AudioError, 400, "invalid_audio"),
    (UnknownModel, 404, "model_not_found"),
    (NotAllowed, 403, "not_allowed"),
    (Unsupported, 400, "unsupported_value"),
    (InputError, 400, "invalid_value"),
    (ModelGone, 409, "model_unloaded"),
    (ModelBusy, 409, "model_busy"),
    (ModelUnavailable, 503, "model_unavailable"),
    (StorageFull, 507, "insufficient_storage"),
    (Overloaded, 503, "overloaded"),
    (BackendError, 500, "recognition_failed"),
    (OpenSpeechError, 500, None),
)


def body(
    message: str,
    *,
    kind: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
) -> dict[str, Any]:
    """The envelope."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def problem(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
    kind: str | None = None,
) -> JSONResponse:
    """A response that carries the envelope. OpenAI's clients retry what is 408, 409, 429 or 5xx, unless told not to."""
    kind = kind or ("server_error" if status >= 500 else "invalid_request_error")
    return JSONResponse(body(message, kind=kind, param=param, code=code), status, headers)


def classify(error: OpenSpeechError) -> tuple[int, str | None]:
    """Status and code of a fault."""
    return next((status, code) for kind, status, code in _TABLE if isinstance(error, kind))


def closing(error: Overloaded | ModelResting) -> int:
    """The code with which a WebSocket closes: 1013 has clients try again soon, 1008 does not."""
    return 1008 if isinstance(error, RateLimited) and error.retry_after > SOON else 1013


def envelope(error: OpenSpeechError) -> dict[str, Any]:
    """The envelope alone, for faults after the response has begun."""
    status, code = classify(error)
    kind = "server_error" if status >= 500 else "invalid_request_error"
    if isinstance(error, RateLimited):
        kind = error.kind
    return body(error.message, kind=kind, param=error.param, code=code)


def respond(error: OpenSpeechError) -> JSONResponse:
    """The response to a fault."""
    status, code = classify(error)
    headers = {}
    kind = None
    if isinstance(error, Overloaded | ModelResting):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
        if isinstance(error, ModelResting):
            headers["x-should-retry"] = "true"
        if isinstance(error, RateLimited):
            kind = error.kind
            headers |= error.headers
    elif status == 401:
        headers["www-authenticate"] = "Bearer"
    elif status >= 500:
        # The same request would fail the same way: an SDK that retries would upload the file twice more for nothing.
        headers["x-should-retry"] = "false"
    return problem(status, error.message, param=error.param, code=code, headers=headers, kind=kind)


async def on_fault(request: Request, error: Exception) -> Response:
    """Starlette's handler for OpenSpeechError."""
    del request
    assert isinstance(error, OpenSpeechError)
    return respond(error)


async def on_http(request: Request, error: Exception) -> Response:
    """Starlette's handler for HTTPException: unknown routes, wrong methods, broken bodies."""
    assert isinstance(error, HTTPException)
    url = f"{request.method} {request.url.path[:200]}"
    headers = dict(error.headers) if error.headers else {}
    message, code = str(error.detail), None
    kind = None
    if error.status_code == 413:
        kind, code = "server_error", "payload_too_large"  # OpenAI's type for it
    if error.status_code == 404 and _socket(request):
        return problem(
            426,
            f"{request.url.path} is a WebSocket; connect with ws:// or wss://",
            code="upgrade_required",
            headers={"upgrade": "websocket", "connection": "upgrade"},
        )
    if error.status_code == 404:
        message, code = f"invalid URL ({url}); GET /docs lists the routes", "unknown_url"
    elif error.status_code == 405:
        allowed = ", ".join(sorted(headers.get("Allow", "GET, HEAD").split(", ")))
        headers["Allow"] = allowed
        message, code = (
            f"method not allowed ({url}); this route takes {allowed}",
            "method_not_allowed",
        )
    return problem(error.status_code, message, code=code, headers=headers or None, kind=kind)


def _socket(request: Request) -> bool:
    routes = request.app.routes
    return any(
        isinstance(each, WebSocketRoute) and each.path == request.url.path for each in routes
    )


async def on_crash(request: Request, error: Exception) -> Response:
    """What nobody foresaw: logged with its traceback by the caller, said without details."""
    del request, error
    return problem(
        500,
        "the server failed; its log says why, by the x-request-id of this response",
        code="internal_error",
        headers={"x-should-retry": "false"},
    )
