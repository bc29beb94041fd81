"""Keys, scopes and limits on a running server: by REST and on the sockets of all three dialects."""

import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from server import auth, keys
from streaming.errors import Overloaded
from streaming.types import RATE, Samples, Summary
from tests.fakes import tone, wav
from tests.serving import Talker, running, with_engine

NATIVE = "/v1/audio/transcriptions/stream"
REALTIME = "/v1/realtime"
OTHER = "/v1/audio/transcriptions"
RECORDING = {"file": ("a.wav", wav(tone(1.0)))}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(auth, "LOOK", 0.0)
    return tmp_path / "keys.toml"


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def fault(response: httpx2.Response, status: int, code: str | None) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error["code"] == code
    return error


def talk(url: str, path: str, send: str | bytes | None = None, **how: Any) -> tuple[list[Any], int]:
    """What a socket says until it closes, and the close code."""
    found = []
    with connect("ws" + url[4:] + path, **how) as socket:
        try:
            if send is not None:
                socket.send(send)
            while True:
                found.append(json.loads(socket.recv(timeout=10)))
        except ConnectionClosed:
            assert socket.close_code is not None
            return found, socket.close_code


def rest(socket: ClientConnection) -> list[dict[str, Any]]:
    """What a socket says until it closes."""
    found = []
    with suppress(ConnectionClosed):
        while True:
            found.append(json.loads(socket.recv(timeout=10)))
    return found


def open_stream(url: str, **how: Any) -> ClientConnection:
    socket = connect("ws" + url[4:] + NATIVE + "?model=toy", **how)
    assert json.loads(socket.recv(timeout=10))["type"] == "ready"
    return socket


def test_a_key_opens_what_its_scopes_say(file: Path) -> None:
    speech = keys.add(file, "speech", ["transcribe"], {})
    manager = keys.add(file, "manager", ["manage"], {})
    reader = keys.add(file, "reader", ["metrics"], {})
    with (
        running(with_engine(Talker(), keys_file=file)) as url,
        httpx2.Client(base_url=url) as client,
    ):
        for key in (speech, manager, reader):
            assert client.get("/v1/models", headers=bearer(key)).status_code == 200
            assert client.get("/api/ps", headers=bearer(key)).status_code == 200
        assert client.post(OTHER, files=RECORDING, headers=bearer(speech)).status_code == 200
        assert client.post("/api/ps/toy", headers=bearer(manager)).status_code == 201
        for key, name in ((speech, "speech"), (reader, "reader")):
            for method, path in (
                ("POST", "/api/ps/toy"),
                ("DELETE", "/api/ps/toy"),
                ("POST", "/api/pull/toy"),
                ("DELETE", "/api/pull/toy"),
                ("POST", "/v1/models/toy"),
                ("DELETE", "/v1/models/toy"),
            ):
                response = client.request(method, path, headers=bearer(key))
                said = fault(response, 403, "missing_scope")["message"]
                assert name in said
                assert "scope manage" in said
        for key in (manager, reader):
            for path in (OTHER, "/v1/audio/translations", "/asr", "/v1/realtime/client_secrets"):
                response = client.post(path, files=RECORDING, headers=bearer(key))
                assert "scope transcribe" in fault(response, 403, "missing_scope")["message"]
        said_native, code = talk(url, NATIVE, additional_headers=bearer(manager))
        assert (said_native[0]["code"], code) == ("missing_scope", 1008)
        said_realtime, code = talk(url, REALTIME, additional_headers=bearer(manager))
        assert (said_realtime[0]["error"]["code"], code) == ("missing_scope", 3000)
        assert talk(url, OTHER, additional_headers=bearer(manager)) == ([], 1008)


