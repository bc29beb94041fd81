"""uvicorn's connections with the bounds they lack, of time, size and number: none can hold up the loop or a stop."""

from __future__ import annotations

import asyncio
import http
import json
import logging
import socket
import ssl
import sys
import uuid
from asyncio.sslproto import SSLProtocol
from typing import Any

import h11
import uvicorn
from h11._connection import DEFAULT_MAX_INCOMPLETE_EVENT_SIZE
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.exceptions import SecurityError
from websockets.frames import Frame
from websockets.http11 import Request

from server import errors
from server.context import HEARD, PARTING, Parting

log = logging.getLogger(__name__)

HEAD = 10.0
"""Seconds that a request's head may take, and TLS's handshake before it; uvicorn waits for ever, asyncio 60 s."""
LARGEST_HEAD = 64 * 2**10
"""Bytes of a request's head; h11 bounds only what has not come in full."""
PIECE = 16 * 2**10
"""Bytes from a WebSocket's peer that are looked at in one go: two thousand frames of one byte, some 20 ms."""
FRAGMENTS = 16_384
"""Frames of one message."""
CONTROLS, CONTROLS_A_SECOND = 1000, 100
"""Pings and pongs that a peer may send at once, and for long. Nobody needs more than one in some seconds.

Small messages have no such bound: they are read only as fast as they are heard, and an honest file may come in packets
of a few bytes."""
MUTE = 10.0
"""Seconds that a WebSocket may take to bring its first audio before it makes room for another."""
FAREWELL, QUIET, WASTE = 2.0, 0.1, 32 * 2**20
"""Seconds for which what a refused peer still sends is thrown away, so that it sees why instead of a reset; the silence
and the bytes that end them early."""
HELD = 256 * 2**20
"""Bytes of messages that have begun to come, over all connections; who adds to them beyond is told to come later."""
SPARE = 16
"""Connections beyond the most, on which probes are answered, and all else with 503."""
PROBES = ("/health", "/livez", "/readyz", "/metrics")
SENDING = 32 * 2**10
"""Bytes that may be on their way to a WebSocket's peer; the kernel doubles it."""
MESSAGE = 24 * 2**20
"""Bytes of the largest WebSocket message on any dialect; each dialect has its own limit below."""


