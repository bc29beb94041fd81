"""Rows C01: the framing of WebSockets, by hand, in the categories of the well-known Autobahn suite: frames, pings,
reserved bits, opcodes, fragments, UTF-8, close. A conforming server does what is asserted here, whatever it serves."""

import json
import struct

import pytest

from tests.faults.process import Process
from tests.faults.raw import BINARY, CLOSE, CONT, PING, PONG, TEXT, Socket, frame

KEEPALIVE = b'{"type": "keepalive"}'
END = frame(TEXT, b'{"type": "end"}')


def goodbye(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, struct.pack("!H", code) + reason)


def pinged(socket: Socket) -> None:
    """It goes on: the next ping is answered, and nothing came before but messages."""
    socket.send(frame(PING, b"still"))
    while (found := socket.receive())[0] == TEXT:
        pass
    assert found == (PONG, b"still")


@pytest.mark.quick
@pytest.mark.fault(
    "C01a",
    "messages and pings of every length class",
    "each is taken whole, each ping answered with its payload",
)
@pytest.mark.parametrize("size", [0, 1, 2, 125, 126, 127, 128, 1000, 65535, 65536, 65537, 200_000])
def test_lengths(server: Process, size: int) -> None:
    """Binary frames of 0 to 200 000 bytes, a ping of up to 125 behind each, then `end`"""
    with Socket(server.url) as socket:
        socket.send(frame(BINARY, bytes(size)))
        payload = bytes(range(125))[: min(size, 125)]
        socket.send(frame(PING, payload))
        while (found := socket.receive())[0] == TEXT:
            pass
        assert found == (PONG, payload)
        socket.send(END)
        messages, code, _ = socket.rest()
        assert messages[-1]["received"] == size
        assert code == 1000


@pytest.mark.fault("C01b", "a message one byte at a time", "the same as in one piece")
def test_a_message_in_single_bytes(server: Process) -> None:
    """A message and `end`, written byte by byte"""
    with Socket(server.url) as socket:
        for byte in frame(BINARY, bytes(300)) + END:
            socket.send(bytes([byte]))
        messages, code, _ = socket.rest()
    assert messages[-1]["received"] == 300
    assert code == 1000


@pytest.mark.fault("C01c", "pongs that nobody asked for", "ignored")
def test_unsolicited_pongs(server: Process) -> None:
    """Pongs with and without payload, then a ping"""
    with Socket(server.url) as socket:
        socket.send(frame(PONG), frame(PONG, b"x" * 125), frame(PONG, b"y"))
        pinged(socket)


@pytest.mark.fault("C01d", "ten pings in a row", "each is answered, in order")
def test_pings_in_a_row(server: Process) -> None:
    """Ten pings in one write"""
    with Socket(server.url) as socket:
        socket.send(*[frame(PING, b"%d" % number) for number in range(10)])
        assert [socket.receive() for _ in range(10)] == [(PONG, b"%d" % at) for at in range(10)]


WRONG = {
    "rsv1": frame(TEXT, KEEPALIVE, rsv=4),
    "rsv2": frame(BINARY, b"xx", rsv=2),
    "rsv3": frame(PING, rsv=1),
    "all reserved bits": frame(CLOSE, rsv=7),
    **{f"opcode {opcode}": frame(opcode, b"x") for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "unmasked text": frame(TEXT, KEEPALIVE, masked=False),
    "unmasked ping": frame(PING, masked=False),
    "ping of 126": frame(PING, bytes(126)),
    "pong of 126": frame(PONG, bytes(126)),
    "close of 126": frame(CLOSE, b"\x03\xe8" + bytes(124)),
    "ping in fragments": frame(PING, fin=False),
    "close in fragments": frame(CLOSE, fin=False),
    "continuation of nothing": frame(CONT, b"x"),
    "continuation of nothing, unfinished": frame(CONT, b"x", fin=False),
    "continuation after the end": frame(TEXT, KEEPALIVE) + frame(CONT, b"x"),
    "text in text": frame(TEXT, b"{", fin=False) + frame(TEXT, b"}"),
    "binary in text": frame(TEXT, b"{", fin=False) + frame(BINARY, b"xx"),
    "close of one byte": frame(CLOSE, b"x"),
    **{
        f"close {code}": goodbye(code)
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    },
}


@pytest.mark.quick
@pytest.mark.fault(
    "C01e", "frames that break the protocol", "close 1002 with a reason; no traceback"
)
@pytest.mark.parametrize("name", list(WRONG))
def test_frames_that_break_the_protocol(server: Process, name: str) -> None:
    """Reserved bits and opcodes, no mask, long or fragmented control frames, continuations of nothing, impossible close codes"""
    with Socket(server.url) as socket:
        socket.send(WRONG[name])
        messages, code, _ = socket.rest()
    # A closing code that cannot be may be answered with a plain goodbye.
    assert code == 1002 or (name.startswith("close ") and code in (1000, 1002)), (messages, code)


@pytest.mark.fault(
    "C01f", "a length of 2^63 and more", "close 1002 or 1009 before a byte of it is read"
)
@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 2**62, 2**40, 24 * 2**20 + 1])
def test_lengths_that_cannot_be(server: Process, length: int) -> None:
    """The head of a frame that announces more than is taken"""
    with Socket(server.url) as socket:
        socket.send(struct.pack("!BBQ", 0x82, 0xFF, length) + b"mask" + b"x" * 100)
        _, code, _ = socket.rest()
    assert code in (1002, 1009)


