"""Rows A: recordings and live containers that are broken, that lie, or that want more than to be heard."""

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.drive import speak
from tests.fakes import pcm, tone, wav
from tests.faults import hostile
from tests.faults.process import (
    FILES,
    PATIENCE,
    Process,
    alive,
    rest,
    serving,
    spelt,
    text,
    until,
    words,
)
from tests.faults.raw import dial

SAID = spelt(hostile.SAID)
SOON = {"streaming.audio.media.PATIENCE": 3.0, "streaming.audio.media.BIRTH": 5.0}
"""Deadlines that tests wait for."""
SMALL = 60 * 2**20
"""Bytes by which the server may have grown while it read hundreds of such files."""


@pytest.fixture(scope="module")
def reader() -> Iterator[Process]:
    """A server that takes recordings of two minutes."""
    flags = ("--max-audio-seconds", "120", "--max-upload-mb", "64")
    with serving(*flags, faults=SOON) as process:
        yield process
        process.signal()
        assert process.wait() == 0, process.log


@contextmanager
def posting(server: Process, together: int = 50) -> Iterator[Callable[..., httpx2.Response]]:
    """A function that sends a file and gives the answer."""
    limits = httpx2.Limits(max_connections=together)
    with httpx2.Client(base_url=server.url, timeout=120, limits=limits) as client:

        def post(data: bytes, name: str = "upload") -> httpx2.Response:
            return client.post(FILES, files={"file": (name, data)})

        yield post


def told(answer: httpx2.Response, *statuses: int) -> str:
    """The sentence of a refusal; it names no path, no address in memory and no markup of ours."""
    assert answer.status_code in statuses, (answer.status_code, answer.text)
    error = answer.json()["error"]
    message: str = error["message"]
    assert error["param"] == "file"
    assert len(message) > 20
    assert not re.search(r"0x|/tmp|/proc|Traceback|<", message), message
    return message


def hears(answer: httpx2.Response) -> None:
    assert answer.status_code == 200, answer.text
    assert answer.json()["text"] == SAID


@pytest.mark.quick
@pytest.mark.parametrize(
    "family",
    [
        pytest.param("wrong", marks=pytest.mark.fault("A07", "files that are no recordings", "400, in a sentence")),
        pytest.param("lying", marks=pytest.mark.fault("A04", "headers that lie", "400, or the sound that is there")),
        pytest.param("truncated", marks=pytest.mark.fault("A05", "files that break off", "400, or the sound that is there")),
        pytest.param("mutated", marks=pytest.mark.fault("A06", "files with wrong bytes", "400, or the sound that is there")),
        pytest.param("stress", marks=pytest.mark.fault("A10", "files that make work for nothing", "400, or the sound that is there")),
    ],
)  # fmt: skip
def test_broken_files(reader: Process, family: str) -> None:
    """each is uploaded; after them a good one"""
    files = hostile.FAMILIES[family]()
    with alive(reader), posting(reader) as post:
        before = reader.memory()
        for name, data in files.items():
            answer = post(data)
            assert answer.status_code in (200, 400, 413), (name, answer.text)
            if answer.status_code != 200:
                told(answer, 400, 413)
            else:
                assert family != "wrong", name
        hears(post(hostile.good("wav")))
        assert reader.memory() - before < SMALL


@pytest.mark.fault(
    "A20", "fuzzing: a thousand files with wrong bytes", "400, or the sound that is there"
)
def test_a_thousand_mutations(reader: Process) -> None:
    """from one to 160 bytes of a good file in each of 19 formats are changed, most of them in its head"""
    files = list(hostile.mutated(54).items())
    for at in range(0, len(files), 200):  # an honest stream beside each two hundred
        with alive(reader), posting(reader) as post:
            before = reader.memory()
            for name, data in files[at : at + 200]:
                answer = post(data)
                assert answer.status_code in (200, 400, 413), (name, answer.text)
            hears(post(hostile.good("wav")))
            assert reader.memory() - before < SMALL


@pytest.mark.quick
@pytest.mark.parametrize("kind", [*hostile.LOSSLESS, "flac", "wav", "webm-pcm"])
@pytest.mark.fault("A01", "any container that holds its samples exactly", "200 and every word")
def test_good_files(reader: Process, kind: str) -> None:
    """a spoken sentence in each, without a name"""
    with alive(reader), posting(reader) as post:
        hears(post(hostile.good(kind)))


