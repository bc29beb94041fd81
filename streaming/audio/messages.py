"""What the server and a sandbox say to each other: a letter, a length, and that many bytes.

::

    from the sandbox                          from the server
    h  it is ready, and what it gave up       f  decode this file (its descriptor comes along)
    p  what the file says it is               n  that many samples more
    s  samples, float32                       l  decode a stream
    w  it wants more bytes                    b  bytes of the stream
    d  the stream is over                     e  no more will come
    x  a fault; nothing follows
"""

from __future__ import annotations

import json
import os
import socket
import struct
from typing import Any

HEAD = struct.Struct("<cI")


class Gone(Exception):
    """The other side has closed the socket."""


def pack(kind: str, body: Any = b"") -> bytes:
    """A message; a body that is not bytes goes as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return HEAD.pack(kind.encode(), len(data)) + data


def receive(there: socket.socket, *, descriptors: int = 0) -> tuple[str, bytes, list[int]]:
    """The next message, and the descriptors that came with it. Raises Gone, OSError."""
    found: list[int] = []
    if descriptors:
        head, found, _, _ = socket.recv_fds(there, HEAD.size, descriptors)
    else:
        head = there.recv(HEAD.size)
    if not head:
        raise Gone
    head += exactly(there, HEAD.size - len(head))
    kind, size = HEAD.unpack(head)
    try:
        return kind.decode("ascii", "replace"), exactly(there, size), found
    except BaseException:
        for each in found:
            os.close(each)
        raise


def exactly(there: socket.socket, size: int) -> bytes:
    """That many bytes. Raises Gone, OSError."""
    data = bytearray(size)
    view, have = memoryview(data), 0
    while have < size:
        taken = there.recv_into(view[have:])
        if not taken:
            raise Gone
        have += taken
    return bytes(data)
