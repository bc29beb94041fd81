"""What OpenAI Realtime promises, whatever the audio, the messages, the commits and a fickle recogniser do."""

from __future__ import annotations

import base64
import json
from collections import deque
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from server.protocols.dialect import Close, Command, Commit, End, Hear, Open, Say
from server.protocols.openai_realtime import TURNS, Realtime
from server.protocols.openai_session import Configuration
from streaming.backends.scripted import CAPABILITIES
from streaming.events import Marker
from streaming.scheduler import Scheduler
from streaming.session import Session
from streaming.types import Samples
from tests.drive import Decode, fickle, honest, loudness, speak
from tests.fakes import pcm


class Engine:
    """The engine without threads or time: one decode takes `delay` turns."""

    def __init__(self, dialect: Realtime, decode: Decode, delay: int) -> None:
        self.dialect, self.decode, self.delay = dialect, decode, delay
        self.said: list[dict[str, Any]] = []
        self.closed = False
        self._session: Session | None = None
        self._scheduler = Scheduler(1, 4)
        self._running: list[tuple[int, Any]] = []
        self._base = self._sent = self._turn = 0
        self._waiting: deque[Command] = deque()

    def do(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Say(text):
                    self.said.append(json.loads(text))
                case Open(options):
                    self._finish()
                    self._session = Session(options, CAPABILITIES, lambda window: 0)
                    self._base = self._sent
                case Hear(samples):
                    assert self._session is not None
                    self._session.receive_audio(samples)
                    self._sent += len(samples)
                case Commit(marker):
                    assert self._session is not None
                    self._session.receive_commit(marker)
                case End():
                    self._finish()
                    self.do(self.dialect.receive_end())
                case Close(code):
                    assert code == 1000
                    self.closed = True

    def turn(self) -> None:
        session = self._session
        if session is None:
            return
        self._turn += 1
        frames = session.frames()
        session.receive_probabilities(frames, loudness(frames))
        for job in session.jobs():
            self._scheduler.add(job, float(self._turn))
        due = [batch for when, batch in self._running if when <= self._turn]
        self._running = [(when, batch) for when, batch in self._running if when > self._turn]
        for batch in due:
            self._scheduler.done(batch, 0.1, float(self._turn))
            for job in batch.jobs:
                job.result = self.decode(job.window)
                session.receive_result(job)
        while (batch := self._scheduler.take(float(self._turn))) is not None:
            self._running.append((self._turn + self.delay, batch))
        for event in session.events():
            self.do(self.dialect.encode(event, self._base))

    def _finish(self) -> None:
        if self._session is None:
            return
        self._session.receive_end()
        while not self._session.finished:
            self.turn()
        self.turn()


def converse(
    audio: Samples,
    *,
    manual: bool,
    sizes: list[int],
    commits: list[int],
    clears: list[int],
    decode: Decode,
    delay: int,
    deltas: str = "early",
) -> list[dict[str, Any]]:
    """All that is said to `audio`; `commits` and `clears` are numbers of the message after which they come."""
    dialect = Realtime(Configuration(), check=lambda options: None, deltas=deltas)  # type: ignore[arg-type]
    engine = Engine(dialect, decode, delay)
    engine.do(dialect.begin())

    def send(message: dict[str, Any]) -> None:
        engine.do(dialect.receive(dialect.read(json.dumps(message)), 0.0))
        engine.turn()

    given: dict[str, Any] = {"format": {"type": "audio/pcm", "rate": 16_000}, "transcription": {}}
    if manual:
        given["turn_detection"] = None
    send(
        {"type": "session.update", "session": {"type": "transcription", "audio": {"input": given}}}
    )
    data, at, number = pcm(audio), 0, 0
    while at < len(data):
        size = sizes[number % len(sizes)]
        piece = base64.b64encode(data[at : at + size]).decode()
        send({"type": "input_audio_buffer.append", "audio": piece})
        at, number = at + size, number + 1
        if number in commits:
            send({"type": "input_audio_buffer.commit"})
        if number in clears:
            send({"type": "input_audio_buffer.clear"})
    send({"type": "session.close"})
    assert engine.closed
    return engine.said


SPOKEN = st.lists(
    st.one_of(st.integers(0, 60), st.sampled_from([0.3, 0.8])), min_size=1, max_size=14
)
TIMES = st.lists(st.integers(1, 40), max_size=3)


@settings(max_examples=60, deadline=None)
@given(
    words=SPOKEN,
    manual=st.booleans(),
    sizes=st.lists(st.sampled_from([641, 1280, 3200, 9600, 50_001]), min_size=1, max_size=3),
    commits=TIMES,
    clears=st.lists(st.integers(1, 40), max_size=1),
    seed=st.one_of(st.none(), st.integers(0, 99)),
    delay=st.integers(1, 9),
)
def test_every_item_keeps_its_order_and_its_deltas_spell_its_transcript(
    words: list[int | float],
    manual: bool,
    sizes: list[int],
    commits: list[int],
    clears: list[int],
    seed: int | None,
    delay: int,
) -> None:
    audio = np.concatenate([speak(words), np.zeros(8000, np.float32)])
    decode = honest if seed is None else fickle(seed)
    said = converse(
        audio,
        manual=manual,
        sizes=sizes,
        commits=commits,
        clears=clears,
        decode=decode,
        delay=delay,
    )
    items: dict[str, list[dict[str, Any]]] = {}
    for message in said:
        item = message.get("item_id") or message.get("item", {}).get("id")
        if item:
            items.setdefault(item, []).append(message)
    chain: str | None = None
    for message in said:
        if message["type"] == "input_audio_buffer.committed":
            assert message["previous_item_id"] == chain
            chain = message["item_id"]
    for messages in items.values():
        short = [message["type"].rsplit(".", 1)[-1] for message in messages]
        order = [each for each in short if each != "delta"]
        assert order in (
            ["speech_started", "speech_stopped", "committed", "added", "done", "completed"],
            ["speech_started", "committed", "added", "done", "completed"],
            ["committed", "added", "done", "completed"],
            ["speech_started"],  # cleared
            [],  # cleared, after deltas
        )
        if short[-1] == "completed":
            spelt = "".join(message["delta"] for message in messages if "delta" in message)
            assert spelt == messages[-1]["transcript"]
            assert "delta" not in short[short.index("completed") :]


@settings(max_examples=40, deadline=None)
@given(
    words=SPOKEN, manual=st.booleans(), commits=TIMES, delay=st.integers(1, 9), late=st.booleans()
)
def test_no_word_is_lost_or_doubled(
    words: list[int | float], manual: bool, commits: list[int], delay: int, late: bool
) -> None:
    audio = np.concatenate([np.zeros(1600, np.float32), speak(words), np.zeros(8000, np.float32)])
    said = converse(
        audio,
        manual=manual,
        sizes=[
            16_000
        ],  # commits fall between words or into them; each half still reads as the word
        commits=commits,
        clears=[],
        decode=honest,
        delay=delay,
        deltas="late" if late else "early",
    )
    heard = " ".join(message["transcript"] for message in said if "transcript" in message).split()
    spoken = [f"w{word}" for word in words if isinstance(word, int)]
    if not commits:
        assert heard == spoken
    else:  # a word that a commit cut in two is heard twice, once on either side
        assert list(dict.fromkeys(heard)) == list(dict.fromkeys(spoken))
        assert len(spoken) <= len(heard) <= len(spoken) + len(set(commits))


@settings(max_examples=40, deadline=None)
@given(
    words=st.lists(
        st.one_of(st.integers(0, 60), st.sampled_from([0.25, 0.75])), min_size=2, max_size=20
    ),
    commits=st.sets(st.integers(1, 12), max_size=4),
    cleared=st.one_of(st.none(), st.integers(1, 12)),
    delay=st.integers(1, 9),
    seed=st.one_of(st.none(), st.integers(0, 99)),
)
def test_each_commit_has_the_words_since_the_one_before(
    words: list[int | float],
    commits: set[int],
    cleared: int | None,
    delay: int,
    seed: int | None,
) -> None:
    # A word every quarter of a second, and a message every half: each message ends in the middle of a gap.
    audio = np.concatenate([np.zeros(400, np.float32), speak(words), np.zeros(8000, np.float32)])
    said = converse(
        audio,
        manual=True,
        sizes=[16_000],
        commits=sorted(commits),
        clears=[] if cleared is None else [cleared],
        decode=honest,
        delay=delay,
        deltas="early" if seed is None else "late",
    )
    found = [message["transcript"] for message in said if "transcript" in message]
    quarter, starts = 0, []
    for word in words:
        if isinstance(word, int):
            starts.append((quarter / 4 + 0.025, f"w{word}"))
        quarter += 1 if isinstance(word, int) else round(word * 4)
    end = len(audio) / 16_000
    messages = -(-len(audio) // 8000)  # the last one may be shorter
    cuts = {min(each / 2, end): True for each in commits if each <= messages}
    if cleared is not None and cleared <= messages:
        cuts.setdefault(min(cleared / 2, end), False)  # a clear after a commit finds nothing
    cuts.setdefault(end, True)
    expected, before = [], 0.0
    for cut, kept in sorted(cuts.items()):
        if kept and cut - before >= 0.1:
            expected.append(" ".join(word for at, word in starts if before <= at < cut))
        before = cut
    assert found == expected


def test_turns_that_wait_are_bounded() -> None:
    """As while a decode hangs: the client goes on committing and clearing, and nothing is completed."""
    given = {"format": {"type": "audio/pcm", "rate": 16_000}, "turn_detection": None}
    configuration = Configuration().updated({"audio": {"input": given | {"transcription": {}}}})
    dialect = Realtime(configuration, check=lambda options: None)
    tenth = base64.b64encode(bytes(3200)).decode()

    def send(**message: str) -> list[Command]:
        return dialect.receive(dialect.read(json.dumps(message)), 0.0)

    def turn(kind: str) -> list[Command]:
        send(type="input_audio_buffer.append", audio=tenth)
        return send(type=f"input_audio_buffer.{kind}")

    waiting = []
    for number in range(TURNS):
        done = turn("clear" if number % 4 == 3 else "commit")
        waiting += [each.marker for each in done if isinstance(each, Commit)]
    assert len(waiting) == TURNS
    for kind in ("commit", "clear"):
        (said,) = turn(kind)
        assert isinstance(said, Say)
        error = json.loads(said.text)["error"]
        assert error["code"] == "too_many_turns"
        assert "1024 turns wait" in error["message"]
    dialect.encode(Marker(waiting[0], 1600), 0)
    assert [each for each in turn("commit") if isinstance(each, Commit)], (
        "what was refused is in it"
    )
    assert [json.loads(each.text)["type"] for each in turn("commit") if isinstance(each, Say)] == [
        "error"
    ]
