"""Rows E: keys that are wrong, stolen, guessed, or good for something else; clients that take more than their share."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from socket import create_server
from typing import Any

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from server import keys
from server.keys import Scope
from tests.drive import speak
from tests.fakes import pcm, wav
from tests.faults.process import (
    FILES,
    PATIENCE,
    STREAM,
    Process,
    alive,
    rest,
    serving,
    spelt,
    text,
    until,
    words,
)
from tests.faults.raw import BINARY, Socket, ask, frame, reset

SOCKETS = (STREAM, FILES, "/v1/realtime")
SCOPES: dict[str, list[Scope]] = {
    "speech": ["transcribe"],
    "manager": ["manage"],
    "reader": ["metrics"],
}
WRONG = "osk_" + "wrong" * 9


@dataclass
class Keyed:
    """A server with a key of each scope."""

    process: Process
    file: Path
    keys: dict[str, str]
    client: httpx2.Client

    def ask(self, key: str | None, method: str, path: str, **more: Any) -> httpx2.Response:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        headers |= more.pop("headers", {})
        return self.client.request(method, path, headers=headers, **more)

    def socket(self, path: str, **how: Any) -> str:
        """What a socket says first, or why it closes without a word."""
        url = self.process.url.replace("http", "ws", 1) + path
        with connect(url, open_timeout=PATIENCE, **how) as socket:
            try:
                return str(socket.recv(timeout=PATIENCE))
            except ConnectionClosed as closed:
                return str(closed)


@pytest.fixture(scope="module")
def lent() -> Iterator[Keyed]:
    """One server for all tests, that leave its keys as they were."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "keys.toml"
        made = {name: keys.add(file, name, scopes, {}) for name, scopes in SCOPES.items()}
        watching = keys.add(file, "watching", ["transcribe", "metrics"], {})
        flags = ("--keys-file", str(file), "--log-level", "debug")
        with (
            serving(*flags, "--wrong-keys-per-minute", "0", key=watching) as process,
            httpx2.Client(base_url=process.url, timeout=PATIENCE) as client,
        ):
            yield Keyed(process, file, made, client)


@pytest.fixture
def keyed(lent: Keyed) -> Iterator[Keyed]:
    """The same with an honest stream beside; at its level the log holds what is said on the wire."""
    with alive(lent.process, errors=True, few=8):  # the model, and connections kept alive
        yield lent


FORBIDDEN = [
    *(
        (name, method, path)
        for name in ("speech", "reader")
        for method, path in (
            ("POST", "/api/ps/scripted"),
            ("DELETE", "/api/ps/scripted"),
            ("POST", "/api/pull/tiny"),
            ("DELETE", "/api/pull/tiny"),
            ("POST", "/v1/models/tiny"),
            ("DELETE", "/v1/models/tiny"),
        )
    ),
    *(
        (name, "POST", path)
        for name in ("manager", "reader")
        for path in (
            FILES,
            "/v1/audio/translations",
            "/asr",
            "/detect-language",
            "/v1/realtime/client_secrets",
        )
    ),
    ("speech", "GET", "/metrics"),
    ("manager", "GET", "/metrics"),
]


@pytest.mark.quick
@pytest.mark.fault("E07", "a key for other things", "403 that names the missing scope")
@pytest.mark.parametrize(("name", "method", "path"), FORBIDDEN)
def test_a_key_for_other_things(keyed: Keyed, name: str, method: str, path: str) -> None:
    """Every route of a scope is asked with the keys that lack it"""
    answer = keyed.ask(keyed.keys[name], method, path)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (403, "missing_scope")
    assert "this needs the scope" in error["message"]


