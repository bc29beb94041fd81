"""Both faces of the Python client against a running server with a real Whisper."""

import array
import asyncio
import contextlib
import io
import json
import re
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from open_speech_client import (
    Ack,
    ConnectionLost,
    EagerFinal,
    End,
    Error,
    Event,
    Final,
    Marker,
    Overloaded,
    Partial,
    Ready,
    Refused,
    SpeechResumed,
    StreamClosed,
    Unreachable,
    async_captions,
    async_connect,
    captions,
    connect,
)
from open_speech_client.samples import encoded
from server import lan
from tests.clients.relay import Relay, relayed
from tests.fakes import lines, pcm, silence, speech, wav, word_errors
from tests.serving import running, with_toy

Talk = Callable[..., list[Event]]


def talk(
    url: str, audio: bytes, size: int = 3200, markers: tuple[int, ...] = (), **given: Any
) -> list[Event]:
    """All events of `audio` through the sync face; `markers` are the bytes after which a commit is sent."""
    with connect(url, **given) as stream:
        for at in range(0, len(audio), size):
            stream.send(audio[at : at + size])
            for marker in markers:
                if at < marker <= at + size:
                    stream.commit(str(marker))
        stream.end()
        return list(stream)


def async_talk(
    url: str, audio: bytes, size: int = 3200, markers: tuple[int, ...] = (), **given: Any
) -> list[Event]:
    """The same through the asyncio face."""

    async def run() -> list[Event]:
        async with async_connect(url, **given) as stream:
            for at in range(0, len(audio), size):
                await stream.send(audio[at : at + size])
                for marker in markers:
                    if at < marker <= at + size:
                        await stream.commit(str(marker))
            await stream.end()
            return [event async for event in stream]

    return asyncio.run(asyncio.wait_for(run(), 90))


both = pytest.mark.parametrize("talk", [talk, async_talk], ids=["sync", "async"])


def finals(events: list[Event]) -> list[Final]:
    return [event for event in events if isinstance(event, Final)]


def text(events: list[Event]) -> str:
    return " ".join(final.text for final in finals(events))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(with_toy()) as url:
        yield url


@both
def test_the_text_is_that_of_rest(url: str, talk: Talk) -> None:
    for line in lines()[:4]:
        with line.path.open("rb") as file:
            answer = httpx2.post(
                url + "/v1/audio/transcriptions", files={"file": file}, timeout=30
            ).json()
        events = talk(url, pcm(line.samples))
        assert text(events) == answer["text"]
        assert isinstance(events[0], Ready)
        end = events[-1]
        assert isinstance(end, End)
        assert (end.received, end.reason) == (2 * len(line.samples), "client")


@both
def test_the_size_of_messages_changes_no_boundary(url: str, talk: Talk) -> None:
    audio = pcm(np.concatenate([line.samples for line in lines()[:3]]))
    spans = [
        [(final.start, final.end) for final in finals(talk(url, audio, size, partials=False))]
        for size in (321, 64_000, len(audio))
    ]
    assert spans[0] == spans[1] == spans[2]
    assert len(spans[0]) >= 3


@both
def test_committed_text_grows_into_the_final(url: str, talk: Talk) -> None:
    events = talk(url, pcm(speech("000-en.flac")), words=True)
    committed = ""
    for event in events:
        if isinstance(event, Partial):
            assert event.committed.startswith(committed)
            committed = event.committed
    (final,) = finals(events)
    assert final.text.startswith(committed)
    assert final.words[0].text == final.text.split()[0]
    assert final.language == "en"


@both
def test_markers_come_in_order_after_the_finals_before_them(url: str, talk: Talk) -> None:
    audio = pcm(np.concatenate([speech("000-en.flac"), speech("001-en.flac")]))
    first = 2 * len(speech("000-en.flac"))
    events = talk(url, audio, markers=(first, len(audio)), endpointing="client")
    kinds = [event for event in events if isinstance(event, Final | Marker)]
    assert [type(event) for event in kinds] == [Final, Marker, Final, Marker]
    assert [event.marker for event in kinds if isinstance(event, Marker)] == [
        str(first),
        str(len(audio)),
    ]


