"""Rows X: random input. `FUZZ` is how much of it: 1 in continuous integration. `FUZZ=60 pytest
tests/faults/test_fuzz.py -s` takes some thirteen minutes on two cores, eleven of them for X05;
`FUZZ=500 … -k random_json` takes nine."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from server.protocols import native
from tests.drive import speak
from tests.fakes import pcm
from tests.faults.conftest import SHORT
from tests.faults.process import PATIENCE, STREAM, Process, alive, rest, serving, spelt, text
from tests.faults.raw import Socket, linger

FUZZ = int(os.environ.get("FUZZ", "1"))
CLOSES = {1000, 1002, 1007, 1008, 1009, 1013, 3000}
"""Codes a conversation may end with. 1011 would be a failure of the server's, 1006 a connection that broke."""


def examples(count: int) -> settings:
    return settings(
        max_examples=count * FUZZ,
        deadline=None,
        database=None,
        print_blob=True,  # what a long run finds can be run again
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[Process]:
    """A server that random input is thrown at; afterwards it is as it was."""
    with serving("--resume-seconds", "15", faults=SHORT) as server:
        with connect(server.socket_url) as stream:  # the model is loaded
            stream.send(pcm(speak([1])))
            stream.send('{"type": "end"}')
            rest(stream)
        before, threads = server.memory(), server.threads()
        with alive(server):
            yield server
        print(f"{(server.memory() - before) / 2**20:+.1f} MiB in {FUZZ} rounds")
        assert server.memory() < before + 100 * 2**20
        assert server.threads() < threads + 20
        assert " 500 in " not in server.log


@pytest.mark.fault(
    "X01",
    "every REST route asked at random, by schemathesis",
    "no 5xx that is not meant, every answer as the API description says",
)
def test_every_route_at_random(tmp_path: Path) -> None:
    """Examples, boundary values and random requests made from /openapi.json, valid and not; all checks but those that would forbid leniency"""
    with serving(faults=SHORT) as server, alive(server):
        fixed = ["--generation-deterministic"] if FUZZ == 1 else ["--generation-database", "none"]
        options = (
            f"--max-examples {4 * FUZZ} --no-color --workers 1 --request-timeout 60 --continue-on-failure"
            " --phases examples,coverage,fuzzing --suppress-health-check all --exclude-method DELETE"
            " --exclude-checks positive_data_acceptance,negative_data_rejection"
        )
        (tmp_path / "schemathesis.toml").write_text(
            # Models that are not downloaded are 503 on a server that is offline.
            '[checks.not_a_server_error]\nexpected-statuses = ["2xx", "3xx", "4xx", "503"]\n'
        )
        tool = str(Path(sys.executable).parent / "schemathesis")
        done = subprocess.run(
            [tool, "run", server.url + "/openapi.json", *options.split(), *fixed],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
        found = re.search(r"(\d+) generated", done.stdout)
        assert found, done.stdout + done.stderr
        print(found[0])
        assert done.returncode == 0, done.stdout[-6000:]
        assert " 500 in " not in server.log


names = st.sampled_from(
    ["type", "model", "audio", "session", "last_event", "marker", *native.NAMES]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(names | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


def messages(kinds: list[str]) -> st.SearchStrategy[list[str | bytes]]:
    """Messages that are nearly right, wrong, or not even JSON."""
    known = st.builds(
        lambda kind, more: {**more, "type": kind},
        st.sampled_from(kinds),
        st.dictionaries(names, values, max_size=4),
    )
    whole = st.one_of(known, values).map(lambda value: json.dumps(value, ensure_ascii=True))
    torn = st.builds(lambda said, at: said[: int(at * len(said))], whole, st.floats(0, 1))
    return st.lists(whole | torn | st.text(max_size=40) | st.binary(max_size=4000), max_size=12)


def throw(stream: ClientConnection, said: list[str | bytes]) -> None:
    """Send all of it and see that the conversation ends as one may."""
    with suppress(ConnectionClosed):
        for each in said:
            stream.send(each)
        stream.send('{"type": "end"}')
        stream.send('{"type": "session.close"}')
    with suppress(ConnectionClosed):
        stream.send(b"")
    try:
        got = rest(stream)
    except TimeoutError:
        raise AssertionError(f"it goes on after its end: {said}") from None
    assert stream.close_code in CLOSES, (said, got[-3:])
    assert all(isinstance(each["type"], str) for each in got)
    assert not [each for each in got if each.get("code") == "internal_error"], (said, got)


@pytest.mark.fault(
    "X02",
    "random JSON on the native protocol",
    "an error that says what was expected, or a session; no failure inside",
)
def test_random_json_on_the_native_protocol(fuzzed: Process) -> None:
    """Hypothesis: lists of messages nearly right, wrong, torn, binary, each list on a connection of its own"""

    @examples(60)
    @given(messages(["start", "commit", "keepalive", "end", "resume", "dance"]))
    def run(said: list[str | bytes]) -> None:
        with connect(fuzzed.socket_url, close_timeout=1) as stream:
            throw(stream, said)

    run()


@pytest.mark.fault(
    "X03",
    "random JSON on OpenAI's Realtime protocol",
    "`error` events that name the parameter; no failure inside",
)
def test_random_json_on_realtime(fuzzed: Process) -> None:
    """Hypothesis: the same with the types of that protocol"""
    kinds = [
        "session.update", "transcription_session.update", "input_audio_buffer.append", "input_audio_buffer.commit", "input_audio_buffer.clear", "conversation.item.retrieve",
        "conversation.item.delete", "conversation.item.create", "response.create", "session.close",
    ]  # fmt: skip

    @examples(30)
    @given(messages(kinds))
    def run(said: list[str | bytes]) -> None:
        url = fuzzed.url.replace("http", "ws") + "/v1/realtime?intent=transcription"
        with connect(url, close_timeout=1) as stream:
            throw(stream, said)

    run()


@pytest.mark.fault(
    "X04", "random queries on every WebSocket", "a session, an error or a refusal in words"
)
def test_random_queries(fuzzed: Process) -> None:
    """Hypothesis: options with values of all kinds in the handshake's query"""
    query = st.lists(
        st.tuples(
            names | st.text("abc%&=+;/\\\"'", max_size=5),
            st.text(max_size=12) | st.sampled_from(["true", "-1", "nan", "1e999"]),
        ),
        max_size=5,
    )

    @examples(60)
    @given(st.sampled_from([STREAM, "/v1/realtime", "/v1/audio/transcriptions"]), query)
    def run(path: str, pairs: list[tuple[str, str]]) -> None:
        from urllib.parse import quote

        said = "&".join(
            f"{quote(name)}={quote(value, errors='surrogatepass')}" for name, value in pairs
        )
        with Socket(fuzzed.url, f"{path}?{said}") as stream:
            stream.send(b"\x81\x80abcd", b"\x88\x80abcd")
            _, code, _ = stream.rest()
            assert code in CLOSES | {1005, None}

    run()


def _cut(connection: socket.socket, how: str) -> None:
    """Close with RST or FIN; the descriptor's number stays taken. A thread of the library still reads from it, and would
    go on with the connection that gets the number next."""
    if how == "reset":
        linger(connection)
    with socket.socket() as nothing:
        os.dup2(nothing.fileno(), connection.fileno())


class Client(RuleBasedStateMachine):
    """A client that does what clients do, in any order, and loses its connection now and then."""

    url = ""
    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.audio = b""
        self.said: list[int | float] = []
        self.got: list[dict[str, Any]] = []
        self.session = ""
        self.markers = 0

    @initialize(partials=st.booleans(), words=st.booleans())
    def begin(self, partials: bool, words: bool) -> None:
        self.options = {"type": "start", "partials": partials, "words": words}
        self.socket = connect(self.url, open_timeout=PATIENCE)
        self.socket.send(json.dumps(self.options))
        ready = self._take("ready")
        self.session = ready["session"]

    def _take(self, kind: str) -> dict[str, Any]:
        while True:
            message = json.loads(self.socket.recv(timeout=PATIENCE))
            if message["type"] != "ready" or not self.session:
                self.got.append(message)
            if message["type"] == kind:
                return dict(message)

    @rule(
        word=st.integers(0, 59),
        pause=st.sampled_from([0.0, 0.1, 0.4, 0.8]),
        pieces=st.integers(1, 7),
    )
    def speak(self, word: int, pause: float, pieces: int) -> None:
        Client.steps += 1
        if self.said and self.said[-1] == word:
            word = (word + 1) % 60
        said: list[int | float] = [word, pause] if pause else [word]
        audio = pcm(speak(said))
        self.said += [word]
        size = len(audio) // pieces
        for at in range(0, len(audio), size):
            self.socket.send(audio[at : at + size])
        self.audio += audio

    @rule()
    def commit(self) -> None:
        Client.steps += 1
        self.markers += 1
        self.socket.send(json.dumps({"type": "commit", "marker": str(self.markers)}))

    @rule(
        said=st.sampled_from(
            [
                "{",
                "[]",
                '{"type": "start"}',
                '{"type": "dance"}',
                '{"type": "keepalive"}',
                '{"type": "commit", "marker": 5}',
                b"",
            ]
        )
    )
    def slip(self, said: str | bytes) -> None:
        Client.steps += 1
        self.socket.send(said)

    @precondition(lambda self: self.said)
    @rule(read=st.integers(0, 3), how=st.sampled_from(["reset", "fin", "goodbye", "replaced"]))
    def lose(self, read: int, how: str) -> None:
        """The connection goes; the session is resumed by another one."""
        Client.steps += 1
        for _ in range(read):
            with suppress(TimeoutError):
                self.got.append(json.loads(self.socket.recv(timeout=0.05)))
        old = self.socket
        if how in ("reset", "fin"):
            _cut(old.socket, how)
        elif how == "goodbye":
            old.close(4000, "back soon")
        self.socket = connect(self.url, open_timeout=PATIENCE)
        last = max(each["seq"] for each in self.got if "seq" in each)
        self.socket.send(
            json.dumps({"type": "resume", "session": self.session, "last_event": last})
        )
        ready = json.loads(self.socket.recv(timeout=PATIENCE))
        assert ready["type"] == "ready", ready
        assert ready["received"] <= len(self.audio)
        self.socket.send(self.audio[ready["received"] :])
        if how == "replaced":
            old.close()

    def teardown(self) -> None:
        if not self.session:
            return
        self.socket.send('{"type": "end"}')
        self.got += rest(self.socket)
        assert text(self.got) == spelt(self.said)
        numbers = [each["seq"] for each in self.got if "seq" in each]
        assert numbers == list(range(len(numbers)))
        assert self.got[-1]["received"] == len(self.audio)
        assert self.socket.close_code == 1000


@pytest.mark.fault(
    "X05",
    "a client that does anything in any order and loses its connection on the way",
    "every word once, every event once, the bytes counted exactly",
)
def test_any_client(fuzzed: Process) -> None:
    """Hypothesis' state machine: words in pieces, commits, slips, broken connections (RST, FIN, a goodbye, a second one) and resumption"""
    Client.url = fuzzed.socket_url
    run_state_machine_as_test(Client, settings=settings(examples(12), stateful_step_count=25))
    print(f"{Client.steps} steps")