@pytest.mark.quick
@pytest.mark.fault(
    "E13",
    "keys that are none: empty, cut, longer, in other case, of other encodings, in the query of HTTP",
    "401; the right one is still right",
)
@pytest.mark.parametrize("how", ["authorization", "x-api-key"])
def test_keys_that_are_none(keyed: Keyed, how: str) -> None:
    """Requests with a key that is like a good one, in each header"""
    good = keyed.keys["speech"]
    hashed = keys.digest(good).hex()
    for wrong in (
        "",
        " ",
        good[:-1],
        good + "x",
        good.swapcase(),
        good.removeprefix(keys.PREFIX),
        hashed,
        "sha256:" + hashed,
        f"{good},{good}",
        "\x80\xff",
        "x" * 10_000,
        "speech",
        "null",
    ):
        value = f"Bearer {wrong}" if how == "authorization" else wrong
        said = f"GET /v1/models HTTP/1.1\r\nHost: x\r\n{how}: {value}\r\nConnection: close\r\n\r\n"
        answer = ask(keyed.process.url, said.encode("latin-1"))
        assert answer.startswith(b"HTTP/1.1 401"), wrong
    for query in ("api_key", "key", "token", "access_token"):
        assert keyed.ask(None, "GET", f"/v1/models?{query}={good}").status_code == 401
    assert keyed.ask(good, "GET", "/v1/models").status_code == 200


@pytest.mark.quick
@pytest.mark.fault(
    "E06",
    "a key where it may be written down: header, query, subprotocol, path, body, broken request",
    "in no log line at the level debug, error, metric or answer",
)
def test_keys_are_written_nowhere(keyed: Keyed) -> None:
    """Each good key and a wrong one is sent in every place, right and wrong; then all that was said and logged is read"""
    said: list[str] = []
    process = keyed.process
    for key in (*keyed.keys.values(), WRONG):
        for path in ("/v1/models", "/v1/models/x", "/api/ps/x", "/nowhere", FILES, "/metrics"):
            for headers in (
                {"authorization": f"Bearer {key}"},
                {"authorization": f"Basic {key}"},
                {"authorization": key},
                {"x-api-key": key},
                {"cookie": f"key={key}"},
                {"sec-websocket-protocol": f"open-speech-key.{key}"},
            ):
                for method in ("GET", "POST", "PUT"):
                    answer = keyed.ask(
                        None, method, f"{path}?key={key}&api_key={key}", headers=headers
                    )
                    said += [answer.text, str(answer.headers)]
        wrong_places = [
            keyed.ask(key, "POST", FILES, files={key: (key, b"x")}, data={"api_key": key}),
            keyed.ask(key, "POST", "/v1/realtime/client_secrets", content=key.encode()),
        ]
        said += [str(answer.headers) for answer in wrong_places]
        query = "?model=nothing"
        for path in SOCKETS:
            for offered in (
                ["open-speech", f"open-speech-key.{key}"],
                [f"openai-insecure-api-key.{key}"],
            ):
                said.append(keyed.socket(path + query, subprotocols=offered))
            for name in ("api_key", "key"):
                said.append(keyed.socket(f"{path}{query}&{name}={key}"))
            bearer = {"authorization": f"Bearer {key}"}
            said.append(keyed.socket(path + query, additional_headers=bearer))
    said.append(keyed.ask(keyed.keys["reader"], "GET", "/metrics").text)
    said.append(keyed.ask(None, "GET", "/health").text)
    until(lambda: "Sec-WebSocket-Accept" in process.log)  # uvicorn and websockets say all they know
    log = process.log
    assert "authorization: " in log
    for key in (*keyed.keys.values(), WRONG):
        assert key not in log
        assert key[8:] not in log
        assert keys.digest(key).hex() not in log
        for each in said:
            # OpenAI's message for an unknown path has no query; nothing else of a request is said back.
            assert key not in each