@both
def test_eager_finals_come_true_or_are_taken_back(url: str, talk: Talk) -> None:
    audio = pcm(np.concatenate([speech("000-en.flac"), silence(1.0), speech("001-en.flac")]))
    open_: dict[int, str] = {}
    for event in talk(url, audio, eager=True):
        match event:
            case EagerFinal(utterance=number, text=said):
                open_[number] = said
            case SpeechResumed(utterance=number):
                del open_[number]
            case Final(utterance=number, text=said):
                assert open_.pop(number, said) == said
    assert not open_


@both
def test_mistakes_and_missing_models_are_refused_at_the_door(url: str, talk: Talk) -> None:
    for given, expected in (
        ({"model": "nope"}, "does not exist"),
        ({"sample_rate": 7000}, "the lowest supported is 8000"),
        ({"endpoint": "client"}, "did you mean endpointing"),
    ):
        with pytest.raises(Refused, match=expected):
            talk(url, b"", **given)


def test_nobody_there_and_somebody_else_there(url: str) -> None:
    with pytest.raises(Unreachable, match="no open-speech server answers"):
        talk("http://127.0.0.1:9", b"")
    with pytest.raises(Refused, match="there is no WebSocket at /nothing/here/v1"):
        talk(url + "/nothing/here", b"")
    with running(with_toy(api_keys=("secret",))) as guarded:
        for key in (None, "wrong"):
            with pytest.raises(Refused, match="key") as refused:
                talk(guarded, b"", key=key)
            assert refused.value.code == "invalid_api_key"
        with pytest.raises(Refused, match="characters that no key has"):
            talk(guarded, b"", key="a\r\nb")
        assert text(talk(guarded, pcm(lines()[0].samples), key="secret\n")) == lines()[0].text


def test_leaving_early_frees_the_server_and_the_stream_says_so(url: str) -> None:
    with connect(url) as stream:
        stream.send(pcm(speech("000-en.flac")))
        stream.commit()
        assert isinstance(stream.receive(timeout=30), Ready)
        while not isinstance(stream.receive(timeout=30), Marker):
            pass
        with pytest.raises(TimeoutError):
            stream.receive(timeout=0.001)
    for deed in (stream.end, stream.receive, lambda: stream.send(b"12")):
        with pytest.raises(StreamClosed):
            deed()
    for caption in captions([pcm(speech("000-en.flac"))] * 3, url):
        assert isinstance(caption, Partial | Final)
        break

    async def leave() -> None:
        async for _ in async_captions([pcm(speech("000-en.flac"))] * 3, url):
            break

    asyncio.run(leave())
    with httpx2.Client(base_url=url, timeout=30) as client:
        # A stream that was left is let go of by its own task: the next request may overtake it, not a whole decode.
        with lines()[0].path.open("rb") as file:
            client.post("/v1/audio/transcriptions", files={"file": file})
        assert client.get("/api/ps").json()["loaded"][0]["in_use"] == 0


def test_one_thread_may_send_while_another_listens(url: str) -> None:
    with connect(url) as stream:

        def feed() -> None:
            for line in lines()[:3]:
                stream.send(line.samples)
                stream.send(silence(1.0))
            stream.end()

        feeding = threading.Thread(target=feed)
        feeding.start()
        events = list(stream)
        feeding.join()
    said = " ".join(line.text for line in lines()[:3])
    assert word_errors(said, text(events)) <= 2


def test_captions_of_samples_and_faults_of_the_source(url: str) -> None:
    line = lines()[0]
    halves = line.samples[:30_000], line.samples[30_000:]
    assert [c.text for c in captions(halves, url, partials=False)] == [line.text]

    def broken() -> Iterator[bytes]:
        yield pcm(line.samples)
        raise ValueError("the microphone fell off")

    with pytest.raises(ValueError, match="fell off"):
        list(captions(broken(), url))

    async def run(source: Any) -> list[str]:
        return [c.text async for c in async_captions(source, url, partials=False)]

    async def pieces() -> Any:
        for half in halves:
            yield half

    assert asyncio.run(run(pieces())) == [line.text]
    with pytest.raises(ValueError, match="fell off"):
        asyncio.run(run(broken()))


def test_a_slip_in_the_middle_is_an_event(url: str) -> None:
    with connect(url) as stream:
        stream.commit("x" * 300)
        stream.send(lines()[0].samples)
        stream.end()
        events = list(stream)
    (error,) = [event for event in events if isinstance(event, Error)]
    assert error.param == "marker"
    assert text(events) == lines()[0].text


