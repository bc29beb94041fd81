"""The socket of OpenAI Realtime around the dialect: keys, secrets, limits, endings."""

import asyncio
import base64
import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import numpy as np
import pytest
import websockets

from server import realtime
from server.protocols.openai_session import Configuration
from server.realtime import SECRETS, Secrets
from streaming.backlog import Backlog
from streaming.types import RATE, Checkpoint, Options
from tests.drive import speak
from tests.fakes import lines, pcm, silence, speech, word_errors
from tests.faults.process import until
from tests.serving import Chatter, Talker, running, stoppable, with_engine, with_scripted, with_toy

UPDATE = {
    "type": "session.update",
    "session": {
        "type": "transcription",
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": 16000},
                "transcription": {"model": "toy"},
                "turn_detection": None,
            }
        },
    },
}


def append(audio: bytes) -> str:
    encoded = base64.b64encode(audio).decode()
    return json.dumps({"type": "input_audio_buffer.append", "audio": encoded})


def talk(
    url: str,
    *messages: str | bytes | dict[str, Any],
    until: str = "error",
    query: str = "?intent=transcription",
    **more: Any,
) -> tuple[list[dict[str, Any]], Any]:
    """Everything said up to the first event of type `until`, or the close; and the socket."""

    async def run() -> tuple[list[dict[str, Any]], Any]:
        address = url.replace("http", "ws") + "/v1/realtime" + query
        async with websockets.connect(address, max_size=None, **more) as socket:
            found: list[dict[str, Any]] = []
            try:
                for message in messages:
                    await socket.send(json.dumps(message) if isinstance(message, dict) else message)
                async for text in socket:
                    found.append(json.loads(text))
                    if found[-1]["type"] == until:
                        break
            except websockets.ConnectionClosedError:
                pass
            return found, socket

    return asyncio.run(asyncio.wait_for(run(), 60))


def ending(url: str, **more: Any) -> tuple[dict[str, Any], int, str]:
    """The last thing said before the server closes, and how it closes."""
    found, socket = talk(url, until="never", **more)
    return found[-1], socket.close_code, socket.close_reason


def test_a_session_that_changes_its_language_is_not_asked_again_whether_there_is_room() -> None:
    engine = Talker()
    changed = json.loads(json.dumps(UPDATE))
    changed["session"]["audio"]["input"]["transcription"]["language"] = "fr"
    with running(with_engine(engine)) as url:
        talk(
            url,
            UPDATE,
            append(pcm(speak([1, 2]))),
            changed,
            append(pcm(speak([3]))),
            {"type": "input_audio_buffer.commit"},
            until="conversation.item.input_audio_transcription.completed",
        )
    assert engine.admitted[0] is False
    assert len(engine.admitted) > 1
    assert all(engine.admitted[1:])


def test_keys_come_as_bearer_or_subprotocol_and_their_absence_is_explained() -> None:
    with running(with_toy(api_keys=("secret",))) as url:
        said, code, reason = ending(url)
        assert said["type"] == "error"
        assert said["error"]["code"] is None
        assert (code, reason) == (3000, "invalid_request_error")
        wrong = {"Authorization": "Bearer wrong"}
        said, code, reason = ending(url, additional_headers=wrong)
        assert said["error"]["code"] == "invalid_api_key"
        assert (code, reason) == (3000, "invalid_request_error.invalid_api_key")
        right = {"Authorization": "Bearer secret"}
        found, socket = talk(url, until="session.created", additional_headers=right)
        assert found[-1]["type"] == "session.created"
        offered = ["realtime", "openai-insecure-api-key.secret"]
        found, socket = talk(url, until="session.created", subprotocols=offered)
        assert found[-1]["type"] == "session.created"
        assert socket.subprotocol == "realtime"


def test_a_client_secret_opens_sessions_that_begin_as_it_says() -> None:
    with running(with_toy(api_keys=("secret",))) as url:
        path = url + "/v1/realtime/client_secrets"
        assert httpx2.post(path, json={}).status_code == 401
        asked = {
            "expires_after": {"anchor": "created_at", "seconds": 60},
            "session": UPDATE["session"],
        }
        key = {"Authorization": "Bearer secret"}
        made = httpx2.post(path, json=asked, headers=key).json()
        assert made["value"].startswith("ek_")
        assert made["session"]["type"] == "transcription"
        assert made["session"]["audio"]["input"]["turn_detection"] is None
        offered = ["realtime", "openai-insecure-api-key." + made["value"]]
        for _ in range(2):
            found, _ = talk(url, until="session.created", query="", subprotocols=offered)
            assert found[0]["session"]["audio"] == made["session"]["audio"]
        listed = httpx2.get(
            url + "/v1/models", headers={"Authorization": "Bearer " + made["value"]}
        )
        assert listed.status_code == 401, "a secret opens sessions and nothing else"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b'{"expires_after": {"seconds": 5}}', "expires_after.seconds"),
        (b'{"expires_after": {"seconds": "60"}}', "expires_after.seconds"),
        (b'{"session": {"type": "realtime"}}', "session.type"),
        (
            b'{"session": {"type": "transcription", "audio": {"input": {"transcription": {"model": "gpt-9"}}}}}',
            "model",
        ),
    ],
)
def test_wrong_requests_for_secrets_are_told(body: bytes, param: str | None) -> None:
    with running(with_toy()) as url:
        answer = httpx2.post(url + "/v1/realtime/client_secrets", content=body)
        assert answer.status_code in (400, 404)
        assert answer.json()["error"]["param"] == param


