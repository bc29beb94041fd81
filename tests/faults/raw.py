"""What a hostile or broken client puts on the wire: bytes, and frames that no library would send."""

from __future__ import annotations

import json
import os
import socket
import struct
from typing import Any
from urllib.parse import urlsplit

from tests.faults.process import PATIENCE, STREAM

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def dial(url: str, receive: int | None = None) -> socket.socket:
    """A connection; `receive` bytes of buffer, for those who do not read."""
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    found = socket.socket()
    if receive is not None:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    found.settimeout(PATIENCE)
    found.connect((parts.hostname, parts.port))
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return found


def until_closed(connection: socket.socket) -> bytes:
    """What comes until the server closes, cleanly or not; one that never does is a timeout."""
    found = b""
    try:
        while piece := connection.recv(65536):
            found += piece
    except ConnectionError:
        pass
    return found


def ask(url: str, said: bytes) -> bytes:
    """What the server answers to `said` until it closes."""
    with dial(url) as connection:
        connection.sendall(said)
        return until_closed(connection)


def reset(connection: socket.socket) -> None:
    """Close with RST instead of FIN."""
    linger(connection)
    connection.close()


def linger(connection: socket.socket) -> None:
    """From now on closing sends RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def upgrade(path: str = STREAM, *more: str, host: str = "127.0.0.1") -> bytes:
    """A handshake."""
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {KEY}",
        *more,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = True
) -> bytes:
    """One frame, as wrong as asked for."""
    head = bytes([fin << 7 | rsv << 4 | opcode])
    bit, size = masked << 7, len(payload)
    if size < 126:
        head += bytes([bit | size])
    elif size < 65536:
        head += struct.pack("!BH", bit | 126, size)
    else:
        head += struct.pack("!BQ", bit | 127, size)
    if not masked:
        return head + payload
    mask = os.urandom(4)
    wide = int.from_bytes((mask * (size // 4 + 1))[:size]) ^ int.from_bytes(payload)
    return head + mask + wide.to_bytes(size)


class Socket:
    """A WebSocket by hand."""

    def __init__(
        self,
        url: str,
        path: str = STREAM,
        *more: str,
        receive: int | None = None,
        with_: bytes = b"",
    ) -> None:
        self.connection = dial(url, receive)
        self._waiting = b""
        self.connection.sendall(upgrade(path, *more) + with_)
        while b"\r\n\r\n" not in self._waiting:
            piece = self.connection.recv(65536)
            assert piece, self._waiting
            self._waiting += piece
        self.head, _, self._waiting = self._waiting.partition(b"\r\n\r\n")
        assert self.head.startswith(b"HTTP/1.1 101"), self.head
        assert ACCEPT in self.head

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *fault: object) -> None:
        self.connection.close()

    def send(self, *frames: bytes) -> None:
        self.connection.sendall(b"".join(frames))

    def say(self, kind: str, **more: Any) -> None:
        self.send(frame(TEXT, json.dumps({"type": kind, **more}).encode()))

    def _take(self, size: int) -> bytes:
        while len(self._waiting) < size:
            piece = self.connection.recv(65536)
            if not piece:
                raise EOFError
            self._waiting += piece
        found, self._waiting = self._waiting[:size], self._waiting[size:]
        return found

    def receive(self) -> tuple[int, bytes]:
        """The next frame's opcode and payload. Raises EOFError or ConnectionError at the end."""
        first, second = self._take(2)
        assert first & 0x70 == 0, "reserved bits"
        assert second < 128, "masked by the server"
        size = second
        if size == 126:
            (size,) = struct.unpack("!H", self._take(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", self._take(8))
        return first & 15, self._take(size)

    def rest(self) -> tuple[list[dict[str, Any]], int | None, str]:
        """Messages to the end; the close code, None if none came; its reason."""
        messages: list[dict[str, Any]] = []
        code, reason = None, ""
        try:
            while True:
                opcode, payload = self.receive()
                if opcode == TEXT:
                    messages.append(json.loads(payload))
                elif opcode == CLOSE:
                    assert len(payload) <= 125
                    code, reason = (
                        struct.unpack("!H", payload[:2])[0] if payload else 1005,
                        payload[2:].decode(),
                    )
                    self.send(frame(CLOSE, payload[:2]))
        except (EOFError, ConnectionError):
            return messages, code, reason
