"""A recogniser in a process of its own: whatever happens to the process, calls are answered or clearly refused."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streaming import channel, remote
from streaming.backends import loaders
from streaming.backends.base import Decoding, Loader, StepBackend, Window
from streaming.errors import BackendError, Hung, ModelGone, ModelResting, ModelUnavailable
from streaming.remote import RemoteBackend, RemoteSteps
from streaming.types import RATE, Device
from tests import deadly, toy
from tests.drive import speak
from tests.fakes import lines

Start = Callable[..., RemoteBackend]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Processes with the deadly recogniser; all have to be gone in the end."""
    begun: list[RemoteBackend] = []

    def start(
        *files: str,
        steps: bool = False,
        patience: float = 60.0,
        stop: threading.Event | None = None,
    ) -> RemoteBackend:
        (tmp_path / "scripted").write_text("steps" if steps else "")
        for name in files:
            (tmp_path / name).touch()
        begun.append(
            remote.load(deadly.LOADER, "deadly", tmp_path, Device(workers=2), patience, stop)
        )
        return begun[-1]

    yield start
    for each in begun:
        pid = each.pid
        each.close()
        assert pid is None or not Path(f"/proc/{pid}").exists()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSE", 0.001)


def _says(backend: RemoteBackend, *words: int) -> str:
    return backend.decode([Window(speak(words), Decoding(align=True))])[0].text


def _killed(backend: RemoteBackend) -> None:
    """It is dead, and that is known."""
    pid = backend.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    _until(lambda: backend.pid != pid)


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _freeze(backend: RemoteBackend) -> None:
    assert backend.pid is not None
    os.kill(backend.pid, signal.SIGSTOP)
    while Path(f"/proc/{backend.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        pass  # the signal is on its way


def _spoken(*words: int) -> str:
    return "".join(f" w{word}" for word in words)


def test_the_real_recogniser_says_the_same_through_its_process() -> None:
    path, device = Path(toy.build()), Device(workers=2, threads=1)
    loader: Loader = loaders()["faster_whisper"]
    here = loader.load(path, device)
    there = remote.load(loader, "toy", path, device)
    try:
        assert there.capabilities == here.capabilities
        assert there.compute_type == here.compute_type
        assert there.memory == here.memory
        assert not isinstance(there, StepBackend)
        windows = [
            Window(line.samples, Decoding(align=True, floor=10 * RATE)) for line in lines()[:4]
        ]
        assert [there.key(each) for each in windows] == [here.key(each) for each in windows]  # type: ignore[union-attr]
        for window in windows:
            assert there.decode([window]) == here.decode([window])  # type: ignore[union-attr]
    finally:
        there.close()
        here.close()


def test_what_was_at_work_when_the_process_died_is_decoded_again(start: Start) -> None:
    backend = start("once")
    noticed: list[None] = []
    backend.restarted = lambda: noticed.append(None)
    before = backend.pid
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda word: _says(backend, word, 62), [1, 59, 2, 3]))
    assert found == [_spoken(word, 62) for word in (1, 59, 2, 3)]
    assert backend.pid != before
    assert backend.restarts == 1
    assert len(noticed) == 1


def test_a_process_that_is_killed_between_calls_is_replaced(start: Start) -> None:
    backend = start()
    for _ in range(3):
        pid = backend.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert _says(backend, 4, 5) == _spoken(4, 5)
    assert backend.restarts == 3


