"""A file of subtitles is whole after every final, and what it costs does not grow with it."""

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_speech_client import Final, Word
from server import formats
from server.formats import Cue
from server.subtitles import Subtitles, _segment

word = st.tuples(
    st.text("abcdé,.", min_size=1, max_size=12), st.integers(0, 900), st.integers(10, 900)
)


def finals(spoken: list[list[tuple[str, int, int]]], *, words: bool) -> list[Final]:
    """Finals of words with the pause before each and its length, in milliseconds."""
    made, at = [], 0
    for number, part in enumerate(spoken):
        found, start = [], at
        for text, pause, length in part:
            found.append(Word(text, (at + pause) / 1000, (at + pause + length) / 1000, 0.9))
            at += pause + length
        text = " ".join(each.text for each in found)
        kept = tuple(found) if words else ()
        made.append(Final(number, number, text, start / 1000, at / 1000, 0, words=kept))
    return made


@given(st.lists(st.lists(word, max_size=14), max_size=6), st.booleans())
def test_the_file_holds_all_that_is_final_at_any_time(
    spoken: list[list[tuple[str, int, int]]], words: bool
) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "out.srt"
        path.write_text("what was there before")
        with closing(Subtitles(path)) as subtitles:
            assert path.read_text("utf-8") == ""
            so_far = []
            for final in finals(spoken, words=words):
                subtitles.receive(final)
                if final.text:
                    so_far.append(_segment(final))
                assert path.read_text("utf-8") == formats.srt(formats.cues(so_far))


def test_a_final_costs_the_same_however_many_came_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, real = [], formats.srt

    def counted(cues: Iterable[Cue], first: int = 1) -> str:
        made.append(real(cues, first))
        return made[-1]

    monkeypatch.setattr(formats, "srt", counted)
    path = tmp_path / "out.srt"
    with closing(Subtitles(path)) as subtitles:
        for final in finals([[("word", 100, 300)] * 10] * 300, words=True):
            subtitles.receive(final)
    assert sum(map(len, made)) < 3 * path.stat().st_size


def test_a_file_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        Subtitles(tmp_path / "nowhere" / "out.srt")
