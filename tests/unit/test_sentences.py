"""Words become segments that end where a reader expects it."""

from hypothesis import given
from hypothesis import strategies as st

from streaming.sentences import LONGEST, PAUSE, Sentences, ends_sentence
from streaming.types import RATE, Word


def spoken(
    text: str, *, each: float = 0.3, gap: float = 0.05, pauses: tuple[int, ...] = ()
) -> list[Word]:
    words, at = [], 0.0
    for number, word in enumerate(text.split()):
        at += 0.8 if number in pauses else gap
        words.append(Word(" " + word, round(at * RATE), round((at + each) * RATE), 0.9))
        at += each
    return words


def grouped(words: list[Word]) -> list[str]:
    sentences = Sentences()
    return [
        "".join(word.text for word in group).strip()
        for group in sentences.receive(words) + sentences.flush()
    ]


def test_a_segment_ends_with_its_sentence() -> None:
    assert grouped(spoken("Good morning. How are you? Fine!")) == [
        "Good morning.",
        "How are you?",
        "Fine!",
    ]


def test_a_pause_ends_a_segment_too() -> None:
    assert grouped(spoken("one two three four", pauses=(2,))) == ["one two", "three four"]


def test_abbreviations_initials_and_decimals_do_not() -> None:
    assert grouped(spoken("Dr. Smith met J. Doe at 3.5 miles.")) == [
        "Dr. Smith met J. Doe at 3.5 miles."
    ]
    assert not ends_sentence(" Mr.")
    assert not ends_sentence(" no.", " matter")
    assert ends_sentence(" 1990.")
    assert ends_sentence(' said."')
    assert ends_sentence("です。")


def test_a_long_sentence_is_cut_at_a_clause() -> None:
    words = spoken(
        "when the rain had stopped at last we went out to the garden, and there we saw that all of the apples had fallen",
        each=0.4,
    )
    parts = grouped(words)
    assert parts[0].endswith("garden,")


def test_a_long_sentence_leaves_no_orphan() -> None:
    parts = grouped(spoken(" ".join(f"w{number}" for number in range(36)), each=0.15, gap=0.05))
    assert [len(part.split()) for part in parts] == [18, 18]


def test_a_sentence_without_end_is_divided_as_it_comes() -> None:
    words = spoken(" ".join(f"w{number}" for number in range(400)), each=0.15, gap=0.05)
    sentences = Sentences()
    done = sentences.receive(words[:300])
    assert sum(len(group) for group in done) > 100
    done += sentences.receive(words[300:]) + sentences.flush()
    assert [word for group in done for word in group] == words
    assert min(len(group) for group in done) > 10


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b.", "c,", "d?"]), st.integers(0, 20_000), st.integers(1, 30_000)
        ),
        max_size=60,
    )
)
def test_no_word_is_lost_and_no_segment_is_long_or_spans_a_pause(
    parts: list[tuple[str, int, int]],
) -> None:
    words, at = [], 0
    for text, gap, length in parts:
        words.append(Word(" " + text, at + gap, at + gap + length, 1.0))
        at += gap + length
    sentences = Sentences()
    groups = (
        sentences.receive(words[: len(words) // 2])
        + sentences.receive(words[len(words) // 2 :])
        + sentences.flush()
    )
    assert [word for group in groups for word in group] == words
    for group in groups:
        assert len(group) == 1 or group[-1].end - group[0].start <= LONGEST
        assert all(b.start - a.end < PAUSE for a, b in zip(group, group[1:], strict=False))
