"""What became of words: one text against another, word by word, for tests that say nothing may be lost or doubled."""

from __future__ import annotations

from dataclasses import dataclass

import jiwer

from tests.fakes import _PLAIN


@dataclass(frozen=True, slots=True)
class Difference:
    """From one text to another, in words."""

    lost: int = 0
    doubled: int = 0
    """Too many, whether they repeat others or are new."""
    changed: int = 0
    """Heard as others at their place; one may become two, or two one."""

    def __add__(self, other: Difference) -> Difference:
        return Difference(
            self.lost + other.lost, self.doubled + other.doubled, self.changed + other.changed
        )


def difference(expected: str, found: str) -> Difference:
    """How `found` differs from `expected`, without case and punctuation.

    Stretches that differ are compared as a whole. Where both have words there, these are `changed`: a recogniser
    that hears "apart" as "a part" has lost nothing. Beyond one word more or less they are lost or doubled.
    """
    aligned = jiwer.process_words(_PLAIN(expected) or "∅", _PLAIN(found) or "∅").alignments[0]
    total = Difference()
    before = after = 0
    for chunk in aligned:
        if chunk.type == "equal":
            total += _stretch(before, after)
            before = after = 0
        else:
            before += chunk.ref_end_idx - chunk.ref_start_idx
            after += chunk.hyp_end_idx - chunk.hyp_start_idx
    return total + _stretch(before, after)


def _stretch(before: int, after: int) -> Difference:
    if before and after:
        slack = 1 if abs(before - after) == 1 else 0
        return Difference(
            max(0, before - after - slack),
            max(0, after - before - slack),
            max(before, after) if slack else min(before, after),
        )
    return Difference(lost=before, doubled=after)