def test_a_process_that_dies_idle_is_replaced_before_anybody_asks(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    backend = start()
    for restarts in range(1, 3):
        _killed(backend)
        _until(lambda restarts=restarts: backend.restarts == restarts)  # type: ignore[misc]
    assert _says(backend, 4) == _spoken(4)
    assert backend.restarts == 2

    monkeypatch.setattr(remote, "REST", 3600.0)  # an idle one is bound by the same rules
    (tmp_path / "stillborn").touch()
    _killed(backend)
    _until(lambda: backend._resting > 0)
    (tmp_path / "stillborn").unlink()
    with pytest.raises(ModelResting):
        _says(backend, 4)
    assert backend.pid is None


def test_audio_that_kills_is_refused_and_its_neighbours_are_not(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "DEATHS", 100)
    backend = start()
    with ThreadPoolExecutor(2) as pool:
        deadly_one = pool.submit(_says, backend, 60, 62)
        others = [pool.submit(_says, backend, word) for word in range(20)]
        with pytest.raises(BackendError, match="died each time it heard this audio"):
            deadly_one.result(60)
        assert [each.result(60) for each in others] == [_spoken(word) for word in range(20)]
    assert backend.restarts <= remote.ATTEMPTS


def test_a_deadly_window_of_a_batch_is_left_to_whoever_can_try_each(start: Start) -> None:
    backend = start()
    windows = [Window(speak(said), Decoding(align=True)) for said in ((1, 2), (60, 62))]
    with pytest.raises(BackendError):
        backend.decode(windows)
    assert backend.decode(windows[:1])[0].text == _spoken(1, 2)
    for _ in range(3 * remote.DEATHS):  # what dies alone dies of itself: the model is not given up
        with pytest.raises(BackendError, match="each time it heard this audio"):
            backend.decode(windows[1:])
        assert _says(backend, 3) == _spoken(3)


def test_a_crash_loop_ends_in_a_clear_error_and_is_tried_again_after_a_rest(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = [0.0]
    monkeypatch.setattr(remote.time, "monotonic", lambda: now[0])
    backend = start()
    for _ in range(remote.DEATHS):
        with pytest.raises((BackendError, ModelUnavailable)):
            _says(backend, 60, 62)
    with pytest.raises(ModelResting, match=r"SIGABRT.*in a row.*tried again in 30 s") as told:
        _says(backend, 1)
    assert told.value.retry_after == remote.REST
    assert backend.pid is None
    now[0] += remote.REST + 1
    assert _says(backend, 1) == _spoken(1)

    (tmp_path / "stillborn").touch()  # it can be started no more
    assert backend.pid is not None
    os.kill(backend.pid, signal.SIGKILL)
    with pytest.raises(ModelUnavailable, match=r"libcudnn_ops.*in a row"):
        _says(backend, 1)
    (tmp_path / "stillborn").unlink()
    now[0] += remote.REST + 1
    assert _says(backend, 1) == _spoken(1)


def test_a_decode_that_hangs_is_cut_and_the_next_goes_on(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PULSE", 0.05)
    backend = start(patience=0.2)
    with pytest.raises(Hung, match=r"came to no end on this audio in 0\.2 s"):
        _says(backend, 58, 62)
    assert _says(backend, 7) == _spoken(7)
    assert backend.restarts == 1


def test_others_are_decoded_while_and_after_a_decode_hangs(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "DEATHS", 2)
    backend = start(patience=2.0)
    _says(backend, 1)
    turns: list[bool] = []
    take = backend._turns
    monkeypatch.setattr(
        backend, "_turns", lambda *, alone: turns.append(alone) or take(alone=alone)
    )
    with ThreadPoolExecutor(1) as pool:
        for _ in range(3):  # it is not the model that is given up
            hanging = pool.submit(_says, backend, 58, 62)
            others = 0
            while not hanging.done():
                assert _says(backend, 5) == _spoken(5)
                others += 1
            assert others > 10
            with pytest.raises(Hung):
                hanging.result()
    assert not any(turns)
    assert backend.restarts == 3


def test_a_process_that_gives_no_sign_of_life_is_tried_alone_once(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PULSE", 0.05)
    monkeypatch.setattr(remote, "SILENCE", 0.2)
    backend = start()
    asked: list[None] = []
    take = backend._live

    def live() -> object:
        life = take()
        if threading.current_thread() is threading.main_thread():
            asked.append(None)
            _freeze(backend)
        return life

    monkeypatch.setattr(backend, "_live", live)
    with pytest.raises(BackendError, match="died each time"):
        _says(backend, 7)
    assert len(asked) == 2


def test_patience_follows_what_decodes_take() -> None:
    patience = remote.Patience(300.0)
    for _ in range(remote.KNOWN):
        assert patience.of("a", 1, 5.0) == 300.0
        patience.learn("a", 1, 5.0, 2.0)
        patience.learn("short", 1, 0.1, 0.0)
    assert patience.of("a", 1, 5.0) == 40.0
    assert patience.of("a", 4, 20.0) == 160.0
    assert patience.of("a", 1, 30.0) == 240.0  # where what is longer takes longer
    assert patience.of("a", 20, 100.0) == 300.0
    assert patience.of("b", 1, 5.0) == 300.0
    assert patience.of("short", 1, 5.0) == 300.0
    for _ in range(50):
        patience.learn("a", 1, 5.0, 0.1)
    assert patience.of("a", 1, 5.0) == 20.0


def test_a_stopped_process_is_found_out_and_replaced(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PULSE", 0.05)
    monkeypatch.setattr(remote, "SILENCE", 0.2)
    backend = start()
    _freeze(backend)
    assert _says(backend, 7) == _spoken(7)
    assert backend.restarts == 1


def test_a_process_that_not_even_sigkill_ends_is_left_behind(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one is that waits for a driver."""
    for name, seconds in (("PULSE", 0.05), ("SILENCE", 0.2), ("GOODBYE", 0.05)):
        monkeypatch.setattr(remote, name, seconds)
    backend = start()
    assert backend._life is not None
    held = backend._life.process
    monkeypatch.setattr(held, "kill", lambda: None)
    _freeze(backend)
    try:
        with ThreadPoolExecutor(
            2
        ) as pool:  # whoever does not find out first shall not wait, either
            said = pool.map(lambda word: _says(backend, word), (7, 8))
            assert list(said) == [_spoken(7), _spoken(8)]
        assert backend.pid != held.pid
        assert held.poll() is None
    finally:
        os.kill(held.pid, signal.SIGKILL)
        held.wait()
    assert remote.HELD in caplog.text


@pytest.mark.parametrize("size", [1, 64])
def test_a_process_that_is_frozen_while_idle_is_found_out_by_the_first_long_window(
    start: Start, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(channel, "BUFFER", 4096)  # whatever `net.core.wmem_max` may be
    monkeypatch.setattr(remote, "PULSE", 0.05)
    monkeypatch.setattr(remote, "SILENCE", 0.2)
    backend = start()
    _freeze(backend)
    windows = [Window(np.tile(speak((7,)), size), Decoding(align=True))]
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(backend.decode, windows).result(60)[0].text == _spoken(7) * size
    assert backend.restarts == 1


def test_a_process_that_stops_in_the_middle_of_an_answer_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = socket.socketpair()
    answering = channel.Channel(ours)
    looks: list[float] = []

    def watch(ready: Callable[[float], bool]) -> None:
        looks.append(0.0)
        if not ready(0.05):
            raise TimeoutError

    theirs.sendall(b"\0\0\0\x09\0\0\0\0half")
    with pytest.raises(TimeoutError):
        answering.reply(watch)
    assert looks == [0.0]
    answering.close()
    theirs.close()


@pytest.mark.parametrize(
    "said",
    [
        b"\xff\xff\xff\xff\0\0\0\0",
        b"\0\0\0\1\xff\xff\xff\xff",
        b"\0\0\0\3\0\0\0\0\xff\xff\xff",
        b"\0\0\0\6\0\0\0\0\x81\xa4type",
    ],
)
def test_an_answer_that_is_none_is_not_believed(said: bytes) -> None:
    ours, theirs = socket.socketpair()
    answering = channel.Channel(ours)
    theirs.sendall(said)
    tracemalloc.start()
    with pytest.raises(channel.Garbled):
        answering.reply()
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    answering.close()
    theirs.close()


def test_a_process_that_cannot_be_understood_is_replaced(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = start()
    receive, heard = channel.Channel._receive, list[bytearray]()

    def garbled(self: channel.Channel, *given: Any) -> tuple[bytearray, bytearray]:
        body, audio = receive(self, *given)
        heard.append(body)
        return body if len(heard) > 1 else bytearray(b"\xc1"), audio

    monkeypatch.setattr(channel.Channel, "_receive", garbled)
    assert _says(backend, 7) == _spoken(7)
    assert backend.restarts == 1


def test_a_process_sees_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = {
        "STT_API_KEYS": "a",
        "HF_TOKEN": "a",
        "HUGGING_FACE_HUB_TOKEN": "a",
        "OTEL_EXPORTER_OTLP_HEADERS": "a",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "a",
        "AWS_SECRET_ACCESS_KEY": "a",
        "AWS_ACCESS_KEY_ID": "a",
        "OPENAI_API_KEY": "a",
        "PGPASSWORD": "a",
        "SSH_AUTH_SOCK": "a",
        "https_proxy": "http://me:secret@proxy:3128",
        "REDIS_URL": "redis://:secret@cache/0",
    }
    seen = {
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "0",
        "LD_LIBRARY_PATH": "/opt/lib",
        "HF_HOME": "/models",
        "OMP_NUM_THREADS": "1",
        "NVIDIA_DRIVER_CAPABILITIES": "compute",
        "XDG_CACHE_HOME": "/cache",
        "HTTP_PROXY": "http://proxy:3128",
    }
    for name, value in (hidden | seen).items():
        monkeypatch.setenv(name, value)
    found = remote._environment(Device(workers=3))
    assert not found.keys() & hidden.keys()
    assert found.items() >= (seen | {"MALLOC_ARENA_MAX": "3"}).items()


def test_a_process_that_trickles_is_cut_in_the_end(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PULSE", 0.05)
    backend = start()
    assert backend._life is not None
    watch = backend._watch(backend._life, 0.3)

    def trickles(seconds: float) -> bool:
        time.sleep(min(seconds, 0.01))
        return seconds > 0

    def receive() -> None:
        for _ in range(1000):
            watch(trickles)

    with pytest.raises(channel.Broken):
        receive()
    assert _says(backend, 7) == _spoken(7)


def test_a_process_that_was_frozen_for_longer_than_a_decode_may_take_is_not_taken_for_hung(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PULSE", 0.1)
    backend = start(patience=0.5)
    pid = backend.pid
    assert pid is not None
    _freeze(backend)
    thaw = threading.Timer(1.5, os.kill, (pid, signal.SIGCONT))
    thaw.start()
    assert _says(backend, 7) == _spoken(7)
    thaw.join()
    assert backend.restarts == 0


def test_a_slow_decode_is_left_alone_while_the_process_lives(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PULSE", 0.001)
    backend = start()
    long = np.tile(speak((1, 2, 3)), 200)
    for _ in range(3):
        assert backend.decode([Window(long, Decoding(align=True))])[0].text
    assert backend.restarts == 0


def test_faults_of_the_device_are_told_and_a_broken_one_gets_a_new_process(start: Start) -> None:
    backend = start()
    with pytest.raises(BackendError, match="too little free memory"):
        _says(backend, 57, 62)
    with pytest.raises(BackendError, match="failed on this audio"):
        _says(backend, 55, 62)
    assert backend.restarts == 0
    with pytest.raises(BackendError, match="died each time"):
        _says(backend, 56, 62)
    assert _says(backend, 1) == _spoken(1)
    assert backend.restarts == remote.ATTEMPTS


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("stillborn", r"cannot be loaded: its process was ended by SIGABRT: Unable to load any of"),
        ("dumb", r"cannot be loaded: no such arithmetic"),
    ],
)
def test_a_model_that_cannot_be_loaded_says_why(start: Start, file: str, told: str) -> None:
    with pytest.raises(ModelUnavailable, match=told):
        start(file)


def test_a_load_that_nobody_wants_any_more_ends(start: Start) -> None:
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    with pytest.raises(ModelGone, match="while it was being loaded"):
        start("endless", stop=stop)


def test_unloading_ends_a_process_that_is_being_replaced(start: Start, tmp_path: Path) -> None:
    backend = start()
    (tmp_path / "endless").touch()
    assert backend.pid is not None
    os.kill(backend.pid, signal.SIGKILL)
    threading.Timer(1.0, backend.interrupt).start()
    with pytest.raises(ModelGone):
        _says(backend, 1)


def test_a_system_without_processes_says_so(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(remote.subprocess, "Popen", refuse)
    with pytest.raises(ModelUnavailable, match=r"gives it no process.*allow more processes"):
        start()


def test_unloading_ends_calls_and_process(start: Start) -> None:
    backend = start()
    pid = backend.pid
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(_says, backend, 58, 62)
        threading.Timer(0.1, backend.interrupt).start()
        with pytest.raises(ModelGone, match="unloaded"):
            hanging.result(30)
    backend.close()
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(ModelGone):
        _says(backend, 1)


def test_states_die_with_their_process_and_others_can_be_opened(start: Start) -> None:
    backend = start(steps=True)
    assert isinstance(backend, RemoteSteps)
    chunk = backend.capabilities.chunk
    audio = np.concatenate([speak((1, 2, 3)), np.zeros(chunk, np.float32)])
    pieces = [audio[at : at + chunk] for at in range(0, len(audio) - chunk, chunk)]

    def heard(state: object) -> str:
        for piece in pieces:
            backend.step([state], [piece])  # type: ignore[list-item]
        return backend.finish(state).text  # type: ignore[arg-type]

    assert heard(backend.open(Decoding())) == _spoken(1, 2, 3)
    lost, dropped = backend.open(Decoding()), backend.open(Decoding())
    backend.step([lost, dropped], [pieces[0]] * 2)
    backend.drop(dropped)
    assert backend.pid is not None
    os.kill(backend.pid, signal.SIGKILL)
    with pytest.raises(BackendError, match="died with the recogniser's process"):
        backend.step([lost], [pieces[1]])
    backend.drop(lost)
    assert heard(backend.open(Decoding())) == _spoken(1, 2, 3)
    with pytest.raises(BackendError, match="died with the recogniser's process"):
        backend.finish(lost)


def test_the_process_ends_with_the_one_that_began_it(tmp_path: Path) -> None:
    (tmp_path / "scripted").touch()
    script = (
        "import sys, time; from pathlib import Path; from streaming import remote; from streaming.types import Device;"
        " from tests import deadly;"
        " backend = remote.load(deadly.LOADER, 'deadly', Path(sys.argv[1]), Device());"
        " print(backend.pid, flush=True); time.sleep(60)"
    )
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": root},
    ) as server:
        assert server.stdout is not None
        runner = os.pidfd_open(int(server.stdout.readline()))
        server.kill()
    gone = select.poll()
    gone.register(runner, select.POLLIN)
    assert gone.poll(30_000)
    os.close(runner)
