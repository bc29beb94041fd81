"""`open-speech stream` and `listen` as a user types them, against a running server with a real Whisper."""

import json
import os
import pty
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes import lines, pcm, word_errors
from tests.proxy import wire
from tests.serving import running, speech_file, with_toy


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(with_toy(api_keys=("secret",))) as url:
        yield url


def command(
    *arguments: str, key: str = "secret", path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env={**os.environ, "STT_API_KEY": key, "PYTHONPATH": str(path or "")},
    )


def test_a_file_becomes_lines_and_subtitles(url: str, tmp_path: Path) -> None:
    srt = tmp_path / "out.srt"
    done = command(
        "stream", str(speech_file("000-en.flac")), "--speed", "0", "--url", url, "--srt", str(srt)
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, lines()[0].text + "\n", "")
    assert srt.read_text("utf-8").startswith("1\n00:00:00,")
    assert "soldier" in srt.read_text("utf-8")


def test_events_are_json_at_many_times_the_pace(url: str) -> None:
    done = command(
        "stream", str(speech_file("000-en.flac")), "--speed", "20", "--url", url, "--json"
    )
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert (events[0]["type"], events[-1]["type"]) == ("ready", "end")
    (final,) = [event for event in events if event["type"] == "final"]
    assert word_errors(lines()[0].text, final["text"]) <= 1
    assert final["words"]


def test_faults_are_one_line_and_status_1(url: str, tmp_path: Path) -> None:
    speech = str(speech_file("000-en.flac"))
    noise = tmp_path / "noise.mp3"
    noise.write_bytes(b"no recording")
    for arguments, key, expected in (
        ((speech, "--url", url), "wrong", "API key"),
        ((speech, "--url", "http://127.0.0.1:9"), "", "no open-speech server answers"),
        ((speech, "--url", url, "-m", "nope"), "secret", "does not exist"),
        ((str(noise), "--url", url), "secret", "not audio"),
        ((str(tmp_path / "nothing"), "--url", url), "secret", "No such file"),
    ):
        done = command("stream", *arguments, key=key)
        assert done.returncode == 1, arguments
        assert expected in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert done.stdout == ""
    assert command("stream", speech, "--speed", "-1").returncode == 2


def test_on_a_terminal_captions_are_drawn(url: str) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "server.cli",
            "stream",
            str(speech_file("000-en.flac")),
            "--speed",
            "4",
            "--url",
            url,
            "--key",
            "secret",
        ],
        stdout=theirs,
        env={**os.environ, "COLUMNS": "80", "LINES": "24"},
    ) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # Linux: the other end is closed
                break
            if not data:
                break
            seen += data
        assert process.wait(60) == 0
    os.close(ours)
    drawn = seen.decode()
    assert "soldier" in drawn
    assert "\x1b[2m00:00\x1b[0m  " in drawn


def test_a_broken_connection_is_told_and_costs_no_word(url: str) -> None:
    arguments = ["stream", str(speech_file("000-en.flac")), "--speed", "4", "--key", "secret"]
    with (
        wire(url) as link,
        subprocess.Popen(
            [sys.executable, "-m", "server.cli", *arguments, "--url", link.url, "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        events = []
        for line in process.stdout:
            events.append(json.loads(line))
            if events[-1]["type"] == "ready" and link.connections == 1:
                link.cut()
        assert process.wait(60) == 0
    kinds = [event["type"] for event in events]
    assert kinds.count("reconnecting") >= 1
    assert next(event["resumed"] for event in events if event["type"] == "ready") is False
    assert [event["resumed"] for event in events if event["type"] == "ready"][-1] is True
    (final,) = [event for event in events if event["type"] == "final"]
    assert word_errors(lines()[0].text, final["text"]) <= 1
    with (
        wire(url) as link,
        subprocess.Popen(
            [sys.executable, "-m", "server.cli", *arguments, "--url", link.url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        while link.passed < 60_000:
            assert process.poll() is None
            time.sleep(0.01)
        link.cut()
        out, told = process.communicate(timeout=60)
    assert word_errors(lines()[0].text, out) <= 1
    first, second = told.splitlines()
    assert "trying again" in first
    assert "connected again" in second


SOUNDDEVICE = '''
"""A sound device that hears a recording and then its user's Ctrl-C."""
import os, signal, threading

class PortAudioError(Exception):
    pass

class Devices(str):
    pass

def query_devices(device=None, kind=None):
    if device == "broken":
        raise ValueError("No input device matching 'broken'")
    if kind is None:
        return Devices("> 0 A recording, 1 in")
    return {"default_samplerate": 16000.0}

class RawInputStream:
    def __init__(self, samplerate, blocksize, device, channels, dtype, callback):
        assert (samplerate, channels, dtype) == (16000, 1, "int16")
        self._callback, self._size = callback, 2 * blocksize

    def start(self):
        threading.Thread(target=self._play).start()

    def _play(self):
        audio = open(os.environ["HEARD"], "rb").read()
        for at in range(0, len(audio), self._size):
            self._callback(audio[at:at + self._size], self._size // 2, None, None)
        threading.Timer(2.0, os.kill, [os.getpid(), signal.SIGINT]).start()

    def stop(self):
        pass

    def close(self):
        pass
'''


def test_the_microphone_is_heard_until_ctrl_c(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sounddevice.py").write_text(textwrap.dedent(SOUNDDEVICE))
    (tmp_path / "heard").write_bytes(pcm(lines()[0].samples))
    monkeypatch.setenv("HEARD", str(tmp_path / "heard"))
    done = command("listen", "--url", url, path=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, lines()[0].text + "\n", "")
    done = command("listen", "--list-devices", path=tmp_path)
    assert (done.returncode, done.stdout) == (0, "> 0 A recording, 1 in\n")
    done = command("listen", "--device", "broken", path=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no such microphone" in done.stderr


def test_what_is_missing_is_told_with_its_remedy(tmp_path: Path) -> None:
    for fault, remedy in (
        ("ImportError('no')", "pip install"),
        ("OSError('PortAudio library not found')", "apt install"),
    ):
        (tmp_path / "sounddevice.py").write_text(f"raise {fault}\n")
        done = command("listen", path=tmp_path)
        assert done.returncode == 1
        assert remedy in done.stderr
        assert len(done.stderr.splitlines()) == 1
