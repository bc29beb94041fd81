"""The native WebSocket against a running server with a real Whisper."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import pytest
import websockets

from tests.containers import KINDS, contained, packets
from tests.fakes import lines, noise, pcm, silence, speech, word_errors
from tests.serving import running, speech_file, with_toy


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(with_toy()) as url:
        yield url


def talk(
    url: str,
    audio: bytes,
    query: str = "",
    *,
    size: int = 3200,
    start: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Everything the server says to `audio`, sent as fast as it takes it."""

    async def run() -> list[dict[str, Any]]:
        address = url.replace("http", "ws") + "/v1/audio/transcriptions/stream" + query
        async with websockets.connect(address) as socket:

            async def feed() -> None:
                if start is not None:
                    await socket.send(json.dumps({"type": "start", **start}))
                for at in range(0, len(audio), size):
                    await socket.send(audio[at : at + size])
                await socket.send('{"type": "end"}')

            feeding = asyncio.create_task(feed())
            found = [json.loads(message) async for message in socket]
            await feeding
            assert socket.close_code == 1000
            return found

    return asyncio.run(asyncio.wait_for(run(), 60))


def finals(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [message for message in messages if message["type"] == "final"]


def test_a_sentence_gives_the_same_text_as_over_rest(url: str) -> None:
    for line in lines()[:6]:
        messages = talk(url, pcm(line.samples))
        text = " ".join(final["text"] for final in finals(messages))
        with line.path.open("rb") as file:
            rest = httpx2.post(
                url + "/v1/audio/transcriptions", files={"file": file}, timeout=30
            ).json()["text"]
        assert text == rest


def test_the_conversation_has_its_order_and_numbers(url: str) -> None:
    audio = pcm(np.concatenate([silence(0.5), speech("000-en.flac"), silence(1.0)]))
    messages = talk(url, audio, "?words=true")
    assert [message["seq"] for message in messages] == list(range(len(messages)))
    kinds = [message["type"] for message in messages if message["type"] not in ("ack", "partial")]
    assert kinds == ["ready", "speech_started", "speech_stopped", "final", "end"]
    assert messages[-1] == {
        "type": "end",
        "seq": len(messages) - 1,
        "received": len(audio),
        "reason": "client",
    }
    final = finals(messages)[0]
    assert final["words"][0]["text"] == "It"
    assert " ".join(word["text"] for word in final["words"]) == final["text"]
    assert 0.3 < final["start"] < final["words"][3]["start"] < final["end"] < len(audio) / 32000
    committed = ""
    for message in messages:
        if message["type"] == "partial":
            assert message["committed"].startswith(committed)
            committed = message["committed"]
    assert final["text"].startswith(committed)


def test_boundaries_do_not_depend_on_messages(url: str) -> None:
    audio = pcm(speech("long-0.flac"))
    spans = [
        [
            (final["start"], final["end"])
            for final in finals(talk(url, audio, "?partials=false", size=size))
        ]
        for size in (6400, 100_001)
    ]
    assert spans[0] == spans[1]
    messages = talk(url, audio, "?partials=false", size=64_000)
    text = " ".join(final["text"] for final in finals(messages))
    assert word_errors(lines()[24].text, text) <= 8, "of 156 words"


def test_silence_and_noise_give_no_words(url: str) -> None:
    for quiet in (silence(20), noise(20, 0.01)):
        assert [m["type"] for m in talk(url, pcm(quiet), size=32_000) if m["type"] != "ack"] == [
            "ready",
            "end",
        ]


@pytest.mark.parametrize(
    ("encoding", "rate", "channels"),
    [("pcm_f32le", 16000, 1), ("pcm_s16le", 48000, 2), ("mulaw", 16000, 1), ("alaw", 16000, 1)],
)
def test_encodings_rates_and_channels(url: str, encoding: str, rate: int, channels: int) -> None:
    import soxr

    samples = soxr.resample(speech("000-en.flac"), 16000, rate).astype(np.float32)
    wide = np.repeat(samples, channels)
    if encoding == "pcm_f32le":
        audio = wide.astype("<f4").tobytes()
    elif encoding == "pcm_s16le":
        audio = pcm(wide)
    else:
        from streaming.audio.pcm import _TABLES

        table = _TABLES[encoding]
        order = np.argsort(table)
        audio = (
            order[np.clip(np.searchsorted(table[order], wide), 0, 255)].astype(np.uint8).tobytes()
        )
    start = {"encoding": encoding, "sample_rate": rate, "channels": channels, "language": "en"}
    messages = talk(url, audio, size=9_999, start=start)
    assert word_errors(lines()[0].text, finals(messages)[0]["text"]) <= 1
    assert messages[-1]["received"] == len(audio)


def test_a_marker_tells_that_all_before_it_is_final(url: str) -> None:
    async def run() -> list[dict[str, Any]]:
        address = url.replace("http", "ws") + "/v1/audio/transcriptions/stream?endpointing=client"
        async with websockets.connect(address) as socket:
            await socket.send(pcm(speech("000-en.flac")))
            await socket.send('{"type": "commit", "marker": "one"}')
            found = []
            async for message in socket:
                found.append(json.loads(message))
                if found[-1]["type"] == "marker":
                    await socket.send('{"type": "end"}')
            return found

    kinds = [
        m["type"]
        for m in asyncio.run(asyncio.wait_for(run(), 30))
        if m["type"] not in ("partial", "ack")
    ]
    assert kinds == ["ready", "speech_started", "speech_stopped", "final", "marker", "end"]


@pytest.mark.parametrize(
    ("query", "message", "expected"),
    [
        ("?sample_rate=7000", None, "sample_rate is 7000; the lowest supported is 8000"),
        ("?endpoint=client", None, "did you mean endpointing"),
        ("?model=nope", None, "does not exist"),
        ("?encoding=mp3", None, "must be one of"),
        ("", '{"type": "start", "channels": true}', "must be a number"),
        ("", '{"type": "start", "sample_rate": 1e999}', "finite"),
        ("", '{"type": "resume", "session": "s_x"}', "last_event is null"),
        ("", '{"type": "resume", "session": "s_x", "last_event": 0}', "begin a new one"),
        ("", "nonsense", "no JSON"),
        ("", '{"type": "dance"}', "expected is start"),
        ("", "[" * 5000, "no JSON"),
    ],
)
def test_mistakes_at_the_opening_are_explained_and_close_with_1008(
    url: str, query: str, message: str | None, expected: str
) -> None:
    async def run() -> tuple[dict[str, Any], int | None]:
        async with websockets.connect(
            url.replace("http", "ws") + "/v1/audio/transcriptions/stream" + query
        ) as socket:
            if message is not None:
                await socket.send(message)
            told = json.loads(await socket.recv())
            await socket.wait_closed()
            return told, socket.close_code

    told, code = asyncio.run(asyncio.wait_for(run(), 20))
    assert told["type"] == "error"
    assert expected in told["message"]
    assert code == 1008


def test_a_slip_in_the_middle_costs_no_word(url: str) -> None:
    async def run() -> list[dict[str, Any]]:
        async with websockets.connect(
            url.replace("http", "ws") + "/v1/audio/transcriptions/stream"
        ) as socket:
            audio = pcm(speech("000-en.flac"))
            await socket.send(audio[:60_000])
            for slip in ("{", '{"type": "start"}', '{"type": "commit", "marker": 5}'):
                await socket.send(slip)
            await socket.send(audio[60_000:])
            await socket.send('{"type": "end"}')
            return [json.loads(message) async for message in socket]

    found = asyncio.run(asyncio.wait_for(run(), 30))
    assert sum(message["type"] == "error" for message in found) == 3
    assert finals(found)[0]["text"] == lines()[0].text


def test_pages_of_other_sites_may_not_open_a_socket(url: str) -> None:
    async def run(origin: str) -> None:
        address = url.replace("http", "ws") + "/v1/audio/transcriptions/stream"
        async with websockets.connect(address, origin=origin):  # type: ignore[arg-type]
            pass

    asyncio.run(run(url))
    with pytest.raises(websockets.InvalidStatus):
        asyncio.run(run("http://evil.example"))


def test_a_key_may_come_as_subprotocol() -> None:
    with running(with_toy(api_keys=("secret",))) as url:

        async def run(protocols: list[str]) -> tuple[str | None, dict[str, Any]]:
            address = url.replace("http", "ws") + "/v1/audio/transcriptions/stream?language=en"
            async with websockets.connect(address, subprotocols=protocols) as socket:  # type: ignore[arg-type]
                return socket.subprotocol, json.loads(await socket.recv())

        assert asyncio.run(run(["open-speech", "open-speech-key.secret"]))[1]["type"] == "ready"
        assert asyncio.run(run(["open-speech", "open-speech-key.secret"]))[0] == "open-speech"
        assert asyncio.run(run(["open-speech"]))[1]["code"] == "invalid_api_key"


def test_leaving_in_mid_speech_leaves_nothing_behind(url: str) -> None:
    async def leave() -> None:
        async with websockets.connect(
            url.replace("http", "ws") + "/v1/audio/transcriptions/stream"
        ) as socket:
            await socket.send(pcm(speech("000-en.flac")))
            await socket.recv()

    for _ in range(3):
        asyncio.run(leave())
    with httpx2.Client(base_url=url, timeout=30) as client:
        client.post(
            "/v1/audio/transcriptions", files={"file": speech_file("000-en.flac").read_bytes()}
        )
        row = client.get("/api/ps").json()["loaded"][0]
    assert row["in_use"] == 0


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_container_gives_the_text_of_its_samples(url: str, kind: str) -> None:
    line = lines()[0]
    audio = contained(np.concatenate([line.samples, silence(0.7)]), kind)
    messages = talk(url, audio, size=4321, start={"encoding": "container", "language": "en"})
    assert messages[0]["sample_rate"] is None
    assert word_errors(line.text, " ".join(f["text"] for f in finals(messages))) <= 1
    assert messages[-1]["received"] == len(audio)
    received = [message["received"] for message in messages if "received" in message]
    assert received == sorted(received)


def test_a_lossless_container_gives_exactly_the_text_of_its_samples(url: str) -> None:
    for line in lines()[:3]:
        told = [
            [(f["text"], f["start"], f["end"]) for f in finals(talk(url, audio, query))]
            for audio, query in (
                (pcm(line.samples), "?partials=false"),
                (contained(line.samples, "flac"), "?partials=false&encoding=container"),
            )
        ]
        assert told[0] == told[1]


def test_opus_packets_give_the_text_of_their_samples(url: str) -> None:
    line = lines()[0]

    async def run() -> list[dict[str, Any]]:
        address = url.replace("http", "ws") + "/v1/audio/transcriptions/stream?encoding=opus"
        async with websockets.connect(address) as socket:
            for packet in packets(line.samples):
                await socket.send(packet)
            await socket.send('{"type": "end"}')
            return [json.loads(message) async for message in socket]

    messages = asyncio.run(asyncio.wait_for(run(), 60))
    assert messages[0]["sample_rate"] == 48_000
    assert word_errors(line.text, finals(messages)[0]["text"]) <= 1
    assert messages[-1]["received"] == sum(map(len, packets(line.samples)))
