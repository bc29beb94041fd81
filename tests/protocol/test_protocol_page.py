"""`docs/protocol.md` says what the code does: its conversation, its tables, its examples."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from server import journal, sessions, sockets
from server.errors import _TABLE
from server.protocols import native
from server.settings import Settings
from streaming.audio import containers, live
from streaming.errors import BackendError
from streaming.events import (
    Eager,
    Failed,
    Final,
    Marker,
    Partial,
    SpeechResumed,
    SpeechStarted,
    SpeechStopped,
)
from streaming.local import LAG
from streaming.types import RATE, Options, Word
from tests.containers import contained
from tests.fakes import silence, speech, wav
from tests.protocol import native_conversation
from tests.serving import running, with_toy

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text("utf-8")
BLOCKS = dict(re.findall(r"```(\w*)\n(.*?)```", PAGE, re.S))


def table(heading: str) -> dict[str, list[str]]:
    """Rows of the table whose header begins with `heading`, by their first cell."""
    found = re.search(rf"^\| {heading} \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.M)
    assert found is not None, heading
    rows = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in found[1].splitlines()]
    return {row[0].strip("` |"): row[1:] for row in rows}


def fields(cell: str) -> tuple[set[str], set[str]]:
    """Fields that are always there, and those that may be missing."""
    names = re.findall(r"`(\w+)`(\??)", cell)
    return {name for name, may in names if not may}, {name for name, may in names if may}


def second_table(heading: str, number: int) -> dict[str, list[str]]:
    starts = [each.start() for each in re.finditer(rf"^\| {heading} \|", PAGE, re.M)]
    global_page = PAGE[starts[number] :]
    rows = global_page.split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]
    return {row[0].strip("` |"): row[1:] for row in cells}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(with_toy()) as url:
        yield url


def settled(lines: list[str]) -> list[Any]:
    """What does not depend on time or chance: everything but partials and acks, their numbers and the session's id."""
    found: list[Any] = []
    for line in lines:
        if not line.startswith("< {"):
            found.append(line)
            continue
        message = json.loads(line[2:])
        message.pop("seq")
        message.pop("session", None)
        if message["type"] == "final":
            message.pop("received")
        if message["type"] not in ("partial", "ack"):
            found.append(message)
    client = [each for each in found if isinstance(each, str) and each[0] == ">"]
    return client + [each for each in found if each not in client]


def test_the_conversation_on_the_page_is_the_one_that_happens(url: str) -> None:
    shown = BLOCKS[""].strip().splitlines()
    again = asyncio.run(asyncio.wait_for(native_conversation.record(url, 0.0), 60))
    assert settled(again) == settled(shown)
    numbers = [json.loads(line[2:])["seq"] for line in shown if line.startswith("< {")]
    assert numbers == list(range(len(numbers)))
    committed = ""
    for line in shown:
        if '"partial"' in line:
            now = json.loads(line[2:])["committed"]
            assert now.startswith(committed)
            committed = now


def test_every_message_has_the_fields_of_the_table() -> None:
    writer = native.Writer("s_x", native.Opening(Options(words=True), timings=True))
    plain = native.Writer("s_x", native.Opening())
    word = (Word(" one", 0, 100, 0.9),)
    made = [
        writer.ready("toy", 0, 30.0),
        writer.ack(1, 0.0),
        writer.end(1, "client"),
        native.error("no", code="overloaded"),
        native.error("no", code="overloaded", param="model", retry_after=5, request="req_1"),
    ]
    for each in (
        SpeechStarted(0, 0),
        Partial(0, 1, " one", "", word),
        SpeechStopped(0, 1),
        Eager(0, " one"),
        SpeechResumed(0),
        Final(0, " one", word, 0, 1, "en"),
        Marker("x", 1),
        Failed(0, BackendError("no")),
    ):
        made += [writer.event(each, 1, 0.0), plain.event(each, 1, 0.0)]
    cut = Final(0, " one", word, 0, 1, "en", cut=True, stream_language="en")
    made.append(writer.event(cut, 1, 0.0, parting=True))
    rows = second_table("message", 1)
    assert {each["type"] for each in made} == set(rows)
    for message in made:
        always, perhaps = fields(rows[message["type"]][0])
        names = set(message) - {"type"}
        assert always <= names <= always | perhaps, message
    for kind, row in rows.items():
        seen = set().union(*(each for each in made if each["type"] == kind))
        assert set().union(*fields(row[0])) <= seen, kind


def test_the_options_are_those_of_the_code() -> None:
    rows = table("option")
    assert set(rows) == set(native.NAMES)
    default = native.Opening()
    for name in ("endpointing_ms", "vad_threshold", "pre_roll_ms"):
        assert float(rows[name][1]) == getattr(default.options, name)
    for name, (least, most, *_) in native._NUMBERS.items():
        low, high = rows[name][0].split(" … ")
        assert (float(low), float(high)) == (least, most), name
    for name in native._BOOLEANS:
        holder = default if hasattr(default, name) else default.options
        assert rows[name][1] == f"`{str(getattr(holder, name)).lower()}`"