@pytest.mark.fault(
    "E08",
    "1,000 wrong keys a second from one address",
    "429 with Retry-After after 20; the right key there and the other addresses are served",
)
def test_keys_are_guessed() -> None:
    """Wrong keys over HTTP and sockets from 127.0.0.2, while 127.0.0.1 and a known key at 127.0.0.2 go on"""
    flags = ("--api-keys", "correct-horse", "--host", "0.0.0.0")
    with serving(*flags, key="correct-horse") as server, alive(server):
        url = server.url.replace("0.0.0.0", "127.0.0.1")
        good = {"authorization": "Bearer correct-horse"}
        transport = httpx2.HTTPTransport(local_address="127.0.0.2")
        with (
            httpx2.Client(base_url=url, transport=transport, timeout=PATIENCE) as attacker,
            httpx2.Client(base_url=url, headers=good, timeout=PATIENCE) as other,
        ):
            assert attacker.get("/v1/models", headers=good).status_code == 200
            found: list[int] = []
            for number in range(1000):
                guess = {"x-api-key": f"guess {number}"}
                found.append(attacker.get("/v1/models", headers=guess).status_code)
                if number % 100 == 0:
                    assert other.get("/v1/models").status_code == 200
            assert found.count(401) == 20
            assert set(found[20:]) == {429}
            refused = attacker.get("/v1/models", headers={"x-api-key": "another"})
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert refused.json()["error"]["code"] == "rate_limit_exceeded"
            # Who was right before stays right; who guesses right now learns nothing.
            assert attacker.get("/v1/models", headers=good).status_code == 200
            assert attacker.get("/v1/models").status_code == 401
        with connect(
            url.replace("http", "ws", 1) + STREAM,
            additional_headers={"x-api-key": "another"},
            source_address=("127.0.0.2", 0),
        ) as socket:
            (said,) = rest(socket)
            assert said["code"] == "rate_limit_exceeded"
            assert said["retry_after"] >= 1
            assert socket.close_code == 1013
        assert server.log.count("wrong keys within a minute") == 1


@pytest.mark.fault(
    "E09",
    "thousands of addresses in forwarded headers",
    "from a client: one address; from a proxy: each its own, in a bounded table",
)
@pytest.mark.parametrize("trusted", [False, True])
def test_addresses_are_forged(trusted: bool) -> None:
    """X-Forwarded-For with ever new addresses, IPv6 of one /64 among them, with and without the proxy being trusted"""
    flags = ["--client-requests-per-minute", "100"]
    flags += ["--trusted-proxies", "127.0.0.1"] if trusted else []
    with (
        serving(*flags, faults={"server.limits.CLIENTS": 1000}) as server,
        httpx2.Client(base_url=server.url, timeout=PATIENCE) as client,
    ):

        def status(address: str) -> int:
            return client.get("/v1/models", headers={"x-forwarded-for": address}).status_code

        # What is before the proxy's own entry is the client's invention.
        forged = [status(f"10.0.0.{number}, 192.0.2.1") for number in range(110)]
        assert forged == [200] * 100 + [429] * 10
        same = [status(f"2001:db8::{number:x}") for number in range(110)]
        assert same == ([200] * 100 + [429] * 10 if trusted else [429] * 110)
        before = server.memory()
        for number in range(3000):
            assert status(f"10.{number >> 8}.{number & 255}.1") == (200 if trusted else 429)
        assert server.memory() - before < 30 * 2**20


@pytest.mark.quick
@pytest.mark.fault("E12", "0.0.0.0 without a key", "one line that warns and names the remedy")
def test_all_addresses_without_a_key() -> None:
    """The server is started so, and its log read"""
    with serving("--host", "0.0.0.0") as server:
        warned = [line for line in server.said if " warning " in line]
    assert len(warned) == 1
    assert "without a key" in warned[0]
    assert "STT_API_KEYS" in warned[0]


