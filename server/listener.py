"""uvicorn with the limits it lacks: deadlines for heads, a drain that lets work end, sockets that cannot hang it."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
import sys
import uuid
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from server import errors, lan
from server.context import Context
from server.settings import Settings

log = logging.getLogger(__name__)

HEAD = 10.0
"""Seconds that a request's head may take; uvicorn itself waits for ever."""
STALL = 10.0
"""Seconds that a peer may take nothing of what is left to send, while its connection closes or the server drains."""
SENDING = 32 * 2**10
"""Bytes that may be on their way to a WebSocket's peer; the kernel doubles it."""
MESSAGE = 24 * 2**20
"""Bytes of the largest WebSocket message on any dialect; each dialect has its own limit below."""


class _Http(H11Protocol):
    """H11 with a deadline for the head of each request."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.get_protocol() is not self:
            self._disarm()  # upgraded: the socket has its own deadline
        elif self.cycle is not None and not self.cycle.response_complete:
            self._disarm()
        elif self._deadline is None:
            self._arm()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is no HTTP, in the envelope; a request that was at work is over."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        told = json.dumps(
            errors.body("the request is no valid HTTP; send it again", code="bad_request")
        )
        head = [
            ("content-type", "application/json"),
            ("content-length", str(len(told))),
            ("x-request-id", "req_" + uuid.uuid4().hex),
            ("connection", "close"),
        ]
        for event in (
            h11.Response(status_code=400, headers=head, reason=b"Bad Request"),
            h11.Data(data=told.encode()),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event))
        self.transport.close()

    def _arm(self) -> None:
        self._disarm()
        self._deadline = self.loop.call_later(HEAD, self._expire)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


class _Sockets(WebSocketsSansIOProtocol):
    """WebSockets whose handshake has a deadline, and that never stop a shutdown."""

    _heard = 0.0  # when any byte came
    _asked = 0.0  # when a pong was last missed

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._handshake = self.loop.call_later(HEAD, self._expire)
        # What lies in buffers cannot be replaced by anything newer, and the kernel's own would hold minutes of it.
        transport.set_write_buffer_limits(high=SENDING // 4)
        if (found := transport.get_extra_info("socket")) is not None:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SENDING)

    def _expire(self) -> None:
        if not self.handshake_complete:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._handshake.cancel()
        super().connection_lost(exc)

    def keepalive_timeout(self) -> None:
        """No pong came: only a peer of which nothing came, and that we did read, is dead."""
        # While we read slowly because the engine is behind, the pong lies unread behind audio.
        if self.read_paused or self._heard > max(self._asked, self.ping_sent_at):
            assert self.ping_timeout is not None
            self._asked = self.loop.time()
            self.pong_timer = self.loop.call_later(self.ping_timeout, self.keepalive_timeout)
            return
        super().keepalive_timeout()

    def data_received(self, data: bytes) -> None:
        self._heard = self.loop.time()
        super().data_received(data)
        refused = getattr(self.conn, "handshake_exc", None)
        if not self.handshake_initiated and refused is not None:
            # uvicorn leaves an impossible handshake unanswered for ever.
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()

    def shutdown(self) -> None:
        try:
            super().shutdown()
        except Exception:
            log.debug("a socket did not close cleanly", exc_info=True)
            self.transport.abort()


class Server(uvicorn.Server):
    """Stops in order: no new work, then what runs ends, then the connections."""

    def __init__(self, config: uvicorn.Config, here: Context) -> None:
        super().__init__(config)
        self._here = here
        self._watching: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain. Second: at once."""
        # uvicorn would raise the signal again after a clean stop, and so end with a status that says it crashed.
        del sig, frame
        self.force_exit = self.should_exit
        self.should_exit = self._here.draining = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._here.draining = True
        self._here.stopping.set()
        for listener in self.servers:
            listener.close()
        loop = asyncio.get_running_loop()
        until = loop.time() + self._here.settings.drain_seconds
        if self._here.working:
            log.info(
                "finishing %d requests, at most %g s",
                self._here.working,
                self._here.settings.drain_seconds,
            )
        while self._here.working and loop.time() < until and not self.force_exit:  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # no event could tell that a signal handler set force_exit
        await super().shutdown(sockets)
        if self._watching is not None:
            self._watching.cancel()

    async def _watch(self) -> None:
        """Aborts connections whose peer reads nothing: neither a close nor a drain waits for them."""
        seen: dict[object, tuple[int, float]] = {}
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(STALL / 10)
            alive: dict[object, tuple[int, float]] = {}
            for connection in list(self.server_state.connections):
                transport: asyncio.Transport = connection.transport
                left = transport.get_write_buffer_size()
                if not left or not (self._here.draining or transport.is_closing()):
                    continue
                before, since = seen.get(connection, (left + 1, clock()))
                if left < before:
                    since = clock()
                elif clock() - since >= STALL:
                    log.info("a peer reads nothing; its connection is cut")
                    transport.abort()
                alive[connection] = (left, since)
            seen = alive

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._watching = asyncio.create_task(self._watch())
            self._say_where()

    def _say_where(self) -> None:
        scheme = "https" if self.config.ssl_certfile else "http"
        host, port = self.config.host, self.config.port
        for listener in self.servers:
            for each in listener.sockets:
                host, port = each.getsockname()[:2]
        settings = self._here.settings
        if settings.lan:
            lan.announce(port, own=settings.tls_cert is not None and lan.is_own(settings.tls_cert))
        shown = "localhost" if host in ("127.0.0.1", "::1", "0.0.0.0", "::") else host
        print(
            f"open-speech on {scheme}://{shown}:{port} (Press CTRL+C to quit)",
            file=sys.stderr,
            flush=True,
        )


def serve(app: Starlette, here: Context, settings: Settings) -> int:
    """Run until a signal. Answers the exit status."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=_Http,
        ws=_Sockets,
        ws_max_size=MESSAGE,
        ws_per_message_deflate=False,
        ws_ping_interval=20,
        ws_ping_timeout=20,
        lifespan="on",
        server_header=False,
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=5,
        timeout_keep_alive=15,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    if message := _unusable(settings):
        print(message, file=sys.stderr)
        return 1
    server = Server(config, here)
    server.run()
    return 0 if server.started else 1


def _unusable(settings: Settings) -> str | None:
    """Why the address cannot be listened on, or the certificate not be used."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((settings.host, settings.port))
    except OSError as error:
        return (
            f"open-speech: cannot listen on {settings.host}:{settings.port}: {error.strerror};"
            " choose another --port or --host"
        )
    if settings.tls_cert is not None:
        try:
            # A key behind a password would wait for somebody to type it.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                settings.tls_cert, settings.tls_key, lambda: ""
            )
        except (OSError, ValueError) as error:
            return (
                f"open-speech: cannot serve HTTPS with {settings.tls_cert} and {settings.tls_key}: "
                f"{error.strerror if isinstance(error, OSError) else error}; give a PEM certificate and its"
                " key without a password"
            )
    return None
