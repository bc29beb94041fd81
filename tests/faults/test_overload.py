"""Rows L: more work than the machine can do, and senders that do not wait. Latency may suffer, refusals are quick and
tell when to come again; words of those who were taken are not lost."""

from __future__ import annotations

import base64
import json
import math
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from streaming.types import RATE
from tests.drive import speak
from tests.fakes import pcm, wav
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
from tests.faults.raw import dial, until_closed

SENTENCE: list[int | float] = [*words(5, 4), 0.6]


def opened(server: Process, query: str = "?partials=false") -> ClientConnection:
    return connect(server.socket_url + query, open_timeout=PATIENCE, max_size=None)


def first(connection: ClientConnection) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(connection.recv(timeout=PATIENCE))
    return found


def post(server: Process, audio: bytes, **form: str) -> httpx2.Response:
    return server.post(FILES, files={"file": ("a.wav", audio)}, data={"language": "en"} | form)


def hinted(answer: httpx2.Response) -> int:
    """The seconds of a refusal; everything about it is as clients expect."""
    assert answer.status_code == 503, answer.text
    assert answer.json()["error"]["code"] == "overloaded"
    assert answer.headers.get("x-should-retry") != "false"
    return int(answer.headers["retry-after"])


@pytest.mark.fault(
    "L01",
    "twice as many streams as the machine can serve, all at once",
    "those taken keep every word; the others get `error` with `retry_after` and 1013 before they send audio",
)
def test_twice_the_streams() -> None:
    """a recogniser of 0.3 s a window and one worker; 24 clients connect together and speak 12 s each"""
    said: list[int | float] = [0.3, *(SENTENCE * 5)]
    audio = pcm(speak(said))
    piece = len(audio) // 40

    def client(number: int) -> tuple[list[dict[str, Any]], int | None]:
        with opened(server, "?language=en") as connection:
            beginning = first(connection)
            if beginning["type"] == "ready":
                for at in range(0, len(audio), piece):
                    connection.send(audio[at : at + piece])
                    pacing.wait(0.3)
                connection.send('{"type": "end"}')
            messages = [beginning, *rest(connection)]
            return messages, connection.close_code

    pacing = threading.Event()  # never set: it is only waited for, to speak at the speed of speech
    with serving("--workers", "1", cost=0.3) as server:
        # What a window costs is known from those who were there before.
        for _ in range(3):
            with opened(server) as connection:
                connection.send(pcm(speak(said)))
                connection.send('{"type": "end"}')
                assert text(rest(connection)) == spelt(said)
        with ThreadPoolExecutor(24) as clients:
            found = list(clients.map(client, range(24)))
    taken = [messages for messages, _ in found if messages[0]["type"] == "ready"]
    refused = [(messages, code) for messages, code in found if messages[0]["type"] != "ready"]
    assert len(taken) >= 3
    assert refused
    for messages in taken:
        assert text(messages) == spelt(said)
        assert messages[-1]["type"] == "end"
    for messages, code in refused:
        assert [each["type"] for each in messages] == ["error"]
        assert messages[0]["code"] == "overloaded"
        assert messages[0]["retry_after"] >= 1.0
        assert code == 1013


