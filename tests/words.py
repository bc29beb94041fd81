"""What became of words: one text against another, word by word, for tests that say nothing may be lost or doubled."""

from __future__ import annotations

from dataclasses import dataclass

import jiwer

from tests.fakes import _PLAIN, word_errors


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


@dataclass(frozen=True, slots=True)
class Stretch:
    """Words that stand at one place of two texts, and differ."""

    at: int
    """Words of the first text before it."""
    expected: tuple[str, ...]
    found: tuple[str, ...]

    def __str__(self) -> str:
        expected, found = (" ".join(words) or "-" for words in (self.expected, self.found))
        return f"at word {self.at}: {expected} became {found}"

    @property
    def difference(self) -> Difference:
        """Where both texts have words, these are `changed`: a recogniser that hears "apart" as "a part" has lost
        nothing. Beyond one word more or less they are lost or doubled."""
        before, after = len(self.expected), len(self.found)
        if before and after:
            slack = 1 if abs(before - after) == 1 else 0
            return Difference(
                max(0, before - after - slack),
                max(0, after - before - slack),
                max(before, after) if slack else min(before, after),
            )
        return Difference(lost=before, doubled=after)


def stretches(expected: str, found: str) -> list[Stretch]:
    """Where `found` differs from `expected`, without case and punctuation."""
    said, heard = _PLAIN(expected).split(), _PLAIN(found).split()
    aligned = jiwer.process_words(" ".join(said) or "∅", " ".join(heard) or "∅").alignments[0]
    same = [
        (each.ref_start_idx, each.ref_end_idx, each.hyp_start_idx, each.hyp_end_idx)
        for each in aligned
        if each.type == "equal"
    ]
    apart: list[Stretch] = []
    before = after = 0
    for one, one_end, two, two_end in [*same, (len(said), 0, len(heard), 0)]:
        if one > before or two > after:
            apart.append(Stretch(before, tuple(said[before:one]), tuple(heard[after:two])))
        before, after = one_end, two_end
    return apart


def difference(expected: str, found: str, spoken: str | None = None) -> Difference:
    """How `found` differs from `expected`. With `spoken` both are what a recogniser heard of that, by chance not the
    same: more words in place of others are `changed`, for it may fall into a loop there, but never fewer; and those that
    bring `found` nearer to what was spoken are neither lost nor doubled but heard better."""
    total = Difference()
    for each in stretches(expected, found):
        part = each.difference
        if spoken is not None and (part.lost or part.doubled):
            looped = bool(each.expected) and part.doubled > 0
            if looped or _mends(each, expected, spoken):
                part = Difference(changed=max(len(each.expected), len(each.found)))
        total += part
    return total


def _mends(stretch: Stretch, expected: str, spoken: str) -> bool:
    words = _PLAIN(expected).split()
    end = stretch.at + len(stretch.expected)
    mended = [*words[: stretch.at], *stretch.found, *words[end:]]
    return word_errors(spoken, " ".join(mended)) < word_errors(spoken, expected)