class Room(ServerState):
    """The connections of a server, and how many more it takes."""

    def __init__(self, connections: int, idle: float = 60.0) -> None:
        """`idle`: seconds without audio after which a WebSocket makes room for another."""
        super().__init__()
        self.most = connections
        self._idle = idle
        self.waiting: dict[Http | Tls, None] = {}
        """Connections without a request at work, those that wait longest first."""
        self.sockets = 0
        self.mute: dict[Sockets, float] = {}
        """Those of them that never brought audio, and when they came, in that order."""
        self.speaking: dict[Sockets, float] = {}
        """The others, and when they last brought some, in that order."""
        self.held = 0

    @property
    def sockets_full(self) -> bool:
        """One in eight connections is kept for what is no WebSocket, such as probes."""
        return self.sockets >= self.most - max(1, self.most // 8)

    @property
    def full(self) -> bool:
        """There are more connections than the most."""
        return len(self.connections) > self.most

    def make(self) -> bool:
        """Room for one connection, at the cost of one that says nothing. False if all are at work."""
        if not self.full:
            return True
        silent = next(iter(self.waiting), None)
        if silent is None:
            return len(self.connections) <= self.most + SPARE
        del self.waiting[silent]
        # It counts no more, though the loop still has to see it off.
        self.connections.discard(silent)
        silent.leave()
        return True

    def make_for_socket(self) -> bool:
        """Room for one WebSocket, at the cost of one that brings no audio. False if all bring some."""
        if not self.sockets_full:
            return True
        for quiet, patience in ((self.mute, MUTE), (self.speaking, self._idle)):
            while oldest := next(iter(quiet), None):
                if oldest.loop.time() - quiet[oldest] < patience:
                    break
                if not oldest.read_paused:
                    oldest.leave()
                    return True
                oldest.speak()  # what it brought waits for us
        return False


class Tls(SSLProtocol):
    """A connection whose TLS handshake is under way. It counts, has a deadline and makes room as one does that is
    through; asyncio's own way tells nobody of it before."""

    def __init__(self, http: Http, context: ssl.SSLContext) -> None:
        super().__init__(
            http.loop,
            http,
            context,
            None,  # type: ignore[arg-type]  # nobody waits
            server_side=True,
            ssl_handshake_timeout=HEAD,  # type: ignore[arg-type]  # a float does
        )
        self._room = http.room
        http.tls = self

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if self._room is not None:
            self._room.connections.add(self)  # type: ignore[arg-type]  # one more of uvicorn's
            if not self._room.make():
                self.forget()
                transport.abort()
                return
            self._room.waiting[self] = None
        super().connection_made(transport)

    def forget(self) -> None:
        """It counts no more: it is gone, or through and counts as HTTP."""
        if self._room is not None:
            self._room.connections.discard(self)
            self._room.waiting.pop(self, None)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.forget()
        super().connection_lost(exc)

    def leave(self) -> None:
        """Make room for another."""
        self.transport.abort()

    def shutdown(self) -> None:
        """uvicorn stops."""
        self.transport.abort()


class Http(H11Protocol):
    """H11 with a deadline for the head of each request, and a bound for it."""

    _deadline: asyncio.TimerHandle | None = None
    taken = 0
    """Times that the peer caught up with what there was to send."""
    tls: Tls | None = None
    """Below it, if it speaks TLS."""

    def connection_made(self, transport: Any) -> None:
        if self.tls is not None:
            self.tls.forget()
        super().connection_made(transport)
        room = self.room
        if room is not None:
            if not room.make():
                transport.write(_answer(503, _FULL, "retry-after: 5"))
                transport.close()
                return
            room.waiting[self] = None
            self.app = _Spare(self.app, room)
        self._arm()

    @property
    def room(self) -> Room | None:
        """Where it counts."""
        return self.server_state if isinstance(self.server_state, Room) else None

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._wait(False)
        super().connection_lost(exc)

    def _wait(self, waiting: bool) -> None:
        if self.room is not None:
            self.room.waiting.pop(self, None)
            if waiting:
                self.room.waiting[self] = None

    def data_received(self, data: bytes) -> None:
        if self.conn.their_state is h11.IDLE and len(data) > LARGEST_HEAD:
            end = data.find(b"\r\n\r\n")
            if not 0 <= end <= LARGEST_HEAD:
                self._refuse_head()
                return
        super().data_received(data)
        if self.transport.get_protocol() is not self:
            self._disarm()  # upgraded: the socket has its own deadline
            self._wait(False)
        elif self.cycle is not None and not self.cycle.response_complete:
            self._disarm()
            self._wait(False)
        elif self._deadline is None:
            self._arm()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and self.cycle.response_complete:
            self._wait(True)

    def resume_writing(self) -> None:
        self.taken += 1
        super().resume_writing()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        if self.room is not None and (self.room.full or not self.room.make_for_socket()):
            self.transport.write(_answer(503, _FULL, "retry-after: 5"))
            self.transport.close()
            return
        super().handle_websocket_upgrade(event)
        protocol = self.transport.get_protocol()
        if protocol is not self and (early := self.conn.trailing_data[0]):
            protocol.data_received(early)  # type: ignore[attr-defined] # Sockets

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is no HTTP, in the envelope; a request that was at work is over."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        if len(self.conn.trailing_data[0]) > DEFAULT_MAX_INCOMPLETE_EVENT_SIZE:
            self._refuse_head()
            return
        told = errors.body("the request is no valid HTTP; send it again", code="bad_request")
        self.transport.write(_answer(400, told))
        self.transport.close()

    def _refuse_head(self) -> None:
        told = errors.body(
            f"the head of the request is too large: {LARGEST_HEAD >> 10} KiB are taken at most; send less",
            code="head_too_large",
        )
        self.transport.write(_answer(431, told))
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

    def leave(self) -> None:
        """Make room for another. Over TLS a close alone would wait for the peer's goodbye."""
        if self.transport.get_write_buffer_size():
            self.transport.close()
        else:
            self.transport.abort()


_FULL = errors.body(
    "as many connections are open as the server takes; try again in a moment",
    kind="server_error",
    code="overloaded",
)


class _Spare:
    """The application, which a full server runs for probes only."""

    def __init__(self, app: Any, room: Room) -> None:
        self._app = app
        self._room = room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._room.full and scope["path"] not in PROBES:
            headers = {"retry-after": "5", "connection": "close"}
            await JSONResponse(_FULL, 503, headers)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _answer(status: int, told: dict[str, Any], *headers: str) -> bytes:
    """A whole answer in the envelope, after which the connection closes."""
    data = json.dumps(told).encode()
    head = [
        f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}",
        "content-type: application/json",
        f"content-length: {len(data)}",
        f"x-request-id: req_{uuid.uuid4().hex}",
        "x-content-type-options: nosniff",
        "connection: close",
        *headers,
    ]
    return "\r\n".join([*head, "", ""]).encode() + data