def test_the_beta_gets_its_secret_in_the_session() -> None:
    with running(with_toy()) as url:
        body = {"input_audio_transcription": {"model": "whisper-1"}, "turn_detection": None}
        made = httpx2.post(url + "/v1/realtime/transcription_sessions", json=body).json()
        assert made["client_secret"]["value"].startswith("ek_")
        assert made["input_audio_transcription"]["model"] == "whisper-1"
        assert made["turn_detection"] is None


def test_secrets_expire_and_are_bounded() -> None:
    kept, configuration = Secrets(), Configuration()
    value = kept.make(60, configuration, now=1000.0)
    assert kept.find(value, 1059.0)[0] is configuration
    assert kept.find(value, 1060.0) == (None, None)
    assert kept.find("ek_other", 1000.0) == (None, None)
    assert kept.find(None, 1000.0) == (None, None)
    for _ in range(SECRETS):
        kept.make(60, configuration, now=1000.0)
    assert kept.find(value, 1000.0) == (None, None)


def test_sessions_end_at_their_limit() -> None:
    with running(with_toy(realtime_minutes=0.001)) as url:
        said, code, reason = ending(url)
        assert said["error"]["code"] == "session_expired"
        assert (code, reason) == (1001, "invalid_request_error.session_expired")


def test_a_session_in_which_nothing_comes_ends_with_what_was_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(realtime, "IDLE", 1)
    told = [1, 2, 3]
    update = json.loads(json.dumps(UPDATE))
    with running(with_scripted(stream_idle_seconds=0.5)) as url:
        found, socket = talk(url, update, append(pcm(speak(told))), until="never")
    assert found[-1]["error"]["code"] == "idle_timeout"
    assert found[-2]["transcript"] == "w1 w2 w3"
    assert (socket.close_code, socket.close_reason) == (
        1001,
        "invalid_request_error.idle_timeout",
    )


def test_what_was_said_before_the_limit_is_told_before_the_end() -> None:
    update = json.loads(json.dumps(UPDATE))
    del update["session"]["audio"]["input"]["turn_detection"]
    told = list(range(20))
    audio = pcm(np.concatenate([silence(0.4), speak(told)]))  # somebody still speaks at the limit
    with running(with_scripted(realtime_minutes=2 / 60)) as url:
        found, socket = talk(url, update, append(audio), until="never")
    assert found[-1]["error"]["code"] == "session_expired"
    assert found[-2]["transcript"] == " ".join(f"w{word}" for word in told)
    assert socket.close_code == 1001


def test_the_model_of_the_query_is_a_hint() -> None:
    with running(with_toy()) as url:
        for query, model in (
            ("?model=toy", "toy"),
            ("?model=gpt-realtime&intent=transcription", None),
        ):
            found, _ = talk(url, until="session.created", query=query)
            transcription = found[0]["session"]["audio"]["input"]["transcription"]
            assert (transcription and transcription["model"]) == model
        found, _ = talk(
            url,
            until="transcription_session.created",
            additional_headers={"OpenAI-Beta": "realtime=v1"},
        )
        assert found[0]["session"]["input_audio_format"] == "pcm16"


def test_slips_are_told_and_cost_no_word() -> None:
    audio = pcm(speech("000-en.flac"))
    with running(with_toy()) as url:
        found, _ = talk(
            url,
            UPDATE,
            append(audio[:40_001]),
            b"binary",
            "{",
            append(audio[:4]).replace('"audio": "', '"audio": "*'),
            append(bytes(15 * 2**20 + 1)),
            append(audio[40_001:]),
            {"type": "input_audio_buffer.commit"},
            until="conversation.item.input_audio_transcription.completed",
        )
    codes = [each["error"]["code"] for each in found if each["type"] == "error"]
    assert codes == ["invalid_event", "invalid_json", "invalid_value", "invalid_value"]
    assert word_errors(lines()[0].text, found[-1]["transcript"]) <= 1


def test_fifteen_mebibytes_fit_one_append_and_a_longer_message_is_1009() -> None:
    audio = bytes(15 * 2**20)
    with running(with_toy()) as url:
        found, _ = talk(
            url,
            UPDATE,
            append(audio),
            {"type": "input_audio_buffer.commit"},
            until="input_audio_buffer.committed",
        )
        assert found[-1]["type"] == "input_audio_buffer.committed"
        _, socket = talk(url, " " * (24 * 2**20 + 1), until="never")
        assert socket.close_code == 1009


