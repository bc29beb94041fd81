"""Rows B: what comes over HTTP."""

import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import httpx2
import pytest
import trustme

from tests.drive import speak
from tests.fakes import wav
from tests.faults.conftest import SHORT
from tests.faults.process import FILES, STREAM, Process, alive, serving, spelt, until
from tests.faults.raw import ask, dial, until_closed, upgrade

SAID: list[int | float] = [1, 2, 3, 0.6, 4, 5]
RECORDING = wav(speak(SAID))
OPEN = f"POST {FILES} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n".encode()
PART = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'


def status(answer: bytes) -> int:
    """Of the first answer; one without is a failure."""
    assert answer.startswith(b"HTTP/1.1 "), answer
    return int(answer.split()[1])


def envelope(answer: bytes, *statuses: int) -> dict[str, object]:
    """The error in an answer that is one of `statuses`."""
    _, _, body = answer.partition(b"\r\n\r\n")
    assert status(answer) in statuses, answer
    found: dict[str, object] = json.loads(body)["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


def upload(server: Process, data: bytes = RECORDING) -> httpx2.Response:
    return server.post(FILES, files={"file": ("a.wav", data)})


def heard(server: Process) -> None:
    """An honest recording is."""
    answer = upload(server)
    assert answer.status_code == 200, answer.text
    assert answer.json()["text"] == spelt(SAID)


# Time


@pytest.mark.fault(
    "B01", "500 heads that never end", "each is closed at the deadline; others are served meanwhile"
)
def test_heads_that_never_end(server: Process) -> None:
    """500 connections send a line of a head, then nothing"""
    waiting = [dial(server.url) for _ in range(500)]
    for each in waiting:
        each.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n")
    heard(server)
    for each in waiting:
        with closing(each):
            assert until_closed(each) == b""


@pytest.mark.fault(
    "B02", "bodies that drip or stop", "408 once the patience is over; nothing stays on disk"
)
@pytest.mark.parametrize("dripping", [False, True], ids=["stops", "drips"])
def test_bodies_that_drip_or_stop(server: Process, dripping: bool) -> None:
    """50 uploads send a byte every now and then, or none after the head"""
    with ExitStack() as stack:
        slow = [stack.enter_context(closing(dial(server.url))) for _ in range(50)]
        over = threading.Event()
        for each in slow:
            each.sendall(OPEN + b"Content-Length: 100000\r\n\r\n" + PART)

        def drip() -> None:
            while not over.wait(0.2):
                for each in slow:
                    with suppress(OSError):
                        each.sendall(b".")

        thread = threading.Thread(target=drip)
        if dripping:
            thread.start()
        heard(server)
        try:
            for each in slow:
                assert status(each.recv(65536)) == 408
        finally:
            over.set()
            if dripping:
                thread.join()
    until(lambda: not server.uploads())


@pytest.mark.fault("B16", "a large answer that nobody reads", "the connection is cut")
def test_an_answer_that_nobody_reads(server: Process) -> None:
    """20 clients with small buffers ask for 20 files of 1.4 MB and read nothing"""
    deaf = []
    for _ in range(20):
        each = dial(server.url, receive=4096)
        each.sendall(b"GET /docs/assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
        deaf.append(each)
    until(lambda: server.log.count("a peer reads nothing") >= 20)
    for each in deaf:
        each.close()


# Size


@pytest.mark.fault("B03", "heads without end", "431 and the end after 64 KiB at most")
@pytest.mark.parametrize(
    "line",
    [b"a: b\r\n", b"x" * 1000, b"x: " + b"y" * 8000 + b"\r\n"],
    ids=["lines", "one line", "long lines"],
)
def test_heads_without_end(server: Process, line: bytes) -> None:
    """As many header lines, or as long a one, as the server takes, up to 200 MB"""
    with closing(dial(server.url)) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n")
        sent = 0
        with suppress(OSError):
            while sent < 200e6:
                sent += connection.send(line * 100)
        assert sent < 10e6
        answer = until_closed(connection)
    assert not answer or envelope(answer, 431)


@pytest.mark.fault(
    "B04",
    "a body without end",
    "413 soon after the limit; the rest is thrown away until the deadline",
)
@pytest.mark.parametrize("reads", [True, False], ids=["reads", "reads not"])
def test_a_body_without_end(server: Process, reads: bool) -> None:
    """A chunked upload that goes on for as long as the server reads, up to 10 GB"""
    with closing(dial(server.url)) as connection:
        connection.sendall(OPEN + b"Transfer-Encoding: chunked\r\n\r\n")
        piece = b"%x\r\n" % (len(PART) + 2**20) + PART + bytes(2**20) + b"\r\n"
        answer = b""
        with suppress(OSError):
            for _ in range(10_000):
                connection.sendall(piece)
                piece = b"100000\r\n" + bytes(2**20) + b"\r\n"
                connection.setblocking(False)
                if reads:
                    with suppress(BlockingIOError):
                        answer += connection.recv(65536)
                connection.settimeout(20)
                if answer:
                    break
            else:
                pytest.fail("10 GB were taken")
        assert not reads or envelope(answer, 413)
    until(lambda: not server.uploads())


@pytest.mark.quick
@pytest.mark.fault(
    "B05", "a Content-Length that cannot be", "400 in the envelope, connection closed"
)
@pytest.mark.parametrize(
    "length",
    ["-5", "1" + "0" * 22, "5, 6", "0x10", "five", "5\r\nContent-Length: 6", "+5", "5 5", "5e1"],
)
def test_a_length_that_cannot_be(server: Process, length: str) -> None:
    """POST with a Content-Length that is negative, too long, doubled or no number"""
    said = f"POST {FILES} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\nConnection: close\r\n\r\nhello"
    envelope(ask(server.url, said.encode()), 400, 413)


@pytest.mark.fault(
    "B17", "a Content-Length that lies", "an error, no text of half a recording, nothing on disk"
)
@pytest.mark.parametrize("more", [-100, 100], ids=["too short", "too long"])
def test_a_length_that_lies(server: Process, more: int) -> None:
    """An upload whose body is longer or shorter than announced, and then the end of the connection"""
    body = PART + RECORDING + b"\r\n--x--\r\n"
    with closing(dial(server.url)) as connection:
        connection.sendall(OPEN + b"Content-Length: %d\r\n\r\n" % (len(body) + more) + body)
        connection.shutdown(socket.SHUT_WR)
        answer = until_closed(connection)
    assert not answer or status(answer) in (200, 400), answer
    assert b'"text"' not in answer or spelt(SAID).encode() in answer
    until(lambda: not server.uploads())


def parts(*said: bytes) -> bytes:
    return b"".join(b"--x\r\n" + each + b"\r\n" for each in said) + b"--x--\r\n"


FIELD = b'Content-Disposition: form-data; name="f%d"\r\n\r\nv'
HEADS = b"".join(b"X-%d: y\r\n" % number for number in range(9))
SOUND = b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + RECORDING


@pytest.mark.fault("B06", "multipart bodies beyond every limit", "400 that says what is wrong")
@pytest.mark.parametrize(
    ("boundary", "body"),
    [
        ("x", parts(*[FIELD % at for at in range(1001)])),
        ("x", parts(*[b'Content-Disposition: form-data; name="f"; filename="a"\r\n\r\nv'] * 1001)),
        ("x", parts(HEADS + FIELD % 1)),
        ("x", parts(b"X: " + b"y" * 5000 + b"\r\n" + FIELD % 1)),
        ("y" * 80, parts(SOUND)),
        ("", parts(SOUND)),
        (None, parts(SOUND)),
        ("x", b"--x\r\nContent-Dispo"),
        ("x", b""),
        ("x", b"no multipart at all"),
        ("x", parts(b"\r\nno disposition")),
        ("x", parts(b"Content-Disposition: form-data\r\n\r\nno name")),
        ("x", parts(b'Content-Disposition: form-data; name="file"\r\n\r\ntext')),
        ("x", parts(b'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\n')),
        ("x", parts(b'Content-Disposition: form-data; name="\xff\xfe"\r\n\r\n\xff')),
        ("x", parts(SOUND, b'Content-Disposition: form-data; name="language"\r\n\r\n' + b"x" * 2**20)),
    ],
    ids=[
        "1001 fields", "1001 files", "9 headers", "a header of 5 kB", "a boundary of 80", "an empty boundary",
        "no boundary", "cut in a header", "empty", "no multipart", "no disposition", "no name", "file as a field",
        "empty file", "no UTF-8", "a language of 1 MB",
    ],
)  # fmt: skip
def test_multipart_beyond_every_limit(server: Process, boundary: str | None, body: bytes) -> None:
    """A form with too many or too long parts, heads, names; without a boundary, a name, a file"""
    kind = "multipart/form-data" + ("" if boundary is None else f"; boundary={boundary}")
    answer = server.post(FILES, content=body, headers={"content-type": kind})
    assert answer.status_code == 400, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert len(answer.text) < 2000


# Shape


@pytest.mark.fault("B11", "paths and methods that lead nowhere", "404, 405 or 426 in the envelope")
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/nowhere"), ("GET", "//"), ("GET", "/v1/models/"), ("GET", "/%2e%2e/%2e%2e/etc/passwd"),
        ("GET", "/assets/%2e%2e/index.html"), ("GET", "/assets/..%2f..%2fserver/app.py"), ("GET", "/client/../server"),
        ("GET", "/%00"), ("GET", "/assets/%00"), ("GET", "/assets/" + "a" * 5000), ("GET", "/assets"), ("GET", "/\\..\\"), ("GET", "/%ff%fe"),
        ("GET", "/v1/models/..%2f..%2fetc"), ("GET", "/v1/models/" + "m" * 3000), ("DELETE", "/v1/models"), ("POST", "/health"),
        ("TRACE", "/"), ("PROPFIND", "/"), ("OPTIONS", "/v1/models"), ("PUT", FILES), ("BREW", FILES), ("GET", STREAM),
        ("POST", STREAM), ("GET", "http://elsewhere/health/x"), ("HEAD", "/nowhere"),
    ],
)  # fmt: skip
def test_paths_and_methods_that_lead_nowhere(server: Process, method: str, path: str) -> None:
    """Requests as they are written, without a library that would mend them"""
    said = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = ask(server.url, said.encode())
    if method == "HEAD":
        assert status(answer) == 404
        return
    assert b"root:" not in answer
    found = envelope(answer, 404, 405, 426)
    assert len(str(found["message"])) < 600


