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
"""Silence that is a good place to cut a sentence that is too long for one segment."""
ENDLESS = 4 * LONGEST
"""A sentence that goes on for longer is divided before its end is known."""
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
        """Groups that `words` completes; how a long sentence is divided shows at its end. Positions are absolute."""
        done: list[tuple[Word, ...]] = []
        for word in words:
            if self._open:
                last = self._open[-1]
                paused = word.start - last.end >= PAUSE
                if paused or ends_sentence(last.text, word.text):
                    done += self.flush()
            self._open.append(word)
            if self._open[-1].end - self._open[0].start > ENDLESS and len(self._open) > 1:
                *ready, rest = _divided(self._open)
                done += ready
                self._open = list(rest)
        return done

    def flush(self) -> list[tuple[Word, ...]]:
        """What is left."""
        rest, self._open = self._open, []
        return _divided(rest) if rest else []


def _divided(words: Sequence[Word]) -> list[tuple[Word, ...]]:
    """`words` in parts of at most `LONGEST`: as few and as even as can be, cut after clauses and at breaths.

    The squares of what the parts lack add up to a cost, so that no part is a leftover; the best division is found from
    left to right.
    """
    costs, cuts = [0.0], [0]
    for end in range(1, len(words) + 1):
        found: list[tuple[float, int]] = []
        for start in range(end - 1, -1, -1):
            length = words[end - 1].end - words[start].start
            if length > LONGEST and end - start > 1:
                break
            slack = max(0.0, 1 - length / LONGEST)
            found.append((costs[start] + slack**2 + _harm(words, start), start))
        cost, start = min(found)
        costs.append(cost)
        cuts.append(start)
    parts: list[tuple[Word, ...]] = []
    end = len(words)
    while end:
        parts.append(tuple(words[cuts[end] : end]))
        end = cuts[end]
    return parts[::-1]


def _harm(words: Sequence[Word], at: int) -> float:
    """How bad it is to begin a part at a word: a part each costs, and one within a clause more."""
    if at == 0:
        return 1.0
    if _CLAUSE.search(words[at - 1].text.strip()):
        return 1.0
    return 1.2 if words[at].start - words[at - 1].end >= BREATH else 1.4
