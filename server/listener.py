"""uvicorn, stopped in order: a drain that lets work end, and no peer that holds it up."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import ssl
import sys
import threading
from contextlib import suppress
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from server import lan
from server.connections import MESSAGE, Http, Room, Sockets, Tls
from server.context import Context
from server.settings import Settings

log = logging.getLogger(__name__)

STALL = 10.0
"""Seconds that a peer may take nothing of what is left to send, while its connection closes or the server drains."""
UNREAD = 60.0
"""Seconds that a peer may take nothing of an answer otherwise."""
PING = 20.0
"""Seconds between pings of a WebSocket's peer, and those it has to answer."""
RESERVED = 128
"""Descriptors left for files, models and runners."""


class Server(uvicorn.Server):
    """Stops in order: no new work, then what runs ends, then the connections."""

    def __init__(self, config: uvicorn.Config, here: Context) -> None:
        super().__init__(config)
        self.server_state = Room(
            _connections(here.settings.max_connections), here.settings.stream_idle_seconds
        )
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
        seen: dict[object, tuple[int, int, float]] = {}
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(min(STALL, UNREAD) / 10)
            alive: dict[object, tuple[int, int, float]] = {}
            for connection in list(self.server_state.connections):
                transport: asyncio.Transport = connection.transport
                left = transport.get_write_buffer_size()
                if not left:
                    continue
                taken: int = getattr(connection, "taken", 0)
                before, caught_up, since = seen.get(connection, (left + 1, taken, clock()))
                patience = STALL if self._here.draining or transport.is_closing() else UNREAD
                if left < before or taken > caught_up:
                    since = clock()
                elif clock() - since >= patience:
                    log.info("a peer reads nothing; its connection is cut")
                    transport.abort()
                alive[connection] = (left, taken, since)
            seen = alive

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        context, self.config.ssl = self.config.ssl, None
        if context is not None:
            http = self.config.http_protocol_class
            self.config.http_protocol_class = lambda **given: Tls(http(**given), context)  # type: ignore[assignment, arg-type]  # a factory does
        await super().startup(sockets)
        if threading.current_thread() is threading.main_thread() and signal.getsignal(
            signal.SIGHUP
        ) == (signal.SIG_DFL):
            signal.signal(signal.SIGHUP, self.handle_exit)  # the terminal is gone: end in order
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
        with suppress(OSError):  # a full disk behind it, or nobody who reads
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
        http=Http,
        ws=Sockets,
        ws_max_size=MESSAGE,
        ws_per_message_deflate=False,
        ws_ping_interval=PING,
        ws_ping_timeout=PING,
        lifespan="on",
        server_header=False,
        proxy_headers=False,  # the application does it, for the proxies of its settings
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
    logging.getLogger("uvicorn.error").addFilter(_worth_telling)
    server = Server(config, here)
    server.run()
    return 0 if server.started else 1


def _worth_telling(record: logging.LogRecord) -> bool:
    """Not that a request or the application was cancelled by a second signal: somebody wanted it."""
    if record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError):
        return False
    return not record.getMessage().rstrip().endswith("CancelledError")  # Starlette's, as text


def _connections(wanted: int) -> int:
    """How many connections may be open: as many as wanted, or as descriptors last."""
    try:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        enough = wanted + 2 * RESERVED
        if soft != resource.RLIM_INFINITY and soft < enough:
            soft = enough if hard == resource.RLIM_INFINITY else min(enough, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    except (ImportError, OSError, ValueError):  # no such limits here, or none of ours to raise
        return wanted
    if soft == resource.RLIM_INFINITY or soft >= wanted + RESERVED:
        return wanted
    found = max(8, soft - RESERVED)
    log.warning(
        "the system allows %d descriptors, so at most %d connections are taken instead of %d;"
        " raise it with ulimit -n",
        soft,
        found,
        wanted,
    )
    return found


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