@pytest.mark.parametrize("path", [NATIVE + "?model=toy", REALTIME, OTHER + "?model=toy"])
@pytest.mark.parametrize(
    "how",
    [
        {"additional_headers": {"authorization": "Bearer {}"}},
        {"additional_headers": {"x-api-key": "{}"}},
        {"subprotocols": ["open-speech", "open-speech-key.{}"]},
        {"subprotocols": ["realtime", "openai-insecure-api-key.{}"]},
        {"query": "api_key={}"},
        {"query": "key={}"},
    ],
)
def test_every_way_of_carrying_a_key_works_on_every_socket(path: str, how: dict[str, Any]) -> None:
    with running(with_engine(Talker(), api_keys=("s3cr-et",))) as url:
        for key, good in (("s3cr-et", True), ("wrong", False)):
            given = json.loads(json.dumps(how).replace("{}", key))
            query = given.pop("query", "")
            address = path + ("&" if "?" in path else "?") + query if query else path
            if path.startswith(OTHER + "?"):  # it says nothing, but why it closes
                assert talk(url, address, **given) == ([], 1000 if good else 1008)
                continue
            with connect("ws" + url[4:] + address, **given) as socket:
                first = json.loads(socket.recv(timeout=10))["type"]
            begun = "ready" if NATIVE in path else "session.created"
            assert first == (begun if good else "error")


def test_keys_in_the_query_of_http_are_not_read() -> None:
    with running(with_engine(Talker(), api_keys=("secret",))) as url:
        fault(httpx2.get(url + "/v1/models?api_key=secret"), 401, None)


def test_a_key_that_is_made_or_removed_counts_at_once(file: Path) -> None:
    first = keys.add(file, "first", ["transcribe"], {})
    with running(with_engine(Talker(), keys_file=file)) as url:
        second = keys.add(file, "second", ["transcribe"], {})
        assert httpx2.get(url + "/v1/models", headers=bearer(second)).status_code == 200
        with open_stream(url, additional_headers=bearer(first)) as socket:
            keys.remove(file, "first")
            fault(httpx2.get(url + "/v1/models", headers=bearer(first)), 401, "invalid_api_key")
            # Live streams of the key end when they next send audio, with what they heard.
            socket.send(bytes(64000))
            found = rest(socket)
            assert "invalid_api_key" in [each.get("code") for each in found]
            assert found[-1]["type"] == "end"
            assert socket.close_code == 1008
        assert httpx2.get(url + "/v1/models", headers=bearer(second)).status_code == 200


def test_a_client_secret_ends_with_the_key_that_made_it(file: Path) -> None:
    key = keys.add(file, "app", ["transcribe"], {"requests_per_minute": 3})
    with running(with_engine(Talker(), keys_file=file)) as url:
        made = httpx2.post(url + "/v1/realtime/client_secrets", headers=bearer(key)).json()
        offered = ["realtime", "openai-insecure-api-key." + made["value"]]
        for _ in range(2):
            with connect("ws" + url[4:] + REALTIME, subprotocols=offered) as socket:  # type: ignore[arg-type]
                assert json.loads(socket.recv(timeout=10))["type"] == "session.created"
        # A secret counts as its owner.
        said, code = talk(url, REALTIME, subprotocols=offered)
        assert (said[0]["error"]["code"], code) == ("rate_limit_exceeded", 1013)
        keys.remove(file, "app")
        said, code = talk(url, REALTIME, subprotocols=offered)
        assert (said[0]["error"]["code"], code) == ("invalid_api_key", 3000)


def test_too_many_requests_are_told_when_to_come_again() -> None:
    with running(with_engine(Talker(), client_requests_per_minute=3)) as url:
        for left in ("2", "1", "0"):
            good = httpx2.get(url + "/v1/models")
            assert good.status_code == 200
            assert good.headers["x-ratelimit-limit-requests"] == "3"
            assert good.headers["x-ratelimit-remaining-requests"] == left
            assert good.headers["ratelimit-policy"] == '"requests";q=3;w=60'
        refused = httpx2.get(url + "/v1/models")
        assert fault(refused, 429, "rate_limit_exceeded")["type"] == "requests"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.headers["ratelimit"].startswith('"requests";r=0;t=')
        assert "ratelimit" not in httpx2.get(url + "/livez").headers
        for path, read in ((NATIVE, lambda said: said), (REALTIME, lambda said: said["error"])):
            said, code = talk(url, path)
            assert read(said[0])["code"] == "rate_limit_exceeded"
            assert read(said[0])["retry_after"] >= 1
            assert code == 1013
        assert talk(url, OTHER) == ([], 1013)


