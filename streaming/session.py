"""One stream: audio, probabilities and results in; events and jobs out. Pure.

Nothing here waits, starts a thread or knows the time. The caller moves what `frames` gives to the detector, what `jobs`
gives to the scheduler, and what comes back in again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from streaming import evidence
from streaming.backends.base import Decoding, Hypothesis, Window
from streaming.errors import BackendError, OpenSpeechError
from streaming.events import Event, Failed, Final, Marker, SpeechStarted, SpeechStopped, Timing
from streaming.listener import Cut, Listener
from streaming.scheduler import Job, Lane
from streaming.segmenter import Boundary, Paused, Resumed, Started, Stopped
from streaming.types import RATE, Checkpoint, Options, Samples, Word

FLOORS = {"auto": 10 * RATE, "short": 5 * RATE, "full": 30 * RATE}
"""Shortest window of a live decode, in samples, by window mode; the reason is in `docs/architecture.md`."""
RETRY = 0.2
"""The one temperature that a doubtful live result is decoded at again."""


@dataclass(slots=True)
class _Utterance:
    number: int
    start: int
    end: int | None = None
    speech_end: int = 0
    first: Hypothesis | None = None  # a doubtful result that is being decoded again
    outcome: Final | Failed | None = None
    markers: list[Marker] = field(default_factory=list)  # follow this utterance's final


class Session:
    """Promises: see `events`. One owner calls it; every method returns at once."""

    def __init__(
        self, options: Options, key: Callable[[Window], Hashable], after: Checkpoint | None = None
    ) -> None:
        self.options = options
        start = after.sample if after else 0
        self._listener = Listener(options, start)
        self._key = key
        self._language = options.language or (after.language if after else None)
        self._numbers = after.utterance + 1 if after else 0
        self._open: deque[_Utterance] = (
            deque()
        )  # begun, final not published; bounded by back-pressure
        self._jobs: list[Job] = []
        self._events: list[Event] = []
        self._ended = False
        self.finished = False
        """All that was received is in finals, and no more will come."""

    @property
    def received(self) -> int:
        """Samples received."""
        return self._listener.timeline.end

    @property
    def backlog(self) -> int:
        """Samples received whose fate is not decided though it could be: not judged yet, or waiting for their final."""
        unheard = max(0, self.received - self._listener.heard)
        return unheard + sum(each.end - each.start for each in self._open if each.end is not None)

    def receive_audio(self, samples: Samples) -> None:
        """Append audio."""
        self._listener.receive_audio(samples)

    def receive_commit(self, marker: str | None = None) -> None:
        """End the open utterance where the audio is now; a Marker follows."""
        self._listener.receive_commit(marker)
        self._decide(self._listener.settle())

    def receive_end(self) -> None:
        """No more audio."""
        self._listener.receive_end()
        self._decide(self._listener.settle())

    def frames(self) -> Samples:
        """Frames for the detector, shape ``(k * 512,)``."""
        return self._listener.frames()

    def receive_probabilities(self, frames: Samples, probabilities: NDArray[np.float32]) -> None:
        """What the detector said of frames handed out before."""
        self._decide(self._listener.receive_probabilities(frames, probabilities))

    def receive_result(self, job: Job) -> None:
        """A job came back with its result or its error."""
        utterance = next((each for each in self._open if each is job.tag), None)
        if utterance is None:
            return
        result = job.result
        if isinstance(result, Hypothesis):
            self._understand(utterance, job, result)
        else:
            error = result if isinstance(result, OpenSpeechError) else BackendError(str(result))
            utterance.outcome = Failed(utterance.number, error)
        self._publish()

    def jobs(self) -> list[Job]:
        """New work since the last call."""
        taken, self._jobs = self._jobs, []
        return taken

    def events(self) -> list[Event]:
        """New events since the last call, in order."""
        taken, self._events = self._events, []
        return taken

    def _decide(self, boundaries: list[Boundary | Cut]) -> None:
        for boundary in boundaries:
            match boundary:
                case Started(at):
                    self._open.append(_Utterance(self._numbers, at))
                    self._events.append(SpeechStarted(self._numbers, at))
                    self._numbers += 1
                case Stopped(_, end, speech_end):
                    utterance = self._open[-1]
                    utterance.end, utterance.speech_end = end, speech_end
                    self._events.append(SpeechStopped(utterance.number, speech_end))
                    self._ask(utterance, evidence.LADDER[0])
                case Cut(at, is_end, marker):
                    self._ended = self._ended or is_end
                    if not is_end:
                        reached = Marker(marker, at)
                        waiting = [each for each in self._open if each.end is not None]
                        if waiting:
                            waiting[-1].markers.append(reached)
                        else:
                            self._events.append(reached)
                case Paused() | Resumed():
                    pass
        self._publish()
        self._listener.forget(self._open[0].start if self._open else None)

    def _ask(self, utterance: _Utterance, temperature: float) -> None:
        assert utterance.end is not None
        decoding = Decoding(
            task=self.options.task,
            language=self._language,
            languages=self.options.languages,
            prompt=self.options.prompt,
            hotwords=self.options.hotwords,
            beam=self.options.beam or 1,
            temperature=max(self.options.temperature, temperature),
            align=self.options.words,
            floor=FLOORS[self.options.window or "auto"],
        )
        window = Window(self._listener.timeline.read(utterance.start, utterance.end), decoding)
        self._jobs.append(Job(self, Lane.FINAL, window, self._key(window), utterance))

    def _understand(self, utterance: _Utterance, job: Job, result: Hypothesis) -> None:
        if utterance.first is None and evidence.doubtful(result) and result.temperature < RETRY:
            utterance.first = result
            self._ask(utterance, RETRY)
            return
        if utterance.first is not None and evidence.doubtful(result):
            result = evidence.better(utterance.first, result)
        assert utterance.end is not None
        silent = evidence.silent(result)
        words = shifted(result.words, utterance.start)
        utterance.outcome = Final(
            utterance.number,
            "" if silent else result.text,
            () if silent else words,
            utterance.start,
            utterance.end,
            result.language,
            Timing(job.started - job.added, job.finished - job.started),
        )

    def _publish(self) -> None:
        """Finals leave in order, each followed by the markers that wait for it."""
        while self._open and self._open[0].outcome is not None:
            utterance = self._open.popleft()
            assert utterance.outcome is not None
            self._events.append(utterance.outcome)
            self._events.extend(utterance.markers)
        if self._ended and not self._open:
            self.finished = True


def shifted(words: tuple[Word, ...], by: int) -> tuple[Word, ...]:
    """`words` with their positions moved by `by` samples."""
    return tuple(replace(word, start=word.start + by, end=word.end + by) for word in words)
