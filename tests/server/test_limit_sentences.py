"""Every refusal of too much says how much may be."""

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from server import journal, uploads
from tests.fakes import tone, wav
from tests.serving import running, with_toy

FILES = "/v1/audio/transcriptions"
AUDIO = {"file": ("a.wav", wav(tone(0.5)))}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(with_toy(max_upload_mb=1, max_audio_seconds=2.0, max_streams=1)) as found:
        yield found


@pytest.mark.parametrize(
    ("request_", "status", "told"),
    [
        ({"url": FILES, "files": {"file": b"x" * (2**20 + 1)}}, 413, "(1048576)"),
        ({"url": "/v1/realtime/client_secrets", "content": b" " * 70_000}, 413, "65536 bytes"),
        ({"url": "/api/ps/toy", "content": b" " * 70_000}, 413, "65536 bytes"),
        ({"url": FILES, "files": AUDIO, "data": {"hotwords": "x" * 1001}}, 400, "1000"),
        ({"url": FILES, "files": AUDIO, "data": {"keywords": "x" * 1001}}, 400, "1000"),
        ({"url": FILES, "files": {"file": ("a.wav", wav(tone(3.0)))}}, 413, "2 seconds"),
        ({"url": FILES, "files": {"file": ("a.wav", wav(tone(0.5), 1000))}}, 400, "4000"),
        ({"url": FILES, "files": AUDIO, "data": {f"f{n}": "x" for n in range(300)}}, 400, "256"),
        ({"url": FILES, "files": dict.fromkeys("ab", AUDIO["file"])}, 400, "1."),
    ],
)
def test_on_http(url: str, request_: dict[str, Any], status: int, told: str) -> None:
    request_ = {**request_, "url": url + request_["url"]}
    answer = httpx2.post(**request_, timeout=30)
    assert answer.status_code == status, answer.text
    assert told in answer.json()["error"]["message"]


def test_text_fields_together(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "TEXT", 1 << 18)
    fields = {f"f{number}": "x" * 50_000 for number in range(6)}
    answer = httpx2.post(url + FILES, files=AUDIO, data=fields)
    assert answer.status_code == 400
    assert "MiB in all" in answer.json()["error"]["message"]


def test_the_head_of_a_request(url: str) -> None:
    parts = httpx2.URL(url)
    with socket.create_connection((parts.host, parts.port), 10) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nx: " + b"x" * 100_000 + b"\r\n\r\n")
        answer = b""
        while piece := raw.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 431")
    assert b"64 KiB" in answer


@pytest.mark.parametrize(
    ("message", "told", "code"),
    [
        (b"\0" * (4 * 2**20 + 1), "at most 4194304", 1009),
        ("[" * (2**16 + 1), "at most 65536", 1009),
        (json.dumps({"type": "commit", "marker": "x" * 257}), "at most 256", None),
        (json.dumps({"type": "start", "channels": 9}), "at most 8", 1008),
        (json.dumps({"type": "start", "prompt": "x" * 20_001}), "at most 20000", 1008),
    ],
)
def test_on_the_native_socket(url: str, message: str | bytes, told: str, code: int | None) -> None:
    start = isinstance(message, str) and "start" in message
    query = "" if start else "?model=toy"
    with connect("ws" + url[4:] + FILES + "/stream" + query) as found:
        if not start:
            assert json.loads(found.recv(timeout=30))["type"] == "ready"
        found.send(message)
        said = json.loads(found.recv(timeout=30))
        assert said["type"] == "error"
        assert told in said["message"]
        if code is not None:
            with suppress(ConnectionClosed):
                while True:
                    found.recv(timeout=30)
            assert found.close_code == code


def test_streams(url: str) -> None:
    address = "ws" + url[4:] + FILES + "/stream?model=toy"
    with connect(address) as one, connect(address) as two:
        assert json.loads(one.recv(timeout=30))["type"] == "ready"
        said = json.loads(two.recv(timeout=30))
        assert "1 streams are open, which is the limit" in said["message"]


def test_messages_that_wait() -> None:
    book = journal.Journal()
    for number in range(journal.MESSAGES):
        book.put({"type": "marker", "marker": str(number), "at": 0.0})
    with pytest.raises(journal.Unread, match="no more than 1024 or 4 MiB"):
        book.put({"type": "marker", "marker": "one more", "at": 0.0})
