"""A stream without threads or time: audio is fed, decodes take as many turns as the test says. And a recording."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from streaming.backends.base import Capabilities, Hypothesis, StepBackend, Window
from streaming.backends.scripted import CAPABILITIES, ScriptedBackend, spell
from streaming.backends.stepwise import Steps
from streaming.errors import BackendError
from streaming.events import Event
from streaming.recording import RecordingSession
from streaming.scheduler import Job, Scheduler
from streaming.segmenter import FRAME
from streaming.session import Session
from streaming.types import RATE, Options, Samples, Transcribed, Word

Decode = Callable[[Window], Hypothesis]

talk = st.lists(
    st.one_of(
        st.lists(st.integers(0, 50), min_size=1, max_size=6).map(tuple),
        st.sampled_from([(0.1,), (0.3,), (0.6,), (1.2,)]),
    ),
    max_size=8,
).map(lambda parts: [each for part in parts for each in part])
sizes = st.lists(st.integers(200, 8000), min_size=1, max_size=5)
delays = st.lists(st.integers(0, 40), min_size=1, max_size=5)
"""Random speech, message sizes in samples and delays of decodes in turns, for properties."""


def loudness(frames: Samples) -> np.ndarray:
    """A detector without a model: speech is what is not silent. Shape ``(k * 512,)`` to ``(k,)``."""
    levels = np.sqrt(np.mean(np.square(frames.reshape(-1, FRAME)), axis=1))
    return np.where(levels > 0.005, 0.99, 0.01).astype(np.float32)


def speak(words: Sequence[int | float]) -> Samples:
    """Audio of words (ints, 200 ms each, 50 ms apart) and pauses (floats, seconds)."""
    parts: list[Samples] = []
    for word in words:
        if isinstance(word, float):
            parts.append(np.zeros(round(word * RATE), np.float32))
        else:
            parts += [spell(word, 0.2), np.zeros(RATE // 20, np.float32)]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def honest(window: Window) -> Hypothesis:
    """What is there."""
    return ScriptedBackend().decode([window])[0]


def fickle(seed: int, *, doubts: bool = False) -> Decode:
    """A recogniser that changes its mind about anything it is not held to, punctuation and case included.

    With `doubts` it also distrusts every fifth of its texts, or takes it for silence, and fails now and then.
    """
    chance = random.Random(seed)

    def decode(window: Window) -> Hypothesis:
        truth = honest(window)
        prefix = window.decoding.prefix
        words = [*prefix]
        for word in truth.words[len(prefix) :]:
            roll = chance.random()
            if roll < 0.1:
                continue
            text = f" w{chance.randrange(60)}" if roll < 0.3 else word.text
            if 0.3 < roll < 0.4:
                text = text.upper() if roll < 0.35 else f"{text},"
            words.append(Word(text, word.start, word.end, word.probability, word.tokens))
            if roll > 0.9:
                words.append(Word(" uh", word.end, word.end, 0.2))
        kept = tuple(words)
        doubt = chance.random() if doubts else 1.0
        if doubt < 0.05:
            raise BackendError("out of luck")
        return Hypothesis(
            "".join(word.text for word in kept),
            kept if window.decoding.align else (),
            language=chance.choice(("en", "fr")) if doubts else "en",
            language_probability=0.9,
            log_probability=-0.1 if doubt > 0.2 else -1.2,
            no_speech=0.9 if doubt < 0.1 else 0.0,
            compression_ratio=3.0 if 0.2 < doubt < 0.25 else 1.0,
            temperature=window.decoding.temperature,
            capped=0.25 < doubt < 0.3,
        )

    return decode


def drive(
    audio: Samples,
    options: Options,
    *,
    sizes: Sequence[int] = (RATE // 50,),
    delays: Sequence[int] = (1,),
    decode: Decode = honest,
    commits: Sequence[int] = (),
    workers: int = 1,
    stepper: StepBackend | None = None,
    full: int = 0,
) -> list[Event]:
    """All events of a stream that hears `audio` in messages of `sizes`.

    Each message is a turn; a decode takes as many turns as `delays` says, in rotation. `commits` are sample counts. With a
    `stepper` the recogniser hears steps instead of windows; with `full` its whole window has so many samples.
    """
    steps = Steps(stepper) if stepper is not None else None
    capabilities = stepper.capabilities if stepper is not None else replace(CAPABILITIES, full=full)
    session = Session(options, capabilities, lambda window: len(window.samples) // (5 * RATE))
    scheduler = Scheduler(workers, 4)
    running: list[tuple[int, object]] = []
    events: list[Event] = []
    at = turn = decoded = 0
    pending = sorted({min(commit, len(audio)) for commit in commits})
    ended = False
    while not session.finished:
        turn += 1
        assert turn < 100_000, "the stream never ends"
        if at < len(audio):
            until = min(
                [at + sizes[turn % len(sizes)], len(audio), *(c for c in pending if c > at)]
            )
            session.receive_audio(audio[at:until])
            at = until
            if pending and pending[0] == at:
                pending.pop(0)
                session.receive_commit(f"m{at}")
        elif not ended:
            ended = True
            session.receive_end()
        frames = session.frames()
        session.receive_probabilities(frames, loudness(frames))
        for job in session.jobs():
            scheduler.add(job, float(turn))
        due = [batch for when, batch in running if when <= turn]
        running = [(when, batch) for when, batch in running if when > turn]
        for batch in due:
            scheduler.done(batch, 0.1, float(turn))
            for job in batch.jobs:
                if isinstance(job.window, Window):
                    try:
                        job.result = decode(job.window)
                    except BackendError as error:
                        job.result = error
                else:
                    assert steps is not None
                    try:
                        job.result = steps.run([(session, job.tag, job.window)])[0]
                    except BackendError as error:
                        job.result = error
                session.receive_result(job)
        while (batch := scheduler.take(float(turn))) is not None:
            running.append((turn + delays[decoded % len(delays)], batch))
            decoded += 1
        events += session.events()
    return events


WHISPER = Capabilities(languages=("en", "fr"), detects_language=True, max_batch=8)
"""A recogniser of windows of 30 s, into which a recording's utterances are packed."""


def read(
    audio: Samples,
    decode: Decode = honest,
    options: Options | None = None,
    *,
    side_by_side: int = 1,
    capabilities: Capabilities = WHISPER,
) -> tuple[list[Transcribed], list[Window]]:
    """What comes out of a recording, and the windows that were decoded, in the order in which they were asked for.

    Newest jobs are answered first: order must not matter.
    """
    session = RecordingSession(
        options or Options(), capabilities, lambda window: 0, model="m", lookahead=8
    )
    session.side_by_side = side_by_side
    jobs: list[Job] = []
    items: list[Transcribed] = []
    windows: list[Window] = []
    at = 0
    while not session.finished:
        if session.hungry:
            if at >= len(audio):
                session.receive_end()
            session.receive_audio(audio[at : at + 8 * FRAME])
            at += 8 * FRAME
            frames = session.frames()
            session.receive_probabilities(frames, loudness(frames))
        asked = session.jobs()
        jobs += asked
        windows += [job.window for job in asked if isinstance(job.window, Window)]
        if jobs and (at > len(audio) or not session.hungry):
            job = jobs.pop()
            assert isinstance(job.window, Window)
            job.result = decode(job.window)
            session.receive_result(job)
        items += session.items()
    return items, windows