def test_keys_have_their_own_counts(file: Path) -> None:
    small = keys.add(file, "small", ["transcribe"], {"requests_per_minute": 1})
    free = keys.add(file, "free", ["transcribe"], {"requests_per_minute": 0})
    usual = keys.add(file, "usual", ["transcribe"], {})
    settings = {"keys_file": file, "client_requests_per_minute": 2}
    with (
        running(with_engine(Talker(), **settings)) as url,
        httpx2.Client(base_url=url) as client,
    ):
        for key, most in ((small, 1), (usual, 2), (free, 9)):
            for number in range(9):
                status = client.get("/v1/models", headers=bearer(key)).status_code
                assert status == (200 if number < most else 429)


def test_live_streams_at_once_are_limited() -> None:
    with running(with_engine(Talker(), client_streams=2)) as url:
        with open_stream(url), open_stream(url):
            said, code = talk(url, NATIVE + "?model=toy")
            assert (said[0]["code"], code) == ("rate_limit_exceeded", 1013)
            assert "2 live streams" in said[0]["message"]
            assert httpx2.get(url + "/v1/models").headers["ratelimit"] == '"streams";r=0'
            assert talk(url, REALTIME)[1] == talk(url, OTHER)[1] == 1013
            assert httpx2.post(url + OTHER, files=RECORDING).status_code == 200
        for _ in range(50):  # the server notices a close in its own time
            try:
                open_stream(url).close()
                break
            except AssertionError:
                continue
        else:
            pytest.fail("a stream that ended is still counted")


def test_live_audio_is_limited_and_what_was_heard_is_said() -> None:
    with running(with_engine(Talker(), client_audio_seconds_per_hour=3)) as url:
        with open_stream(url) as socket:
            for _ in range(5):
                socket.send(bytes(32000))
            found = rest(socket)
            assert socket.close_code in (1008, 1013)  # by how long the hour still lasts
        (told,) = (each for each in found if each["type"] == "error")
        assert told["code"] == "rate_limit_exceeded"
        assert told["retry_after"] >= 1
        (final,) = (each for each in found if each["type"] == "final")
        assert final["text"].endswith("samples")
        assert found[-1]["type"] == "end"
        refused = httpx2.post(url + OTHER, files=RECORDING)
        assert fault(refused, 429, "rate_limit_exceeded")["type"] == "audio_seconds"
        assert talk(url, NATIVE + "?model=toy")[1] in (1008, 1013)


def test_what_is_refused_is_in_no_final() -> None:
    """A client that goes on sends what follows `received`: were it in a final, too, it would be said twice."""
    talker = Talker()
    with running(with_engine(talker, client_audio_seconds_per_hour=3)) as url:
        with open_stream(url) as socket:
            for _ in range(9):
                socket.send(bytes(20_000))
            found = rest(socket)
        assert [each["code"] for each in found if each["type"] == "error"] == [
            "rate_limit_exceeded"
        ]
        (final,) = (each for each in found if each["type"] == "final")
        assert final["text"] == f"{found[-1]['received'] // 2} samples"
        assert 3 * 32_000 <= found[-1]["received"] < 9 * 20_000


def test_what_the_engine_did_not_take_is_not_counted() -> None:
    talker = Talker()

    async def refuse(samples: Samples) -> None:
        raise Overloaded("this machine cannot keep up", retry_after=1)

    with running(with_engine(talker, client_audio_seconds_per_hour=3)) as url:
        for _ in range(9):
            with open_stream(url) as socket:
                talker.streams[-1].send = refuse  # type: ignore[method-assign]
                socket.send(bytes(32_000))
                found = rest(socket)
                assert [each["code"] for each in found if each["type"] == "error"] == ["overloaded"]
                assert found[-1]["received"] == 0


def test_recordings_count_what_they_hold() -> None:
    talker = Talker()
    talker.summary = Summary(6 * RATE, 0, "toy", "en", 0.99)
    with running(with_engine(talker, client_audio_seconds_per_day=10)) as url:
        for status in (200, 200, 429):  # the second begins with 4 s left, and is finished
            assert httpx2.post(url + OTHER, files=RECORDING).status_code == status
        assert httpx2.post(url + "/asr", files={"audio_file": RECORDING["file"]}).status_code == 429


