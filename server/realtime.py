"""`/v1/realtime`: OpenAI's transcription sessions, and the short-lived secrets that browsers open them with."""

from __future__ import annotations

import logging
import secrets
import time
from collections import OrderedDict
from contextlib import suppress
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from server import auth, logs, uploads
from server.context import Context, context
from server.conversations import Conversation
from server.errors import BadRequest, KeyMissing, RateLimited, Refused, classify, closing
from server.gate import Meter, gate
from server.keys import digest
from server.limits import Caller
from server.protocols.openai_realtime import Realtime, said
from server.protocols.openai_session import Configuration
from server.routes import Endpoint, Reply
from streaming.errors import OpenSpeechError
from streaming.types import Options

log = logging.getLogger(__name__)

PROTOCOL, BETA = "realtime", "openai-beta.realtime-v1"
"""Subprotocols of OpenAI's browser client, which cannot set headers."""
IDLE = 10
"""Times STT_STREAM_IDLE_SECONDS that a session may send nothing. OpenAI names no such time, and who presses a key to
talk may rest for minutes; but a peer that only answers pings would keep its stream to the session's end."""
LEAST, USUAL, MOST = 10, 600, 7200
"""Seconds that a secret may live."""
SECRETS = 10_000
"""Secrets kept; beyond, the oldest goes, which no honest client of a small server notices."""


class Secrets:
    """Client secrets in memory: with each, until when it opens sessions, how they are configured, and who made it:
    they count as his, and end with his key."""

    def __init__(self) -> None:
        self._found: OrderedDict[bytes, tuple[float, Configuration, Caller | None]] = OrderedDict()

    def make(
        self,
        seconds: float,
        configuration: Configuration,
        now: float,
        owner: Caller | None = None,
    ) -> str:
        """A new one."""
        if len(self._found) >= SECRETS:
            for mark, (until, _, _) in list(self._found.items()):
                if until <= now:
                    del self._found[mark]
        if len(self._found) >= SECRETS:
            self._found.popitem(last=False)
        value = "ek_" + secrets.token_urlsafe(32)
        self._found[digest(value)] = (now + seconds, configuration, owner)
        return value

    def find(self, value: str | None, now: float) -> tuple[Configuration | None, Caller | None]:
        """What sessions opened with `value` begin with, and who made it; None if it is unknown or has expired."""
        until, configuration, owner = self._found.get(digest(value or ""), (0.0, None, None))
        return (configuration, owner) if now < until else (None, None)


async def realtime(socket: WebSocket) -> None:
    """The socket. Whatever `intent` and `model` say, it is a transcription session: there is no other kind here."""
    here = context(socket)
    offered = socket.scope.get("subprotocols", [])
    await socket.accept(PROTOCOL if PROTOCOL in offered else None)
    kept: Secrets = socket.app.state.secrets
    configuration, owner = kept.find(auth.presented(socket), time.time())
    try:
        meter = await gate(socket).open(socket, owner=owner)
    except (Refused, RateLimited) as fault:
        with here.metrics.session("realtime") as ending:
            ending.code(1008, begun=False)
        await _refuse(socket, fault)
        return
    async with meter:
        await _serve(socket, here, meter, configuration)


async def _serve(
    socket: WebSocket, here: Context, meter: Meter, configuration: Configuration | None
) -> None:
    offered = socket.scope.get("subprotocols", [])
    model = socket.query_params.get("model")
    if configuration is None:
        configuration = Configuration()
        if model and _served(here, model):
            given = {"audio": {"input": {"transcription": {"model": model}}}}
            configuration = configuration.updated(given)
    beta = BETA in offered or "realtime=v1" in socket.headers.get("openai-beta", "")
    dialect = Realtime(
        configuration,
        check=lambda options: _check(here, options),
        language=here.settings.language,
        deltas=here.settings.realtime_deltas,
        beta=beta,
        limit=here.settings.realtime_minutes * 60,
        idle=here.settings.stream_idle_seconds * IDLE,
    )
    started = time.monotonic()
    logs.stream_id.set(dialect.id)
    log.info("realtime session %s opened", dialect.id)
    here.working += 1
    try:
        with here.metrics.session("realtime") as ending:
            conversation = Conversation(socket, here, dialect, meter)
            code = await conversation.run()
            ending.code(code, begun=conversation.begun)
    finally:
        here.working -= 1
    log.info(
        "realtime session %s closed with %d after %.1f s",
        dialect.id,
        code,
        time.monotonic() - started,
    )


def _check(here: Context, options: Options) -> None:
    here.catalogue.resolve(options.model, task=options.task, language=options.language)


def _served(here: Context, model: str) -> bool:
    try:
        here.catalogue.resolve(model)
    except OpenSpeechError:
        return False
    return True