def test_the_encodings_are_those_of_the_code() -> None:
    assert set(table("encoding")) == set(live.ENCODINGS)
    assert containers.FORMATS.replace(" and ", " or ") in table("encoding")["container"][0]


def test_a_client_may_send_what_the_table_says_and_nothing_else() -> None:
    for kind in second_table("message", 0):
        if kind == "binary":
            continue
        reader = native.Reader()
        if kind == "resume":
            asked = {"type": kind, "session": "s_x", "last_event": 0}
            assert reader.receive_text(json.dumps(asked)) == [native.Resume("s_x", 0)]
        else:
            assert reader.receive_text(json.dumps({"type": kind}))
    with pytest.raises(native.ProtocolError):
        native.Reader().receive_text('{"type": "ready"}')


def test_the_codes_are_those_of_the_code() -> None:
    assert {name: row[0] for name, row in table("code").items()} == native.ERRORS
    assert {int(name): row[0] for name, row in table("close").items()} == native.CLOSES
    source = "".join(
        Path(module.__file__ or "").read_text("utf-8") for module in (sessions, sockets, native)
    )
    assert set(re.findall(r'code="(\w+)"', source)) <= set(native.ERRORS)
    told = {code for _, _, code in _TABLE if code} - {
        "audio_too_long",
        "audio_too_short",
        "no_audio",
        "model_busy",
        "insufficient_storage",
    }  # of files
    assert told <= set(native.ERRORS)
    reasons = fields(second_table("message", 1)["end"][1])[0]
    assert reasons == set(get_args(sessions.Reason))


def test_the_limits_are_those_of_the_code() -> None:
    rows, settings = table("limit"), Settings()
    assert rows["a binary message"] == [f"{native.MESSAGE // 2**20} MiB"]
    assert rows["a text message"] == [f"{native.TEXT} characters"]
    assert rows["commits that wait for their marker"] == [str(native.COMMITS)]
    assert rows["silence of the client"][0].startswith(f"{settings.stream_idle_seconds:g} s")
    assert rows["a session"][0].startswith(f"{settings.max_stream_seconds:g} s")
    assert rows["streams at a time"][0].startswith(f"{settings.max_streams} ")
    assert rows["bytes of a container without any sound"] == [f"{containers.BARREN // 2**20} MiB"]
    assert f"Up to {LAG // RATE} s of undecided audio" in PAGE
    assert f"outlives its connection by {settings.resume_seconds:g} s" in PAGE
    waiting = f"({sessions.APART}, or {sessions.APART_BYTES // 2**20} MiB of messages)"
    assert waiting in PAGE
    assert f"or {journal.KEPT_BYTES // 2**20} MiB of them" in PAGE
    waits = f"{journal.MESSAGES}\nmessages or {journal.BYTES // 2**20} MiB wait, or nothing leaves for {sockets.STALL:g} s"
    assert waits in PAGE
    assert f"at most {settings.drain_seconds:g} s" in PAGE


def test_the_python_example_prints_what_was_said(url: str, tmp_path: Path) -> None:
    (tmp_path / "speech.wav").write_bytes(wav(speech("006-en.flac")))
    code = BLOCKS["python"].replace("ws://localhost:8100", url.replace("http", "ws"))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().split("\n")[-3].startswith("The train to Madrid leaves")


BROWSER = """
import { readFileSync } from "node:fs";
const recording = readFileSync("speech.webm");
globalThis.navigator ??= {};
Object.defineProperty(navigator, "mediaDevices", { value: { getUserMedia: async () => "a stream" } });
globalThis.MediaRecorder = class {
  start() {
    for (let at = 0; at < recording.length; at += 999)
      this.ondataavailable({ data: new Blob([recording.subarray(at, at + 999)]) });
    this.onstop();
  }
};
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_browser_example_prints_what_was_said(url: str, tmp_path: Path) -> None:
    audio = np.concatenate([speech("006-en.flac"), silence(0.7)])
    (tmp_path / "speech.webm").write_bytes(contained(audio, "webm-opus"))
    code = BROWSER + BLOCKS["js"].replace("ws://localhost:8100", url.replace("http", "ws"))
    (tmp_path / "example.mjs").write_text(code)
    flags = ["--experimental-websocket", "--no-warnings"]
    found = subprocess.run(
        ["node", *flags, "-p", "typeof WebSocket"], capture_output=True, check=False, timeout=30
    )
    if found.stdout.strip() != b"function":
        pytest.skip("this node has no WebSocket")
    done = subprocess.run(
        ["node", *flags, "example.mjs"],
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
        check=False,
        env={"PATH": os.environ["PATH"]},
    )
    assert done.returncode == 0, done.stderr.decode()
    assert "The train to Madrid leaves from platform six." in done.stdout.decode().splitlines()