@pytest.mark.quick
@pytest.mark.fault(
    "E14",
    "a key is removed while its streams run",
    "streams end with the text of what they heard; others go on",
)
def test_a_key_is_removed_under_its_streams(keyed: Keyed) -> None:
    """Two sessions speak; the key of one is taken out of the file"""
    gone = keys.add(keyed.file, "gone", ["transcribe"], {})
    stays = keys.add(keyed.file, "stays", ["transcribe"], {})
    url = keyed.process.socket_url + "?partials=false"
    first, second = words(3, 4), words(9, 4)
    try:
        until(lambda: keyed.ask(gone, "GET", "/v1/models").status_code == 200)
        with (
            connect(url, additional_headers={"x-api-key": gone}) as one,
            connect(url, additional_headers={"x-api-key": stays}) as other,
        ):
            for socket in (one, other):
                assert json.loads(socket.recv(timeout=PATIENCE))["type"] == "ready"
                socket.send(pcm(speak([*first, 0.8])))
            keys.remove(keyed.file, "gone")
            until(lambda: keyed.ask(gone, "GET", "/v1/models").status_code == 401)
            for socket in (one, other):
                socket.send(pcm(speak([*second, 0.8])))
            other.send('{"type": "end"}')
            ended, finished = rest(one), rest(other)
            assert one.close_code == 1008
            assert "invalid_api_key" in [each.get("code") for each in ended]
            assert text(ended).startswith(spelt(first))
            assert ended[-1]["type"] == "end"
            assert text(finished) == spelt(first + second)
    finally:
        keys.remove(keyed.file, "stays")