@pytest.mark.fault(
    "A09", "bombs: minutes to hours in few bytes", "413 at the limit, in little memory"
)
def test_bombs(reader: Process) -> None:
    """an hour of silence as FLAC, at the lowest and the highest rates, chained streams"""
    with alive(reader), posting(reader) as post:
        before = reader.memory()
        for name, data in hostile.bombs().items():
            assert "longer than 120 seconds" in told(post(data), 413), name
        assert reader.memory() - before < SMALL


@pytest.mark.quick
@pytest.mark.fault("A11", "hostile names of uploads", "the same words as without a name")
def test_names(reader: Process) -> None:
    """a good file under 20 names: paths, addresses, patterns, shell, markup, three thousand letters"""
    with alive(reader), posting(reader) as post:
        for name in hostile.NAMES:
            hears(post(hostile.good("wav"), name))


# What files refer to.


@pytest.fixture
def canary() -> Iterator[tuple[str, list[str]]]:
    """An address that gives a recording, and who asked for it."""
    hits: list[str] = []

    class Canary(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hits.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(wav(tone(1.0)))

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Canary)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/a.wav", hits
    server.shutdown()
    server.server_close()
    thread.join()


def ports(server: Process) -> int:
    """Sockets other than its connections that the server or one of its processes has open."""
    found = 0
    for kind in ("udp", "udp6", "raw"):
        found += len(Path(f"/proc/{server.process.pid}/net/{kind}").read_text().splitlines()) - 1
    return found


@pytest.mark.quick
@pytest.mark.fault(
    "A08", "playlists and scripts that name files and addresses", "400; nothing of them is opened"
)
def test_references(reader: Process, canary: tuple[str, list[str]]) -> None:
    """16 formats, each naming a recording beside the server, one by its path and one by its address, in six ways"""
    url, hits = canary
    secret = Path(f"/proc/{reader.process.pid}/cwd").resolve() / "secret.wav"
    secret.write_bytes(wav(tone(1.0)))
    before = ports(reader)
    with alive(reader), posting(reader) as post:
        for number, (name, data) in enumerate(hostile.references(url, str(secret)).items()):
            told(post(data, ("upload", "a.m3u8", "a.mp3", "a.sdp")[number % 4]), 400)
            assert hits == [], name
    assert ports(reader) <= before


@pytest.mark.quick
@pytest.mark.fault(
    "A13",
    "forty descriptions of network streams at once",
    "each 400; a good file beside them is heard",
)
def test_forty_sdp(reader: Process) -> None:
    """40 uploads of an SDP called a.mp3 in parallel, then a good one"""
    before = ports(reader)
    with alive(reader), posting(reader) as post, ThreadPoolExecutor(41) as many:
        bad = [many.submit(post, hostile.SDP, "a.mp3") for _ in range(40)]
        good = many.submit(post, hostile.good("wav"))
        for each in bad:
            told(each.result(60), 400)
        hears(good.result(60))
    assert ports(reader) <= before


# What happens to the processes that decode.


def decoders(server: Process) -> list[int]:
    """Processes that have a recording open."""
    found = []
    for folder in Path("/proc").iterdir():
        with suppress(OSError, ValueError, IndexError):
            pid = int(folder.name)
            if b"streaming.audio.sandbox" not in (folder / "cmdline").read_bytes():
                continue
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            above = int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1])
            if above == server.process.pid and (folder / "fd" / "4").exists():
                found.append(pid)
    return found


class Harm:
    """Does something to the processes that decode for a server, so many times, while the block runs."""

    def __init__(self, server: Process, number: int, times: int) -> None:
        self._server, self._number, self._times = server, number, times
        self._over = threading.Event()
        self.done: set[int] = set()
        self._thread = threading.Thread(target=self._run, name="harm")

    def __enter__(self) -> "Harm":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set() and len(self.done) < self._times:
            for pid in set(decoders(self._server)) - self.done:
                if len(self.done) < self._times:
                    with suppress(ProcessLookupError):
                        os.kill(pid, self._number)
                        self.done.add(pid)


LONG = hostile.words(0, 180)


@pytest.fixture(scope="module")
def long() -> bytes:
    """A recording of some minutes that takes a while to decode: silence at a high rate, then words."""
    import io

    import av
    import numpy as np

    sound = np.repeat(speak([*LONG, 1.0]), 24)  # 384 kHz
    out = io.BytesIO()
    with av.open(out, "w", format="flac") as container:
        stream = container.add_stream("flac", rate=384_000, layout="mono")
        stream.codec_context.options = {"compression_level": "0"}
        for at in range(0, len(sound), 4608):
            piece = (sound[at : at + 4608] * 32767).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(piece, format="s16", layout="mono")
            frame.sample_rate = 384_000
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


