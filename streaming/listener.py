"""One ear: audio in, utterance boundaries out. The part that streams and recordings share. Pure.

The caller moves frames to the detector and its probabilities back; however it slices them, the boundaries are the
same, because frames lie on a grid counted from the first sample.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from streaming.segmenter import FRAME, Boundary, Paused, Segmenter, Stopped
from streaming.timeline import Timeline
from streaming.types import Options, Samples


@dataclass(frozen=True, slots=True)
class Cut:
    """Everything before `at` is in utterances that have stopped: a commit took effect, or the end."""

    at: int
    end: bool
    marker: str | None


class Listener:
    """Timeline and segmenter of one stream."""

    def __init__(self, options: Options, start: int = 0) -> None:
        self.timeline = Timeline(start)
        self.segmenter = Segmenter(options, start)
        self.heard = start
        """Samples before this one are judged; always on the frame grid but at the end."""
        self._asked = start  # frames up to here were handed out
        # (at, is the end, marker), in order of time; bounded by who commits, see `Stream.commit`.
        self._cuts: deque[tuple[int, bool, str | None]] = deque()
        self._origin = start

    def receive_audio(self, samples: Samples) -> None:
        """Append audio."""
        self.timeline.append(samples)

    def receive_commit(self, marker: str | None = None) -> None:
        """The client commits what was received so far."""
        self._cuts.append((self.timeline.end, False, marker))

    def receive_end(self) -> None:
        """No more audio."""
        self._cuts.append((self.timeline.end, True, None))

    @property
    def ended(self) -> bool:
        """`receive_end` came, though boundaries may be outstanding."""
        return bool(self._cuts) and self._cuts[-1][1]

    def frames(self, most: int | None = None) -> Samples:
        """Whole frames not handed out yet, shape ``(k * 512,)``, at most `most` of them; they count as handed out.

        After the end the last, incomplete frame comes padded with silence.
        """
        waiting = max(0, self.timeline.end - self._asked)
        whole = waiting // FRAME
        padded = self.ended and waiting % FRAME > 0
        count = whole + padded
        if most is not None and count > most:
            count, padded = most, False
        end = min(self._asked + count * FRAME, self.timeline.end)
        taken = self.timeline.read(min(self._asked, end), end)
        self._asked += count * FRAME
        if padded:
            taken = np.concatenate([taken, np.zeros(count * FRAME - len(taken), np.float32)])
        return taken

    def receive_probabilities(
        self, frames: Samples, probabilities: NDArray[np.float32]
    ) -> list[Boundary | Cut]:
        """The probabilities of frames handed out before, in order; answers with what they decide."""
        decided: list[Boundary | Cut] = []
        for frame, probability in zip(
            frames.reshape(-1, FRAME), probabilities.tolist(), strict=True
        ):
            end = self.heard + FRAME
            # A commit inside this frame takes effect before it: it is judged whole, as if it came after the cut.
            while self._cuts and not self._cuts[0][1] and self._cuts[0][0] < end:
                decided += self._cut()
            level = float(np.sqrt(np.mean(np.square(frame)))) if self.segmenter.weighs(end) else 0.0
            found = self.segmenter.receive_frame(end, probability, level)
            if (
                end > self.timeline.end
            ):  # the last frame is padded: nothing reaches beyond the audio
                found = [self._clamped(boundary) for boundary in found]
            decided += found
            self.heard = end
        return decided + self.settle()

    def settle(self) -> list[Boundary | Cut]:
        """Commits and the end that wait for no frame any more. Call after commits and the end, too."""
        decided: list[Boundary | Cut] = []
        while self._cuts:
            at, is_end, _ = self._cuts[0]
            if self.heard < (at if is_end else at - (at - self._origin) % FRAME):
                break
            decided += self._cut()
            if is_end:
                break
        return decided

    def forget(self, before: int | None = None) -> None:
        """Let go of audio that no boundary can refer to any more and that lies before `before`."""
        needed = min(self.segmenter.needed_from, self._asked, self.timeline.end)
        self.timeline.forget(needed if before is None else min(before, needed))

    def _clamped(self, boundary: Boundary) -> Boundary:
        if isinstance(boundary, Paused | Stopped):
            return replace(boundary, end=min(boundary.end, self.timeline.end))
        return boundary

    def _cut(self) -> list[Boundary | Cut]:
        at, is_end, marker = self._cuts.popleft()
        act = self.segmenter.receive_end if is_end else self.segmenter.receive_commit
        return [*act(at), Cut(at, is_end, marker)]
