"""Words to readable segments: each ends at a sentence or a pause and lasts at most 7 s. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from streaming.types import RATE, Word

LONGEST = 7 * RATE
"""A segment of 7 s is what a subtitle may stand at most (Netflix, BBC guidelines)."""
PAUSE = RATE // 2
"""Silence between words that ends a segment."""
BREATH = RATE // 5
"""Silence that is a good place to cut a segment that has become too long."""
_END = re.compile(r"""[.!?…。！？]["'”’»)\]」』]*$""")
_CLAUSE = re.compile(r"""[,;:，、；：–—-]["'”’»)\]」』]*$""")
_SHORT = "mr mrs ms dr prof st sr jr vs etc e.g i.e fig vol approx inc ltd co dept mt z.b d.h u.a bzw nr sra mme"
_ABBREVIATIONS = frozenset(_SHORT.split())


def ends_sentence(text: str, following: str | None = None) -> bool:
    """`text`, a word, is the last of a sentence; not so after "Mr." or an initial, or before a small letter."""
    bare = text.strip()
    if not _END.search(bare):
        return False
    if bare.endswith("."):
        stem = bare.rstrip(".").lower()
        if stem in _ABBREVIATIONS or (len(stem) == 1 and stem.isalpha() and bare[0].isupper()):
            return False
        if following is not None and following.strip()[:1].islower():
            return False
    return True


class Sentences:
    """Takes words in order, gives groups of words in order; nothing is lost or doubled."""

    def __init__(self) -> None:
        self._open: list[Word] = []

    def receive(self, words: Sequence[Word]) -> list[tuple[Word, ...]]:
        """The groups that `words` completes. Positions are absolute."""
        done: list[tuple[Word, ...]] = []
        for word in words:
            if self._open:
                last = self._open[-1]
                paused = word.start - last.end >= PAUSE
                if paused or ends_sentence(last.text, word.text):
                    done += self.flush()
            self._open.append(word)
            while self._open[-1].end - self._open[0].start > LONGEST and len(self._open) > 1:
                cut = self._best_cut()
                done.append(tuple(self._open[:cut]))
                del self._open[:cut]
        return done

    def flush(self) -> list[tuple[Word, ...]]:
        """What is left."""
        rest, self._open = self._open, []
        return [tuple(rest)] if rest else []

    def _best_cut(self) -> int:
        """How many of the open words make a segment: up to a clause or a breath in the second half, if there is one."""
        words = self._open
        fitting = [
            at for at in range(1, len(words)) if words[at - 1].end - words[0].start <= LONGEST
        ] or [1]
        late = [at for at in fitting if words[at - 1].end - words[0].start >= LONGEST * 2 // 5]

        def worth(at: int) -> tuple[int, int]:
            gap = words[at].start - words[at - 1].end
            clause = bool(_CLAUSE.search(words[at - 1].text.strip()))
            return (2 * clause + (gap >= BREATH), gap if gap >= BREATH // 4 else at)

        return max(late or fitting, key=worth)