async def _refuse(socket: WebSocket, fault: Refused | RateLimited) -> None:
    """As OpenAI does it: a browser that is refused at the handshake learns nothing."""
    message, close = fault.message, 3000
    error: dict[str, Any] = {"type": "invalid_request_error", "code": classify(fault)[1]}
    if isinstance(fault, KeyMissing):
        message = "Missing bearer or basic authentication in header"
    if isinstance(fault, RateLimited):
        close = closing(fault)
        error |= {"type": fault.kind, "retry_after": fault.retry_after}
    error |= {"message": message, "param": None, "event_id": None}
    with suppress(WebSocketDisconnect, RuntimeError, OSError):
        await socket.send_text(said("error", "event_" + secrets.token_urlsafe(16), error=error))
        await socket.close(close, ".".join(filter(None, (error["type"], error["code"]))))


async def client_secrets(request: Request) -> Response:
    """OpenAI's `client_secrets`."""
    given = await _body(request)
    expires = given.get("expires_after") or {}
    seconds = expires.get("seconds") if isinstance(expires, dict) else None
    configuration = Configuration().updated(given.get("session") or {})
    value, until = _secret(request, USUAL if seconds is None else seconds, configuration)
    session = _session(configuration.shown(), until) | {"type": "transcription"}
    return JSONResponse({"value": value, "expires_at": until, "session": session})


async def transcription_sessions(request: Request) -> Response:
    """The beta's way: the fields flat, the secret inside the session."""
    given = await _body(request)
    wanted = given.get("client_secret") or {}
    expires = wanted.get("expires_at") or wanted.get("expires_after") or {}
    seconds = expires.get("seconds") if isinstance(expires, dict) else None
    configuration = Configuration().updated_flat(given)
    value, until = _secret(request, USUAL if seconds is None else seconds, configuration)
    session = _session(configuration.shown_flat(), until)
    return JSONResponse({**session, "client_secret": {"value": value, "expires_at": until}})


async def _body(request: Request) -> dict[str, Any]:
    data = await uploads.short(request)
    try:
        given = msgspec.json.decode(data) if data.strip() else {}
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise BadRequest("the body is not JSON; send an object, or nothing") from None
    if not isinstance(given, dict):
        raise BadRequest("the body is no JSON object; send an object, or nothing")
    return given


def _secret(request: Request, seconds: Any, configuration: Configuration) -> tuple[str, int]:
    if isinstance(seconds, bool) or not isinstance(seconds, int) or not LEAST <= seconds <= MOST:
        raise BadRequest(
            f"expires_after.seconds is {str(seconds)[:40]!r};"
            f" it must be a whole number from {LEAST} to {MOST}",
            param="expires_after.seconds",
        )
    _check(context(request), configuration.options(partials=True))
    now = time.time()
    made = request.app.state.secrets.make(seconds, configuration, now, request.state.caller)
    return made, int(now + seconds)


def _session(shown: dict[str, Any], until: int) -> dict[str, Any]:
    return {
        "id": "sess_" + secrets.token_urlsafe(16),
        "object": "realtime.transcription_session",
        "expires_at": until,
        **shown,
    }


_OBJECT = {"type": "object", "additionalProperties": True}
ENDPOINTS = (
    Endpoint(
        "POST",
        "/v1/realtime/client_secrets",
        client_secrets,
        "realtime",
        "Make a secret that opens Realtime sessions until it expires",
        "For browsers, which should not hold a key of the server.",
        body={
            "application/json": {
                "type": "object",
                "properties": {
                    "expires_after": {
                        "type": "object",
                        "properties": {
                            "anchor": {"type": "string"},
                            "seconds": {"type": "integer", "minimum": LEAST, "maximum": MOST},
                        },
                    },
                    "session": _OBJECT,
                },
            }
        },
        replies={
            200: Reply(
                "the secret and the session it opens",
                {
                    "application/json": {
                        "type": "object",
                        "required": ["value", "expires_at", "session"],
                        "properties": {
                            "value": {"type": "string"},
                            "expires_at": {"type": "integer"},
                            "session": _OBJECT,
                        },
                    }
                },
            )
        },
    ),
    Endpoint(
        "POST",
        "/v1/realtime/transcription_sessions",
        transcription_sessions,
        "realtime",
        "The same for clients of OpenAI's beta",
        body={"application/json": _OBJECT},
        replies={
            200: Reply(
                "the session with its secret",
                {
                    "application/json": {
                        "type": "object",
                        "required": ["id", "client_secret"],
                        "properties": {"id": {"type": "string"}, "client_secret": _OBJECT},
                    }
                },
            )
        },
    ),
)
ROUTES = [WebSocketRoute("/v1/realtime", realtime)]
