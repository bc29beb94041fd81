"""Recordings in processes of their own: the same samples, and nothing that happens to one happens to another."""

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from streaming.audio import calls, files, live, media, sandbox
from streaming.audio.messages import pack, receive
from streaming.errors import AudioError, NoAudio, TooLong
from streaming.types import RATE, Samples
from tests.containers import KINDS, contained
from tests.fakes import SPEECH, silence, speech, tone, wav

CLIP = speech("000-en.flac")


def read(path: Path, **more: float) -> Samples:
    return asyncio.run(_read(path, **more))


async def _read(path: Path, **more: float) -> Samples:
    recording = media.Recording(path, **more)  # type: ignore[arg-type]
    found = [np.zeros(0, np.float32)]
    try:
        await recording.open()
        while (samples := await recording.read()) is not None:
            found.append(samples)
    finally:
        recording.close()
    return np.concatenate(found)


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_decodes_what_we_would(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(contained(CLIP, kind))
    here = np.concatenate(list(files.decode(path)))
    assert np.array_equal(read(path), here)
    assert np.array_equal(read(path, piece=1000), here)
    assert np.array_equal(read(path, piece=len(here)), here)


def test_the_probe_is_the_files(tmp_path: Path) -> None:
    async def look() -> files.Probe:
        recording = media.Recording(SPEECH / "long-0.flac")
        try:
            return await recording.open()
        finally:
            recording.close()

    assert asyncio.run(look()) == files.probe(SPEECH / "long-0.flac")


def test_what_is_wrong_with_a_file_is_said_as_ever(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for data, kind, words in (
        (b"", NoAudio, "empty"),
        (b"a letter" * 100, AudioError, "not audio"),
        (wav(silence(5)), TooLong, "longer than 2 seconds"),
    ):
        path.write_bytes(data)
        with pytest.raises(kind, match=words):
            read(path, limit=2)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nothing")


def test_every_recording_has_its_own_process() -> None:
    async def both() -> set[int | None]:
        found = [media.Recording(SPEECH / "000-en.flac") for _ in range(2)]
        for each in found:
            await each.open()
        pids = {each._process._pid for each in found if each._process is not None}
        for each in found:
            each.close()
        return pids

    pids = asyncio.run(both())
    assert len(pids) == 2
    assert os.getpid() not in pids


def hurt(act: Callable[[int], None], *, times: int, patience: float = 30.0) -> Samples:
    """The samples of a long recording, with `act` done to its process before the first so many reads."""

    async def run() -> Samples:
        recording = media.Recording(SPEECH / "long-0.flac", patience=patience, piece=RATE)
        await recording.open()
        found = []
        try:
            for turn in range(10**6):
                assert recording._process is not None or turn
                if turn < 2 * times and turn % 2 == 1 and recording._process is not None:
                    assert recording._process._pid is not None
                    act(recording._process._pid)
                if (samples := await recording.read()) is None:
                    break
                found.append(samples)
        finally:
            recording.close()
        return np.concatenate(found)

    return asyncio.run(run())


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def test_a_process_that_is_killed_is_replaced_and_no_sample_lost() -> None:
    assert np.array_equal(hurt(kill, times=1), speech("long-0.flac"))


def test_a_process_that_stops_is_replaced_and_no_sample_lost() -> None:
    assert np.array_equal(hurt(stop, times=1, patience=3.0), speech("long-0.flac"))


def test_a_recording_that_kills_its_process_twice_is_refused() -> None:
    with pytest.raises(AudioError, match=r"cannot be decoded.*broke its decoder.*convert"):
        hurt(kill, times=3)
    assert np.array_equal(read(SPEECH / "000-en.flac"), CLIP), "the next one is decoded"


def test_a_program_that_is_killed_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "BIRTH", 3.0)
    read(SPEECH / "000-en.flac")
    program = media.nursery._program
    assert program is not None
    program.kill()
    assert np.array_equal(read(SPEECH / "000-en.flac"), CLIP)
    program = media.nursery._program
    assert program is not None
    program.send_signal(signal.SIGSTOP)
    for _ in range(2):  # the first may have one that was made before
        assert np.array_equal(read(SPEECH / "000-en.flac"), CLIP)


def test_a_birth_that_fails_costs_nobody_else_a_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    data = contained(CLIP, "webm-opus")
    source = media.Stream()
    heard = list(source.decode(data[:4000]))
    program = media.nursery._program
    spare = media.nursery._spare
    assert program is not None
    assert spare is not None
    spare.socket.close()
    spare.socket, gone = socket.socketpair()
    gone.close()  # it died before its first word
    monkeypatch.setattr(media, "_closed", lambda _: False)
    assert np.array_equal(read(SPEECH / "000-en.flac"), CLIP)
    assert media.nursery._program is not program, "another is used"
    assert program.poll() is None
    for part in (source.decode(data[4000:]), source.flush()):
        heard += part
    source.close()
    assert sum(map(len, heard)) > len(CLIP) - RATE


def test_a_program_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    media.nursery.retire()
    media.nursery.warm()
    program = media.nursery._program
    assert program is not None
    read(SPEECH / "000-en.flac")
    program.send_signal(signal.SIGSTOP)
    for _ in range(2):  # the first may have one that was made before
        monkeypatch.setattr(media, "BIRTH", 3.0)
        assert np.array_equal(read(SPEECH / "000-en.flac"), CLIP)
    assert program.wait(10) == -signal.SIGKILL


def test_a_closed_recording_leaves_no_process() -> None:
    async def leave() -> int:
        recording = media.Recording(SPEECH / "long-0.flac", piece=RATE)
        await recording.open()
        assert recording._process is not None
        pid = recording._process._pid
        assert pid is not None
        handle = os.pidfd_open(pid)
        recording.close()
        recording.close()
        return handle

    handle = asyncio.run(leave())
    try:
        assert select.select([handle], [], [], 10)[0], "it has ended"
    finally:
        os.close(handle)


@pytest.mark.parametrize("kind", KINDS)
def test_a_live_container_in_a_process_gives_the_same_samples(kind: str) -> None:
    from streaming.audio.containers import Container

    data = contained(CLIP[:32_000], kind)
    heard = []
    for source in (live.source("container", None, 1), Container()):
        found = [np.zeros(0, np.float32)]
        for at in range(0, len(data), 3000):
            found += source.decode(data[at : at + 3000])
        found += source.flush()
        source.close()
        heard.append(np.concatenate(found))
    assert np.array_equal(*heard)
    assert len(heard[0]) > 30_000


def test_a_live_stream_whose_process_dies_is_told_so() -> None:
    data = contained(CLIP, "webm-opus")
    source = media.Stream()
    list(source.decode(data[:4000]))
    assert source._process is not None
    assert source._process._pid is not None
    os.kill(source._process._pid, signal.SIGKILL)
    with pytest.raises(AudioError, match="broke its decoder"):
        list(source.decode(data[4000:]))
    source.close()


# What a process may do, tried from inside.

TRIED = """
import ctypes, fcntl, os, resource, signal, socket, sys
import numpy as np
from streaming.audio import calls, sandbox

secret, name, filtered, apart = sys.argv[1:]
if filtered == "no":
    calls.leave = lambda _: False
if os.path.exists("/proc/self/fd/3"):
    os.close(3)
held = os.dup2(1, sandbox.SOCKET)
size = sandbox._size()
if name == "other":
    os.setgid(65534)
    os.setuid(65534)
alone = apart == "yes" and sandbox._leave_network()
missing = sandbox._confine(size, alone)

def attempt(name, act):
    try:
        act()
        print(name, "done")
    except BaseException as error:
        print(name, type(error).__name__)

def send():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there:
        there.sendto(b"x", ("127.0.0.1", 9))

def fork():
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)

attempt("memory", lambda: np.ones(2 * sandbox.MEMORY, np.uint8))
attempt("fork", fork)
attempt("kill", lambda: os.kill(os.getppid(), 0))
attempt("signal", lambda: fcntl.fcntl(1, fcntl.F_SETOWN, os.getppid()))
attempt("limits", lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CPU))
attempt("mine", lambda: sandbox.resource.setrlimit(resource.RLIMIT_CPU, (60, 60)))
who = os.PRIO_PROCESS, os.getppid()
attempt("priority", lambda: os.setpriority(*who, os.getpriority(*who)))
taken = os.dup(1)
attempt("descriptor", lambda: os.dup(1))
os.close(taken)
os.close(0)  # a limit on descriptors leaves that one
attempt("network", send)
attempt("file", lambda: open(secret).read())
attempt("new", lambda: open(secret + ".new", "w").write("x"))
attempt("gone", lambda: os.unlink(secret))
attempt("mode", lambda: os.chmod(secret, 0o777))
if "calls" not in missing:  # what ran in this one's place could say nothing
    attempt("program", lambda: os.execv(sys.executable, [sys.executable]))
print("missing", *missing)
"""


def confined(
    tmp_path: Path, user: str, *, filtered: bool, apart: bool
) -> tuple[dict[str, str], set[str]]:
    """What came of each attempt, and what the process says it was not rid of."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    yes = {True: "yes", False: "no"}
    done = subprocess.run(
        [sys.executable, "-c", TRIED, str(secret), user, yes[filtered], yes[apart]],
        env=os.environ
        | {"OPENBLAS_NUM_THREADS": "1"},  # with threads there is no namespace to be had
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    found = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    return found, set(found.pop("missing", "").split())


USERS = [
    "this",
    pytest.param("other", marks=pytest.mark.skipif(os.getuid() != 0, reason="needs root")),
]


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize("user", USERS)
def test_a_process_can_open_nothing(tmp_path: Path, user: str, filtered: bool, apart: bool) -> None:
    """Each only where the system can take it away, which it says itself."""
    found, missing = confined(tmp_path, user, filtered=filtered, apart=apart)
    lock = {
        "file": "files",
        "new": "files",
        "gone": "files",
        "program": "calls",
        "mode": "calls",
        "kill": "calls",
        "signal": "calls",
        "limits": "calls",
        "priority": "calls",
        "memory": "memory",
        "fork": "processes",
        "network": "network",
    }
    assert found.pop("descriptor") == "OSError"
    assert found.pop("mine") == "done"  # its own time it limits later
    assert set(found) >= set(lock) - {"program"}
    for name, outcome in found.items():
        assert outcome != "done" or lock[name] in missing, (name, found, missing)
    assert ("processes" in missing) == (found["fork"] == "done")
    assert not (tmp_path / "secret.new").exists() or "files" in missing


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.uname().machine not in ("x86_64", "aarch64"),
    reason="no filter for this system",
)
def test_nothing_is_missing_without_a_namespace(tmp_path: Path) -> None:
    """As in most containers, and as root, whom limits on processes do not bind."""
    found, missing = confined(tmp_path, "this", filtered=True, apart=False)
    assert missing == set()
    assert found.pop("mine") == "done"
    assert "done" not in found.values()


def test_a_machine_whose_numbers_are_unknown_has_no_filter() -> None:
    assert calls.program("riscv64") is None
    assert {len(calls.program(each) or b"") % 8 for each in ("x86_64", "aarch64")} == {0}


def test_a_file_that_wants_too_much_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def greedy(*_: object) -> None:
            raise MemoryError

        monkeypatch.setattr(sandbox, "_live", greedy)
        monkeypatch.setattr(sandbox, "_limit_time", lambda _: None)
        ours.sendall(pack("l", {"limit": 0}))
        sandbox._serve(theirs)
        kind, body, _ = receive(ours)
    assert kind == "x"
    assert "more memory than is allowed" in str(media._fault(body))


def test_a_tone_is_a_tone(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(wav(tone(1.0)))
    assert np.abs(read(tmp_path / "a") - tone(1.0)).max() < 1e-3