@pytest.mark.quick
@pytest.mark.fault(
    "L02",
    "a stream beyond the limit of streams, by the native socket and by OpenAI's",
    "`error` with `retry_after`, then 1013; the others go on, and the next is taken when one has gone",
)
def test_too_many_streams() -> None:
    """`--max-streams 2`, and a third client of each dialect"""
    with serving("--max-streams", "2") as server, ExitStack() as stack:
        held = [stack.enter_context(opened(server)) for _ in range(2)]
        assert [first(each)["type"] for each in held] == ["ready", "ready"]
        with opened(server) as native:
            messages = rest(native)
            assert [each["code"] for each in messages] == ["overloaded"]
            assert messages[0]["retry_after"] >= 1.0
            assert native.close_code == 1013
        url = server.url.replace("http", "ws", 1) + "/v1/realtime?intent=transcription"
        with connect(url, open_timeout=PATIENCE) as realtime:
            realtime.send(json.dumps({"type": "input_audio_buffer.append", "audio": "AAAA" * 2000}))
            errors = [each for each in rest(realtime) if each["type"] == "error"]
            assert [each["error"]["code"] for each in errors] == ["overloaded"]
            assert errors[0]["error"]["retry_after"] >= 1.0
            assert realtime.close_code == 1013
        for each in held:
            each.send(pcm(speak(SENTENCE)))
            each.send('{"type": "end"}')
            assert text(rest(each)) == spelt(SENTENCE)
        until(lambda: server.working() == 0)
        with opened(server) as next_one:
            assert first(next_one)["type"] == "ready"


@pytest.mark.quick
@pytest.mark.fault(
    "L03",
    "an upload while as many recordings are at work as may be",
    "503 with `Retry-After` before a byte of its body was read; afterwards it is taken",
)
def test_no_room_for_a_recording() -> None:
    """`--max-requests 1`; the second request announces 500 MB and sends none of them"""
    long = wav(speak([*(SENTENCE * 8)]))
    with serving("--max-requests", "1", "--workers", "1", cost=0.2) as server:
        with ThreadPoolExecutor(1) as clients:
            answer = clients.submit(post, server, long)
            until(lambda: server.open() > 0)
            with closing(dial(server.url)) as connection:
                host = urlsplit(server.url).netloc
                connection.sendall(
                    f"POST {FILES} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 500000000\r\n"
                    "Content-Type: multipart/form-data; boundary=b\r\n\r\n".encode()
                )
                said = until_closed(connection).lower()
                assert said.startswith(b"http/1.1 503")
                assert b"\r\nretry-after: " in said
            assert answer.result(3 * PATIENCE).json()["text"] == spelt(SENTENCE * 8)
        assert post(server, wav(speak(SENTENCE))).status_code == 200


@pytest.mark.quick
@pytest.mark.fault(
    "L04",
    "uploads that would fill the disk together",
    "503 with `Retry-After` for what does not fit; it fits once another is done",
)
@pytest.mark.parametrize("announced", [True, False])
def test_uploads_that_fill_the_disk(announced: bool) -> None:
    """2 MiB for all bodies; one of 1.5 MiB stops shortly before its end, another of 1 MiB comes, with and without a length"""
    head = (
        b"--b\r\nContent-Disposition: form-data; name=file; filename=a.wav\r\n\r\n"
        + wav(np.zeros(RATE * 46, np.float32))[: 11 * 2**17]
    )
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    audio = wav(np.zeros(RATE * 32, np.float32))  # 1 MiB
    body += audio + b"\r\n--b--\r\n"
    kind = {"content-type": "multipart/form-data; boundary=b"}
    flags = ("--max-uploads-mb", "2", "--max-upload-mb", "2")
    with serving(*flags) as server, alive(server):
        with closing(dial(server.url)) as slow:
            host = urlsplit(server.url).netloc
            slow.sendall(
                f"POST {FILES} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {3 * 2**19}\r\n"
                "Content-Type: multipart/form-data; boundary=b\r\n\r\n".encode()
                + head
            )
            until(lambda: server.stored() > 5 * 2**18)
            content: Any = body if announced else iter([body])
            assert hinted(server.post(FILES, content=content, headers=kind)) >= 1
            slow.shutdown(socket.SHUT_RDWR)
        until(lambda: server.working() == 1)  # the honest stream
        assert server.post(FILES, content=body, headers=kind).status_code == 200