@pytest.mark.quick
@pytest.mark.fault(
    "C01g", "fragments with pings between", "one message, and the pings answered at once"
)
@pytest.mark.parametrize(
    "pieces",
    [
        [b"", KEEPALIVE],
        [KEEPALIVE, b""],
        [b"", KEEPALIVE, b""],
        [bytes([each]) for each in KEEPALIVE],
    ],
    ids=["empty first", "empty last", "empty both", "single bytes"],
)
def test_fragments_with_pings_between(server: Process, pieces: list[bytes]) -> None:
    """A text message in two to twenty fragments, a ping between each two"""
    with Socket(server.url) as socket:
        for number, piece in enumerate(pieces):
            socket.send(frame(CONT if number else TEXT, piece, fin=number == len(pieces) - 1))
            if number < len(pieces) - 1:
                socket.send(frame(PING, b"%d" % number))
                assert socket.receive() == (PONG, b"%d" % number)
        pinged(socket)
        socket.send(END)
        messages, code, _ = socket.rest()
    assert code == 1000
    assert not [each for each in messages if each["type"] == "error"]


TEXTS = {
    "two bytes cut": b"\xc3", "overlong": b"\xc0\xaf", "surrogate": b"\xed\xa0\x80", "too large": b"\xf4\x90\x80\x80", "fe": b"\xfe", "ff": b"\xff",
    "lone continuation": b"\x80", "six bytes": b"\xfd\xbf\xbf\xbf\xbf\xbf", "overlong NUL": b"\xc0\x80", "latin-1": "Grüße".encode("latin-1"),
    "cut in the middle": "κόσμε".encode()[:-1], "good, then bad": "κόσμε".encode() + b"\xed\xa0\x80edited",
}  # fmt: skip


@pytest.mark.fault("C01h", "text that is no UTF-8", "close 1007, one line in the log")
@pytest.mark.parametrize("fragmented", [False, True], ids=["whole", "in bytes"])
@pytest.mark.parametrize("name", list(TEXTS))
def test_text_that_is_no_utf8(server: Process, name: str, fragmented: bool) -> None:
    """Twelve kinds of broken UTF-8, in one frame and in one-byte fragments"""
    text = TEXTS[name]
    before = len(server.said)
    with Socket(server.url) as socket:
        if fragmented:
            cut = [text[at : at + 1] for at in range(len(text))]
            socket.send(
                *[
                    frame(CONT if at else TEXT, each, fin=at == len(cut) - 1)
                    for at, each in enumerate(cut)
                ]
            )
        else:
            socket.send(frame(TEXT, text))
        _, code, _ = socket.rest()
    assert code == 1007
    assert "Traceback" not in "".join(server.said[before:])


@pytest.mark.fault("C01i", "text in UTF-8, cut between its bytes", "taken as one message")
@pytest.mark.parametrize("text", ["κόσμε", "\U0001f3a4\U0001f5e3️", "\x00\x7f\x80߿ࠀ￿\U0010ffff"])
def test_text_cut_between_its_bytes(server: Process, text: str) -> None:
    """A commit whose marker has letters of two to four bytes, in one-byte fragments: the marker comes back"""
    said = json.dumps({"type": "commit", "marker": text}, ensure_ascii=False).encode()
    with Socket(server.url) as socket:
        socket.send(
            *[
                frame(CONT if at else TEXT, said[at : at + 1], fin=at == len(said) - 1)
                for at in range(len(said))
            ]
        )
        socket.send(END)
        messages, code, _ = socket.rest()
    assert [each["marker"] for each in messages if each["type"] == "marker"] == [text]
    assert code == 1000


@pytest.mark.quick
@pytest.mark.fault("C01j", "goodbyes of all kinds", "answered with the same code, then the end")
@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (frame(CLOSE), (1000, 1005)), (goodbye(1000), (1000,)), (goodbye(1000, b"bye"), (1000,)), (goodbye(1000, "später".encode()), (1000,)), (goodbye(1000, b"x" * 123), (1000,)),
        (goodbye(1000, b"\xff"), (1002, 1007)), (goodbye(1000, b"\xed\xa0\x80"), (1002, 1007)),
        *[(goodbye(code), (code,)) for code in (1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999)],
    ],
)  # fmt: skip
def test_goodbyes(server: Process, said: bytes, answer: tuple[int, ...]) -> None:
    """Close frames with every code that may be sent, with and without a reason"""
    with Socket(server.url) as socket:
        socket.send(said)
        _, code, _ = socket.rest()
    assert code in answer


@pytest.mark.fault("C01k", "frames after the goodbye", "ignored")
@pytest.mark.parametrize(
    "after",
    [frame(TEXT, KEEPALIVE), frame(PING, b"x"), goodbye(1001), frame(CONT, b"x"), b"\xff" * 100],
)
def test_frames_after_the_goodbye(server: Process, after: bytes) -> None:
    """A message, a ping, a second goodbye, garbage in the same write as the close"""
    with Socket(server.url) as socket:
        socket.send(goodbye(1000) + after)
        messages, code, _ = socket.rest()
    assert code == 1000
    assert not messages
