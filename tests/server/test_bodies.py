"""Request bodies: too big, too slow, too much text, or from clients that leave. ASGI without a socket where it can be."""

import asyncio
import errno
import logging
import socket
import tempfile
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from server import uploads
from server.app import create_app
from streaming.types import RATE, Recording, Segment
from tests.fakes import tone, wav
from tests.serving import Talker, context, running, with_engine

PATH = "/v1/audio/transcriptions"
RECORDING = wav(tone(1.0))
HEAD = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
STREAM = b'\r\n--x\r\nContent-Disposition: form-data; name="stream"\r\n\r\ntrue'


async def ask(
    app: Any, messages: Iterable[dict[str, Any]], sending: Any = None, **headers: str
) -> list[dict[str, Any]]:
    """What the app sends to a request whose body arrives as `messages`; after them nothing comes."""
    waiting = iter(messages)
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        for message in waiting:
            return message
        return await asyncio.Event().wait()  # type: ignore[return-value]

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "path": PATH,
        "raw_path": PATH.encode(),
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": [
            (name.replace("_", "-").encode(), value.encode())
            for name, value in (
                {"content_type": "multipart/form-data; boundary=x"} | headers
            ).items()
        ],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    await asyncio.wait_for(app(scope, receive, sending or send), 20)
    return sent


def piece(data: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": data, "more_body": more}


GONE = {"type": "http.disconnect"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def left(folder: Path) -> list[str]:
    """What is in it, but for the toy that tests share."""
    return [each.name for each in folder.iterdir() if "toys" not in each.name]


def test_a_client_that_leaves_during_its_upload_is_no_failure(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here = context(Talker())
    with caplog.at_level(logging.INFO):
        sent = asyncio.run(ask(create_app(here), [piece(HEAD + RECORDING), GONE]))
    assert sent[0]["status"] == 499
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    assert left(folder) == []
    assert here.working == 0


def test_a_client_that_leaves_before_the_first_event_leaves_no_file(folder: Path) -> None:
    talker = Talker([Segment(0, RATE, " Hello.", language="en")])
    app = create_app(context(talker))
    body = HEAD + RECORDING + STREAM + b"\r\n--x--\r\n"

    async def broken(message: dict[str, Any]) -> None:
        raise ConnectionError

    with pytest.raises((ConnectionError, ExceptionGroup)):
        asyncio.run(ask(app, [piece(body, more=False)], broken))
    assert talker.stopped.is_set()
    assert left(folder) == []


def test_an_upload_has_no_name_that_could_be_left_behind(folder: Path) -> None:
    """Not even while it is at work: nothing is to be cleaned up after a server that was killed."""
    here: list[str] = []

    class Looking(Talker):
        async def transcribe(self, recording: Recording, *more: Any) -> Any:
            here.extend(left(folder))
            here.append(str(recording.path.stat().st_size))
            async for item in super().transcribe(recording, *more):
                yield item

    body = HEAD + RECORDING + b"\r\n--x--\r\n"
    sent = asyncio.run(ask(create_app(context(Looking())), [piece(body, more=False)]))
    assert sent[0]["status"] == 200
    assert here == [str(len(RECORDING))]


@pytest.mark.parametrize(
    ("number", "status"), [(errno.ENOSPC, 507), (errno.EROFS, 507), (errno.EMFILE, 503)]
)
def test_a_disk_that_takes_no_upload_is_told_as_such(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    def full(*_: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    body = HEAD + RECORDING + b"\r\n--x--\r\n"
    sent = asyncio.run(ask(create_app(context(Talker())), [piece(body, more=False)]))
    assert sent[0]["status"] == status
    assert b"the server" in sent[1]["body"]


def test_the_text_fields_of_a_body_share_one_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "TEXT", 1 << 20)
    with running(with_engine(Talker())) as url:
        data = {f"field{number}": "x" * (300 << 10) for number in range(4)}
        refused = httpx2.post(url + PATH, files={"file": ("a.wav", RECORDING)}, data=data)
        assert refused.status_code == 400
        assert "1 MiB in all" in refused.json()["error"]["message"]
        del data["field3"]
        taken = httpx2.post(url + PATH, files={"file": ("a.wav", RECORDING)}, data=data)
        assert taken.status_code == 200


def test_media_types_are_case_insensitive() -> None:
    sent = asyncio.run(
        ask(
            create_app(context(Talker())),
            [piece(HEAD + RECORDING + b"\r\n--x--\r\n", more=False)],
            content_type="Multipart/Form-Data; Boundary=x",
        )
    )
    assert sent[0]["status"] == 200


@pytest.mark.parametrize("charset", ["undefined", "hex", "unicode_escape", "punycode", "nothing"])
def test_text_is_utf_8_whatever_a_client_says(charset: str) -> None:
    talker = Talker()
    prompt = b'\r\n--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\\ud800 \xc3\xa9'
    sent = asyncio.run(
        ask(
            create_app(context(talker)),
            [piece(HEAD + RECORDING + prompt + b"\r\n--x--\r\n", more=False)],
            content_type=f"multipart/form-data; boundary=x; charset={charset}",
        )
    )
    assert sent[0]["status"] == 200
    assert talker.asked[0].prompt == "\\ud800 é"


def test_a_body_that_drips_is_told_so() -> None:
    with running(with_engine(Talker(), body_timeout=1.0)) as url:
        parts = urlsplit(url)
        assert parts.hostname
        with closing(socket.create_connection((parts.hostname, parts.port or 0), 20)) as drip:
            drip.sendall(
                f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n"
                "content-type: multipart/form-data; boundary=x\r\n\r\n".encode()
                + HEAD
            )
            drip.settimeout(0.1)  # a byte each tenth of a second: never silent for long
            answer = b""
            for _ in range(200):
                try:
                    answer = drip.recv(65536)
                    break
                except TimeoutError:
                    drip.sendall(b"\0")
            drip.settimeout(20)
            while rest := drip.recv(65536):
                answer += rest
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"bytes a second" in answer


def test_a_length_over_the_limit_is_refused_unread_but_not_to_strangers() -> None:
    app = create_app(
        context(
            Talker(),
            max_upload_mb=1,
            api_keys=("secret",),
            allow_origins=("https://page.example",),
        )
    )
    announced = {"content_length": str(2 << 20), "origin": "https://page.example"}
    stranger = asyncio.run(ask(app, [], **announced))
    assert stranger[0]["status"] == 401
    sent = asyncio.run(ask(app, [], authorization="Bearer secret", **announced))
    headers = dict(sent[0]["headers"])
    assert sent[0]["status"] == 413
    assert headers[b"x-request-id"].startswith(b"req_")
    assert headers[b"access-control-allow-origin"] == b"https://page.example"


def test_a_client_that_announced_too_much_reads_its_refusal_on_a_live_connection() -> None:
    with (
        running(with_engine(Talker(), max_upload_mb=1)) as url,
        httpx2.Client(base_url=url) as client,
    ):
        refused = client.post(PATH, files={"file": ("a.wav", bytes(8 << 20))})
        assert refused.status_code == 413
        assert client.post(PATH, files={"file": ("a.wav", RECORDING)}).status_code == 200
