"""The JavaScript client in Node, against a running server with a real Whisper."""

import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from server import formats
from streaming.types import RATE, Segment, Word
from tests.fakes import lines, pcm, silence, speech, word_errors
from tests.proxy import wire
from tests.serving import running, stoppable, with_toy

HERE = Path(__file__).parent
MODULE = str(HERE.parents[1] / "clients" / "js" / "open-speech.js")
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(with_toy()) as url:
        yield url


def command(script: str, *arguments: str) -> list[str]:
    return [
        str(NODE),
        "--experimental-websocket",
        "--no-warnings",
        str(HERE / "js" / script),
        MODULE,
        *arguments,
    ]


def node(script: str, *arguments: str, stdin: str | None = None) -> str:
    done = subprocess.run(
        command(script, *arguments),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def stream(url: str, folder: Path, audio: bytes, **options: Any) -> list[dict[str, Any]]:
    file = folder / "audio.pcm"
    file.write_bytes(audio)
    rows = node("stream.mjs", url, str(file), json.dumps(options)).splitlines()
    return [json.loads(row) for row in rows]


def following(url: str, file: Path, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The same, event by event."""
    arguments = command("stream.mjs", url, str(file), json.dumps(options))
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for row in process.stdout:
            yield json.loads(row)
    assert process.returncode == 0


def of(kind: str, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["type"] == kind]


def test_a_sentence_gives_the_same_text_as_over_rest(url: str, tmp_path: Path) -> None:
    line = lines()[0]
    events = stream(url, tmp_path, pcm(line.samples), words=True)
    with line.path.open("rb") as file:
        rest = httpx2.post(url + "/v1/audio/transcriptions", files={"file": file}, timeout=30)
    text = rest.json()["text"]
    assert [final["text"] for final in of("final", events)] == [text]
    assert events[-1] == {"type": "heard", "heard": [text]}
    assert " ".join(word["text"] for word in of("final", events)[0]["words"]) == text
    assert events[0] == {"type": "connection", "state": "opening"}
    assert of("connection", events)[-1]["state"] == "closed"
    assert of("ready", events)[0]["model"] == "toy"
    assert of("end", events)[0]["received"] == len(pcm(line.samples))


def test_a_commit_is_answered_by_its_marker(url: str, tmp_path: Path) -> None:
    audio = pcm(np.concatenate([speech("000-en.flac"), speech("001-en.flac")]))
    events = stream(url, tmp_path, audio, commitAt=len(pcm(speech("000-en.flac"))))
    assert [marker["marker"] for marker in of("marker", events)] == ["here"]
    assert len(of("final", events)) >= 2


def test_a_long_recording_can_be_given_at_once(url: str, tmp_path: Path) -> None:
    """A server takes no message of more than 4 MiB."""
    audio = pcm(np.concatenate([speech("000-en.flac"), silence(140.0)]))
    assert len(audio) > 4 * 2**20
    events = stream(url, tmp_path, audio, size=len(audio))
    assert "soldier" in of("final", events)[0]["text"]
    assert of("end", events)[0]["received"] == len(audio)


@pytest.mark.parametrize(
    ("options", "code", "param"),
    [
        ({"sample_rate": 7000}, "invalid_value", "sample_rate"),
        ({"model": "nothing-like-it"}, "model_not_found", "model"),
        ({"colour": "blue"}, "invalid_value", "colour"),
    ],
)
def test_what_the_server_refuses_is_thrown(
    url: str, tmp_path: Path, options: dict[str, Any], code: str, param: str
) -> None:
    events = stream(url, tmp_path, b"\0" * 3200, **options)
    (thrown,) = of("thrown", events)
    assert (thrown["name"], thrown["code"], thrown["param"]) == ("OpenSpeechError", code, param)


def test_a_server_that_is_not_there_is_thrown(tmp_path: Path) -> None:
    (thrown,) = of("thrown", stream("http://127.0.0.1:9", tmp_path, b""))
    assert thrown["code"] == "unreachable"


def test_the_key_travels_as_subprotocol(tmp_path: Path) -> None:
    audio = pcm(speech("000-en.flac"))
    with running(with_toy(api_keys=("secret",))) as url:
        assert of("final", stream(url, tmp_path, audio, key="secret"))
        for key in (None, "wrong"):
            (thrown,) = of("thrown", stream(url, tmp_path, audio, key=key))
            assert thrown["code"] == "invalid_api_key"


def sentences() -> bytes:
    spoken = [lines()[number] for number in (0, 1, 6, 7)]
    return pcm(np.concatenate([np.concatenate([line.samples, silence(1.0)]) for line in spoken]))


def plain(finals: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What finals say and when, without what depends on how fast the audio came."""
    return [
        {key: final[key] for key in ("utterance", "text", "start", "language")} for final in finals
    ]


@pytest.mark.parametrize("every", [0.7, 1.9, 4.0])
def test_a_resumed_session_says_everything_once_and_as_if_nothing_had_happened(
    url: str, tmp_path: Path, every: float
) -> None:
    """Cut whenever so many seconds of audio were sent."""
    size = len(sentences())
    options = {"words": True, "commitAt": size // 3}
    whole = stream(url, tmp_path, sentences(), **options)
    with wire(url) as proxy:
        options |= {"pace": 10, "reconnect": {"least": 0.02}, "tell": int(every * 2 * RATE)}
        events: list[dict[str, Any]] = []
        for event in following(proxy.url, tmp_path / "audio.pcm", options):
            events.append(event)
            if event["type"] == "sent":
                proxy.cut()
    assert proxy.connections >= 3
    assert plain(of("final", events)) == plain(of("final", whole))
    assert [mark["marker"] for mark in of("marker", events)] == ["here"]
    assert len({ready["session"] for ready in of("ready", events)}) == 1
    assert of("end", events)[0]["received"] == size
    # No number twice and none left out: what a cut swallowed has come with the next connection. Only a commit that
    # was sent twice, because nothing told that it had arrived, has two markers; the second is the client's business.
    (numbers,) = (event["numbers"] for event in of("numbers", events))
    assert numbers == sorted(set(numbers))
    assert numbers[-1] - len(numbers) <= 1
    committed: dict[int, str] = {}
    for event in events:
        if event["type"] in ("partial", "final"):
            text = event.get("committed", event.get("text"))
            assert text.startswith(committed.get(event["utterance"], ""))
            committed[event["utterance"]] = text
    assert not of("gap", events)


def test_the_last_words_come_though_the_wire_is_cut_at_the_end(url: str, tmp_path: Path) -> None:
    audio = pcm(lines()[0].samples)
    whole = of("final", stream(url, tmp_path, audio))
    with wire(url) as proxy:
        events = []
        options = {"reconnect": {"least": 0.02}}
        for event in following(proxy.url, tmp_path / "audio.pcm", options):
            events.append(event)
            if event["type"] == "ending":
                proxy.cut()
    assert proxy.connections > 1
    assert plain(of("final", events)) == plain(whole)
    assert of("end", events)[0]["reason"] == "client"
    assert events[-1]["type"] == "heard"


@pytest.mark.slow
def test_a_wire_that_carries_nothing_any_more_is_left(url: str, tmp_path: Path) -> None:
    """Half-open: nobody is told. The client takes twelve seconds of no answer for an answer."""
    whole = of("final", stream(url, tmp_path, sentences()))
    with wire(url) as proxy:
        options = {"pace": 10, "reconnect": {"least": 0.5}}
        events = []
        for event in following(proxy.url, tmp_path / "audio.pcm", options):
            events.append(event)
            if (event["type"], event.get("utterance")) == ("partial", 1):
                proxy.stalled = not of("connection", events[1:])[1:]
            elif event["type"] == "connection" and event["state"] == "reconnecting":
                proxy.stalled = False  # what was on its way arrives after all
    assert proxy.connections == 2
    assert plain(of("final", events)) == plain(whole)
    assert len({ready["session"] for ready in of("ready", events)}) == 1


def test_a_session_that_is_gone_goes_on_in_a_new_one(tmp_path: Path) -> None:
    """Nothing is resumed after so short a time: the new session hears again what had no final."""
    with running(with_toy(resume_seconds=0.05)) as url:
        whole = of("final", stream(url, tmp_path, sentences()))
        with wire(url) as proxy:
            options = {"pace": 10, "reconnect": {"least": 0.5}}
            events: list[dict[str, Any]] = []
            for event in following(proxy.url, tmp_path / "audio.pcm", options):
                events.append(event)
                second = (event["type"], event.get("utterance")) == ("speech_started", 1)
                if second and proxy.connections == 1:
                    proxy.cut()
    assert len({ready["session"] for ready in of("ready", events)}) == 2
    assert not of("error", events)  # that the session is unknown is the client's business
    finals = of("final", events)
    assert [final["utterance"] for final in finals] == list(range(len(finals)))
    text = " ".join(final["text"] for final in finals)
    assert word_errors(" ".join(final["text"] for final in whole), text) <= 1


def test_a_cut_wire_loses_no_word_and_moves_no_time(tmp_path: Path) -> None:
    """At a server that keeps no session."""
    with running(with_toy(resume_seconds=0)) as url:
        cut_twice(url, tmp_path)


def cut_twice(url: str, tmp_path: Path) -> None:
    whole = of("final", stream(url, tmp_path, sentences(), words=True))
    with wire(url) as proxy:
        file = tmp_path / "audio.pcm"
        options = {"words": True, "pace": 10, "reconnect": {"least": 0.05}}
        events: list[dict[str, Any]] = []
        wanted = 1  # cut in the middle of the second, and of the third utterance
        for event in following(proxy.url, file, options):
            events.append(event)
            if (event["type"], event.get("utterance")) == ("speech_started", wanted) and wanted < 3:
                wanted += 1
                proxy.cut()
        assert proxy.connections == 3
    finals = of("final", events)
    assert [final["utterance"] for final in finals] == list(range(len(finals)))
    text = " ".join(final["text"] for final in finals)
    assert word_errors(" ".join(final["text"] for final in whole), text) <= 1
    assert len(of("connection", events)) >= 6
    for final, other in zip(finals, whole, strict=True):
        assert abs(final["start"] - other["start"]) < 0.1
        assert abs(final["end"] - other["end"]) < 0.1
    assert not of("gap", events)


def test_a_draining_server_hands_over_to_the_next(tmp_path: Path) -> None:
    """The first ends the open sentence where it is; nothing before and after that is lost or moved."""
    spoken = lines()[:3]
    parts = [part for line in spoken for part in (line.samples, silence(1.0))]
    (tmp_path / "audio.pcm").write_bytes(pcm(np.concatenate(parts)))
    events: list[dict[str, Any]] = []
    with (
        running(with_toy()) as second,
        stoppable(with_toy(drain_seconds=0.2)) as (first, stop),
        wire(first) as proxy,
    ):
        options = {"pace": 10, "reconnect": {"least": 0.05}}
        for event in following(proxy.url, tmp_path / "audio.pcm", options):
            events.append(event)
            if (event["type"], event.get("utterance")) == ("partial", 1) and proxy.target == first:
                proxy.target = second
                stop()
    finals = of("final", events)
    assert word_errors(spoken[0].text, finals[0]["text"]) <= 1
    assert word_errors(spoken[2].text, finals[-1]["text"]) <= 1
    assert [final["utterance"] for final in finals] == list(range(len(finals)))
    third = sum(map(len, parts[:4])) / RATE
    assert abs(finals[-1]["start"] - third) < 0.5
    assert len({ready["session"] for ready in of("ready", events)}) == 2


def test_the_example_of_the_readme_writes_subtitles(url: str, tmp_path: Path) -> None:
    readme = (Path(MODULE).parent / "README.md").read_text("utf-8")
    code = readme.split("```js\n")[1].split("```")[0]
    code = code.replace('"open-speech-client"', json.dumps("file://" + MODULE))
    (tmp_path / "example.mjs").write_text(code.replace("http://localhost:8100", url), "utf-8")
    (tmp_path / "speech.pcm").write_bytes(pcm(speech("000-en.flac")))
    done = subprocess.run(
        [str(NODE), "--experimental-websocket", "--no-warnings", "example.mjs"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith("1\n00:00:00,")
    assert "soldier" in done.stdout


def test_the_protocol_without_a_server() -> None:
    assert len(node("conversation.mjs").splitlines()) == 19


def test_the_stream_over_a_scripted_socket() -> None:
    assert len(node("scripted.mjs").splitlines()) == 13


def test_subtitles_are_those_of_the_server() -> None:
    chance = random.Random(7)
    vocabulary = [
        "a",
        "the",
        "of",
        "house,",
        "mountains.",
        "“quoted”",
        "<b>&amp;",
        "internationalisation",
        "東京",
        "안녕하세요",
        "well…",
        "(yes)",
        "no?",
    ]
    cases, wanted = [], []
    for _ in range(60):
        segments, finals, at = [], [], 0
        for _ in range(chance.randrange(1, 5)):
            start = at
            words = []
            for _ in range(chance.randrange(1, 30)):
                at += chance.choice([0, 0, 0, 10, 600])
                length = chance.randrange(20, 700)
                text = (" " if words else "") + chance.choice(vocabulary)
                words.append(Word(text, at * 16, (at + length) * 16, 0.5))
                at += length
            text = "".join(word.text for word in words)
            timed = chance.random() < 0.8
            at += chance.choice([0, 300, 2000])
            segments.append(Segment(start * 16, at * 16, text, tuple(words) if timed else ()))
            finals.append(
                {
                    "text": text,
                    "start": start / 1000,
                    "end": at / 1000,
                    "words": [
                        {"text": w.text.strip(), "start": w.start / RATE, "end": w.end / RATE}
                        for w in words
                    ]
                    if timed
                    else [],
                }
            )
        cases.append(json.dumps(finals))
        cues = formats.cues(segments)
        wanted.append((formats.srt(cues), formats.vtt(cues)))
    rows = [json.loads(row) for row in node("subtitles.mjs", stdin="\n".join(cases)).splitlines()]
    for row, (srt, vtt) in zip(rows, wanted, strict=True):
        assert row["srt"] == srt
        assert row["vtt"] == vtt