@pytest.mark.parametrize(
    ("number", "happens"),
    [
        pytest.param(signal.SIGKILL, "killed", marks=pytest.mark.fault("A17", "the decoding process is killed in mid-file", "another takes its place; every word is there")),
        pytest.param(signal.SIGSTOP, "stopped", marks=pytest.mark.fault("A18", "the decoding process hangs in mid-file", "it is killed after a while, another takes its place; every word is there")),
        pytest.param(signal.SIGSEGV, "crashed", marks=pytest.mark.fault("A23", "the decoding process crashes in mid-file", "another takes its place; every word is there")),
    ],
)  # fmt: skip
def test_a_decoder_dies(reader: Process, long: bytes, number: int, happens: str) -> None:
    """a signal to the process that has the recording open, while it decodes"""
    with alive(reader), posting(reader) as post:
        whole = post(long).json()["text"]
        assert len(whole.split()) > 100
        with Harm(reader, number, 1) as harm:
            answer = post(long)
        assert harm.done, f"nothing was {happens}"
        assert answer.status_code == 200, answer.text
        assert answer.json()["text"] == whole


@pytest.mark.fault(
    "A24", "a file that crashes its decoder again and again", "400; other files are heard meanwhile"
)
def test_a_file_that_crashes(reader: Process, long: bytes) -> None:
    """SIGSEGV to each process that opens it, by its number, while good files are sent"""
    with alive(reader), posting(reader) as post, ThreadPoolExecutor(2) as many:
        with Harm(reader, signal.SIGSEGV, 2) as harm:
            bad = many.submit(post, long)
            until(lambda: bool(harm.done))
            message = told(bad.result(60), 400)
        assert "broke its decoder" in message
        hears(post(hostile.good("wav")))


@pytest.mark.fault(
    "A25",
    "the program that starts decoders is killed, and hangs",
    "it is started again; every file is heard",
)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_program_dies(reader: Process, number: int) -> None:
    """a signal to the server's child that forks the decoding processes"""
    with alive(reader), posting(reader) as post:
        hears(post(hostile.good("wav")))
        children = Path(f"/proc/{reader.process.pid}/task/{reader.process.pid}/children")
        listed = set()
        for task in children.parents[1].iterdir():
            listed |= set(map(int, (task / "children").read_text().split()))
        programs = [
            pid for pid in listed
            if b"streaming.audio.sandbox" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]  # fmt: skip
        assert programs
        for pid in programs:
            os.kill(pid, number)
        for _ in range(3):
            hears(post(hostile.good("flac")))


# Clients and disks.