@pytest.mark.parametrize("trusted", [(), ("127.0.0.1",)])
def test_forwarded_addresses_count_only_from_known_proxies(trusted: tuple[str, ...]) -> None:
    settings = {"client_requests_per_minute": 1, "trusted_proxies": trusted}
    with (
        running(with_engine(Talker(), **settings)) as url,
        httpx2.Client(base_url=url) as client,
    ):
        asked = [
            client.get("/v1/models", headers={"x-forwarded-for": address}).status_code
            for address in (
                "192.0.2.1",
                "192.0.2.2",
                "192.0.2.9, 192.0.2.2",  # the first entry is the client's own invention
                "2001:db8::1",
                "2001:db8::ffff:1",  # the same /64
                "2001:db8:0:1::1",
            )
        ]
    assert asked == ([200, 200, 429, 200, 429, 200] if trusted else [200] + [429] * 5)


@pytest.fixture
def unkeyed() -> Iterator[str]:
    with running(with_engine(Talker(), allow_origins=("https://friend.example",))) as url:
        yield url


def test_answers_everywhere_carry_the_headers_that_protect_browsers(unkeyed: str) -> None:
    for method, path, headers in (
        ("GET", "/", {}),
        ("GET", "/docs", {}),
        ("GET", "/docs/assets/swagger-ui.css", {}),
        ("GET", "/assets/live.js", {}),
        ("GET", "/v1/models", {}),
        ("GET", "/nowhere", {}),
        ("PUT", "/v1/models", {}),
        ("POST", OTHER, {}),
        ("GET", "/v1/models", {"host": "evil.example"}),
        ("POST", OTHER, {"origin": "http://evil.example"}),
        (
            "OPTIONS",
            OTHER,
            {"origin": "https://friend.example", "access-control-request-method": "POST"},
        ),
        ("GET", NATIVE, {}),
    ):
        found = httpx2.request(method, unkeyed + path, headers=headers).headers
        assert found["x-content-type-options"] == "nosniff", path
        assert found["x-frame-options"] == "DENY"
        assert found["referrer-policy"] == "no-referrer"
        assert "microphone=(self)" in found["permissions-policy"]
        assert "default-src 'self'" in found["content-security-policy"]
        assert "frame-ancestors 'none'" in found["content-security-policy"]
    with pytest.raises(InvalidStatus) as refused:
        connect("ws" + unkeyed[4:] + NATIVE, origin="http://evil.example")  # type: ignore[arg-type]
    assert refused.value.response.headers["x-content-type-options"] == "nosniff"


def test_no_key_is_in_a_log_or_an_answer(caplog: pytest.LogCaptureFixture, file: Path) -> None:
    good = keys.add(file, "good", ["manage"], {})
    wrong = "osk_" + "w" * 43
    caplog.set_level(logging.DEBUG, "server")
    said = ""
    with running(with_engine(Talker(), keys_file=file)) as url:
        for key in (good, wrong):
            for path in ("/v1/models", "/api/ps/x", OTHER, "/nowhere"):
                for headers in (bearer(key), {"x-api-key": key}, {"authorization": key}):
                    for method in ("GET", "POST"):
                        answer = httpx2.request(method, url + path, headers=headers)
                        said += answer.text + str(answer.headers)
                said += httpx2.get(url + path + "?api_key=" + key).text
            for path in (NATIVE, REALTIME, OTHER):
                for offered in ("open-speech-key.", "openai-insecure-api-key."):
                    said += str(talk(url, path, subprotocols=["open-speech", offered + key]))
                for name in ("api_key", "key"):
                    said += str(talk(url, f"{path}?{name}={key}"))
                said += str(talk(url, path, additional_headers=bearer(key)))
    logged = "\n".join(
        record.getMessage() + str(record.exc_info)
        for record in caplog.records
        if record.name.startswith(("server", "streaming"))
    )
    assert "wrong keys within a minute" in logged
    for key in (good, wrong):
        assert key not in said
        assert key not in logged