@pytest.mark.fault(
    "L05",
    "a recording that would wait too long for others",
    "503, and `Retry-After` from what is left of them at the speed of late; short ones are taken meanwhile",
)
def test_a_recording_that_would_wait_too_long() -> None:
    """0.25 s a window, `--max-wait-seconds 4`; a recording of two and a half minutes is at work when another of its length comes"""
    long = wav(speak(SENTENCE * 100))
    flags = ("--workers", "1", "--max-wait-seconds", "4")
    with serving(*flags, cost=0.25) as server, ThreadPoolExecutor(1) as clients:
        held = clients.submit(
            httpx2.post,
            server.url + FILES,
            files={"file": ("a.wav", long)},
            data={"language": "en"},
            timeout=120,
        )
        until(lambda: server.open() > 0)
        hints: list[int] = []

        def refused() -> bool:
            """Taken while nobody knows how fast it goes; that client leaves again."""
            try:
                answer = httpx2.post(
                    server.url + FILES, files={"file": ("a.wav", long)}, data={}, timeout=1.0
                )
            except httpx2.TimeoutException:
                return False
            hints.append(hinted(answer))
            return True

        until(refused, 2 * PATIENCE)
        # By the speed of late; on a busy machine a window takes half as long again.
        assert 1 <= hints[0] <= math.ceil(1.5 * 1.25 * 100 * 0.25)
        assert post(server, wav(speak(SENTENCE))).json()["text"] == spelt(SENTENCE)
        assert held.result(120).json()["text"] == spelt(SENTENCE * 100)


@pytest.mark.fault(
    "L06",
    "a sender a hundred times as fast as speech",
    "slowed by back-pressure, nothing lost, memory bounded",
)
def test_a_sender_that_does_not_wait() -> None:
    """twenty minutes of speech written into the socket at once, messages of 64 KiB"""
    said: list[int | float] = [*(SENTENCE * 700)]
    audio = pcm(speak(said))
    with serving() as server:
        with opened(server) as connection:
            connection.send(pcm(speak(SENTENCE)))
            connection.send('{"type": "end"}')
            assert text(rest(connection)) == spelt(SENTENCE)
        before, most = server.memory(), 0
        with opened(server) as connection:
            assert first(connection)["type"] == "ready"
            found: list[dict[str, Any]] = []
            reading = threading.Thread(target=lambda: found.extend(rest(connection)))
            reading.start()
            for at in range(0, len(audio), 2**16):
                connection.send(audio[at : at + 2**16])
                if at % 2**22 == 0:
                    most = max(most, server.memory())
            connection.send('{"type": "end"}')
            reading.join(3 * PATIENCE)
        assert text(found) == spelt(said)
        assert found[-1]["received"] == len(audio)
        assert most - before < 32 * 2**20


@pytest.mark.fault(
    "L07",
    "audio of live streams piles up beyond the bound for all of them",
    "who is behind most gets `error` with `retry_after`, then every word of what `received` counts, then 1013; the "
    "others go on",
)
def test_audio_that_piles_up() -> None:
    """1 MiB (16 s) for all streams; a recogniser of 0.5 s a window; one client sends a minute at once, one speaks on"""
    said: list[int | float] = [*(SENTENCE * 40)]
    audio = pcm(speak(said))
    with (
        serving("--max-backlog-mb", "1", "--workers", "1", cost=0.5) as server,
        ExitStack() as all_,
    ):
        patient = all_.enter_context(opened(server))
        assert first(patient)["type"] == "ready"
        patient.send(pcm(speak(SENTENCE)))
        with opened(server) as hasty:
            assert first(hasty)["type"] == "ready"
            for at in range(0, len(audio), 2**15):
                hasty.send(audio[at : at + 2**15])
            hasty.send('{"type": "end"}')
            messages = rest(hasty)
            assert hasty.close_code == 1013
        error = next(each for each in messages if each["type"] == "error")
        assert error["code"] == "overloaded"
        assert error["retry_after"] >= 1.0
        assert messages[-1]["type"] == "end"
        assert messages[-1]["reason"] == "error"
        received = messages[-1]["received"]
        assert 0 < received < len(audio)
        whole = text(messages).split()
        assert whole == spelt(said).split()[: len(whole)]
        # A word of 0.2 s may be cut where the server stopped taking audio.
        heard = sum(
            0.25 if isinstance(each, int) else 0.6 for each in said[: _items(said, len(whole))]
        )
        assert received / 2 / RATE - heard < 1.0
        patient.send('{"type": "end"}')
        assert text(rest(patient)) == spelt(SENTENCE)