@pytest.mark.fault(
    "A21",
    "clients that leave while they upload, and while their file is decoded",
    "the work is dropped, nothing is left",
)
def test_clients_that_leave(reader: Process, long: bytes) -> None:
    """60 connections closed at some moment between the first byte and the answer"""
    head = (
        f"POST {FILES} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        "Content-Length: {}\r\n\r\n"
    )
    body = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        + long
        + b"\r\n--b--\r\n"
    )
    with alive(reader):
        for turn in range(60):
            with dial(reader.url) as there:
                part = body[: len(body) * (turn % 6 + 1) // 6]
                there.sendall(head.format(len(body)).encode() + part)
                if turn % 3:
                    time.sleep(0.01 * (turn % 5))
                there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        until(lambda: reader.working() <= 1)  # the honest stream
        until(lambda: not decoders(reader))
    held = [os.readlink(each) for each in Path(f"/proc/{reader.process.pid}/fd").iterdir()]
    assert not [each for each in held if "deleted" in each], held


@pytest.mark.quick
@pytest.mark.fault(
    "A19", "the folder for uploads is full", "507, in a sentence; small files are heard"
)
def test_a_full_disk() -> None:
    """the server may write files of 1 MB at most; 3 MB are sent"""
    with serving(before=("prlimit", "--fsize=1000000")) as server:
        with alive(server), posting(server) as post:
            answer = post(hostile.riff(bytes(3_000_000)))
            assert answer.status_code == 507, answer.text
            assert "no room" in answer.json()["error"]["message"]
            hears(post(hostile.good("wav")))
        held = [os.readlink(each) for each in Path(f"/proc/{server.process.pid}/fd").iterdir()]
        assert not [each for each in held if "deleted" in each], held


@pytest.mark.fault("A16", "a hundred uploads at once", "each 200 or 503 with Retry-After")
def test_a_hundred_uploads(reader: Process) -> None:
    """100 clients send half a megabyte each at the same time"""
    data = wav(speak([0.3, *hostile.SAID, 0.7, 10.0]))
    with alive(reader), posting(reader, together=100) as post, ThreadPoolExecutor(100) as many:
        before = reader.memory()
        answers = list(many.map(post, [data] * 100))
        for answer in answers:
            if answer.status_code == 503:
                assert int(answer.headers["retry-after"]) >= 1
            else:
                hears(answer)
        assert sum(answer.status_code == 200 for answer in answers) >= 30
        assert reader.memory() - before < 4 * SMALL


@pytest.mark.fault("A22", "the same file two hundred times", "memory stays where it was")
def test_the_same_file_again(reader: Process) -> None:
    """uploaded one after another, after twenty that do not count"""
    data = hostile.good("flac")
    with alive(reader), posting(reader) as post:
        for _ in range(20):
            hears(post(data))
        before = reader.memory()
        for _ in range(200):
            hears(post(data))
        assert reader.memory() - before < 8 * 2**20


# Live containers.


def streamed(server: Process, data: bytes) -> list[dict[str, object]]:
    """What the server says to a stream of a container, to the close."""
    with connect(
        server.socket_url + "?encoding=container&partials=false", open_timeout=PATIENCE
    ) as there:
        with suppress(Exception):
            for at in range(0, len(data), 4000):
                there.send(data[at : at + 4000])
            there.send('{"type": "end"}')
        return rest(there)


@pytest.mark.quick
@pytest.mark.parametrize(
    "family",
    [
        pytest.param("wrong", marks=pytest.mark.fault("A27", "live streams that are no containers", "an error, then the close")),
        pytest.param("lying", marks=pytest.mark.fault("A28", "live containers that lie", "an error, or the sound that is there")),
        pytest.param("mutated", marks=pytest.mark.fault("A29", "live containers with wrong bytes", "an error, or the sound that is there")),
    ],
)  # fmt: skip
def test_broken_streams(server: Process, family: str) -> None:
    """each is sent to the WebSocket as a container; after them a good one"""
    for name, data in hostile.FAMILIES[family]().items():
        found = streamed(server, data)
        assert found[0]["type"] == "ready", name
        assert found[-1]["type"] in ("end", "error"), (name, found[-1])
        for each in found:
            assert each.get("code") != "internal_error", (name, each)
    assert text(streamed(server, hostile.good("webm-pcm"))) == SAID


@pytest.mark.quick
@pytest.mark.fault(
    "A30",
    "the process that decodes a live container is killed",
    "that stream gets an error and what it had said; others go on",
)
def test_a_live_decoder_dies(server: Process) -> None:
    """SIGKILL to it after half of the sound, by its number"""
    data = hostile.contained(speak([0.3, *words(5, 4), 1.0, *words(9, 4), 1.0]), "webm-pcm")
    with connect(
        server.socket_url + "?encoding=container&partials=false", open_timeout=PATIENCE
    ) as there:
        there.send(data[: len(data) // 2 + 4000])
        heard = ""
        while spelt(words(5, 4)) not in heard:
            message = there.recv(timeout=PATIENCE)
            heard += str(message)
        ours = children(server)
        assert ours
        for pid in ours:  # with it the one that waits for the next recording
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ConnectionClosed):  # it may be told before it has said all
            there.send(data[len(data) // 2 + 4000 :])
            there.send('{"type": "end"}')
        found = rest(there)
    assert any("broke its decoder" in str(each.get("message")) for each in found), found
    assert text(streamed(server, hostile.good("webm-pcm"))) == SAID


def children(server: Process) -> list[int]:
    """Processes that decode for it, or wait to."""
    found = []
    for folder in Path("/proc").iterdir():
        with suppress(OSError, ValueError, IndexError):
            if b"streaming.audio.sandbox" in (folder / "cmdline").read_bytes():
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                above = int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1])
                if above == server.process.pid:
                    found.append(int(folder.name))
    return found


def test_silence_has_no_words(reader: Process) -> None:
    with posting(reader) as post:
        assert post(wav(tone(2.0, level=0.0))).json()["text"] == ""
        assert post(hostile.riff(pcm(tone(0.01)))).status_code == 400