@pytest.mark.quick
@pytest.mark.fault(
    "E15",
    "the keys file is broken, emptied and taken away while the server runs",
    "the keys of before stay; an empty file lets nobody in",
)
def test_the_keys_file_breaks(lent: Keyed) -> None:
    """It is overwritten with half a table, with nothing, removed, and restored"""
    # Alone: an honest stream would lose its key, too.
    good = lent.keys["speech"]
    was = lent.file.read_text("utf-8")
    try:
        for broken in ("[speech\n", '[speech]\nhash = "' + good, was[: len(was) // 2 + 7]):
            before = lent.process.log.count("the keys read before stay")
            lent.file.write_text(broken)
            while lent.process.log.count("the keys read before stay") == before:
                assert lent.ask(good, "GET", "/v1/models").status_code == 200
            assert lent.ask(WRONG, "GET", "/v1/models").status_code == 401
        lent.file.unlink()
        assert lent.ask(good, "GET", "/v1/models").status_code == 200
        lent.file.write_text("")
        until(lambda: lent.ask(good, "GET", "/v1/models").status_code == 401)
        assert lent.ask(None, "GET", "/v1/models").status_code == 401
    finally:
        lent.file.write_text(was)
    until(lambda: lent.ask(good, "GET", "/v1/models").status_code == 200)
    assert good not in lent.process.log


@pytest.mark.quick
@pytest.mark.fault(
    "E16",
    "one client takes all it can: requests, streams, audio",
    "429 or 1013 with when to come again, its words said; another client is served throughout",
)
def test_a_greedy_client() -> None:
    """One key asks in a loop, opens streams and sends audio faster than real time; another transcribes"""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "keys.toml"
        limits = {"requests_per_minute": 30, "streams": 2, "audio_seconds_per_hour": 10}
        greedy = {"x-api-key": keys.add(file, "greedy", ["transcribe"], limits)}
        modest = {"x-api-key": keys.add(file, "modest", ["transcribe"], {})}
        with serving("--keys-file", str(file)) as server:
            over = threading.Event()
            served: list[int] = []

            def serve_the_other() -> None:
                recording = {"file": ("a.wav", wav(speak([1, 2])))}
                while not over.is_set():
                    url = server.url + FILES
                    served.append(
                        httpx2.post(
                            url, files=recording, headers=modest, timeout=PATIENCE
                        ).status_code
                    )

            beside = threading.Thread(target=serve_the_other)
            beside.start()
            try:
                url = server.socket_url + "?partials=false"
                with (
                    connect(url, additional_headers=greedy) as one,
                    connect(url, additional_headers=greedy) as two,
                ):
                    for socket in (one, two):
                        assert json.loads(socket.recv(timeout=PATIENCE))["type"] == "ready"
                    with connect(url, additional_headers=greedy) as third:
                        (refused,) = rest(third)
                        assert refused["code"] == "rate_limit_exceeded"
                        assert third.close_code == 1013
                    said = words(1, 40)
                    with suppress(ConnectionClosed):
                        for word in said:
                            one.send(pcm(speak([word, 0.7])))
                    found = rest(one)
                    told = [each for each in found if each["type"] == "error"]
                    assert [each["code"] for each in told] == ["rate_limit_exceeded"]
                    assert told[0]["retry_after"] >= 1
                    heard = text(found).split()
                    assert heard
                    assert heard == spelt(said).split()[: len(heard)]
                statuses = [
                    httpx2.get(
                        server.url + "/v1/models", headers=greedy, timeout=PATIENCE
                    ).status_code
                    for _ in range(40)
                ]
                assert statuses[0] == 200
                assert statuses[-1] == 429
                assert statuses == sorted(statuses)
            finally:
                over.set()
                beside.join()
            assert served
            assert set(served) == {200}


@pytest.mark.quick
@pytest.mark.fault(
    "E17",
    "streams of a limited client that are reset, refused or left half open, 25 of each kind",
    "each gives its place back: the client has all its streams again",
)
@pytest.mark.parametrize("path", [STREAM + "?model=scripted", "/v1/realtime", FILES + "?model="])
def test_places_of_streams_come_back(path: str) -> None:
    """With a limit of two: connections that are reset at once, after a word, or opened with options that cannot be"""
    with serving("--client-streams", "2", "--allow-origins", "https://friend.example") as server:
        for number in range(25):
            with suppress(AssertionError, ConnectionError):
                reset(Socket(server.url, path).connection)
            with suppress(AssertionError, ConnectionError):
                socket = Socket(server.url, path)
                socket.send(frame(BINARY, pcm(speak([number % 60]))))
                reset(socket.connection)
            with suppress(AssertionError, ConnectionError):
                reset(
                    Socket(server.url, path.partition("?")[0] + "?language=xx&model=no").connection
                )
        until(lambda: server.working() == 0)
        with ExitStack() as stack:
            sockets = [stack.enter_context(Socket(server.url, path)) for _ in range(2)]
            for socket in sockets:
                if path == "/v1/realtime":
                    assert b"session.created" in socket.receive()[1]
                elif path.startswith(STREAM):
                    assert b"ready" in socket.receive()[1]
            said, code, _ = stack.enter_context(Socket(server.url, path)).rest()
            assert code == 1013
            assert path.startswith(FILES + "?") or "rate_limit_exceeded" in json.dumps(said)


@pytest.mark.quick
@pytest.mark.fault(
    "E18",
    "a Redis for the limits that takes connections and never answers",
    "as if it could not be reached: nobody is limited, one request waits a second for it every five, the others not at all",
)
def test_a_redis_that_stalls() -> None:
    """`--limits-storage` names a socket that listens and says nothing; twenty requests and a stream at once, with limits of one request and ten seconds of audio"""
    with create_server(("127.0.0.1", 0), backlog=128) as silent:
        storage = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        limits = ("--client-requests-per-minute", "1", "--client-audio-seconds-per-hour", "10")
        with serving("--limits-storage", storage, *limits) as server, alive(server):
            said = words(1, 40)
            with connect(server.socket_url + "?partials=false", open_timeout=PATIENCE) as stream:
                for word in said:
                    stream.send(pcm(speak([word, 0.7])))
                took: list[float] = []

                def ask() -> None:
                    began = time.monotonic()
                    assert httpx2.get(server.url + "/v1/models", timeout=PATIENCE).is_success
                    took.append(time.monotonic() - began)

                askers = [threading.Thread(target=ask) for _ in range(20)]
                for each in askers:
                    each.start()
                for each in askers:
                    each.join()
                assert len(took) == 20
                assert max(took) < 5
                stream.send('{"type": "end"}')
                assert text(rest(stream)) == spelt(said)
            assert server.log.count("limits_storage does not answer") == 1
