"""faster-whisper-server's WebSocket, on the path of the REST endpoint that transcribes recordings."""

from __future__ import annotations

import logging
import time

from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from server import auth, sockets
from server.context import context
from server.conversations import Conversation
from server.protocols.faster_whisper_server import Endings, Transcript, parse
from streaming.errors import InputError

log = logging.getLogger(__name__)


async def transcribe(socket: WebSocket) -> None:
    """The socket."""
    here = context(socket)
    settings = here.settings
    if not sockets._origin_allowed(socket, here):
        await socket.close(1008, "origin not allowed")
        return
    await socket.accept()
    if not socket.app.state.keys.accept(auth.presented(socket)):
        await socket.close(1008, "a valid API key is needed")
        return
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
    here.working += 1
    try:
        code = await Conversation(socket, here, Transcript(request, endings)).run()
    finally:
        here.working -= 1
    log.info("transcription socket closed with %d after %.1f s", code, time.monotonic() - started)


ROUTES = [WebSocketRoute("/v1/audio/transcriptions", transcribe)]
