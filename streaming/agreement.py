"""Which words of an open utterance are settled: LocalAgreement-2 with hold-back. Pure.

After Macháček, Dabre, Bojar 2023 (arXiv 2307.14743), with the loose/tight threshold pair of SimulStreaming: the newest
hypothesis loses the words near the edge of the audio, what is left is compared with the whole hypothesis before it, and
the words on which the two agree are committed. Committed words live in an append-only log with this one writer.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from streaming.backends.base import Capabilities
from streaming.types import RATE, Word

TIGHT = RATE * 8 // 100
"""Hold-back at the end of speech, in samples: 80 ms, SimulStreaming's four frames."""
TRIM_ABOVE = 10 * RATE
"""A window is cut once it is longer than this."""
KEEP_AFTER_PAUSE = 3 * RATE
KEEP = 6 * RATE
"""How much audio stays before the edge: little left context costs real Whispers dearly."""
PAUSE = RATE * 160 // 1000
"""A gap between words at which a window may be cut."""
SENTENCE_ENDS = (".", "!", "?", "…", "。", "！", "？")


class Agreement:
    """The log of one utterance. Positions of words are absolute."""

    def __init__(self, start: int, capabilities: Capabilities) -> None:
        self.committed: tuple[Word, ...] = ()
        """Only grows."""
        self.tentative: tuple[Word, ...] = ()
        """What the newest hypothesis says after them, as far as it may be shown."""
        self.trim = start
        """The window to decode starts here."""
        self._loose = capabilities.commit_hold_back
        self._display = capabilities.display_hold_back
        self._previous: tuple[Word, ...] | None = None

    @property
    def prefix(self) -> tuple[Word, ...]:
        """Committed words inside the window; the next hypothesis must begin with them."""
        return tuple(word for word in self.committed if word.start >= self.trim)

    @property
    def settled(self) -> int:
        """All that was said before here is committed, or was before this utterance."""
        return max(self.trim, self.committed[-1].end) if self.committed else self.trim

    @property
    def scrolled(self) -> tuple[Word, ...]:
        """Committed words before the window: context for the recogniser."""
        return tuple(word for word in self.committed if word.start < self.trim)

    def receive_hypothesis(
        self, words: Sequence[Word], edge: int, *, at_end: bool = False, trusted: bool = True
    ) -> bool:
        """A decode of the audio from `trim` to `edge` said `words`, committed ones first.

        `at_end`: speech has stopped before the edge. A hypothesis that is not `trusted` is shown but commits nothing.
        Answers whether the committed or the tentative words changed. One that does not begin with the committed words
        is refused.
        """
        prefix = self.prefix
        if len(words) < len(prefix) or any(
            word.text != forced.text for word, forced in zip(words, prefix, strict=False)
        ):
            return False
        rest = tuple(words[len(prefix) :])
        before = self.committed, self.tentative
        if trusted:
            held = edge - (TIGHT if at_end else self._loose)
            if self._previous is not None:
                agreed = 0
                for new, old in zip(rest, self._previous, strict=False):
                    if new.end > held or _bare(new.text) != _bare(old.text):
                        break
                    agreed += 1
                self.committed += rest[:agreed]
                rest = rest[agreed:]
            self._previous = rest
        shown = edge - (0 if at_end else self._display)
        self.tentative = tuple(word for word in rest if word.end <= shown)
        return before != (self.committed, self.tentative)

    def receive_step(
        self, words: Sequence[Word], stable: int, edge: int, *, at_end: bool = False
    ) -> bool:
        """A step recogniser that has heard everything up to `edge` says `words`, `stable` of which it will not change.

        One that revises cannot be held to the committed words: what it says after them in time is compared.
        """
        before = self.committed, self.tentative
        if stable > 0:
            known = len(self.committed)
            if any(new.text != old.text for new, old in zip(words, self.committed, strict=False)):
                # Some were committed before they were stable, because two answers agreed.
                settled = self._continued(words[:stable])
                self.committed, self.tentative = settled, self._continued(words)[len(settled) :]
            else:
                self.committed += tuple(words[known:stable])
                self.tentative = tuple(words[max(known, stable) :])
        else:
            self.receive_hypothesis(self._continued(words), edge, at_end=at_end)
        return before != (self.committed, self.tentative)

    def finish(self, words: Sequence[Word]) -> tuple[Word, ...]:
        """All words of the final: the log, then what the last decode says beyond it.

        A last decode that does not begin with the committed words cannot take them back: what it says after the last
        committed word's end is appended.
        """
        prefix = self.prefix
        if len(words) >= len(prefix) and all(
            word.text == forced.text for word, forced in zip(words, prefix, strict=False)
        ):
            return self.committed + tuple(words[len(prefix) :])
        return self._continued(words)

    def _continued(self, words: Sequence[Word]) -> tuple[Word, ...]:
        """The committed words, then those of `words` that come after them in time."""
        edge = self.committed[-1].end if self.committed else 0
        return self.committed + tuple(
            word for word in words if (word.start + word.end) // 2 >= edge
        )

    def settle(self, words: Sequence[Word]) -> bool:
        """The recogniser can print no more than `words` of the audio from `trim`: all but the last two of them are
        committed, and the window goes on behind what is. Answers whether it became shorter."""
        prefix, before = self.prefix, self.trim
        if any(word.text != forced.text for word, forced in zip(words, prefix, strict=False)):
            return False
        self.committed += tuple(words[len(prefix) : -2])
        self.trim = self.settled
        if self.trim > before:
            self.tentative, self._previous = (), None
        return self.trim > before

    def cut(self, edge: int) -> None:
        """Shorten a window that has grown beyond 10 s, at the last committed word that a pause or the end of a sentence
        follows and that lies 3 s before the edge; where there is none, in the middle of a phrase, 6 s before it."""
        if edge - self.trim <= TRIM_ABOVE:
            return
        pause = phrase = None
        for at, word in enumerate(self.committed):
            if word.end <= self.trim or word.end > edge - KEEP_AFTER_PAUSE:
                continue
            following = self.committed[at + 1 : at + 2] or self.tentative[:1]
            paused = bool(following) and following[0].start - word.end >= PAUSE
            if paused or word.text.rstrip().endswith(SENTENCE_ENDS):
                pause = (word.end + following[0].start) // 2 if following else word.end
            elif word.end <= edge - KEEP:
                phrase = word.end
        if pause is not None and (edge - pause <= TRIM_ABOVE or phrase is None):
            self.trim = pause
        elif phrase is not None:
            self.trim = phrase


def _bare(text: str) -> str:
    """Without case, spaces and punctuation: "Dog," and " dog" are one word."""
    return "".join(
        letter
        for letter in text.casefold()
        if not unicodedata.category(letter).startswith(("P", "Z"))
    )