@both
def test_a_recording_may_be_sent_as_it_is(url: str, talk: Talk) -> None:
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=48000, layout="mono")
        with av.open(str(lines()[0].path)) as source:
            for frame in source.decode(audio=0):
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    events = talk(url, out.getvalue(), 999, encoding="container", language="en")
    assert word_errors(lines()[0].text, text(events)) <= 1
    assert isinstance(events[0], Ready)
    assert events[0].sample_rate is None


def test_samples_of_every_kind_are_the_same_sound() -> None:
    whole = np.array([0, 1, -1, 32767, -32768], np.int16)
    floats = (whole / 32768).astype(np.float32)
    wire = whole.astype("<i2").tobytes()
    for same in (
        wire,
        bytearray(wire),
        memoryview(wire),
        whole,
        floats,
        floats.astype(np.float64),
        array.array("h", whole.tolist()),
        array.array("f", floats.tolist()),
        np.repeat(whole, 2)[::2],
    ):
        assert encoded(same, "pcm_s16le") == wire
    for same in (whole, floats, floats.astype(np.float64)):
        assert encoded(same, "pcm_f32le") == floats.astype("<f4").tobytes()
    assert encoded(np.array([2.0, -2.0]), "pcm_s16le") == b"\xff\x7f\x00\x80"
    for wrong in ("text", 5, [1, 2], np.array([1, 2], np.int64)):
        with pytest.raises(TypeError, match="expected are"):
            encoded(wrong, "pcm_s16le")
    with pytest.raises(TypeError, match="send bytes"):
        encoded(whole, "mulaw")


# Connections that break. The relay stands between client and server.


def feed_around(
    relay: Relay, trouble: Callable[[], None], audio: bytes, **given: Any
) -> list[Event]:
    """Send half of `audio`, wait until some of it is received, make `trouble`, send the rest."""
    events: list[Event] = []
    with connect(relay.url, **given) as stream:
        half = len(audio) // 4 * 2
        for at in range(0, half, 3200):
            stream.send(audio[at : min(half, at + 3200)])
        while True:
            event = stream.receive(timeout=30)
            assert event is not None
            events.append(event)
            if isinstance(event, Partial | Final):
                break
        trouble()
        for at in range(half, len(audio), 3200):
            stream.send(audio[at : at + 3200])
        stream.end()
        return events + list(stream)


def test_a_cut_connection_loses_no_word(url: str) -> None:
    audio = pcm(np.concatenate([lines()[at].samples for at in (0, 1, 2, 6)]))
    whole = finals(talk(url, audio, language="en"))
    with relayed(url) as relay:
        events = feed_around(relay, relay.cut, audio, language="en")
        assert relay.connections >= 2
    assert sum(isinstance(event, Ready) for event in events) >= 2
    assert word_errors(" ".join(f.text for f in whole), text(events)) <= 1
    assert [final.utterance for final in finals(events)] == list(range(len(whole)))
    assert finals(events)[-1].end == pytest.approx(whole[-1].end, abs=0.1)
    end = events[-1]
    assert isinstance(end, End)
    assert end.received == len(audio)


def test_a_server_that_restarts_is_replaced_by_another(url: str) -> None:
    audio = pcm(np.concatenate([lines()[at].samples for at in (0, 1, 2, 6)]))
    whole = finals(talk(url, audio, language="en"))
    with contextlib.ExitStack() as stack:
        old = stack.enter_context(contextlib.ExitStack())
        first = old.enter_context(running(with_toy(drain_seconds=0.1)))
        relay = stack.enter_context(relayed(first))

        def replace() -> None:
            relay.point(url)
            old.close()

        events = feed_around(relay, replace, audio, language="en")
    sessions = [event.session for event in events if isinstance(event, Ready)]
    assert len(set(sessions)) == 2
    assert word_errors(" ".join(f.text for f in whole), text(events)) <= 1
    spans = [(final.start, final.end) for final in finals(events)]
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    assert spans[-1][1] == pytest.approx(whole[-1].end, abs=0.1)


