"""Where utterances begin and end, from speech probabilities alone. Pure.

Hysteresis after Silero's `VADIterator`: a stretch of frames at or above the threshold opens an utterance, a silence of
the endpoint's length below (threshold - 0.15) closes it. Nothing depends on how the audio arrived: the input is one
number pair a frame, in order, and the exact sample of a commit or of the end.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TypeAlias

from streaming.types import RATE, Options

FRAME = 512
"""Samples per probability: 32 ms."""
ENTER_FRAMES = 3
"""Speech frames in a row that open an utterance: 96 ms."""
TAIL_FRAMES = 2
"""Frames of silence after which speech is thought to be over: 64 ms. A final covers them and no more."""
EXIT_BELOW = 0.15
"""The exit threshold lies this far under the enter threshold (Silero's choice), but not below a quarter of it: with a
low one nothing would ever be silence."""
SPLIT_AT = 27 * RATE
"""An utterance is split before it is longer than this, so that it and its tail fit a 30 s window."""
SPLIT_FROM = 12 * RATE
"""The split is sought from here on: an earlier one would leave a needlessly short utterance."""


@dataclass(frozen=True, slots=True)
class Started:
    """An utterance began; its audio starts at `at`, pre-roll included."""

    at: int


@dataclass(frozen=True, slots=True)
class Paused:
    """64 ms of silence: if nobody speaks on, the utterance covers [start, end)."""

    start: int
    end: int
    speech: float = field(default=1.0, compare=False)
    """As in Stopped."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """The pause was none."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """The utterance covers [start, end); `speech_end` is where its last speech frame ended."""

    start: int
    end: int
    speech_end: int
    split: bool = False
    """It was too long and goes on in the next one, which starts at `end`."""
    cut: bool = False
    """The audio ended in it."""
    speech: float = field(default=1.0, compare=False)
    """Mean probability of the frames in which somebody spoke: how sure the detector is of them."""


Boundary: TypeAlias = Started | Paused | Resumed | Stopped


class _State(Enum):
    IDLE = "nobody speaks"
    SPEECH = "somebody speaks"
    SILENCE = "somebody spoke and may go on"


class Segmenter:
    """Feed frames, commits and the end; each answers with the boundaries it caused, in order."""

    def __init__(self, options: Options, start: int = 0) -> None:
        self._enter = options.vad_threshold
        self._exit = max(options.vad_threshold - EXIT_BELOW, options.vad_threshold / 4)
        self._pre_roll = options.pre_roll_ms * RATE // 1000
        self._endpoint: float = max(1, round(options.endpointing_ms * RATE / 1000 / FRAME)) * FRAME
        if options.endpointing == "client":
            self._endpoint = float("inf")
        self._state = _State.IDLE
        self._free = start  # first sample that no utterance has claimed
        self._start = start  # of the open utterance
        self._last = start  # end of the last frame fed
        self._silence = start  # where the current silence began
        self._run = 0  # speech frames in a row while idle
        self._sum, self._spoken = (
            0.0,
            0,
        )  # of the probabilities of speech frames, and how many those are
        self._eager = False  # a commit fell into speech: the next speech frame opens at once
        self._paused = False
        # (end of frame, probability, level) of the open utterance since SPLIT_FROM; at most 15 s of frames
        self._dips: deque[tuple[int, float, float]] = deque()

    @property
    def speaking(self) -> bool:
        """An utterance is open."""
        return self._state is not _State.IDLE

    @property
    def start(self) -> int:
        """Where the open utterance begins; meaningless while nobody speaks."""
        return self._start

    @property
    def speech(self) -> float:
        """Mean probability so far of the open utterance's frames in which somebody spoke; 1.0 before the first."""
        return self._sum / self._spoken if self._spoken else 1.0

    @property
    def needed_from(self) -> int:
        """First sample that a boundary to come may still refer to, given that frames up to here were fed."""
        return self._start if self.speaking else self._free

    def weighs(self, end: int) -> bool:
        """The level of the frame that ends before sample `end` can matter: a split may fall there."""
        return self.speaking and end - self._start > SPLIT_FROM

    def receive_frame(self, end: int, probability: float, level: float) -> list[Boundary]:
        """The frame that ends before sample `end` holds speech with `probability`; `level` is its RMS, anything where
        nobody `weighs` it."""
        begin, self._last = end - FRAME, end
        if self._state is _State.IDLE:
            return self._listen(begin, end, probability)
        if self.weighs(end):
            self._dips.append((end, probability, level))
        boundaries: list[Boundary] = []
        if probability >= self._enter:
            if self._state is _State.SILENCE:
                self._state = _State.SPEECH
                if self._paused:
                    self._paused = False
                    boundaries.append(Resumed())
        elif probability < self._exit and self._state is _State.SPEECH:
            self._state = _State.SILENCE
            self._silence = max(begin, self._start)
        if self._state is _State.SPEECH:
            self._hear(probability)
        if self._state is _State.SILENCE:
            silent = end - self._silence
            if not self._paused and silent >= TAIL_FRAMES * FRAME:
                self._paused = True
                boundaries.append(Paused(self._start, self._tail(end), self.speech))
            if silent >= self._endpoint:
                boundaries.append(self._stop(self._tail(end)))
                return boundaries
        if end - self._start >= SPLIT_AT:
            if self._state is _State.SILENCE:
                boundaries.append(self._stop(self._tail(end)))
            else:
                boundaries += self._split(end)
        return boundaries

    def receive_commit(self, at: int) -> list[Boundary]:
        """The client ends the open utterance at sample `at`; all whole frames before `at` have been fed."""
        return self._finish(at, goes_on=True)

    def receive_end(self, at: int) -> list[Boundary]:
        """No more audio after sample `at`; the last, incomplete frame has been fed, padded."""
        return self._finish(at, goes_on=False)

    def _listen(self, begin: int, end: int, probability: float) -> list[Boundary]:
        if probability < (self._exit if self._eager else self._enter):
            self._run, self._sum, self._spoken = 0, 0.0, 0
            self._eager = False
            self._free = max(self._free, end - self._pre_roll)
            return []
        self._run += 1
        self._hear(probability)
        if self._run < ENTER_FRAMES and not self._eager:
            return []
        return [self._open(begin - (self._run - 1) * FRAME)]

    def _open(self, first_speech: int) -> Started:
        self._start = max(self._free, first_speech - self._pre_roll)
        self._state = _State.SPEECH
        self._run, self._eager, self._paused = 0, False, False
        self._dips.clear()
        return Started(self._start)

    def _hear(self, probability: float) -> None:
        self._sum += probability
        self._spoken += 1

    def _tail(self, at: int) -> int:
        return min(at, self._silence + TAIL_FRAMES * FRAME)

    def _stop(self, end: int) -> Stopped:
        stopped = Stopped(self._start, end, min(end, self._silence), speech=self.speech)
        self._state, self._free, self._run, self._paused = _State.IDLE, end, 0, False
        self._sum, self._spoken = 0.0, 0
        return stopped

    def _finish(self, at: int, goes_on: bool) -> list[Boundary]:
        boundaries: list[Boundary] = []
        if self._state is _State.IDLE and self._run >= 2:
            # Two frames of speech just before the cut: too little to open an utterance, too much to lose.
            boundaries.append(self._open(self._last - self._run * FRAME))
        if self._state is _State.IDLE:
            self._free, self._run = max(self._free, at), 0
            self._sum, self._spoken = 0.0, 0
            return boundaries
        talking = self._state is _State.SPEECH
        if talking:
            self._silence = at
        stopped = self._stop(self._tail(at))
        boundaries.append(stopped if goes_on else replace(stopped, cut=True))
        self._free = at  # what the client committed is done with, silence included
        self._eager = goes_on and talking
        return boundaries

    def _split(self, end: int) -> list[Boundary]:
        """Cut at the deepest silence: lowest probability over 160 ms, then lowest level, then the latest."""
        frames = list(self._dips)
        best, cut = (2.0, 0.0, 0), end
        for i in range(2, len(frames) - 2):
            around = frames[i - 2 : i + 3]
            probability = sum(frame[1] for frame in around) / 5
            level = sum(frame[2] for frame in around) / 5
            depth = (round(probability, 1), level, -frames[i][0])
            if depth < best:
                best, cut = depth, frames[i][0] - FRAME // 2
        stopped = Stopped(self._start, cut, cut, split=True, speech=self.speech)
        self._start = self._free = cut
        self._dips = deque(frame for frame in frames if frame[0] - cut > SPLIT_FROM)
        return [stopped, Started(cut)]
