"""A finished recording: the same ear as a stream, but whole windows in the bulk lane. Pure.

Neighbouring utterances are packed into windows as long as the recogniser takes, so that little padding is decoded;
doubtful windows climb Whisper's temperature ladder; segments leave in order as soon as all before them are done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from streaming import evidence
from streaming.backends.base import Capabilities, Decoding, Hypothesis, Window
from streaming.listener import Cut, Listener
from streaming.scheduler import Job, Lane
from streaming.segmenter import Boundary, Stopped
from streaming.sentences import Sentences
from streaming.types import (
    RATE,
    Options,
    Progress,
    Samples,
    Segment,
    Summary,
    Transcribed,
    Word,
)

SHORT = int(7.5 * RATE)
"""Samples packed into a window when short windows are asked for: with its tail it fills a 10 s bucket."""


TRAIL = RATE // 5
"""Silence after an utterance that goes into the window with it, where there is any: with less, beam search drops last
words now and then; a stream cannot wait for it, and greedy search does not need it."""


PAUSE = RATE
"""Silence after which the next utterance is heard apart from the one before it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of the recording inside a window."""

    start: int
    end: int
    speech: float = 1.0
    """The detector's mean probability of it."""

    @property
    def length(self) -> int:
        """Samples."""
        return self.end - self.start


@dataclass(slots=True, eq=False)
class _Pack:
    """One window's worth of utterances."""

    pieces: list[Piece]
    samples: Samples
    best: Hypothesis | None = None
    done: bool = False

    def place(self, position: int, *, end: bool) -> int:
        """Sample index in the recording of `position` in the window."""
        at = 0
        for piece in self.pieces:
            if position < at + piece.length or (end and position == at + piece.length):
                return piece.start + max(0, position - at)
            at += piece.length
        return self.pieces[-1].end


