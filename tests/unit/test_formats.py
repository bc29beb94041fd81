"""Every format, letter for letter; subtitles that can be read."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from server import formats
from streaming.types import RATE, Segment, Word

HELLO = Segment(
    0,
    2 * RATE,
    " Hello <you> & me.",
    (
        Word(" Hello", 0, RATE // 2, 0.9),
        Word(" <you>", RATE // 2, RATE, 0.9),
        Word(" &", RATE, RATE, 0.9),
        Word(" me.", RATE, 2 * RATE, 0.9),
    ),
)
LATER = Segment(3661 * RATE, 3663 * RATE + 123 * RATE // 1000, " Good bye.")


def test_srt_is_numbered_with_commas_and_hours() -> None:
    assert formats.srt(formats.cues([HELLO, LATER])) == (
        "1\n00:00:00,000 --> 00:00:02,000\nHello <you> & me.\n\n"
        "2\n01:01:01,000 --> 01:01:03,123\nGood bye.\n\n"
    )


def test_vtt_has_its_header_dots_and_escapes() -> None:
    assert formats.vtt(formats.cues([HELLO])) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:02.000\nHello &lt;you&gt; &amp; me.\n\n"
    )
    assert formats.vtt([]) == "WEBVTT\n\n"
    assert formats.srt([]) == ""


def test_tsv_counts_milliseconds() -> None:
    assert formats.tsv([HELLO]) == "start\tend\ttext\n0\t2000\tHello <you> & me.\n"


def test_tsv_keeps_its_columns() -> None:
    assert (
        formats.tsv([Segment(0, RATE, " one\ttwo\r\nthree")])
        == "start\tend\ttext\n0\t1000\tone two three\n"
    )


def test_text_is_joined_and_stripped() -> None:
    assert formats.text([HELLO, LATER]) == "Hello <you> & me. Good bye."


def test_two_lines_are_balanced_and_break_after_a_clause() -> None:
    text = " It was a strange night, and the engineer watched the engine."
    cue = formats.cues([Segment(0, 4 * RATE, text)])[0]
    assert cue.lines == ("It was a strange night,", "and the engineer watched the engine.")


def test_languages_without_spaces_are_counted_by_width() -> None:
    words = tuple(
        Word(letter, at * 2000, (at + 1) * 2000, 1.0)
        for at, letter in enumerate("今日は良い天気ですね" * 6)
    )
    for cue in formats.cues([Segment(0, 60 * 2000, "", words)]):
        assert len(cue.lines) <= 2
        assert all(formats.width_of(line) <= 42 for line in cue.lines)


def test_text_without_word_times_is_spread_over_short_cues() -> None:
    chinese = "今天的天气非常好，我们一起去公园散步吧。" * 6
    japanese = "「今日は良い天気ですね」と、彼女は言いました。" * 6
    thai = "วันนี้อากาศดีมากเราไปเดินเล่นในสวนกันเถอะ" * 6
    english = " the engineer watched the engine and then she wrote it down" * 6
    for text in (chinese, japanese, thai, english):
        cues = formats.cues([Segment(RATE, 31 * RATE, text)])
        assert "".join(line for cue in cues for line in cue.lines).replace(" ", "") == text.replace(
            " ", ""
        )
        assert len(cues) >= 5
        for cue in cues:
            assert cue.end - cue.start <= 7 * RATE
            assert len(cue.lines) <= 2
            assert all(formats.width_of(line) <= 42 for line in cue.lines)
            assert all(line[0] not in "、。，」っゃー้ี่" for line in cue.lines)
        widths = [sum(formats.width_of(line) for line in cue.lines) for cue in cues]
        assert min(widths) > 10, "no cue is a leftover"


def test_a_word_that_lasts_is_shown_for_seven_seconds() -> None:
    assert formats.cues([Segment(0, 30 * RATE, " Hm.")])[0].end == 7 * RATE


def test_cues_last_a_millisecond_at_least_and_never_overlap() -> None:
    words = tuple(Word(f" word{at}", 24, 24, 1.0) for at in range(40))
    cues = formats.cues([Segment(24, 24, "", words), Segment(24, 24, " end")])
    clocks = [(formats.clock(cue.start, ","), formats.clock(cue.end, ",")) for cue in cues]
    assert all(start < end for start, end in clocks)
    assert all(before[1] <= after[0] for before, after in pairwise(clocks))


word = st.tuples(
    st.text("abcdefgh,.", min_size=1, max_size=14), st.integers(0, 20_000), st.integers(100, 20_000)
)


@given(
    st.lists(st.lists(word, min_size=1, max_size=14), max_size=6),
    st.integers(8, 60),
    st.integers(1, 3),
)
def test_every_word_stands_in_one_cue_within_limits(
    spoken: list[list[tuple[str, int, int]]], width: int, lines: int
) -> None:
    segments, at = [], 0
    for part in spoken:
        words = []
        for text, gap, length in part:
            words.append(Word(" " + text, at + gap, at + gap + length, 1.0))
            at += gap + length
        joined = "".join(each.text for each in words)
        segments.append(Segment(words[0].start, words[-1].end, joined, tuple(words)))
    cues = formats.cues(segments, width=width, lines=lines)
    said = [text for segment in segments for text in segment.text.split()]
    assert [text for cue in cues for line in cue.lines for text in line.split()] == said
    for cue in cues:
        assert len(cue.lines) <= lines
        assert all(len(line) <= width or " " not in line for line in cue.lines)
        assert cue.start < cue.end
    assert all(before.end <= after.start for before, after in pairwise(cues))