class Sockets(WebSocketsSansIOProtocol):
    """WebSockets whose handshake has a deadline, that never stop a shutdown, and whose peer cannot hold the loop."""

    _heard = 0.0  # when any byte came
    _asked = 0.0  # when a pong was last missed
    _controls = 0.0  # pings and pongs in the bucket, which leaks
    _controlled = 0.0  # when the last one came
    _fragments = 0  # frames of the message that is coming, and their bytes
    _fragment_bytes = 0
    _held = 0  # bytes of it that the room counts
    _counted = True  # among the room's sockets
    _refused: float | None = None  # until when the farewell lasts, if nothing else is left
    _parting: asyncio.Future[Parting] | None = None  # see PARTING
    _wasted = 0  # bytes thrown away meanwhile
    _pong = b""  # to be sent when the peer reads again
    taken = 0
    """Times that the peer caught up with what there was to send."""

    def __init__(
        self, config: uvicorn.Config, server_state: ServerState, *more: Any, **named: Any
    ) -> None:
        super().__init__(config, server_state, *more, **named)
        self._room = server_state if isinstance(server_state, Room) else Room(sys.maxsize)
        self._unread = bytearray()  # at most what one read brings
        self._feeding = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._room.sockets += 1
        self._room.mute[self] = self.loop.time()
        self._handshake = self.loop.call_later(HEAD, self._expire)
        # What lies in buffers cannot be replaced by anything newer, and the kernel's own would hold minutes of it.
        transport.set_write_buffer_limits(high=SENDING // 4)
        if (found := transport.get_extra_info("socket")) is not None:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SENDING)

    def _expire(self) -> None:
        if not self.handshake_complete:
            self.transport.abort()

    def handle_connect(self, event: Request) -> None:
        try:
            super().handle_connect(event)
        except UnicodeError:  # the library cannot quote what it refuses
            told = errors.body("the handshake has a header that is no ASCII", code="bad_request")
            self.transport.write(_answer(400, told))
            self.transport.close()
            return
        if self.response.status_code == 101:
            # Whether a goodbye arrived is not told by ASGI, and the last words of a session hang on it.
            self._parting = self.loop.create_future()
            self.scope["extensions"][PARTING] = self._parting  # type: ignore[assignment]  # ASGI's extensions are empty
            self.scope["extensions"][HEARD] = self.speak  # type: ignore[assignment]

    def handle_close(self, event: Frame) -> None:
        if self.close_sent and self.conn.close_rcvd is not None:
            # Another code is no answer: the peer left of its own accord, perhaps before our last words.
            ours = self.conn.close_sent.code if self.conn.close_sent is not None else 1000
            answered = self.conn.close_rcvd.code in (ours, 1000)
            self._part(Parting.ANSWERED if answered else Parting.GOODBYE)
        super().handle_close(event)

    def _part(self, how: Parting) -> None:
        if self._parting is not None and not self._parting.done():
            self._parting.set_result(how)

    def connection_lost(self, exc: Exception | None) -> None:
        self._part(Parting.GONE if self.conn.close_rcvd is None else Parting.GOODBYE)
        self._handshake.cancel()
        self._forget()
        self._room.held -= self._held
        self._unread.clear()
        self.connections.add(self)  # from where the library takes it
        super().connection_lost(exc)

    def speak(self) -> None:
        """Audio came."""
        if self._counted:
            self._room.mute.pop(self, None)
            self._room.speaking.pop(self, None)  # to the end of the row
            self._room.speaking[self] = self.loop.time()

    def _forget(self) -> None:
        if self._counted:
            self._counted = False
            self._room.sockets -= 1
            self._room.mute.pop(self, None)
            self._room.speaking.pop(self, None)

    def leave(self) -> None:
        """Make room for another. It counts no more, though the loop still has to see it off."""
        self._forget()
        self.connections.discard(self)
        if self.handshake_complete:
            self._refuse(1013, "no audio came for long, and there is no room for others")
            # Nobody counts it, so it may not stay for as long as its peer likes, nor for the goodbye of TLS.
            self.loop.call_later(QUIET, self.transport.abort)
        else:
            self.transport.abort()

    def keepalive_timeout(self) -> None:
        """No pong came: only a peer of which nothing came, and that we did read, is dead."""
        # While we read slowly because the engine is behind, the pong lies unread behind audio.
        if self.read_paused or self._unread or self._heard > max(self._asked, self.ping_sent_at):
            assert self.ping_timeout is not None
            self._asked = self.loop.time()
            self.pong_timer = self.loop.call_later(self.ping_timeout, self.keepalive_timeout)
            return
        super().keepalive_timeout()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._refused is not None:
            self._wasted += len(data)
            self._linger()
            return
        self._heard = self.loop.time()
        if self._unread or len(data) > PIECE or self._early:
            self._unread += data
            self._feed()
        else:
            self._look(data)

    @property
    def _early(self) -> bool:
        """What comes before the handshake is answered waits."""
        return self.handshake_initiated and not self.handshake_complete

    def _feed(self) -> None:
        """Look at one piece of what came. The next has its turn once this one was heard, and everybody else was."""
        self._feeding = False
        if self.transport.is_closing():
            return
        if self._unread and not self.read_paused and not self._early:
            piece = bytes(self._unread[:PIECE])
            del self._unread[:PIECE]
            self._look(piece)
        self._pace()

    def _pace(self) -> None:
        """Read from the peer only when nothing of it waits."""
        if self.transport.is_closing():
            self._unread.clear()
            return
        if self._unread:
            if self.transport.is_reading():
                self.transport.pause_reading()
            if not self.read_paused and not self._feeding and not self._early:
                self._feeding = True
                self.loop.call_soon(self._feed)
        elif (
            not self.read_paused or self._refused is not None
        ) and not self.transport.is_reading():
            self.transport.resume_reading()

    async def receive(self) -> Any:
        """ASGI's."""
        message = await super().receive()
        if self._unread:
            self._pace()
        return message

    async def send(self, message: Any) -> None:
        """ASGI's."""
        if message["type"] == "websocket.close":
            # A close frame has room for 123 bytes of reason, whatever a fault quotes.
            cut = (message.get("reason") or "").encode()[:123].decode(errors="ignore")
            message = {**message, "reason": cut}
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body"):
            self.handshake_complete = True  # refused; uvicorn would take it for forgotten
        if self._unread:
            self._pace()

    def _look(self, data: bytes) -> None:
        super().data_received(data)
        # A frame that has not come in full lies in the reader; fragments before it lie in `frames`.
        held = self._fragment_bytes + len(self.conn.reader.buffer)
        self._room.held += held - self._held
        self._held = held
        if held > PIECE and self._room.held > HELD:
            self._refuse(1013, "too many large messages are on their way")
        refused = getattr(self.conn, "handshake_exc", None)
        if not self.handshake_initiated and refused is not None:
            # uvicorn leaves an impossible handshake unanswered for ever.
            cause = refused.__cause__ or refused
            large = isinstance(cause, SecurityError)
            why = (
                "has a head that is too large" if large else f"cannot be taken: {str(cause)[:200]}"
            )
            told = errors.body(
                f"the handshake {why}", code="head_too_large" if large else "bad_request"
            )
            self.transport.write(_answer(431 if large else 400, told))
            self.transport.close()

    def handle_ping(self) -> None:
        """Answer, but keep only the last answer for a peer that does not read (RFC 6455, 5.5.3, allows it)."""
        pongs = self.conn.data_to_send()
        if self._control() or not pongs:
            return
        if self.writable.is_set():
            self.transport.write(b"".join(pongs))
        else:
            self._pong = pongs[-1]

    def handle_pong(self, event: Frame) -> None:
        if not self._control():
            super().handle_pong(event)

    def _control(self) -> bool:
        """Count a ping or pong. True if it is one too many."""
        now = self.loop.time()
        self._controls -= (now - self._controlled) * CONTROLS_A_SECOND
        self._controls = max(0.0, self._controls) + 1
        self._controlled = now
        if self._controls > CONTROLS:
            self._refuse(1008, "too many pings")
            return True
        return self.close_sent

    def handle_cont(self, event: Frame) -> None:
        self._fragments += 1
        if self._fragments > FRAGMENTS:
            self._refuse(1009, f"too many fragments: a message may have {FRAGMENTS} frames")
        if self.close_sent:
            return
        super().handle_cont(event)
        self._fragment_bytes = 0 if event.fin else self._fragment_bytes + len(event.data)

    def handle_text(self, event: Frame) -> None:
        self._begin(event)
        super().handle_text(event)

    def handle_bytes(self, event: Frame) -> None:
        self._begin(event)
        super().handle_bytes(event)

    def send_receive_event_to_app(self) -> None:
        """A whole message; text that is none is no traceback's worth."""
        if self.curr_msg_data_type == "text" and not self.close_sent:
            try:
                self.frames = [b"".join(self.frames)]
                self.frames[0].decode()
            except UnicodeDecodeError:
                self._refuse(1007, "the text is no UTF-8")
                return
        super().send_receive_event_to_app()

    def _begin(self, event: Frame) -> None:
        self._fragments = 1
        self._fragment_bytes = 0 if event.fin else len(event.data)

    def _refuse(self, code: int, reason: str) -> None:
        """Close from below: the application learns of it as of a peer that left."""
        if self.close_sent or self.transport.is_closing():
            return
        self.conn.fail(code, reason)
        self.handle_parser_exception()

    def handle_parser_exception(self) -> None:
        """The connection failed, by the library's judgement or ours: say so, and stop listening."""
        assert self.conn.close_sent is not None
        code, reason = self.conn.close_sent.code, self.conn.close_sent.reason
        log.info("a WebSocket is closed with %d: %s", code, reason)
        self.stop_keepalive()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.frames.clear()
        self._unread.clear()
        self._refused = self.loop.time() + FAREWELL
        self._linger()
        self._pace()

    def _linger(self) -> None:
        assert self._refused is not None
        if self.close_timer is not None:
            self.close_timer.cancel()
        if self._wasted > WASTE:
            self.transport.abort()
            return
        at = min(self._refused, self.loop.time() + QUIET)
        self.close_timer = self.loop.call_at(at, self.transport.close)

    def resume_writing(self) -> None:
        self.taken += 1
        if self._pong and not self.transport.is_closing():
            self.transport.write(self._pong)
        self._pong = b""
        super().resume_writing()

    def shutdown(self) -> None:
        try:
            super().shutdown()
        except Exception:
            log.debug("a socket did not close cleanly", exc_info=True)
            self.transport.abort()
