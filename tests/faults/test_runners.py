"""Rows P: what happens to the process of a model."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.sync.client import ClientConnection, connect

import open_speech_client
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

DEADLY = {"streaming.remote.PAUSE": 0.01, "streaming.remote.REST": 1.0}


def runner(server: Process, model: str = "scripted") -> int:
    """The process of the model, once it is there."""
    found: list[int] = []

    def there() -> bool:
        loaded = server.get("/api/ps").json()["loaded"]
        found[:] = [each["process"] for each in loaded if each["id"] == model and each["process"]]
        return bool(found)

    until(there)
    return found[0]


def kill(server: Process, number: int = signal.SIGKILL, model: str = "scripted") -> int:
    """The process of the model, whatever it is doing."""
    pid = runner(server, model)
    with suppress(ProcessLookupError):
        os.kill(pid, number)
    return pid


class Talker(threading.Thread):
    """A stream that speaks at the pace of speech, or faster."""

    def __init__(self, server: Process, said: Sequence[int | float], pace: float = 1.0) -> None:
        super().__init__()
        self.said = said
        self.messages: list[dict[str, Any]] = []
        self._url, self._pace = server.socket_url, pace
        self.start()

    def run(self) -> None:
        with connect(self._url, open_timeout=PATIENCE) as socket:
            reader = threading.Thread(target=lambda: self.messages.extend(rest(socket)))
            reader.start()
            audio = pcm(speak(self.said))
            for at in range(0, len(audio), 3200):
                socket.send(audio[at : at + 3200])
                time.sleep(0.1 / self._pace)
            socket.send('{"type": "end"}')
            reader.join()

    def check(self) -> None:
        """All it said was heard, once; nothing that was committed changed; the server did not hang up."""
        self.join(3 * PATIENCE)
        assert text(self.messages) == spelt(self.said)
        assert self.messages[-1]["type"] == "end"
        assert not [each for each in self.messages if each["type"] == "error"]
        shown: dict[int, str] = {}
        for each in self.messages:
            if each["type"] == "partial":
                assert each["committed"].startswith(shown.get(each["utterance"], ""))
                shown[each["utterance"]] = each["committed"]
            if each["type"] == "final":
                assert each["text"].startswith(shown.get(each["utterance"], "").strip())


def speech(first: int, sentences: int) -> list[int | float]:
    """Sentences of six words."""
    return [each for at in range(sentences) for each in (*words(first + 5 * at, 6), 0.7)]


def recording(server: Process, said: Sequence[int | float]) -> httpx2.Response:
    return httpx2.post(server.url + FILES, files={"file": ("a.wav", wav(speak(said)))}, timeout=60)


@pytest.fixture(scope="module")
def mortal() -> Iterator[Process]:
    """A server whose recogniser can be harmed by words."""
    with serving(faults=DEADLY, DEADLY="1") as process:
        yield process
        process.signal()
        assert process.wait() == 0, process.log


@contextmanager
def survives(server: Process) -> Iterator[None]:
    """As `alive`, but that the log may tell of the deaths."""
    with alive(server, errors=True):
        yield


@pytest.mark.quick
@pytest.mark.fault(
    "P01",
    "a model's process is killed while streams speak",
    "a pause; the same words, no reconnect",
)
def test_killed_in_mid_speech(mortal: Process) -> None:
    """SIGKILL twice while four streams speak at the pace of speech"""
    with survives(mortal):
        talkers = [Talker(mortal, speech(first, 2)) for first in range(4)]
        for _ in range(2):
            time.sleep(1.0)
            kill(mortal)
        for each in talkers:
            each.check()
    counted = mortal.get("/metrics").text
    assert 'open_speech_runner_restarts_total{model="scripted"} 2.0' in counted


@pytest.mark.fault(
    "P02", "a model's process is killed again and again", "latency; the same words, no reconnect"
)
def test_killed_again_and_again(mortal: Process) -> None:
    """SIGKILL every second for 15 s while eight streams speak"""
    with survives(mortal):
        talkers = [Talker(mortal, speech(first, 8)) for first in range(8)]
        until_over = time.monotonic() + 15
        while time.monotonic() < until_over:
            time.sleep(1)
            kill(mortal)
        for each in talkers:
            each.check()


@pytest.mark.fault(
    "P03", "a model's process is killed while files are at work", "they are decoded again: 200"
)
def test_killed_under_files(mortal: Process) -> None:
    """SIGKILL five times during three recordings of five minutes"""
    with survives(mortal), ExitStack() as threads:
        found: dict[int, httpx2.Response] = {}
        said = {first: speech(first, 140) for first in range(3)}

        def send(first: int) -> None:
            found[first] = recording(mortal, said[first])

        for first in said:
            thread = threading.Thread(target=send, args=(first,))
            thread.start()
            threads.callback(thread.join)
        for _ in range(5):
            kill(mortal)
            time.sleep(0.3)
        threads.close()
        for first, answer in found.items():
            assert answer.status_code == 200, answer.text
            assert answer.json()["text"] == spelt(said[first])


@pytest.mark.fault(
    "P20", "a model's idle process is killed", "another one is there before anybody speaks"
)
def test_killed_while_idle(mortal: Process) -> None:
    """SIGKILL of an idle process, and no request"""
    with survives(mortal):
        assert recording(mortal, [5, 6]).json()["text"] == "w5 w6"
    old = kill(mortal)
    until(lambda: runner(mortal) != old)


@pytest.mark.fault("P04", "a model's process is stopped", "found out, replaced; the same words")
def test_stopped() -> None:
    """SIGSTOP while two streams speak; signs of life are asked for after 0.5 s"""
    limits = {"streaming.remote.PULSE": 0.5, "streaming.remote.SILENCE": 1.0}
    with serving(faults=DEADLY | limits, DEADLY="1") as server, survives(server):
        talkers = [Talker(server, speech(first, 2)) for first in range(2)]
        time.sleep(1)
        kill(server, signal.SIGSTOP)
        for each in talkers:
            each.check()


@pytest.mark.fault(
    "P18", "a model's idle process is frozen", "found out while the first window is sent; 200"
)
def test_frozen_while_idle() -> None:
    """SIGSTOP of an idle process, then a recording, through socket buffers that hold a hundredth of its windows"""
    limits = {"streaming.remote.PULSE": 0.5, "streaming.remote.SILENCE": 1.0}
    limits["streaming.channel.BUFFER"] = 16384
    with serving(faults=DEADLY | limits, DEADLY="1") as server, survives(server):
        assert recording(server, [1, 2]).json()["text"] == "w1 w2"
        kill(server, signal.SIGSTOP)
        said = words(1, 40)
        assert recording(server, said).json()["text"] == spelt(said)


def _open(server: Process) -> ClientConnection:
    return connect(server.socket_url + "?partials=false", open_timeout=PATIENCE)


def _hear(server: Process, said: Sequence[int | float]) -> list[dict[str, Any]]:
    with _open(server) as socket:
        socket.send(pcm(speak(said)))
        socket.send('{"type": "end"}')
        return rest(socket)


HARM: list[Any] = [
    pytest.param(60, "died each time", marks=pytest.mark.fault("P05", "speech that aborts the recogniser", "that utterance fails with a clear error; the others are heard")),
    pytest.param(57, "too little free memory", marks=pytest.mark.fault("P06", "the device's memory is full", "that utterance fails with the remedy; the others are heard")),
    pytest.param(56, "died each time", marks=pytest.mark.fault("P07", "the CUDA context is broken for good", "a new process; the others are heard")),
    pytest.param(55, "failed on this audio", marks=pytest.mark.fault("P08", "the recogniser raises what nobody foresaw", "that utterance fails; the others are heard")),
]  # fmt: skip


@pytest.mark.parametrize(("word", "told"), HARM)
def test_an_utterance_that_harms(mortal: Process, word: int, told: str) -> None:
    """an utterance with a word that does this to the recogniser, between two that do not"""
    with survives(mortal):
        messages = _hear(mortal, [1, 2, 0.7, word, 62, 0.7, 3, 4])
        assert text(messages) == spelt([1, 2, 3, 4])
        failed = [each for each in messages if each["type"] == "error"]
        assert len(failed) == 1
        assert told in failed[0]["message"]
        assert messages[-1]["type"] == "end"
        answer = recording(mortal, [word, 62])
        assert answer.status_code == 500
        assert told in answer.json()["error"]["message"]
        assert recording(mortal, [5, 6]).json()["text"] == "w5 w6"


@pytest.mark.fault(
    "P16", "audio that kills the recogniser, beside speech", "it fails; nobody else loses a word"
)
def test_deadly_audio_beside_speech() -> None:
    """four streams speak, a fifth says what aborts the recogniser, three times, with partials; the crash limits as they are"""
    with serving(DEADLY="1") as server, survives(server):
        talkers = [Talker(server, speech(first, 5)) for first in range(4)]
        with connect(server.socket_url, open_timeout=PATIENCE) as socket:
            for _ in range(3):
                socket.send(pcm(speak([1, 60, 62, 3, 0.7])))
            socket.send('{"type": "end"}')
            messages = rest(socket)
        assert sum(each["type"] == "error" for each in messages) == 3
        assert messages[-1]["type"] == "end"
        for each in talkers:
            each.check()


@pytest.mark.fault(
    "P09", "a decode hangs", "cut at STT_DECODE_TIMEOUT; the others are heard meanwhile"
)
def test_a_decode_that_hangs() -> None:
    """a word at which the recogniser waits for ever, with a limit of 4 s, while two streams speak"""
    with (
        serving("--decode-timeout", "4", faults=DEADLY, DEADLY="1") as server,
        survives(server),
    ):
        assert recording(server, [5, 6]).json()["text"] == "w5 w6"
        talkers = [Talker(server, speech(first, 3)) for first in range(2)]
        messages = _hear(server, [1, 2, 0.7, 58, 62, 0.7, 3, 4])
        assert text(messages) == spelt([1, 2, 3, 4])
        failed = [each for each in messages if each["type"] == "error"]
        assert len(failed) == 1
        assert "came to no end" in failed[0]["message"]
        for each in talkers:
            each.check()


@pytest.mark.fault(
    "P09b",
    "commits without end while a decode hangs",
    "an error for each beyond 256; then all markers, in order, and every word",
)
def test_commits_while_a_decode_hangs() -> None:
    """400 commits with markers of 256 letters behind an utterance at which the recogniser waits for ever"""
    limits = {"streaming.remote.PULSE": 0.2}
    markers = [f"{number:0256}" for number in range(400)]
    with (
        serving("--decode-timeout", "1", faults=DEADLY | limits, DEADLY="1") as server,
        survives(server),
        _open(server) as socket,
    ):
        socket.send(pcm(speak([1, 2, 0.7, 58, 62])))
        for marker in markers:
            socket.send(json.dumps({"type": "commit", "marker": marker}))
        socket.send(pcm(speak([3, 4, 0.7])))
        socket.send('{"type": "end"}')
        messages = rest(socket)
    assert text(messages) == spelt([1, 2, 3, 4])
    codes = [each["code"] for each in messages if each["type"] == "error"]
    assert codes == ["too_many_commits"] * 144 + ["recognition_failed"]
    answered = [each["marker"] for each in messages if each["type"] == "marker"]
    assert answered == markers[:256]
    assert messages[-1]["type"] == "end"


@pytest.mark.fault(
    "P10", "a model whose process dies while it loads", "503 with the library's words; alive"
)
def test_a_stillborn_model(mortal: Process, tmp_path: Path) -> None:
    """a recogniser that aborts for want of libcudnn, as CTranslate2 does"""
    for name in ("scripted", "stillborn"):
        (tmp_path / name).touch()
    with (
        serving("--model", f"broken={tmp_path}", faults=DEADLY, DEADLY="1") as server,
        survives(server),
    ):
        answer = httpx2.post(
            server.url + FILES,
            files={"file": ("a.wav", wav(speak([1])))},
            data={"model": "broken"},
            timeout=30,
        )
        assert answer.status_code == 503
        assert "libcudnn_ops" in answer.json()["error"]["message"]
        with connect(server.socket_url + "?model=broken", open_timeout=PATIENCE) as socket:
            told = rest(socket)[-1]
        assert told["type"] == "error"
        assert "libcudnn_ops" in told["message"]
        assert recording(server, [5, 6]).json()["text"] == "w5 w6"


@pytest.mark.fault("P11", "a crash loop", "a clear error at once, and again service after the rest")
def test_a_crash_loop(tmp_path: Path) -> None:
    """a model that lost its files: its process is killed and cannot start any more, until they are back"""
    (tmp_path / "scripted").touch()
    with (
        serving("--model", f"mine={tmp_path}", faults=DEADLY, DEADLY="1") as server,
        survives(server),
    ):

        def ask() -> httpx2.Response:
            return httpx2.post(
                server.url + FILES,
                files={"file": ("a.wav", wav(speak([1])))},
                data={"model": "mine"},
                timeout=30,
            )

        assert ask().json()["text"] == "w1"
        (tmp_path / "stillborn").touch()
        kill(server, model="mine")
        answer = ask()
        assert answer.status_code == 503
        assert "deaths in a row" in answer.json()["error"]["message"]
        (tmp_path / "stillborn").unlink()
        until(lambda: ask().status_code == 200)
        assert httpx2.delete(server.url + "/api/ps/mine", timeout=30).status_code < 300


@pytest.mark.fault(
    "P19",
    "a crash loop in mid-speech",
    "finals wait for one rest; then `error` with `retry_after`, 1013: the client comes again with all that has no final",
)
@pytest.mark.parametrize(("seconds", "again"), [(1.0, False), (6.0, True)])
def test_a_crash_loop_in_mid_speech(tmp_path: Path, seconds: float, again: bool) -> None:
    """a model that is killed while a client speaks and cannot be started for less than a rest (2 s), or for several"""
    (tmp_path / "scripted").touch()
    limits = DEADLY | {"streaming.remote.REST": 2.0}
    said = [0.3, *words(1, 6), 0.7, *words(2, 6), 0.7, *words(3, 6), 0.7]
    audio = pcm(speak(said))
    with (
        serving("--model", f"mine={tmp_path}", faults=limits, DEADLY="1") as server,
        survives(server),
    ):

        def harm() -> None:
            (tmp_path / "stillborn").touch()
            kill(server, model="mine")
            time.sleep(seconds)
            (tmp_path / "stillborn").unlink()

        def talk() -> None:
            for at in range(0, len(audio), 3200):
                stream.send(audio[at : at + 3200])
                time.sleep(0.1)
            stream.end()

        with open_speech_client.connect(server.socket_url, model="mine", reconnect=60.0) as stream:
            talking, harming = threading.Thread(target=talk), threading.Timer(1.0, harm)
            talking.start()
            harming.start()
            events = list(stream)
            harming.join()
            talking.join()
        assert httpx2.delete(server.url + "/api/ps/mine", timeout=30).status_code < 300
    finals = [each for each in events if isinstance(each, open_speech_client.Final)]
    assert " ".join(each.text for each in finals) == spelt(said)
    assert not [
        each
        for each in events
        if isinstance(each, open_speech_client.Error) and each.utterance is not None
    ]
    assert again == any(isinstance(each, open_speech_client.Reconnecting) for each in events)


@pytest.mark.fault(
    "P12",
    "a model is unloaded and loaded while it is spoken to",
    "old streams finish on the old one",
)
def test_a_model_swapped_under_streams(mortal: Process) -> None:
    """DELETE and POST /api/ps while a stream speaks: two processes for a while, then one"""
    with survives(mortal):
        talker = Talker(mortal, speech(1, 2))
        old = runner(mortal)
        until(lambda: bool(talker.messages))
        assert httpx2.delete(mortal.url + "/api/ps/scripted").status_code < 300
        assert httpx2.post(mortal.url + "/api/ps/scripted", timeout=30).status_code < 300
        assert runner(mortal) != old
        assert Path(f"/proc/{old}").exists()
        assert recording(mortal, [5, 6]).json()["text"] == "w5 w6"
        talker.check()
    until(lambda: not Path(f"/proc/{old}").exists())


@pytest.mark.fault(
    "P13", "a model is unloaded", "its process and all its memory are gone on return"
)
def test_unloading_frees_all(mortal: Process) -> None:
    """DELETE /api/ps of an idle model"""
    with survives(mortal):
        assert recording(mortal, [5, 6]).json()["text"] == "w5 w6"
    pid = runner(mortal)
    until(lambda: mortal.get("/api/ps").json()["loaded"][0]["in_use"] == 0)
    assert httpx2.delete(mortal.url + "/api/ps/scripted", timeout=30).status_code < 300
    assert not Path(f"/proc/{pid}").exists()
    assert mortal.get("/api/ps").json()["loaded"] == []


@pytest.mark.fault("P14", "the server is killed", "its models' processes end with it")
def test_nobody_outlives_the_server() -> None:
    """SIGKILL of the server while its model decodes, 3 s a window"""
    with serving(cost=3.0, faults={"server.metrics.FRESH": 0.0}) as server:

        def ask() -> None:
            with suppress(httpx2.HTTPError):
                recording(server, speech(1, 20))

        asking = threading.Thread(target=ask)
        asking.start()
        pid = runner(server)
        until(lambda: bool(re.search("decodes_running [1-9]", server.get("/metrics").text)))
        server.signal(signal.SIGKILL)
        server.wait()
        asking.join()
        until(lambda: not _runs(pid))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.fault("P15", "the process group is told to stop", "it drains; no model dies under it")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_everybody(number: int) -> None:
    """SIGINT or SIGTERM to the server and to its model's process at once, in mid-speech, as terminals and service managers do"""
    with serving() as server:
        with _open(server) as socket:
            socket.send(pcm(speak([1, 2, 3])))
            pid = runner(server)
            until(lambda: json.loads(socket.recv(timeout=PATIENCE))["type"] == "speech_started")
            os.kill(pid, number)
            server.signal(number)
            messages = rest(socket)
        assert text(messages) == spelt([1, 2, 3])
        assert server.wait() == 0, server.log
        assert "SIG" not in server.log


@pytest.mark.fault("P17", "a second signal while a model loads or hangs", "the server ends at once")
@pytest.mark.parametrize("loads", [True, False])
def test_a_second_signal(tmp_path: Path, loads: bool) -> None:
    """two SIGTERM while a model never comes to an end of loading, or of a decode, with a request that waits for it"""
    for name in ("scripted", "endless") if loads else ("scripted",):
        (tmp_path / name).touch()
    with serving("--model", f"mine={tmp_path}", DEADLY="1") as server:

        def ask() -> None:
            with suppress(httpx2.HTTPError):
                files = {"file": ("a.wav", wav(speak([58, 62])))}
                httpx2.post(server.url + FILES, files=files, data={"model": "mine"}, timeout=60)

        asking = threading.Thread(target=ask)
        asking.start()
        if loads:
            until(lambda: "mine" in server.get("/api/ps").text or server.working() == 1)
        else:
            runner(server, "mine")
        time.sleep(0.5)
        server.signal()
        time.sleep(0.5)
        server.signal()
        server.wait(10)
        asking.join()