class Slow(Talker):
    """Its streams take nothing before they are let."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.backlog = Backlog(most)

    async def open_stream(
        self, options: Options, after: Checkpoint | None = None, *, admitted: bool = False
    ) -> Chatter:
        stream = await super().open_stream(options, after, admitted=admitted)
        stream.room.clear()
        return stream


def test_audio_that_waits_before_the_engine_counts_among_that_of_all_streams() -> None:
    engine = Slow(4 * RATE)
    second = append(bytes(2 * RATE))
    with running(with_engine(engine)) as url, ThreadPoolExecutor(1) as clients:
        client = clients.submit(talk, url, UPDATE, *[second] * 20, until="never")
        until(lambda: engine.backlog.seconds >= 3.0)
        until(lambda: len(engine.streams) == 1)
        engine.streams[0].call(engine.streams[0].room.set)
        found, socket = client.result(60)
        until(lambda: engine.backlog.seconds == 0.0)
    assert found[-1]["error"]["code"] == "overloaded"
    assert found[-1]["error"]["retry_after"] >= 1
    assert socket.close_code == 1013
    assert 3 * RATE <= engine.streams[0].received < 6 * RATE
    assert f"{engine.streams[0].received} samples" in str(found)


def test_a_long_append_reaches_the_engine_in_pieces() -> None:
    engine = Talker()
    with running(with_engine(engine)) as url:
        talk(
            url,
            UPDATE,
            append(bytes(20 * RATE)),
            {"type": "input_audio_buffer.commit"},
            until="conversation.item.input_audio_transcription.completed",
        )
    pieces = [len(each) for each in engine.streams[0].pieces]
    assert sum(pieces) == 10 * RATE
    assert max(pieces) == RATE // 2


def test_a_model_that_cannot_be_had_ends_the_session_with_the_reason() -> None:
    update = json.loads(json.dumps(UPDATE))
    update["session"]["audio"]["input"]["transcription"]["model"] = "Systran/faster-whisper-small"
    with running(with_toy()) as url:
        found, socket = talk(url, update, until="never")
        assert [each["type"] for each in found] == ["session.created", "session.updated", "error"]
        assert found[-1]["error"]["code"] == "model_unavailable"
        assert socket.close_code == 1011


def test_too_many_sessions_are_sent_away_with_1013() -> None:
    with running(with_toy(max_streams=0)) as url:
        found, socket = talk(url, UPDATE, until="never")
        assert found[-1]["error"]["code"] == "overloaded"
        assert socket.close_code == 1013


def test_session_close_and_a_stopping_server_lose_nothing() -> None:
    audio = pcm(speech("000-en.flac"))
    update = json.loads(json.dumps(UPDATE))
    del update["session"]["audio"]["input"]["turn_detection"]
    with stoppable(with_toy()) as (url, stop):
        found, socket = talk(url, update, append(audio), {"type": "session.close"}, until="never")
        assert word_errors(lines()[0].text, found[-1]["transcript"]) <= 1
        assert socket.close_code == 1000

        async def run() -> tuple[list[dict[str, Any]], int | None]:
            async with websockets.connect(url.replace("http", "ws") + "/v1/realtime") as socket:
                await socket.send(json.dumps(update))
                await socket.send(append(audio))
                found = []
                with contextlib.suppress(websockets.ConnectionClosedError):
                    async for text in socket:
                        found.append(json.loads(text))
                        if found[-1]["type"].endswith("speech_started"):
                            stop()
                return found, socket.close_code

        found, code = asyncio.run(asyncio.wait_for(run(), 60))
    assert found[-1]["type"].endswith("completed")
    assert word_errors(lines()[0].text, found[-1]["transcript"]) <= 1
    assert code == 1012


def test_leaving_in_mid_speech_leaves_nothing_behind() -> None:
    audio = pcm(speech("000-en.flac"))
    with running(with_toy()) as url:
        for _ in range(3):
            talk(url, UPDATE, append(audio), until="session.updated")
        with httpx2.Client(base_url=url, timeout=30) as client:
            file = {"file": lines()[0].path.read_bytes()}
            assert client.post("/v1/audio/transcriptions", files=file).status_code == 200
            assert client.get("/api/ps").json()["loaded"][0]["in_use"] == 0


def test_pages_of_other_sites_may_not_open_a_session() -> None:
    with running(with_toy(allow_origins=("http://friend.example",))) as url:
        talk(url, until="session.created", origin="http://friend.example")
        with pytest.raises(websockets.InvalidStatus):
            talk(url, until="session.created", origin="http://evil.example")


def test_what_openai_has_besides_is_404_in_the_envelope() -> None:
    with running(with_toy()) as url:
        for path in ("/v1/realtime/calls", "/v1/realtime/sessions", "/v1/live/sessions"):
            answer = httpx2.post(url + path, json={})
            assert answer.status_code == 404
            assert answer.json()["error"]["code"] == "unknown_url"
