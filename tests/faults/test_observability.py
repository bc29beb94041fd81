"""Rows O: what the server says of itself, whatever is done to it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.sync.client import connect

from server import flight
from tests.drive import speak
from tests.fakes import pcm, wav
from tests.faults.process import (
    FILES,
    PATIENCE,
    ROOT,
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
from tests.faults.test_runners import Talker, kill

FRESH = {"server.metrics.FRESH": 0.0}


@pytest.fixture(scope="module")
def told() -> Iterator[Process]:
    """A server with JSON logs, whose figures are of the moment."""
    with serving("--log-format", "json", "--resume-seconds", "1", faults=FRESH) as process:
        process.post(FILES, files={"file": ("a", wav(speak([1])))})  # its model is loaded
        yield process
        process.signal()
        assert process.wait() == 0, process.log


def figures(server: Process) -> dict[str, float]:
    """Every sample, by its name and labels as they are written."""
    answer = server.get("/metrics")
    assert answer.status_code == 200
    return {
        sample.name + (str(sorted(sample.labels.items())) if sample.labels else ""): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def ask_for(server: Process, requests: list[bytes]) -> None:
    """Requests on one connection, 50 in flight."""
    with closing(dial(server.url)) as connection:
        for at in range(0, len(requests), 50):
            batch = requests[at : at + 50]
            connection.sendall(b"".join(batch))
            seen = b""
            while seen.count(b"HTTP/1.1 ") < len(batch) or not seen.endswith(b"}"):
                piece = connection.recv(65536)
                assert piece, seen[-500:]
                seen += piece


@pytest.mark.fault(
    "O01",
    "endless different models, paths, methods and keys",
    "/metrics keeps its size and its series",
)
def test_figures_are_bounded(told: Process) -> None:
    """20 000 requests, of which no two name the same path, model, method or key"""

    def made(numbers: range) -> list[bytes]:
        lines = []
        for number in numbers:
            path = (f"/nothing/{number}", f"/v1/models/m{number}", "/v1/models")[number % 3]
            method = "GET" if number % 3 else f"M{number}"
            lines.append(
                f"{method} {path}?q={number} HTTP/1.1\r\nHost: x\r\nX-API-Key: key-{number}\r\n\r\n".encode()
            )
        return lines

    with alive(told):
        ask_for(told, made(range(50)))
        figures(told)  # asking has a series, too
        before = figures(told)
        ask_for(told, made(range(50, 20_000)))
        after = figures(told)
        size = len(told.get("/metrics").text)
        assert size < 200_000
        assert after.keys() - before.keys() == set()
        assert "key-" not in told.get("/metrics").text


HOSTILE = "a\r\n00:00:00 info    forged\x00\x1b[2J\x9b1m\u2028\u202e"


@pytest.mark.fault(
    "O02",
    "line breaks and terminal codes in all that is logged",
    "one line an event, escaped and cut",
)
@pytest.mark.parametrize("shape", ["json", "text"])
def test_nobody_forges_a_line(shape: str) -> None:
    """Names of models, files, markers, sessions and paths that hold CR LF, NUL, ESC and 1 MB"""
    with (
        # A busy machine may hold the loop, whose stacks are no events.
        serving(
            *("--log-format", shape, "--log-level", "debug"), faults={"server.watch.STILL": 60.0}
        ) as server,
        alive(server, errors=True),
    ):
        long = HOSTILE + "x" * 10**6
        server.post(
            FILES, files={"file": (HOSTILE, wav(speak([1])))}, data={"model": long, "prompt": long}
        )
        server.post(FILES, files={"file": (HOSTILE, b"not audio" + HOSTILE.encode())})
        server.get("/v1/models/%0d%0a%1b%5b2Jforged")
        server.post("/api/pull/%0d%0aforged/%1b", json={})
        for query in ("?model=%0D%0A%1Bforged", "?%0D%0A=1"):
            with connect(server.socket_url + query) as socket:
                rest(socket)
        with connect(server.socket_url + "?model=scripted") as socket:
            socket.send(json.dumps({"type": "commit", "marker": HOSTILE}))
            socket.send(json.dumps({"type": HOSTILE}))
            socket.send('{"type": "end"}')
            rest(socket)
    lines = [line.rstrip("\n") for line in server.said if not line.startswith("open-speech on ")]
    assert lines
    for line in lines:
        assert len(line) < 30_000
        assert line.isprintable(), line
        if shape == "json":
            assert {"time", "level", "logger", "event"} <= set(json.loads(line))
        else:
            assert re.match(r"\d\d:\d\d:\d\d (debug|info|warning|error) |    ", line), line
    assert not [line for line in lines if line.startswith("00:00:00")]


@pytest.mark.fault(
    "O03", "work that ends in every way", "what is counted as open goes back to nothing"
)
def test_gauges_go_back(told: Process) -> None:
    """Streams that end, hang up and break the protocol, files good and bad, clients that leave"""
    with alive(told):
        before = figures(told)
        for messages in ('{"type": "end"}', '{"type": "nonsense"}', None):
            with connect(told.socket_url + "?model=scripted") as socket:
                socket.send(pcm(speak([1, 2, 0.7, 3])))
                if messages is None:
                    socket.socket.shutdown(2)
                else:
                    socket.send(messages)
                    socket.send('{"type": "end"}')
                    rest(socket)
        for data in (wav(speak([1, 2])), b"no audio"):
            told.post(FILES, files={"file": ("a", data)})

        def still() -> bool:
            now = figures(told)
            names = [
                name
                for name in now
                if re.match(r"open_speech_(engine_streams|recordings|streams)_open", name)
                or name.startswith(("open_speech_decodes_waiting", "open_speech_decodes_running"))
            ]
            assert len(names) >= 8, names
            # The honest stream beside is open, and may be decoded.
            return sum(now[name] for name in names if "open" in name.partition("[")[0]) <= 4

        until(still)
    until(
        lambda: (
            not any(
                value
                for name, value in figures(told).items()
                if re.match(r"open_speech_(engine_streams|recordings)_open", name)
                or name.startswith(("open_speech_decodes_waiting", "open_speech_decodes_running"))
            )
        ),
        3 * PATIENCE,
    )
    after = figures(told)
    ended = {
        name: after[name] - before.get(name, 0.0)
        for name in after
        if name.startswith("open_speech_streams_total") and "native" in name
    }
    assert sum(ended.values()) >= 2


@pytest.mark.fault(
    "O04",
    "a server that drains",
    "/readyz says 503 and /livez 200; figures are told to the end; health asks no model",
)
def test_probes_while_it_drains() -> None:
    """SIGTERM while an upload is not complete, asked over a connection that was there before"""
    with serving("--drain-seconds", "20", "--resume-seconds", "0", faults=FRESH) as server:
        with httpx2.Client(base_url=server.url, timeout=PATIENCE) as client:
            assert client.get("/readyz").status_code == 200
            # An upload that is not complete keeps it draining.
            with closing(dial(server.url)) as upload:
                upload.sendall(
                    f"POST {FILES} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
                    "Content-Length: 100\r\n\r\n--x".encode()
                )
                until(lambda: client.get("/counters").json()["working"] >= 1)
                until(lambda: "open_speech_ready 1.0" in client.get("/metrics").text)
                server.signal()
                until(lambda: client.get("/readyz").status_code == 503)
                assert client.get("/livez").status_code == 200
                assert "open_speech_ready 0.0" in client.get("/metrics").text
        assert server.wait() == 0


@pytest.mark.fault("O05", "figures asked for without end", "made once a second, whoever asks")
def test_figures_are_cheap(server: Process) -> None:
    """500 scrapes as fast as they are answered, by five clients at once"""
    texts: set[str] = set()
    began = time.monotonic()

    def scrape() -> None:
        with httpx2.Client(base_url=server.url, timeout=PATIENCE) as client:
            for _ in range(100):
                texts.add(client.get("/metrics").text)

    server.post(FILES, files={"file": ("a", wav(speak([1])))})  # its model is loaded from here on
    clients = [threading.Thread(target=scrape) for _ in range(5)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert 0 < len(texts) <= time.monotonic() - began + 2


@pytest.mark.fault(
    "O06",
    "which request was it",
    "one id in the answer, in error messages and in every line of the log about it",
)
def test_ids_lead_from_an_answer_to_the_log(told: Process) -> None:
    """A file, an unknown path and a live stream; then the ids of their answers are looked up"""

    def lines(request: str) -> list[dict[str, str]]:
        parsed = [json.loads(line) for line in told.said if line.startswith("{")]
        return [line for line in parsed if line.get("request") == request]

    with alive(told):
        good = told.post(FILES, files={"file": ("a", wav(speak([1, 2])))})
        bad = told.get("/nothing")
        with connect(told.socket_url + "?model=scripted") as socket:
            socket.send('{"type": "end"}')
            session = rest(socket)[0]["session"]
            assert socket.response is not None
            live = socket.response.headers["x-request-id"]
        with connect(told.socket_url + "?nonsense=1") as socket:
            (error,) = rest(socket)
            assert socket.response is not None
            assert error["request"] == socket.response.headers["x-request-id"]
        ids = [good.headers["x-request-id"], bad.headers["x-request-id"], live]
        assert len(set(ids)) == 3
        until(lambda: all(lines(each) for each in ids))
        until(lambda: any("closed" in line["event"] for line in lines(live)))
        assert all(session.startswith(line["stream"]) for line in lines(live) if "stream" in line)
        assert any("stream" in line for line in lines(live))


@pytest.mark.fault(
    "O07", "what was said, and keys, in the log", "neither is there, nor in the figures"
)
def test_the_log_holds_no_transcript_and_no_key() -> None:
    """A file and a stream with a prompt, with keys in headers and subprotocols, some of them wrong"""
    key, wrong, secret = "sk-right-key-0123456789", "sk-wrong-key-9876543210", "unheard-of prompt"
    with serving("--api-keys", key, faults=FRESH, key=key) as server:
        with alive(server):
            right = {"authorization": f"Bearer {key}"}
            found = server.post(
                FILES,
                files={"file": ("a", wav(speak([11, 12, 13])))},
                data={"prompt": secret},
                headers=right,
            )
            assert found.json()["text"] == spelt([11, 12, 13])
            server.post(FILES, headers={"authorization": f"Bearer {wrong}"})
            httpx2.get(f"{server.url}/v1/models?key={wrong}")
            protocols = ["open-speech", f"open-speech-key.{key}"]
            with connect(
                server.socket_url + f"?prompt={secret.replace(' ', '+')}", subprotocols=protocols
            ) as socket:  # type: ignore[arg-type]
                socket.send(pcm(speak([14, 15, 0.7])))
                socket.send('{"type": "end"}')
                assert text(rest(socket)) == spelt([14, 15])
            figures_ = httpx2.get(server.url + "/metrics", headers=right).text
        server.signal()
        assert server.wait() == 0
    for hidden in (key, wrong, "w12", "w15", "unheard-of"):
        assert hidden not in server.log
        assert hidden not in figures_


@pytest.mark.fault(
    "O08",
    "the server is killed with the flight recorder on",
    "the file is good up to the last second, and replays",
)
def test_a_flight_recording_survives(tmp_path: Path) -> None:
    """SIGKILL in mid-stream; then the file is read and run through the engine again"""
    said: list[int | float] = [*words(3, 4), 0.7, *words(9, 4), 0.7]
    audio = pcm(speak(said))
    with serving("--flight-dir", str(tmp_path)) as server, connect(server.socket_url) as socket:
        socket.send(audio)
        finals: list[str] = []
        while len(finals) < 2:
            message = json.loads(socket.recv(timeout=PATIENCE))
            if message["type"] == "final":
                finals.append(message["text"])

        def kept() -> bool:
            (path,) = tmp_path.iterdir()
            return path.read_bytes().count(b'"Final"') == 2

        until(lambda: len(list(tmp_path.iterdir())) == 1)
        until(kept)  # a second at most: then it is on the disk
        server.signal(signal.SIGKILL)
        server.wait()
    (path,) = tmp_path.iterdir()
    found = flight.read(path)
    assert not found.whole
    assert (found.samples * 32768).astype("<i2").tobytes() == audio
    assert path.stat().st_mode & 0o777 == 0o600
    model = tmp_path / "model" / "scripted"
    model.mkdir(parents=True)
    (model / "scripted").write_text("")
    again = subprocess.run(
        [
            *(sys.executable, "-m", "tests.faults.countable", "replay", str(path)),
            *("--speed", "0", "--json", "--model", f"scripted={model}"),
        ],
        env=os.environ | {"STT_OFFLINE": "true", "STT_DEVICE": "cpu", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    told = json.loads(again.stdout)
    assert told["same"], told["differences"]
    assert again.returncode == 0
    assert " ".join(each["text"] for each in told["replayed"]).strip() == spelt(said)


@pytest.mark.fault(
    "O09", "a model's process is killed", "counted, and its successor's memory is told"
)
def test_restarts_are_counted() -> None:
    """SIGKILL while a stream speaks"""
    faults = FRESH | {"streaming.remote.PAUSE": 0.01}
    with serving(faults=faults) as server, alive(server, errors=True):
        name = "open_speech_runner_restarts_total[('model', 'scripted')]"
        assert figures(server).get(name, 0.0) == 0
        talker = Talker(server, [*words(1, 8), 0.7], 2.0)
        kill(server)
        talker.join(PATIENCE)
        assert text(talker.messages) == spelt(talker.said)
        until(lambda: figures(server).get(name) == 1)
        resident = "open_speech_runner_resident_memory_bytes[('model', 'scripted')]"
        until(lambda: figures(server).get(resident, 0.0) > 10**6)