def test_a_session_that_may_last_no_longer_goes_on_in_another() -> None:
    with running(with_toy(max_stream_seconds=1)) as url, connect(url, language="en") as stream:
        events: list[Event] = []

        def listen_until(sessions: int) -> None:
            while sum(isinstance(event, Ready) for event in events) < sessions:
                event = stream.receive(timeout=30)
                assert event is not None
                events.append(event)

        for at, line in enumerate((lines()[0], lines()[1])):
            stream.send(line.samples)
            listen_until(at + 2)
        stream.end()
        events += stream
    said = f"{lines()[0].text} {lines()[1].text}"
    assert word_errors(said, text(events)) <= 1
    assert [final.utterance for final in finals(events)] == list(range(len(finals(events))))
    assert isinstance(events[-1], End)


def test_who_does_not_come_back_in_time_is_told(url: str) -> None:
    audio = pcm(np.concatenate([line.samples for line in lines()[:4]]))
    with relayed(url) as relay:

        def trouble() -> None:
            relay.refuse()
            relay.cut()

        for patience in (0.0, 0.6):
            relay.refuse(False)
            with pytest.raises(ConnectionLost):
                feed_around(relay, trouble, audio, reconnect=patience)


def test_a_full_server_says_when_to_come_again() -> None:
    with running(with_toy(max_streams=1)) as url, connect(url) as stream:
        stream.send(silence(0.1))
        with pytest.raises(Overloaded) as full:
            talk(url, b"")
        assert full.value.retry_after is not None


def test_a_certificate_of_its_own_is_trusted_where_one_says_so(url: str, tmp_path: Path) -> None:
    pair = lan.certificate(tmp_path, ("localhost",), ("127.0.0.1",))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(pair.certificate, pair.key)
    with relayed(url, tls) as relay:
        with pytest.raises(Unreachable, match="certificate"):
            talk(relay.url, b"")
        trust = ssl.create_default_context(cafile=pair.certificate)
        audio = pcm(lines()[0].samples)
        assert text(talk(relay.url, audio, ssl=trust)) == lines()[0].text
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "server.cli",
                "stream",
                str(lines()[0].path),
                "--url",
                relay.url,
                "--speed",
                "0",
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.stdout, done.stderr) == (lines()[0].text + "\n", "")


# The examples of the README.


def examples() -> list[str]:
    readme = Path(__file__).parents[2] / "clients" / "python" / "README.md"
    return re.findall(r"```python\n(.*?)```", readme.read_text("utf-8"), re.DOTALL)


def test_the_ten_lines_of_the_readme(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "speech.wav").write_bytes(wav(lines()[0].samples))
    monkeypatch.chdir(tmp_path)
    example = examples()[0].replace("http://localhost:8100", url)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(example, {})
    assert out.getvalue().splitlines()[-1].endswith(lines()[0].text)
    assert len(examples()[0].strip().splitlines()) <= 10


def test_the_longer_example_of_the_readme(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, Any] = {}
    exec(examples()[1].replace("http://localhost:8100", url), scope)
    asyncio.run(scope["main"](pcm(lines()[0].samples)))
    assert "question" in capsys.readouterr().out


def test_who_listens_late_finds_the_newest_of_what_is_replaced_and_every_final() -> None:
    async def scenario() -> list[Event]:
        stream = async_connect("http://localhost:1")
        conversation, seq = stream._conversation, count()
        conversation.receive_open()

        async def say(kind: str, **fields: Any) -> None:
            conversation.receive_message(json.dumps({"type": kind, "seq": next(seq), **fields}))
            await stream._tell()

        ready = {"session": "s", "model": "m", "sample_rate": 16000, "resumable_seconds": 30}
        await say("ready", received=0, **ready)
        for number in range(2):
            for revision in range(1, 50):
                said = {
                    "utterance": number,
                    "revision": revision,
                    "committed": "",
                    "tentative": "x",
                }
                await say("partial", received=0, lag=0.1, **said)
                await say("ack", received=0, lag=revision / 100)
            said = {"utterance": number, "text": "x", "start": 0, "end": 1, "language": "en"}
            await say("final", received=0, **said)
        return [*stream._events]

    found = asyncio.run(scenario())
    assert [type(each) for each in found] == [Ready, *2 * [Partial, Ack, Final]]
    assert [each.revision for each in found if isinstance(each, Partial)] == [49, 49]
    assert [each.lag for each in found if isinstance(each, Ack)] == [0.49, 0.49]
