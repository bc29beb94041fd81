"""Recordings: how they are packed, in which language, and what leaves them."""

from __future__ import annotations

import numpy as np

from streaming.backends.base import Capabilities, Hypothesis, Window
from streaming.types import RATE, Samples, Segment, Summary, Word
from tests.drive import read


def bursts(count: int, seconds: float, pause: float = 1.0) -> Samples:
    """Utterances of one loud level, each with its own, so that a decode can tell them apart."""
    parts = []
    for at in range(count):
        parts += [
            np.full(round(seconds * RATE), 0.1 + at / 100, np.float32),
            np.zeros(round(pause * RATE), np.float32),
        ]
    return np.concatenate(parts)


def said(window: Window, language: str) -> Hypothesis:
    """One word, spelt by the level of the window's first utterance."""
    level = round((float(window.samples[np.argmax(window.samples > 0.05)]) - 0.1) * 100)
    word = Word(f" u{level}", 6000, 9000, 0.9)
    return Hypothesis(word.text, (word,), (), language, 0.9, log_probability=-0.1, no_speech=0.0)


def test_a_model_of_one_language_says_which() -> None:
    english = Capabilities(languages=("en",))
    items, _ = read(bursts(1, 2.0), lambda window: said(window, "en"), capabilities=english)
    summary = items[-1]
    assert isinstance(summary, Summary)
    assert (summary.language, summary.language_probability) == ("en", None)


def test_a_window_that_heard_another_language_is_decoded_again() -> None:
    def decode(window: Window) -> Hypothesis:
        heard = said(window, window.decoding.language or "en")
        if window.decoding.language is None and heard.text != " u0":
            return Hypothesis(" bonjour", (), (), "fr", 0.6, log_probability=-0.1, no_speech=0.0)
        return heard

    items, windows = read(bursts(4, 20.0), decode)
    texts = [item.text for item in items if isinstance(item, Segment)]
    assert texts == [" u0", " u1", " u2", " u3"]
    assert [item.language for item in items if isinstance(item, Summary)] == ["en"]
    assert [window.decoding.language for window in windows].count("en") == 3


def test_silence_at_the_beginning_does_not_tell_the_language() -> None:
    def decode(window: Window) -> Hypothesis:
        heard = said(window, "fr")
        if heard.text == " u0":
            return Hypothesis("", language="en", language_probability=0.3, no_speech=0.95)
        return heard

    items, _ = read(bursts(3, 20.0), decode)
    assert [item.text for item in items if isinstance(item, Segment)] == [" u1", " u2"]
    assert [item.language for item in items if isinstance(item, Summary)] == ["fr"]


def test_the_last_round_uses_every_worker_that_is_free() -> None:
    def lengths(side_by_side: int, count: int) -> list[int]:
        _, windows = read(
            bursts(count, 4.0), lambda window: said(window, "en"), side_by_side=side_by_side
        )
        return sorted(round(len(window.samples) / RATE) for window in windows)

    alone, shared = lengths(2, 15), lengths(1, 15)
    assert len(shared) == 3
    assert len(alone) == 4
    assert sum(alone) == sum(shared)
    assert abs(alone[0] - alone[1]) <= 5
    assert len(lengths(2, 4)) == 1, "a short recording is not worth a second window"


def test_a_recogniser_that_wants_context_hears_neighbours_with_their_pauses() -> None:
    heard: list[int] = []

    def decode(window: Window) -> Hypothesis:
        heard.append(len(window.samples))
        return said(window, "en")

    audio = np.concatenate([bursts(3, 2.0, pause=0.6), bursts(1, 2.0, pause=3.0), bursts(1, 2.0)])
    plain = Capabilities(full=0, context=20 * RATE)
    read(audio, decode, capabilities=plain)
    assert [length > 9 * RATE for length in heard] == [True, False]
    heard.clear()
    read(audio, decode, capabilities=Capabilities(full=0))
    assert [length < 3 * RATE for length in heard] == [True] * 5
