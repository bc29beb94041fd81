"""When to doubt a recogniser. Pure; the same rules for recordings and streams.

The thresholds are Whisper's own (Radford et al. 2022, section 4.5, and its reference implementation), but where another
source is named. Nothing here knows a phrase that recognisers invent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from streaming.backends.base import Hypothesis

COMPRESSION_RATIO = 2.4
"""Text that zlib shrinks by more than this repeats itself."""
LOG_PROBABILITY = -1.0
"""Mean log-probability below which a text is doubtful."""
NO_SPEECH = 0.6
"""Probability of no speech above which a doubtful text is taken for silence."""
UNSURE_NO_SPEECH = 0.3
"""The same where the detector was unsure as well."""
UNSURE = 0.1
"""What the detector's mean over the frames that it took for speech must lie above its threshold, not to be unsure."""
FASTEST = 5.0
"""Words a second that nobody speaks for long: a text that repeats itself faster was not spoken."""
LONGEST_RUN = 8
"""Words of the longest run that is looked for when a loop is cut."""
LADDER = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Temperatures tried in turn while the result is doubtful."""


def doubtful(hypothesis: Hypothesis) -> bool:
    """The text repeats itself, or the recogniser did not trust it: decode again at a higher temperature."""
    ratio, mean = hypothesis.compression_ratio, hypothesis.log_probability
    if (ratio is not None and ratio > COMPRESSION_RATIO) or loops(hypothesis.text.split()):
        return True
    return mean is not None and mean < LOG_PROBABILITY and not silent(hypothesis)


def silent(hypothesis: Hypothesis, *, unsure: bool = False) -> bool:
    """There was no speech after all: whatever the text says, it is invented. A lone full stop says nothing either.

    `unsure`: the detector hardly took it for speech either, see `unsure`.
    """
    if not any(letter.isalnum() for letter in hypothesis.text):
        return True
    no_speech, mean = hypothesis.no_speech, hypothesis.log_probability
    if no_speech is None:
        return False
    if unsure and no_speech > UNSURE_NO_SPEECH:
        return True
    return no_speech > NO_SPEECH and (mean is None or mean < LOG_PROBABILITY)


def unsure(speech: float, threshold: float) -> bool:
    """The detector's mean probability `speech` lies hardly above the `threshold` from which it calls a frame speech."""
    return speech < min(threshold + UNSURE, 1.0)


def next_temperature(tried: float) -> float | None:
    """The next rung of Whisper's ladder; None at its end."""
    return next((rung for rung in LADDER if rung > tried + 1e-6), None)


def better(one: Hypothesis, other: Hypothesis) -> Hypothesis:
    """The more trustworthy of two doubtful texts: the one that does not loop, then the more probable."""

    def rank(hypothesis: Hypothesis) -> tuple[bool, float]:
        ratio = hypothesis.compression_ratio or 0.0
        mean = hypothesis.log_probability
        calm = ratio <= COMPRESSION_RATIO and not loops(hypothesis.text.split())
        return calm, float("-inf") if mean is None else mean

    return max(one, other, key=rank)


def loops(words: Sequence[str], size: int = 3, most: int = 3) -> bool:
    """The same run of `size` words stands there `most` times or more, back to back or nearly."""
    runs = Counter(tuple(words[i : i + size]) for i in range(len(words) - size + 1))
    return any(count >= most and count * size * 2 > len(words) for count in runs.values())


def unlooped(hypothesis: Hypothesis, seconds: float) -> Hypothesis:
    """Of a text that repeats itself, faster than anybody speaks in those `seconds` of audio or without end, every run
    that is said three times in a row or more said once. What people repeat at their own speed stays."""
    texts = (
        [word.text for word in hypothesis.words] if hypothesis.words else _spaced(hypothesis.text)
    )
    if not loops([text.strip() for text in texts]):
        return hypothesis
    if not hypothesis.capped and len(texts) <= FASTEST * seconds:
        return hypothesis
    kept = _once([text.strip().casefold() for text in texts])
    text = "".join(texts[at] for at in kept)
    if not hypothesis.words:
        return replace(hypothesis, text=text, tokens=())
    words = tuple(hypothesis.words[at] for at in kept)
    starts = [0, *accumulate(len(word.tokens) for word in hypothesis.words)]
    tokens = tuple(token for at in kept for token in hypothesis.tokens[starts[at] : starts[at + 1]])
    return replace(hypothesis, text=text, words=words, tokens=tokens)


def _spaced(text: str) -> list[str]:
    """Words, each with the space before it."""
    first, *rest = text.split(" ")
    return ([first] if first else []) + [f" {word}" for word in rest]


def _once(words: Sequence[str]) -> list[int]:
    """Positions of `words` without the repetitions of runs that stand there three times in a row or more."""
    kept = list(range(len(words)))
    for size in range(1, LONGEST_RUN + 1):
        at, left = 0, list[int]()
        while at < len(kept):
            run = [words[each] for each in kept[at : at + size]]
            times = 1
            while run == [
                words[each] for each in kept[at + times * size : at + (times + 1) * size]
            ]:
                times += 1
            if times >= 3:
                left += kept[at : at + size]
                at += times * size
            else:
                left.append(kept[at])
                at += 1
        kept = left
    return kept
