"""Rows C: what is done to a WebSocket, beyond its framing."""

import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from urllib.parse import quote

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.drive import speak
from tests.fakes import pcm
from tests.faults.conftest import SHORT
from tests.faults.process import STREAM, Process, alive, rest, serving, spelt, text, until, words
from tests.faults.raw import (
    BINARY,
    CLOSE,
    CONT,
    PING,
    PONG,
    TEXT,
    Socket,
    dial,
    frame,
    reset,
    until_closed,
    upgrade,
)
from tests.proxy import wire

END = frame(TEXT, b'{"type": "end"}')
MIB = 2**20


def flood(socket_: Socket, piece: bytes, most: int) -> int:
    """Bytes that were sent before the server had enough."""
    sent = 0
    with suppress(OSError):
        while sent < most:
            sent += socket_.connection.send(piece)
    return sent


@pytest.mark.fault(
    "C03",
    "compression is offered, and used all the same",
    "not taken; a compressed frame is 1002 before it is unpacked",
)
def test_compression(server: Process) -> None:
    """permessage-deflate in the handshake, then a frame with RSV1 that would unpack to 16 MiB"""
    before = server.memory()
    for _ in range(20):
        with Socket(
            server.url,
            STREAM,
            "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
        ) as bomb:
            assert b"deflate" not in bomb.head
            bomb.send(frame(BINARY, b"\xec\xc1\x01\x01" + bytes(16_000), rsv=4))
            assert bomb.rest()[1] == 1002
    assert server.memory() < before + 40 * MIB


@pytest.mark.fault(
    "C04",
    "messages at and beyond the limit",
    "4 MiB are taken; one byte more is `too_big` and 1009 after the finals of what came before",
)
@pytest.mark.parametrize("more", [0, 1, MIB])
def test_messages_at_the_limit(server: Process, more: int) -> None:
    """Words, then a binary message of 4 MiB and some more"""
    said = words(4, 5)
    with connect(server.socket_url, max_size=None) as stream:
        stream.send(pcm(speak([*said, 0.7])))
        stream.send(bytes(4 * MIB + more))
        if not more:
            stream.send('{"type": "end"}')
        found = rest(stream)
    assert text(found) == spelt(said)
    assert stream.close_code == (1009 if more else 1000)
    assert stream.close_reason == ("too_big" if more else "")
    assert [each["code"] for each in found if each["type"] == "error"] == (
        ["too_big"] if more else []
    )


@pytest.mark.fault(
    "C05", "a message in fragments without end", "1009 at 16 384 fragments; memory stays"
)
@pytest.mark.parametrize("size", [0, 1])
def test_fragments_without_end(server: Process, size: int) -> None:
    """Continuation frames of 0 or 1 byte, up to 200 MB of them"""
    before = server.memory()
    piece = frame(CONT, bytes(size), fin=False) * 5000
    with Socket(server.url) as endless:
        endless.send(frame(BINARY, b"", fin=False))
        assert flood(endless, piece, 200 * MIB) < 64 * MIB
    until(lambda: "too many fragments" in server.log)
    assert server.memory() < before + 40 * MIB


@pytest.mark.fault(
    "C06", "a flood of pings whose answers are not read", "1008 after a thousand; memory stays"
)
def test_a_flood_of_pings(server: Process) -> None:
    """Pings of 125 bytes as fast as they go, nothing read, up to 200 MB"""
    before = server.memory()
    piece = frame(PING, bytes(125)) * 500
    for _ in range(4):
        with Socket(server.url, receive=4096) as deaf:
            assert flood(deaf, piece, 200 * MIB) < 64 * MIB
    assert server.log.count("too many pings") >= 4
    assert server.memory() < before + 40 * MIB


