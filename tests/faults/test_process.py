"""Rows G: what is done to the process: signals, limits, a bad machine."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.drive import speak
from tests.fakes import pcm, wav
from tests.faults.conftest import SHORT
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
from tests.faults.raw import dial
from tests.faults.test_http import OPEN, PART

SAID = words(3, 6)
AUDIO = pcm(speak(SAID))


def heard(server: Process) -> None:
    """A stream and a recording are."""
    with connect(server.socket_url, open_timeout=PATIENCE) as stream:
        stream.send(AUDIO)
        stream.send('{"type": "end"}')
        assert text(rest(stream)) == spelt(SAID)
    answer = server.post(FILES, files={"file": ("a.wav", wav(speak(SAID)))})
    assert answer.json()["text"] == spelt(SAID)


def gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def speaking(server: Process, stack: ExitStack, count: int) -> list[ClientConnection]:
    """Streams in mid-utterance, all of whose audio arrived."""
    streams = [
        stack.enter_context(connect(server.socket_url, open_timeout=PATIENCE)) for _ in range(count)
    ]
    for each in streams:
        each.send(AUDIO)
        each.send('{"type": "keepalive"}')
    return streams


@pytest.mark.fault(
    "G06",
    "SIGTERM, SIGINT or SIGHUP with 20 streams in mid-word and uploads at work",
    "every word in finals, `end` with `restart`, 1012; answers in full; exit status 0, no process left",
)
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name
)
def test_a_signal_in_mid_word(number: signal.Signals) -> None:
    """The signal while 20 streams have an open utterance and four recordings of two minutes are decoded"""
    with serving() as server, ExitStack() as stack:
        streams = speaking(server, stack, 20)
        children = server.children()
        assert children
        answers: list[httpx2.Response] = []
        long = wav(speak([each for turn in range(100) for each in [*words(turn, 4), 0.6]]))

        def upload() -> None:
            answers.append(
                httpx2.post(
                    server.url + FILES, files={"file": ("a.wav", long)}, timeout=60, verify=False
                )
            )

        uploads = [threading.Thread(target=upload) for _ in range(4)]
        for each in uploads:
            each.start()
        until(lambda: server.open() >= 24 + 20 or bool(answers))
        server.signal(number)
        for stream in streams:
            found = rest(stream)
            assert text(found) == spelt(SAID)
            assert found[-1]["reason"] == "restart"
            assert found[-1]["received"] == len(AUDIO)
            assert stream.close_code == 1012
        for each in uploads:
            each.join()
        # One that had not begun is refused; one that had is heard to its end.
        assert {answer.status_code for answer in answers} <= {200, 503}
        taken = [answer for answer in answers if answer.status_code == 200]
        assert taken
        assert {len(answer.json()["text"].split()) for answer in taken} == {400}
        assert server.wait() == 0, server.log
        assert "Traceback" not in server.log
        until(lambda: all(map(gone, children)))


@pytest.mark.fault("G07", "a second signal while the first is obeyed", "the end at once")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_second_signal(number: signal.Signals) -> None:
    """An upload that never ends holds the drain of 60 s; then the signal again"""
    with serving("--drain-seconds", "60") as server, closing(dial(server.url)) as stuck:
        stuck.sendall(OPEN + b"Content-Length: 100000\r\n\r\n" + PART)
        until(lambda: server.working() >= 1)
        server.signal(signal.SIGTERM)
        until(lambda: "finishing" in server.log)
        began = time.monotonic()
        server.signal(number)
        server.wait()
        assert time.monotonic() - began < 30
        assert "Traceback" not in server.log


@pytest.mark.fault(
    "G20",
    "new work while the server stops",
    "503 with Retry-After, or `stopping` and 1012; readiness 503, liveness 200",
)
def test_new_work_while_it_stops() -> None:
    """A stuck upload holds the drain; open connections ask for more"""
    with serving("--drain-seconds", "6") as server, ExitStack() as stack:
        stuck = stack.enter_context(closing(dial(server.url)))
        stuck.sendall(OPEN + b"Content-Length: 100000\r\n\r\n" + PART)
        late = stack.enter_context(connect(server.socket_url))
        client = stack.enter_context(
            httpx2.Client(base_url=server.url, timeout=PATIENCE, verify=False)
        )
        assert client.get("/readyz").status_code == 200
        until(lambda: server.working() >= 2)
        server.signal()
        assert "stopping" in [each.get("code") for each in rest(late)]
        assert late.close_code == 1012
        assert client.get("/readyz").status_code == 503
        assert client.get("/livez").status_code == 200
        refused = client.post(FILES, files={"file": ("a.wav", wav(speak(SAID)))})
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert server.wait() == 0


@pytest.mark.fault(
    "G21",
    "SIGTERM at every moment of the start",
    "it ends, with a status of 0 or of the signal, and leaves no process",
)
@pytest.mark.parametrize("after", [0.0, 0.3, 0.6, 0.9, 1.2, 1.5, 2.0])
def test_a_signal_during_the_start(after: float) -> None:
    """The signal 0 to 2 s after the command, while modules are imported and the model is loaded"""
    with serving("--preload", "scripted", ready=False) as server:
        time.sleep(after)
        children = server.children()
        server.signal()
        assert server.wait() in (0, 1, -signal.SIGTERM), server.log
        until(lambda: all(map(gone, children)))


@pytest.mark.fault(
    "G08",
    "kill -9 of the server, and a new one in its place",
    "ready again; no process, file or port is left",
)
def test_killed_and_started_again() -> None:
    """SIGKILL with streams and uploads at work, twice on one port"""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    for _ in range(2):
        with serving("--port", port) as server, ExitStack() as stack:
            heard(server)
            speaking(server, stack, 5)
            stuck = stack.enter_context(closing(dial(server.url)))
            stuck.sendall(OPEN + b"Content-Length: 1000000\r\n\r\n" + PART + bytes(500_000))
            until(lambda: bool(server.uploads()))
            children = server.children()
            assert children
            server.signal(signal.SIGKILL)
            server.wait()
            until(lambda children=children: all(map(gone, children)))  # type: ignore[misc]
            assert list(server.temporary.iterdir()) == []


@pytest.mark.fault(
    "G22", "the whole server stopped for three seconds", "latency; the same words, no reconnect"
)
def test_stopped_and_continued() -> None:
    """SIGSTOP and SIGCONT of the front process while ten streams speak"""
    with serving(faults=SHORT) as server, alive(server), ExitStack() as stack:
        streams = speaking(server, stack, 10)
        for _ in range(3):
            server.signal(signal.SIGSTOP)
            time.sleep(1)
            server.signal(signal.SIGCONT)
            time.sleep(0.1)
        for each in streams:
            each.send(AUDIO)
            each.send('{"type": "end"}')
        for each in streams:
            assert text(rest(each)) == spelt([*SAID, *SAID])
            assert each.close_code == 1000


@pytest.mark.fault(
    "G04",
    "256 descriptors, and 600 who want one",
    "it says so at the start, takes fewer connections, and never runs out",
)
def test_few_descriptors() -> None:
    """`prlimit --nofile=256`, 600 silent connections, then work as ever"""
    limit = ("prlimit", "--nofile=256:256")
    with serving(before=limit, faults=SHORT) as server, alive(server), ExitStack() as stack:
        assert "descriptors" in server.log
        for _ in range(600):
            stack.enter_context(closing(dial(server.url)))
        heard(server)
        assert server.descriptors() < 250
    assert "Too many open files" not in server.log


@pytest.mark.fault(
    "G09",
    "a machine or a setting that will not do",
    "an exit status that is not 0 and one line that says what and what to do",
)
@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--host 203.0.113.1", "cannot listen on 203.0.113.1"), ("--host nowhere.invalid", "nowhere.invalid"), ("--port 99999", "--port"), ("--tls-cert /nowhere --tls-key /nowhere", "HTTPS"),
        ("--config /nowhere.toml", "/nowhere.toml"), ("--config .", "."), ("--alias-file /nowhere.json", "/nowhere.json"), ("--api-keys-file /nowhere", "/nowhere"), ("--model x=", "x="),
        ("--log-level loud", "--log-level"), ("--device cuda", "GPU"),
    ],
)  # fmt: skip
def test_settings_that_will_not_do(flags: str, told: str) -> None:
    """Addresses that are not ours, files that are not there, values out of range"""
    with serving(*flags.split(), ready=False, CUDA_VISIBLE_DEVICES="") as server:
        assert server.wait(60) in (1, 2), server.log
    assert told in server.log
    assert "Traceback" not in server.log
    assert len(server.log.strip().splitlines()) <= 2, server.log


@pytest.mark.fault("G23", "a port that is taken", "exit status 1 and one line; who has it goes on")
def test_a_port_that_is_taken(server: Process) -> None:
    """A second server on the port of the first"""
    with serving("--port", str(server.port), ready=False) as second:
        assert second.wait(60) == 1
    assert "cannot listen" in second.log
    assert "Traceback" not in second.log


@pytest.mark.fault(
    "G24",
    "a model that is not there, or is none",
    "exit status 1 and a line that says what is missing",
)
@pytest.mark.parametrize("kind", ["missing", "a file", "empty", "garbage"])
def test_models_that_are_not_there(kind: str, tmp_path: Path) -> None:
    """`--model x=PATH` with nothing, a file, an empty folder, garbage at the path"""
    path = tmp_path / "model"
    if kind == "a file":
        path.write_text("no model")
    elif kind != "missing":
        path.mkdir()
    if kind == "garbage":
        (path / "weights").write_bytes(os.urandom(1000))
    with serving("--model", f"x={path}", "--preload", "x", ready=False) as server:
        assert server.wait(60) == 1
    assert "model x" in server.log
    assert "Traceback" not in server.log


@pytest.mark.fault("G13", "a log that cannot be written", "it serves on, and stops cleanly")
@pytest.mark.parametrize("what", ["full", "closed", "no reader"])
def test_a_log_that_cannot_be_written(what: str) -> None:
    """stdout and stderr to `/dev/full`; closed; a pipe whose reader is gone"""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    end = {"full": ">/dev/full 2>/dev/full", "closed": ">&- 2>&- <&-", "no reader": "2>&1 | true"}[
        what
    ]
    with serving("--port", port, ready=False) as first:  # for its model and environment
        first.signal(signal.SIGKILL)
        first.wait()
        command = f"{sys.executable} -m tests.faults.countable {' '.join(first.arguments)} {end}"
        shell = subprocess.Popen(
            ["bash", "-c", command], env=first.environment, start_new_session=True
        )
        try:
            first.url = f"http://127.0.0.1:{port}"

            def up() -> bool:
                with suppress(httpx2.HTTPError):
                    return first.get("/readyz").status_code == 200
                return False

            until(up, 60)
            heard(first)
        finally:
            os.killpg(shell.pid, signal.SIGTERM)
            shell.wait(PATIENCE)


def ignoring(before: tuple[str, ...]) -> bool:
    return (
        shutil.which(before[0]) is not None
        and subprocess.run([*before, "true"], capture_output=True, check=False).returncode == 0
    )


READ_ONLY = ("unshare", "-m", "sh", "-c", 'mount -o remount,ro,bind / && exec "$@"', "sh")


@pytest.mark.fault(
    "G14",
    "a read-only root, no home, no temporary folder",
    "streams are heard; an upload is heard or refused in the envelope",
)
@pytest.mark.parametrize("what", ["read-only", "no home", "no temporary folder"])
def test_a_bare_machine(what: str) -> None:
    """A mount namespace whose root is read-only; HOME unset; TMPDIR that is not there"""
    before: tuple[str, ...] = ()
    variables = {}
    if what == "read-only":
        before = READ_ONLY
        if not ignoring(before):
            pytest.skip("no mount namespaces here")
    elif what == "no home":
        before = ("env", "-u", "HOME", "-u", "XDG_CACHE_HOME")
    else:
        variables = {"TMPDIR": "/nowhere"}
    with serving(before=before, **variables) as server:
        with connect(server.socket_url, open_timeout=PATIENCE) as stream:
            stream.send(AUDIO)
            stream.send('{"type": "end"}')
            assert text(rest(stream)) == spelt(SAID)
        answer = server.post(FILES, files={"file": ("a.wav", wav(speak(SAID)))})
        assert answer.status_code in (200, 503, 507), answer.text
        if answer.status_code != 200:
            assert answer.json()["error"]["message"]
        assert "Traceback" not in server.log
        server.signal()
        assert server.wait() == 0


@pytest.mark.fault("G25", "too little memory to start", "an exit status that is not 0, and why")
def test_too_little_memory_to_start() -> None:
    """`prlimit --as` of 100 MB, far below what the libraries need"""
    with serving(before=("prlimit", f"--as={100 << 20}"), ready=False) as server:
        assert server.wait(60) != 0
        assert server.log.strip()


@pytest.mark.fault("G03", "too little memory to work", "errors in the envelope or text; alive")
@pytest.mark.parametrize("mebibytes", [400])
def test_too_little_memory_to_work(mebibytes: int) -> None:
    """`prlimit --as` of 400 MB, of which the libraries take most; streams and recordings as ever"""
    with serving(before=("prlimit", f"--as={mebibytes << 20}")) as server:
        for _ in range(3):
            with connect(server.socket_url, open_timeout=PATIENCE) as stream:
                with suppress(ConnectionClosed):
                    stream.send(AUDIO)
                    stream.send('{"type": "end"}')
                found = rest(stream)
                assert found[-1]["type"] in ("end", "error"), found
                told = [each for each in found if each["type"] == "error"]
                assert text(found) == spelt(SAID) or (told and not text(found)), found
            answer = server.post(FILES, files={"file": ("a.wav", wav(speak(SAID)))})
            assert "text" in answer.json() or answer.json()["error"]["message"]
        assert server.get("/livez").status_code == 200


@pytest.mark.fault("G26", "signals that mean nothing to it", "ignored, or the end; never a hang")
@pytest.mark.parametrize(
    "number",
    [signal.SIGPIPE, signal.SIGCHLD, signal.SIGWINCH, signal.SIGURG],
    ids=lambda number: number.name,
)
def test_signals_that_mean_nothing(server: Process, number: signal.Signals) -> None:
    """Twenty of each while a stream speaks"""
    for _ in range(20):
        server.signal(number)
    heard(server)


@pytest.mark.fault("G27", "processors that are stolen", "latency; the same words")
def test_stolen_processors() -> None:
    """Four spinning processes for the length of ten streams"""
    spin = [
        subprocess.Popen(["nice", "-n", "5", sys.executable, "-c", "while True: pass"])
        for _ in range(4)
    ]
    try:
        with serving(faults=SHORT) as server, alive(server), ExitStack() as stack:
            streams = speaking(server, stack, 10)
            for each in streams:
                each.send('{"type": "end"}')
            assert [text(rest(each)) for each in streams] == [spelt(SAID)] * 10
    finally:
        for each in spin:
            each.kill()
            each.wait()
