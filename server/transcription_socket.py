"""faster-whisper-server's WebSocket, on the path of the REST endpoint that transcribes recordings."""

from __future__ import annotations

import logging
import secrets
import time

from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from server import logs, sockets
from server.context import Context, context
from server.conversations import Conversation
from server.errors import RateLimited, Refused, ScopeMissing, closing
from server.gate import Meter, gate
from server.protocols.faster_whisper_server import Endings, Transcript, parse
from streaming.errors import InputError

log = logging.getLogger(__name__)


async def transcribe(socket: WebSocket) -> None:
    """The socket."""
    here = context(socket)
    offered = socket.scope.get("subprotocols", [])
    await socket.accept(sockets.PROTOCOL if sockets.PROTOCOL in offered else None)
    try:
        meter = await gate(socket).open(socket)
    except (Refused, RateLimited) as fault:
        code, reason = 1008, "a valid API key is needed"
        if isinstance(fault, RateLimited):
            code = closing(fault)
        if isinstance(fault, RateLimited | ScopeMissing):
            reason = fault.message[:120]
        with here.metrics.session("faster_whisper_server") as ending:
            ending.code(code, begun=False)
        await socket.close(code, reason)
        return
    async with meter:
        await _serve(socket, here, meter)


async def _serve(socket: WebSocket, here: Context, meter: Meter) -> None:
    settings = here.settings
    try:
        request = parse(
            dict(socket.query_params),
            language=settings.language,
            format=settings.response_format,
        )
    except InputError as fault:
        await socket.close(1008, fault.message[:120])
        return
    endings = Endings(
        settings.max_no_data_seconds,
        settings.max_inactivity_seconds,
        settings.inactivity_window_seconds,
    )
    started = time.monotonic()
    logs.stream_id.set("ts_" + secrets.token_urlsafe(12))
    here.working += 1
    try:
        with here.metrics.session("faster_whisper_server") as ending:
            conversation = Conversation(socket, here, Transcript(request, endings), meter)
            code = await conversation.run()
            ending.code(code, begun=conversation.begun)
    finally:
        here.working -= 1
    log.info("transcription socket closed with %d after %.1f s", code, time.monotonic() - started)


ROUTES = [WebSocketRoute("/v1/audio/transcriptions", transcribe)]