@pytest.mark.quick
@pytest.mark.fault(
    "B12",
    "requests that a proxy might read otherwise",
    "400 and the end of the connection: what follows is never taken for a request",
)
@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Transfer-Encoding: identity, chunked\r\n", b"Transfer-Encoding: chunked, chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: xchunked\r\n", b"Transfer-Encoding : chunked\r\n", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n", b"Content-Length : 5\r\n", b"X\x00: y\r\n", b"X: a\x00b\r\n",
        b"X: a\rb\r\n", b"Host: y\r\n", b": empty\r\n", b"X\r\n", b"X y: z\r\n",
    ],
)  # fmt: skip
def test_requests_that_a_proxy_might_read_otherwise(server: Process, head: bytes) -> None:
    """Both lengths at once, doubled or odd codings, blanks and NULs in names; then a second request in the same bytes"""
    said = b"POST /v1/realtime/client_secrets HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n0\r\n\r\n"
    answer = ask(server.url, said + b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    envelope(
        answer[: answer.find(b"HTTP/1.1", 1)] if answer.count(b"HTTP/1.1") > 1 else answer, 400, 501
    )
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.fault("B19", "what is no HTTP/1.1", "400 in the envelope, or a plain close")
@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"SSH-2.0-OpenSSH_9\r\n", b"\x00" * 100, b"\r\n" * 50 + b"x\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", b"GET /\r\n\r\n", b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n", b"GET / HTTP/1.1\nHost\n\n", "GET /ä HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
        b"GET / HTTP/1.1\r\n\r\n", b"G\x00T / HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_no_http(server: Process, said: bytes) -> None:
    """TLS, HTTP/2, SSH, zeros, wrong versions, missing blanks"""
    with closing(dial(server.url)) as connection:
        connection.sendall(said)
        connection.shutdown(socket.SHUT_WR)
        answer = until_closed(connection)
    assert not answer or envelope(answer, 400, 404, 505)


@pytest.mark.fault("B18", "pipelined requests", "each is answered, in order")
def test_pipelined_requests(server: Process) -> None:
    """200 requests in one write; the last closes"""
    paths = [random.Random(at).choice(["/livez", "/nowhere", "/v1/models"]) for at in range(200)]
    said = "".join(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n" for path in paths)
    said += "GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = ask(server.url, said.encode())
    found = [int(each[:3]) for each in answer.split(b"HTTP/1.1 ")[1:]]
    assert found == [404 if path == "/nowhere" else 200 for path in paths] + [200]


@pytest.mark.fault(
    "B13", "2000 requests on one connection, 500 connections with one", "no descriptor is left over"
)
def test_many_requests(server: Process) -> None:
    """A client that keeps its connection, and one that never does"""
    with httpx2.Client(base_url=server.url, timeout=20, verify=False) as client:
        assert {client.get("/livez").status_code for _ in range(2000)} == {200}
    for _ in range(500):
        assert (
            status(ask(server.url, b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
            == 200
        )


@pytest.mark.fault(
    "B14",
    "Range and conditions, sensible or not",
    "200 with all of it, or 304; never a plain-text error",
)
@pytest.mark.parametrize(
    "head",
    [
        "Range: bytes=0-4", "Range: bytes=zz", "Range: bytes=5-1", "Range: bytes=999999999-", "Range: lines=1-2", "Range: bytes=" + "0-1," * 2000 + "0-1",
        "If-None-Match: *", 'If-None-Match: "x", W/"y"', "If-Modified-Since: yesterday", "If-Modified-Since: Wed, 01 Jan 2099 00:00:00 GMT", "If-Match: x", "If-Range: x",
        "Accept: \x01", "Accept-Encoding: " + "gzip," * 1000, "Accept-Language: " + "x" * 4000, "Cookie: " + "a=b; " * 800,
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/", "/assets/page.css", "/docs/assets/swagger-ui.css"])
def test_ranges_and_conditions(server: Process, path: str, head: str) -> None:
    """GET of a page and its files with heads that ask for parts of them, well or badly formed"""
    said = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{head}\r\n\r\n"
    answer = ask(server.url, said.encode())
    if status(answer) == 400:
        envelope(answer, 400)
    else:
        assert status(answer) in (200, 304)


@pytest.mark.fault(
    "B20",
    "Expect: 100-continue",
    "100 when the body is wanted, and the text; 413 without it when the length says so",
)
def test_expectations(server: Process) -> None:
    """An upload that waits for permission, of good size and of 1 GB"""
    body = PART + RECORDING + b"\r\n--x--\r\n"
    with closing(dial(server.url)) as polite:
        polite.sendall(
            OPEN
            + b"Expect: 100-continue\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        assert polite.recv(65536).startswith(b"HTTP/1.1 100")
        polite.sendall(body)
        assert spelt(SAID).encode() in until_closed(polite)
    with closing(dial(server.url)) as greedy:
        greedy.sendall(
            OPEN
            + b"Expect: 100-continue\r\nConnection: close\r\nContent-Length: 1000000000\r\n\r\n"
        )
        envelope(until_closed(greedy), 413)


@pytest.mark.fault(
    "B15", "JSON that is deep, huge, doubled or no JSON", "200, 400 or 413, never 500"
)
@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000, b'{"a":' * 50_000 + b"1" + b"}" * 50_000, b'{"session":' + b"[" * 500 + b"]" * 500 + b"}", b"NaN", b'{"expires_after": {"seconds": 1e999}}',
        b'{"expires_after": {"seconds": NaN}}', b'{"expires_after": {"seconds": ' + b"9" * 5000 + b"}}", b'{"session": 1, "session": {}}', b'{"session": {"type": "\\ud800"}}',
        b'"\xff"', b"\xef\xbb\xbf{}", b"null", b"true", b"[]", b"{", b"{}x", b'{"session": null}', b"\x00", b" " * 100_000, b'{"' + b"k" * 1_000_000 + b'": 1}',
        b'{"session": {"audio": {"input": {"transcription": {"model": "' + b"m" * 100_000 + b'"}}}}}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["client_secrets", "transcription_sessions"])
def test_json_of_all_kinds(server: Process, path: str, body: bytes) -> None:
    """100 000 brackets, numbers without end, half characters, 1 MB of key"""
    answer = server.post(f"/v1/realtime/{path}", content=body)
    assert answer.status_code in (200, 400, 404, 413), answer.text
    assert "Traceback" not in answer.text
    assert answer.status_code == 200 or len(answer.text) < 2000


# Handshakes


LINES = "\r\n".join(f"X-{number}: y" for number in range(130))


@pytest.mark.quick
@pytest.mark.fault(
    "B08", "handshakes that poison a plain server", "431 or 400 at once; a later stop is clean"
)
@pytest.mark.parametrize(
    "more",
    [
        "Cookie: " + "c" * 9000,
        LINES,
        "Content-Length: 5",
        "Sec-WebSocket-Protocol: open-speech-key." + "k" * 9000,
    ],
)
def test_handshakes_that_poison(server: Process, more: str) -> None:
    """A cookie or key of 9 kB, 130 headers, a body"""
    envelope(ask(server.url, upgrade(STREAM, more) + b"hello"), 400, 431)


def changed(old: str, new: str) -> bytes:
    said = upgrade().decode()
    assert old in said
    return said.replace(old, new).encode("latin-1")


@pytest.mark.quick
@pytest.mark.fault("B09", "odd handshakes", "4xx that says why, or 101; never silence")
@pytest.mark.parametrize(
    "said",
    [
        changed("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 8"), changed("Sec-WebSocket-Version: 13", "X: y"), changed("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 13, 8"),
        changed("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: x"), changed("dGhlIHNhbXBsZSBub25jZQ==", "short"), changed("dGhlIHNhbXBsZSBub25jZQ==", "*" * 24), changed("dGhlIHNhbXBsZSBub25jZQ==", ""),
        changed("Sec-WebSocket-Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Key"), changed("GET", "POST"), changed("GET", "HEAD"), changed("HTTP/1.1", "HTTP/1.0"),
        changed("Host: 127.0.0.1\r\n", ""), changed("Host: 127.0.0.1", "Host: a\r\nHost: b"), changed("Connection: Upgrade", "Connection: close"), changed("Connection: Upgrade", "Connection: keep-alive, upgrade"),
        changed("Upgrade: websocket", "Upgrade: h2c"), changed("Upgrade: websocket", "Upgrade: websocket, h2c"), changed("Upgrade: websocket", "Upgrade: WebSocket"), changed("Upgrade: websocket\r\n", ""),
        upgrade("/nowhere"), upgrade("/livez"), upgrade("/v1/models"), upgrade("/%00"), upgrade("/" + "p" * 7000), upgrade(STREAM + "/"), upgrade(STREAM + "?" + "a" * 7000),
        upgrade(STREAM + "?%ff=%fe"), changed("GET /", "GET /\xe4"), upgrade(STREAM, "Sec-WebSocket-Protocol: \xe4"), upgrade(STREAM, "Sec-WebSocket-Protocol: a b c"), upgrade(STREAM, "Sec-WebSocket-Protocol: ,,,"),
        upgrade(STREAM, "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits=99"), upgrade(STREAM, "Sec-WebSocket-Extensions: ;;;"), upgrade(STREAM, "Origin: null"), upgrade(STREAM, "Origin: http://127.0.0.1.evil"),
    ],
)  # fmt: skip
def test_odd_handshakes(server: Process, said: bytes) -> None:
    """Wrong keys, versions, methods, hosts, paths, subprotocols and extensions, byte by byte"""
    with closing(dial(server.url)) as connection:
        connection.sendall(said)
        first = connection.recv(65536)
        code = status(first)
        assert code in (101, 200, 400, 403, 404, 405, 414, 426), first
        if code == 101:
            assert b"permessage-deflate" not in first


# Number


@pytest.mark.fault(
    "B21",
    "connections that say nothing, far beyond the limit",
    "the oldest silent one makes room; probes and streams go on",
)
def test_connections_that_say_nothing() -> None:
    """1000 silent connections to a server that takes 100"""
    with serving("--max-connections", "100") as server, alive(server), ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(closing(dial(server.url)))
        assert server.descriptors() < 300
        heard(server)


@pytest.mark.fault(
    "B22",
    "more requests at work than connections",
    "503 with Retry-After, at once; then the server takes work again",
)
def test_more_requests_than_connections() -> None:
    """60 uploads that have begun, to a server that takes 40 connections"""
    with serving("--max-connections", "40") as server, alive(server):
        with ExitStack() as stack:
            answers = []
            for _ in range(60):
                each = stack.enter_context(closing(dial(server.url)))
                with suppress(OSError):
                    each.sendall(OPEN + b"Content-Length: 100000\r\n\r\n" + PART)
                answers.append(each)
            refused = 0
            for each in answers:
                each.settimeout(0.2)
                with suppress(TimeoutError, ConnectionError):
                    data = each.recv(65536)
                    if data:
                        assert b"retry-after: 5" in data
                        envelope(data, 503)
                        refused += 1
            assert refused >= 15
        until(lambda: server.working() <= 1)
        heard(server)


@pytest.mark.fault(
    "B23", "60 uploads that stand still", "health, streams and other uploads do not notice"
)
def test_uploads_that_stand_still(server: Process) -> None:
    """60 uploads send half a file and wait"""
    with ExitStack() as stack:
        for _ in range(60):
            each = stack.enter_context(closing(dial(server.url)))
            each.sendall(OPEN + b"Content-Length: 1000000\r\n\r\n" + PART + bytes(50_000))
        heard(server)
    until(lambda: not server.uploads())


@pytest.mark.fault(
    "B24", "200 uploads whose client leaves, at any byte", "nothing at work, nothing on disk"
)
def test_uploads_whose_client_leaves(server: Process) -> None:
    """The connection ends after a random part of the body, by FIN or RST"""
    chance = random.Random(24)
    body = (
        OPEN
        + b"Content-Length: %d\r\n\r\n" % (len(PART + RECORDING) + 9)
        + PART
        + RECORDING
        + b"\r\n--x--\r\n"
    )
    for turn in range(200):
        connection = dial(server.url)
        connection.sendall(body[: chance.randrange(len(body))])
        if turn % 2:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()
    heard(server)
    until(lambda: not server.uploads())


@pytest.fixture
def certified(tmp_path: Path) -> tuple[str, ...]:
    authority = trustme.CA()
    made = authority.issue_cert("127.0.0.1")
    made.private_key_pem.write_to_path(tmp_path / "key.pem")
    made.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    return ("--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem"))


@pytest.fixture
def secure(certified: tuple[str, ...]) -> Iterator[Process]:
    with serving(*certified, ready=False) as server:
        until(lambda: bool(server.url))
        yield server


@pytest.mark.fault(
    "B25", "a TLS port that hears anything but TLS", "closed; HTTPS goes on, no traceback"
)
def test_a_tls_port_that_hears_anything_else(secure: Process) -> None:
    """Plain HTTP, garbage, half a hello, hang-ups in mid-handshake"""
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
    for said in (
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x00" * 500,
        hello,
        hello + bytes(500),
        b"",
    ):
        for _ in range(10):
            with closing(dial(secure.url.replace("https", "http"))) as connection:
                connection.sendall(said)
    with httpx2.Client(verify=False, timeout=20) as client:
        assert client.get(secure.url + "/livez").status_code == 200
    assert "Traceback" not in secure.log
    secure.signal()
    assert secure.wait() == 0


@pytest.mark.quick
@pytest.mark.fault(
    "B26",
    "connections to a TLS port that never begin its handshake, far beyond the limit",
    "the oldest makes room, each is closed at the deadline; HTTPS goes on, a stop is clean",
)
def test_connections_that_never_greet(certified: tuple[str, ...]) -> None:
    """1000 silent connections to a server that takes 100"""
    limit = ("--max-connections", "100")
    with serving(*limit, *certified, ready=False, faults=SHORT) as server:
        until(lambda: bool(server.url))
        plain = server.url.replace("https", "http")
        with ExitStack() as stack:
            silent = [stack.enter_context(closing(dial(plain))) for _ in range(1000)]
            for _ in range(3):
                assert server.get("/livez").status_code == 200
            assert server.descriptors() < 300
            assert until_closed(silent[0]) == b""
            began = time.monotonic()
            assert until_closed(silent[-1]) == b""
            assert time.monotonic() - began < 10
            stack.enter_context(closing(dial(plain)))
            assert server.get("/livez").status_code == 200
            server.signal()
            assert server.wait() == 0
        assert "Traceback" not in server.log
