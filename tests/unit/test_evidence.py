"""What is doubted, what is taken for silence, and what is left of a loop."""

import pytest

from streaming import evidence
from streaming.backends.base import Hypothesis
from streaming.types import Token, Word


def heard(text: str, **more: object) -> Hypothesis:
    """A text, aligned: a word each tenth of a second, a token each."""
    texts = [f" {word}" for word in text.split()]
    words = tuple(Word(t, n * 1600, n * 1600 + 1600, 0.9, (n,)) for n, t in enumerate(texts))
    tokens = tuple(Token(t.encode(), -0.1, n) for n, t in enumerate(texts))
    return Hypothesis("".join(texts), words, tokens, **more)  # type: ignore[arg-type]


LOOP = "we went home " + "and then we " * 20


def test_a_loop_too_short_for_zlib_is_doubted() -> None:
    assert evidence.doubtful(heard("no " * 9, compression_ratio=1.5, log_probability=-0.1))
    assert not evidence.doubtful(heard("no no, not that", compression_ratio=1.0))


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (LOOP, "we went home and then we"),
        ("so " * 30, "so"),
        ("a b a b a b a b c", "a b c"),
        ("No no no no no no no no no", "No"),
    ],
)
@pytest.mark.parametrize("aligned", [True, False])
def test_of_a_loop_one_round_is_left(text: str, left: str, *, aligned: bool) -> None:
    hypothesis = heard(text)
    if not aligned:
        hypothesis = Hypothesis(hypothesis.text)
    found = evidence.unlooped(hypothesis, 1.0)
    assert found.text.split() == left.split()
    assert "".join(word.text for word in found.words) in (found.text, "")
    assert [token.id for token in found.tokens] == [w.tokens[0] for w in found.words]


def test_what_somebody_repeats_at_the_speed_of_speech_stays() -> None:
    said = heard("no no no no no no")
    assert evidence.unlooped(said, 3.0) is said
    assert evidence.unlooped(heard("no no no no no no", capped=True), 3.0).text == " no"
    plain = heard("the cat sat on the mat and the dog sat on the cat")
    assert evidence.unlooped(plain, 0.1) is plain


@pytest.mark.parametrize(
    ("speech", "no_speech", "log_probability", "silent"),
    [
        (0.95, 0.7, -1.2, True),  # Whisper's rule
        (0.95, 0.7, -0.2, False),
        (0.55, 0.4, -0.2, True),  # two that are unsure
        (0.55, 0.2, -0.2, False),
        (0.95, 0.4, -0.2, False),
        (0.55, None, -0.2, False),
    ],
)
def test_silence_takes_two_witnesses(
    speech: float, no_speech: float | None, log_probability: float, *, silent: bool
) -> None:
    hypothesis = heard("Thank you.", no_speech=no_speech, log_probability=log_probability)
    assert evidence.silent(hypothesis, unsure=evidence.unsure(speech, 0.5)) is silent
