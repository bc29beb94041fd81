"""When to doubt a recogniser. Pure; the same rules for recordings and streams.

The thresholds are Whisper's own (Radford et al. 2022, section 4.5, and its reference implementation).
"""

from __future__ import annotations

from collections import Counter

from streaming.backends.base import Hypothesis

COMPRESSION_RATIO = 2.4
"""Text that zlib shrinks by more than this repeats itself."""
LOG_PROBABILITY = -1.0
"""Mean log-probability below which a text is doubtful."""
NO_SPEECH = 0.6
"""Probability of no speech above which a doubtful text is taken for silence."""
LADDER = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Temperatures tried in turn while the result is doubtful."""


def doubtful(hypothesis: Hypothesis) -> bool:
    """The text repeats itself, or the recogniser did not trust it: decode again at a higher temperature."""
    ratio, mean = hypothesis.compression_ratio, hypothesis.log_probability
    if ratio is not None and ratio > COMPRESSION_RATIO:
        return True
    return mean is not None and mean < LOG_PROBABILITY and not silent(hypothesis)


def silent(hypothesis: Hypothesis) -> bool:
    """There was no speech after all: whatever the text says, it is invented. A lone full stop says nothing either."""
    if not any(letter.isalnum() for letter in hypothesis.text):
        return True
    no_speech, mean = hypothesis.no_speech, hypothesis.log_probability
    return (
        no_speech is not None and no_speech > NO_SPEECH and (mean is None or mean < LOG_PROBABILITY)
    )


def next_temperature(tried: float) -> float | None:
    """The next rung of Whisper's ladder; None at its end."""
    return next((rung for rung in LADDER if rung > tried + 1e-6), None)


def better(one: Hypothesis, other: Hypothesis) -> Hypothesis:
    """The more trustworthy of two doubtful texts: the one that does not loop, then the more probable."""

    def rank(hypothesis: Hypothesis) -> tuple[bool, float]:
        ratio = hypothesis.compression_ratio or 0.0
        mean = hypothesis.log_probability
        return ratio <= COMPRESSION_RATIO, float("-inf") if mean is None else mean

    return max(one, other, key=rank)


def loops(words: list[str], size: int = 3, most: int = 3) -> bool:
    """The same run of `size` words stands there `most` times or more, back to back or nearly."""
    runs = Counter(tuple(words[i : i + size]) for i in range(len(words) - size + 1))
    return any(count >= most and count * size * 2 > len(words) for count in runs.values())