@pytest.mark.fault(
    "L09",
    "audio of OpenAI's sessions piles up beyond the bound for all streams, by many appends and by one",
    "the words of what was taken, `error` with `retry_after`, then 1013; the others go on",
)
@pytest.mark.parametrize("appends", [32, 1])
def test_audio_that_piles_up_in_openais_dialect(appends: int) -> None:
    """1 MiB (16 s) for all streams; a recogniser of 0.5 s a window; one client sends a minute at once, one speaks on"""
    said: list[int | float] = [*(SENTENCE * 40)]
    audio = pcm(speak(said))
    size = len(audio) // appends // 2 * 2
    heard = {
        "format": {"type": "audio/pcm", "rate": RATE},
        "transcription": {"model": "scripted", "language": "en"},
    }
    update = {
        "type": "session.update",
        "session": {"type": "transcription", "audio": {"input": heard}},
    }
    with (
        serving("--max-backlog-mb", "1", "--workers", "1", cost=0.5) as server,
        ExitStack() as all_,
    ):
        patient = all_.enter_context(opened(server))
        assert first(patient)["type"] == "ready"
        patient.send(pcm(speak(SENTENCE)))
        url = server.url.replace("http", "ws", 1) + "/v1/realtime?intent=transcription"
        with connect(url, open_timeout=PATIENCE, max_size=None) as hasty:
            hasty.send(json.dumps(update))
            for at in range(0, len(audio), size):
                piece = base64.b64encode(audio[at : at + size]).decode()
                with suppress(ConnectionClosed):
                    hasty.send(json.dumps({"type": "input_audio_buffer.append", "audio": piece}))
            messages = rest(hasty)
            assert hasty.close_code == 1013
        assert messages[-1]["type"] == "error"
        assert messages[-1]["error"]["code"] == "overloaded"
        assert messages[-1]["error"]["retry_after"] >= 1.0
        told = [each["transcript"] for each in messages if each["type"].endswith(".completed")]
        whole = " ".join(told).split()
        assert whole == spelt(said).split()[: len(whole)]
        assert (len(whole) > 0) == (appends > 1)
        patient.send('{"type": "end"}')
        assert text(rest(patient)) == spelt(SENTENCE)


@pytest.mark.quick
@pytest.mark.fault(
    "L08",
    "heads that announce bodies as large as may be, and send nothing",
    "they take no room; a recording beside them is heard",
)
def test_uploads_that_are_only_announced() -> None:
    """2 MiB for all bodies; eight heads announce 2 MiB each and stop, then a recording of 0.5 MiB comes"""
    audio = wav(np.concatenate([speak(SENTENCE), np.zeros(RATE * 16, np.float32)]))
    with (
        serving("--max-uploads-mb", "2", "--max-upload-mb", "2") as server,
        ExitStack() as stack,
    ):
        for number in range(8):
            slow = stack.enter_context(closing(dial(server.url)))
            host = urlsplit(server.url).netloc
            slow.sendall(
                f"POST {FILES} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {2 * 2**20}\r\n"
                "Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n".encode()
            )
            until(lambda number=number: server.working() > number)  # type: ignore[misc]
        answer = post(server, audio)
        assert answer.status_code == 200, answer.text
        assert answer.json()["text"] == spelt(SENTENCE)


def _items(said: list[int | float], count: int) -> int:
    """How many of `said` hold `count` words."""
    seen = 0
    for at, each in enumerate(said):
        if seen == count:
            return at
        seen += isinstance(each, int)
    return len(said)