@pytest.mark.fault(
    "C07",
    "a flood of messages of one byte",
    "read only as fast as they are heard: all are, and others are served meanwhile",
)
def test_a_flood_of_small_messages(server: Process) -> None:
    """Four clients send 20 000 binary messages of a byte as fast as they go"""
    received = []

    def run() -> None:
        with Socket(server.url) as stream:
            stream.connection.settimeout(60)
            stream.send(*[frame(BINARY, b"\0")] * 20_000, END)
            received.append(stream.rest()[0][-1]["received"])

    threads = [threading.Thread(target=run) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert received == [20_000] * 4


@pytest.mark.fault(
    "C08",
    "fifty clients that speak and never read",
    "each is let go at the deadline; nobody waits for them",
)
def test_clients_that_never_read(server: Process) -> None:
    """Words in a thousand commits, a receive buffer of 4 kB, and not a read"""
    audio = pcm(speak([*words(0, 3), 0.1]))
    commit = frame(TEXT, b'{"type": "commit", "marker": "' + b"m" * 200 + b'"}')
    with ExitStack() as stack:
        for _ in range(50):
            deaf = stack.enter_context(Socket(server.url, receive=4096))
            deaf.connection.settimeout(0.2)
            with suppress(OSError):
                deaf.send(frame(BINARY, audio), commit * 1000)
        until(lambda: server.working() == 1, 60)


@pytest.mark.fault(
    "C09",
    "a message that begins and never ends, many times",
    "who adds to 64 MiB of them, the limit set for this test, is told to come later; memory stays",
)
def test_messages_that_never_end() -> None:
    """40 clients send 4 MiB of a message of 4.5 MiB"""
    with serving(faults=SHORT | {"server.connections.HELD": 64 * MIB}) as server, alive(server):
        before = server.memory()
        head = struct.pack("!BBQ", 0x82, 0xFF, 9 * MIB // 2) + b"mask"
        with ExitStack() as stack:
            for _ in range(40):
                with suppress(OSError):
                    stack.enter_context(Socket(server.url)).send(head + bytes(4 * MIB))
            assert server.memory() < before + 160 * MIB
            assert server.log.count("too many large messages") >= 20


@pytest.fixture
def brisk() -> Iterator[Process]:
    """Pings every second; a session is kept for half a minute."""
    with serving(faults=SHORT | {"server.listener.PING": 1.0}) as server, alive(server):
        yield server


@pytest.mark.fault(
    "C10",
    "a peer that is gone without a word",
    "noticed by its missing pong; its session ends and frees what it held",
)
def test_a_peer_that_is_gone_without_a_word() -> None:
    """A wire that passes nothing any more while the connection stays, for ten streams"""
    with (
        serving("--resume-seconds", "1", faults=SHORT | {"server.listener.PING": 1.0}) as server,
        alive(server),
        wire(server.url) as link,
        ExitStack() as stack,
    ):
        for _ in range(10):
            stream = stack.enter_context(Socket(link.url))
            stream.send(frame(BINARY, pcm(speak([1, 2, 3]))))
            stream.receive()
        link.stalled = True
        until(lambda: server.working() == 1)
        link.stalled = False


@pytest.mark.fault("C11", "RST at every moment", "nothing is left over")
def test_reset_at_every_moment(server: Process) -> None:
    """300 connections, reset after a random part of handshake, words, commit, end"""
    chance = random.Random(11)
    said = (
        upgrade()
        + frame(BINARY, pcm(speak([1, 2, 0.6, 3])))
        + frame(TEXT, b'{"type": "commit"}')
        + END
    )
    for turn in range(300):
        connection = dial(server.url)
        at = chance.randrange(len(said)) if turn % 3 else chance.randrange(200)
        connection.sendall(said[:at])
        if turn % 2:
            connection.settimeout(0.01)
            with suppress(TimeoutError):
                connection.recv(chance.randrange(1, 500))
        reset(connection)


@pytest.mark.fault(
    "C12",
    "a wire that stands still over a ping and goes on",
    "the session goes on where it was; no word lost or doubled",
)
def test_a_wire_that_stands_still(brisk: Process) -> None:
    """Everything is held back for 1.5 s with pings every second, in mid-speech"""
    said = words(3, 24)
    audio = pcm(speak(said))
    with wire(brisk.url) as link:
        found = []
        with connect(link.url.replace("http", "ws") + STREAM, ping_interval=None) as stream:
            for number, at in enumerate(range(0, len(audio), 6400)):
                with suppress(ConnectionClosed):
                    stream.send(audio[at : at + 6400])
                if number == 10:
                    link.stalled = True
                    time.sleep(1.5)
                    link.stalled = False
            with suppress(ConnectionClosed):
                stream.send('{"type": "end"}')
            found = rest(stream)
        assert text(found) == spelt(said)
        assert stream.close_code == 1000


@pytest.mark.fault(
    "C13",
    "100 connections that send broken text",
    "1007 each; a few short lines in the log, no traceback",
)
def test_broken_text_many_times(server: Process) -> None:
    """A text frame of broken UTF-8, 100 times"""
    before = len(server.log)
    for _ in range(100):
        with Socket(server.url) as stream:
            stream.send(frame(TEXT, b"\xff\xfe" * 50))
            assert stream.rest()[1] == 1007
    assert len(server.log) - before < 100 * 600


@pytest.mark.quick
@pytest.mark.fault(
    "C14",
    "messages of the wrong kind",
    "an error that says what was expected; the words around them are heard",
)
@pytest.mark.parametrize(
    "slip",
    [frame(TEXT, b"UklGRgAA"), frame(TEXT, b""), frame(BINARY, b""), frame(BINARY, b'{"type": "end"}' * 2), frame(TEXT, b"\x00"), frame(TEXT, b'{"type": "audio", "data": "AAAA"}')],
    ids=["base64", "empty text", "empty audio", "JSON as audio", "NUL", "another protocol"],
)  # fmt: skip
def test_messages_of_the_wrong_kind(server: Process, slip: bytes) -> None:
    """Text where audio is due, audio where text is due, neither, in the pause between two words"""
    said = words(9, 4)
    audio = pcm(speak(said[:2])), pcm(speak(said[2:]))
    with Socket(server.url) as stream:
        stream.send(frame(BINARY, audio[0]), slip, frame(BINARY, audio[1]), END)
        messages, code, _ = stream.rest()
    assert text(messages) == spelt(said)
    assert code == 1000
    errors = [each for each in messages if each["type"] == "error"]
    assert len(errors) == (slip[0] & 15 == TEXT)


@pytest.mark.fault(
    "C15",
    "1500 sockets that say nothing",
    "under 60 KiB each; closed with 1008 when their time is over",
)
def test_sockets_that_say_nothing() -> None:
    """1500 handshakes, then silence, with 5 s of patience"""
    with (
        serving("--stream-idle-seconds", "5", faults=SHORT) as server,
        alive(server),
        ExitStack() as stack,
    ):
        before = server.memory()
        silent = [stack.enter_context(Socket(server.url)) for _ in range(1500)]
        assert (server.memory() - before) / len(silent) < 60 * 1024
        for each in silent:
            messages, code, _ = each.rest()
            assert [message["code"] for message in messages] == ["idle_timeout"]
            assert code == 1008


@pytest.mark.fault(
    "C16",
    "a storm of 800 handshakes on a server that takes 200 connections",
    "accepted up to the cap, the others 503 with Retry-After; health answers",
)
def test_a_storm_of_handshakes() -> None:
    """800 handshakes from eight threads as fast as they go; each that is taken stays"""
    with (
        serving("--max-connections", "200", faults=SHORT) as server,
        alive(server),
        ExitStack() as stack,
    ):
        taken: list[socket.socket] = []
        refused: list[bytes] = []

        def storm() -> None:
            for _ in range(100):
                connection = dial(server.url)
                with suppress(ConnectionError):
                    connection.sendall(upgrade())
                    head = connection.recv(4096)
                    if head.startswith(b"HTTP/1.1 101"):
                        taken.append(connection)
                        continue
                    refused.append(head)
                connection.close()

        threads = [threading.Thread(target=storm) for _ in range(8)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        for each in taken:
            stack.callback(each.close)
        assert 100 <= len(taken) <= 200
        assert len(refused) >= 400
        for head in refused:
            assert not head or (head.startswith(b"HTTP/1.1 503") and b"retry-after: 5" in head)
        assert server.get("/livez").status_code == 200


@pytest.mark.quick
@pytest.mark.fault(
    "C25",
    "sockets that answer pings and bring no audio, as many as a server takes",
    "for each that comes the one that is silent for longest gets 1013; who speaks stays",
)
def test_a_server_full_of_silent_sockets() -> None:
    """sessions of Realtime and of the native protocol on a server that takes 41, a stream that speaks, then ten more"""
    said: list[int | float] = [1, 2, 3]
    faults = SHORT | {"server.connections.MUTE": 0.0}
    with (
        serving("--max-connections", "47", "--resume-seconds", "1", faults=faults) as server,
        alive(server),
        ExitStack() as stack,
    ):
        paths = (STREAM + "?language=en", "/v1/realtime?intent=transcription")
        silent = [stack.enter_context(Socket(server.url, paths[at % 2])) for at in range(41)]
        for each in silent[1:]:
            each.send(frame(PING, b"here"))
            while each.receive()[0] != PONG:
                pass
        honest = []
        for _ in range(10):
            honest.append(stack.enter_context(Socket(server.url)))
            honest[-1].send(frame(BINARY, pcm(speak(said))))
        for each in silent[:10]:
            assert each.rest()[1] == 1013
        for each in honest:
            each.send(END)
            messages, code, _ = each.rest()
            assert text(messages) == spelt(said)
            assert code == 1000


@pytest.mark.quick
@pytest.mark.fault(
    "C26",
    "clients that leave while their model loads",
    "noticed at once; they wait for it no more, and hold no stream",
)
def test_clients_that_leave_while_a_model_loads(tmp_path: Path) -> None:
    """a model that never comes to an end of loading, on a server of four streams; five times three clients, a second of audio each, by FIN, RST or a goodbye"""
    for name in ("scripted", "endless"):
        (tmp_path / name).touch()
    audio = frame(BINARY, bytes(32_000))
    with serving("--model", f"mine={tmp_path}", "--max-streams", "4", DEADLY="1") as server:
        for _ in range(5):
            waiting = [Socket(server.url, STREAM + "?model=mine") for _ in range(3)]
            for each in waiting:
                each.send(audio)
            until(lambda: server.working() == 3)
            waiting[0].send(frame(CLOSE, struct.pack("!H", 1000)))
            reset(waiting[1].connection)
            for each in waiting:
                each.connection.close()
            until(lambda: server.working() == 0)
            assert server.open() == 0
        with Socket(server.url) as stream:
            stream.send(frame(BINARY, pcm(speak([1, 2, 3]))), END)
            assert text(stream.rest()[0]) == "w1 w2 w3"
        assert "Traceback" not in server.log


@pytest.mark.fault("C18", "a goodbye that is not answered", "gone at the deadline")
def test_a_goodbye_that_is_not_answered(server: Process) -> None:
    """A mistake at the opening, and then nothing read or written, 20 times"""
    with ExitStack() as stack:
        for _ in range(20):
            rude = stack.enter_context(Socket(server.url))
            rude.say("start", sample_rate=1)
        until(lambda: server.working() == 1)


@pytest.mark.fault(
    "C20",
    "names of 10 kB, control characters and markup in errors",
    "an error cut short, a close frame of at most 125 bytes",
)
@pytest.mark.parametrize(
    "name",
    [
        "m" * 10_000,
        "ä" * 10_000,
        "\x00\r\n\x1b[31m",
        "<img src=x onerror=alert(1)>",
        "../../etc/passwd",
        "\U0001f600" * 199,
        "%s%n{0}",
    ],
)
def test_names_of_all_kinds(server: Process, name: str) -> None:
    """`start` with such a model, language, option"""
    for given in ({"model": name}, {"language": name}, {name: 1}, {"encoding": name}):
        with Socket(server.url) as stream:
            stream.say("start", **given)
            messages, code, reason = stream.rest()
        assert [each["type"] for each in messages] == ["error"]
        assert len(messages[0]["message"]) < 1000
        assert code in (1008, 1011)
        assert reason == messages[0]["code"]
    for path in ("/v1/audio/transcriptions", "/v1/realtime"):
        query = f"?model={quote(name * 20)[:6000]}&response_format={quote(name)[:1000]}"
        with Socket(server.url, path + query) as stream:
            stream.send(frame(TEXT, b"{"), frame(CLOSE, b"\x03\xe8"))
            _, code, reason = stream.rest()
        assert code in (1000, 1008)
        assert len(reason.encode()) <= 123


@pytest.mark.quick
@pytest.mark.fault("C21", "audio in the same segment as the handshake", "the first word is heard")
def test_audio_behind_the_handshake(server: Process) -> None:
    """The handshake, a short stream and its end in one write"""
    said = words(5, 3)
    audio = pcm(speak(said))
    with Socket(server.url, with_=frame(BINARY, audio) + END) as eager:
        messages, code, _ = eager.rest()
    assert text(messages) == spelt(said)
    assert code == 1000


@pytest.mark.fault("C22", "a client that closes its half", "noticed; nothing left over")
def test_half_closed(server: Process) -> None:
    """FIN after the words, while the server still speaks"""
    with Socket(server.url) as stream:
        stream.send(frame(BINARY, pcm(speak(words(0, 3)))))
        stream.connection.shutdown(socket.SHUT_WR)
        stream.rest()


@pytest.mark.fault("C23", "slow bytes", "a message that comes at 2.5 kB a second is taken whole")
def test_slow_bytes(server: Process) -> None:
    """A wire that passes 50 bytes every 20 ms"""
    said = words(2, 2)
    with wire(server.url) as link:
        link.piece, link.delay = 50, 0.02
        with connect(link.url.replace("http", "ws") + STREAM) as stream:
            stream.send(pcm(speak(said)))
            stream.send('{"type": "end"}')
            assert text(rest(stream)) == spelt(said)


@pytest.mark.fault(
    "C24",
    "an upgrade on a connection that served requests",
    "taken; keep-alive deadlines do not end it",
)
def test_an_upgrade_after_requests(server: Process) -> None:
    """Ten requests, then a handshake on the same connection"""
    with closing(dial(server.url)) as connection:
        for _ in range(10):
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while not answer.endswith(b'{"status":"ok"}'):
                answer += connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200")
        connection.sendall(upgrade())
        assert connection.recv(65536).startswith(b"HTTP/1.1 101")
        time.sleep(SHORT["server.connections.HEAD"] + 0.5)
        connection.sendall(frame(CLOSE, b"\x03\xe8"))
        assert until_closed(connection).startswith(b"\x88")