class RecordingSession:
    """Audio, probabilities and results in; jobs and segments out. One owner; every method returns at once."""

    def __init__(
        self,
        options: Options,
        capabilities: Capabilities,
        key: Callable[[Window], Hashable],
        *,
        model: str,
        lookahead: int,
        total: int | None = None,
    ) -> None:
        """`lookahead`: windows at work at most."""
        self.side_by_side = 1
        """Windows that take no longer together than one alone; the shell raises it while workers would idle."""
        self._options = options
        self._key = key
        self._model = model
        self._lookahead = lookahead
        self._total = total
        self._listener = Listener(options)
        short = options.window == "short" and capabilities.full > 0
        # Without padding there is nothing to gain from long windows: each utterance goes alone.
        self._limit = 0 if not capabilities.full else SHORT if short else capabilities.longest
        self._floor = 0 if short else capabilities.full
        self._context = capabilities.context
        self._edge = 0  # where the last piece ended
        self._pieces: list[Piece] = []  # utterances of the window being packed
        self._packs: deque[_Pack] = deque()  # bounded by `hungry`
        self._packed = 0  # windows so far
        self._language = options.language
        self._probability: float | None = None
        self._detecting = options.language is None and capabilities.detects_language
        known = capabilities.languages
        self._only = known[0] if len(known) == 1 and options.task != "detect" else None
        self._jobs: list[Job] = []
        self._items: list[Transcribed] = []
        self._speech = 0
        self._ended = False
        self.finished = False
        """The summary is among the items."""

    @property
    def hungry(self) -> bool:
        """More audio is wanted. False while enough windows are at work, so that memory stays small."""
        return not self._ended and not self.finished and len(self._packs) < self._lookahead

    def receive_audio(self, samples: Samples) -> None:
        """Append audio."""
        self._listener.receive_audio(samples)

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
        """A window came back. Raises its error, if it is one."""
        pack = job.tag
        assert isinstance(pack, _Pack)
        result = job.result
        if isinstance(result, Exception):
            raise result
        assert isinstance(result, Hypothesis)
        if result.capped and self._halve(pack):
            return
        if evidence.doubtful(result) and self._options.task != "detect":
            best = result if pack.best is None else evidence.better(pack.best, result)
            pack.best = best
            higher = evidence.next_temperature(job.window.decoding.temperature)
            if higher is not None:
                self._ask(pack, higher)
                return
            result = evidence.unlooped(best, len(pack.samples) / RATE)
        pack.best, pack.done = result, True
        self._publish()

    def jobs(self) -> list[Job]:
        """New work since the last call."""
        taken, self._jobs = self._jobs, []
        return taken

    def items(self) -> list[Transcribed]:
        """What is new for the client, in order."""
        taken, self._items = self._items, []
        return taken

    def _decide(self, boundaries: list[Boundary | Cut]) -> None:
        for boundary in boundaries:
            match boundary:
                case Stopped(start, end, _, split, _, speech):
                    self._speech += end - start
                    if not split:
                        end = min(
                            end + TRAIL, max(end, self._listener.heard), self._listener.timeline.end
                        )
                    if self._joins(start, end):
                        last = self._pieces[-1]
                        self._pieces[-1] = Piece(last.start, end, max(last.speech, speech))
                        self._edge = end
                        continue
                    if sum(piece.length for piece in self._pieces) + end - start > self._limit:
                        self._pack(self._pieces)
                        self._pieces = []
                    self._pieces.append(Piece(max(start, self._edge), end, speech))
                    self._edge = end
                case Cut(_, True, _):
                    self._ended = True
                    for pieces in self._spread(self._pieces):
                        self._pack(pieces)
                    self._pieces = []
                case _:
                    pass
        self._listener.forget(self._pieces[0].start if self._pieces else None)
        self._publish()

    def _joins(self, start: int, end: int) -> bool:
        """The utterance is near enough to the one before it to be heard with it, by a recogniser that wants so."""
        return (
            bool(self._pieces)
            and start - self._edge <= PAUSE
            and end - self._pieces[-1].start <= self._context
        )

    def _pack(self, pieces: list[Piece]) -> None:
        if not pieces:
            return
        read = self._listener.timeline.read
        samples = np.concatenate([read(piece.start, piece.end) for piece in pieces])
        pack = _Pack(pieces, samples)
        self._packed += 1
        self._packs.append(pack)
        self._start(pack)

    def _spread(self, pieces: list[Piece]) -> list[list[Piece]]:
        """The last pieces as the windows that the last round of decodes has workers for, about equally long.

        Only where there were rounds before it: a short recording is not worth a second window's encoder.
        """
        wanted = -self._packed % self.side_by_side or self.side_by_side
        if not self._packed or not self._floor:
            wanted = 1
        rest = sum(piece.length for piece in pieces)
        windows: list[list[Piece]] = []
        for piece in pieces:
            filled = sum(each.length for each in windows[-1]) if windows else 0
            share = rest / wanted
            if windows and (wanted == 1 or filled + piece.length / 2 <= share):
                windows[-1].append(piece)
            else:
                if windows:
                    rest -= filled
                    wanted -= 1
                windows.append([piece])
        return windows

    def _start(self, pack: _Pack) -> None:
        self._ask(pack, max(self._options.temperature, evidence.LADDER[0]))

    def _ask(self, pack: _Pack, temperature: float) -> None:
        options = self._options
        decoding = Decoding(
            task=options.task,
            language=self._language,
            languages=options.languages,
            prompt=options.prompt,
            hotwords=options.hotwords,
            beam=options.beam or 5,
            temperature=temperature,
            align=options.words or options.tokens,
            anchored=len(pack.pieces) > 1,
            floor=self._floor,
        )
        window = Window(pack.samples, decoding)
        self._jobs.append(Job(self, Lane.BULK, window, self._key(window), pack))

    def _halve(self, pack: _Pack) -> bool:
        """Decode the two halves of a window whose text was too long for the model. False if it is one short piece."""
        whole = len(pack.samples)
        if whole < 4 * RATE:
            return False
        # The cut is the quietest 100 ms in the middle half, or the joint of two utterances there.
        step = RATE // 10
        levels = [
            (float(np.abs(pack.samples[at : at + step]).mean()), at + step // 2)
            for at in range(whole // 4, 3 * whole // 4, step)
        ]
        cut = min(levels)[1]
        left: list[Piece] = []
        right: list[Piece] = []
        at = 0
        for piece in pack.pieces:
            inside = min(max(cut - at, 0), piece.length)
            if inside > 0:
                left.append(replace(piece, end=piece.start + inside))
            if inside < piece.length:
                right.append(replace(piece, start=piece.start + inside))
            at += piece.length
        at = self._packs.index(pack)
        halves = _Pack(left, pack.samples[:cut]), _Pack(right, pack.samples[cut:])
        del self._packs[at]
        for offset, half in enumerate(halves):
            self._packs.insert(at + offset, half)
            self._start(half)
        return True

    def _publish(self) -> None:
        while self._packs and self._packs[0].done:
            pack = self._packs[0]
            assert pack.best is not None
            if not self._agreed(pack, pack.best):
                pack.best, pack.done = None, False
                self._start(pack)
                return
            self._packs.popleft()
            self._items.append(Progress(pack.pieces[-1].end, self._total))
            if not self._silent(pack, pack.best) and self._options.task != "detect":
                self._items.extend(self._segments(pack, pack.best))
            if self._options.task == "detect":
                self._packs.clear()
                self._ended = True
        if self._ended and not self._packs and not self.finished:
            self.finished = True
            length = self._listener.timeline.end
            language = self._language or self._only
            self._items.append(
                Summary(length, self._speech, self._model, language, self._probability)
            )

    def _agreed(self, pack: _Pack, result: Hypothesis) -> bool:
        """Whether `result`, the next in order, is in the language of the recording.

        Windows are decoded side by side, each in the language it hears; the first that holds speech tells which one
        the recording is in, and windows that heard another are decoded again.
        """
        if not self._detecting:
            return True
        detected = self._options.task == "detect" or not self._silent(pack, result)
        if self._language is None and detected:
            self._language, self._probability = result.language, result.language_probability
        return not detected or result.language == self._language

    def _silent(self, pack: _Pack, result: Hypothesis) -> bool:
        """Neither the recogniser nor the detector holds any of it for speech."""
        speech = max(piece.speech for piece in pack.pieces)
        unsure = evidence.unsure(speech, self._options.vad_threshold)
        return evidence.silent(result, unsure=unsure)

    def _segments(self, pack: _Pack, result: Hypothesis) -> list[Segment]:
        if not result.text.strip():
            return []
        whole = Segment(
            pack.pieces[0].start,
            pack.pieces[-1].end,
            result.text,
            (),
            result.tokens,
            result.language,
            result.temperature,
            result.log_probability or 0.0,
            result.compression_ratio or 1.0,
            result.no_speech or 0.0,
        )
        if not result.words:
            return [whole]
        sentences = Sentences()
        groups = sentences.receive([self._placed(pack, word) for word in result.words])
        groups += sentences.flush()
        segments: list[Segment] = []
        token = 0
        for group in groups:
            count = sum(len(word.tokens) for word in group)
            segments.append(
                replace(
                    whole,
                    start=group[0].start,
                    end=group[-1].end,
                    text="".join(word.text for word in group),
                    words=group,
                    tokens=result.tokens[token : token + count],
                )
            )
            token += count
        return segments

    def _placed(self, pack: _Pack, word: Word) -> Word:
        start = pack.place(word.start, end=False)
        return replace(word, start=start, end=max(start, pack.place(word.end, end=True)))
