"""A transcript in every format. Pure: segments in, text out.

Readable subtitles: a cue has at most so many lines of so many characters, shows no words across a pause, and does not
overlap the next one. Segments already end at sentences or pauses and last at most 7 s.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from streaming.types import RATE, Segment, Word

WIDTH = 42
"""Characters in a subtitle line (Netflix, BBC)."""
LINES = 2
PAUSE = RATE // 2
"""Silence that no cue spans, in samples."""
LINGER = RATE
"""How long a cue stays after its last word at most, so that short ones can be read."""
READABLE = RATE
"""How long a cue stays at least, where the next one leaves it room."""
LONGEST = 7 * RATE
"""How long a cue stays at most (Netflix, BBC)."""
BLINK = RATE // 1000
"""How long any cue stays: what is shorter than a millisecond is written as nothing."""


@dataclass(frozen=True, slots=True)
class Cue:
    """One subtitle."""

    start: int
    end: int
    lines: tuple[str, ...]


def text(segments: Iterable[Segment]) -> str:
    """The transcript, without surrounding space."""
    return "".join(segment.text for segment in segments).strip()


def cues(segments: Iterable[Segment], *, width: int = WIDTH, lines: int = LINES) -> list[Cue]:
    """Subtitles of `segments`, each word in exactly one, in order."""
    captions = Captions(width, lines)
    made = [cue for segment in segments for cue in captions.decode(segment)]
    return made + captions.flush()


class Captions:
    """Segments in order to subtitles; keeps the newest back, since how long it stays depends on what follows."""

    def __init__(self, width: int = WIDTH, lines: int = LINES) -> None:
        self._width = width
        self._lines = lines
        self._held: Cue | None = None

    def decode(self, segment: Segment) -> list[Cue]:
        """The subtitles completed by `segment`."""
        done: list[Cue] = []
        words = [part for word in segment.words or _spread(segment) for part in _parts(word)]
        for group in _groups(words, self._width, self._lines):
            start, end = group[0].start, group[-1].end
            if self._held is not None:
                start = max(start, self._held.start + BLINK)
                done += self._timed(start)
            end = max(start + BLINK, end)
            self._held = Cue(start, end, _lines(group, self._width, self._lines))
        return done

    def held(self) -> list[Cue]:
        """The one kept back, as it is if nothing follows; it stays kept back."""
        held = self._held
        last = self._timed(None)
        self._held = held
        return last

    def flush(self) -> list[Cue]:
        """The last subtitle."""
        return self._timed(None)

    def _timed(self, following: int | None) -> list[Cue]:
        """The one kept back, gone before `following`, the start of the next."""
        cue, self._held = self._held, None
        if cue is None:
            return []
        end = min(max(cue.end, cue.start + READABLE), cue.end + LINGER, cue.start + LONGEST)
        if following is not None:
            end = min(end, following)
        return [Cue(cue.start, end, cue.lines)]


def srt(cues: Iterable[Cue], first: int = 1) -> str:
    """SubRip; each cue ends in a blank line."""
    return "".join(
        f"{number}\n{clock(cue.start, ',')} --> {clock(cue.end, ',')}\n"
        + "\n".join(cue.lines)
        + "\n\n"
        for number, cue in enumerate(cues, first)
    )


def vtt(cues: Iterable[Cue], *, header: bool = True) -> str:
    """WebVTT; each cue ends in a blank line."""
    body = "".join(
        f"{clock(cue.start, '.')} --> {clock(cue.end, '.')}\n"
        + "\n".join(_escaped(line) for line in cue.lines)
        + "\n\n"
        for cue in cues
    )
    return ("WEBVTT\n\n" if header else "") + body


def tsv(segments: Iterable[Segment]) -> str:
    """Start and end in milliseconds, text, by tabs, as Whisper's own; tabs and line breaks of the text are spaces."""
    rows = [
        f"{segment.start * 1000 // RATE}\t{segment.end * 1000 // RATE}\t{' '.join(segment.text.split())}"
        for segment in segments
    ]
    return "start\tend\ttext\n" + "".join(row + "\n" for row in rows)


def clock(sample: int, mark: str) -> str:
    """`01:02:03,456`, always with hours."""
    milliseconds = (sample * 1000 + RATE // 2) // RATE
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}{mark}{milliseconds:03d}"


def width_of(line: str) -> int:
    """Columns of a line: East Asian characters take two, marks on others none."""
    return sum(
        2
        if unicodedata.east_asian_width(letter) in "WF"
        else 0
        if unicodedata.category(letter) == "Mn"
        else 1
        for letter in line
    )


def _spread(segment: Segment) -> tuple[Word, ...]:
    """Words of a segment that was not aligned, their times by length."""
    return _timed(re.findall(r"\s*\S+", segment.text), segment.start, segment.end)


def _timed(parts: Sequence[str], start: int, end: int) -> tuple[Word, ...]:
    total = sum(width_of(part) for part in parts) or 1
    words, at = [], 0
    for part in parts:
        begin = start + (end - start) * at // total
        at += width_of(part)
        words.append(Word(part, begin, start + (end - start) * at // total, 0.0))
    return tuple(words)


_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # kana, Han
)
_PART = re.compile(
    # A letter of a script without spaces takes the opening marks before it and whatever may not begin a line:
    # closing marks, small kana, vowel signs (Japanese kinsoku rules, in short).
    rf"\s*[（「『【〈《“‘(\[]*(?:[{_UNSPACED}]|[^\s{_UNSPACED}]+?(?=[{_UNSPACED}（「『【〈《]|\s|$))"
    r"[、。，．！？：；・）」』】〉》”’)\],.!?:;…ー々ゝぁぃぅぇぉっゃゅょァィゥェォッャュョ"
    r"\u0e30-\u0e3a\u0e45-\u0e4e\u0eb0-\u0ebc\u0ec8-\u0ece\u102b-\u103e\u17b4-\u17d3]*"
)


def _parts(word: Word) -> tuple[Word, ...]:
    """A word, or in a script without spaces the places at which a line of it may be broken."""
    if not re.search(f"[{_UNSPACED}]", word.text):
        return (word,)
    found = _PART.findall(word.text)
    if len(found) < 2 or "".join(found) != word.text:
        return (word,)
    return tuple(
        replace(part, probability=word.probability) for part in _timed(found, word.start, word.end)
    )


_CLAUSES = (",", ";", ":", ".", "?", "!", "，", "、", "。", "？", "！", "；", "：")


def _groups(words: Sequence[Word], width: int, lines: int) -> list[list[Word]]:
    """Words that share a cue: as many as fit, cut at pauses, and at clauses or evenly where a cut is needed anyway."""
    groups: list[list[Word]] = []
    for stretch in _stretches(words):
        rest = list(stretch)
        while rest:
            fit = 1
            while fit < len(rest) and _fits(rest[: fit + 1], width, lines):
                fit += 1
            if fit < len(rest):
                fit = _cut(rest, fit, width, lines)
            groups.append(rest[:fit])
            rest = rest[fit:]
    return groups


def _cut(words: Sequence[Word], fit: int, width: int, lines: int) -> int:
    """Where to end a cue of at most `fit` words: after the last clause, or halfway where two cues take what is left."""
    clauses = [
        at for at in range(fit // 2 + 1, fit + 1) if words[at - 1].text.rstrip().endswith(_CLAUSES)
    ]
    if clauses:
        return clauses[-1]
    if not _fits(words[fit:], width, lines):
        return fit
    half = sum(width_of(word.text) for word in words) / 2
    filled = 0
    for at in range(1, fit):
        filled += width_of(words[at - 1].text)
        if filled >= half and _fits(words[at:], width, lines):
            return at
    return fit


def _stretches(words: Sequence[Word]) -> list[list[Word]]:
    stretches: list[list[Word]] = []
    for word in words:
        if stretches and word.start - stretches[-1][-1].end < PAUSE:
            stretches[-1].append(word)
        else:
            stretches.append([word])
    return stretches


def _fits(words: Sequence[Word], width: int, lines: int) -> bool:
    lasting = words[-1].end - words[0].start
    return lasting <= LONGEST and len(_filled(words, width)) <= lines


def _filled(words: Sequence[Word], width: int) -> list[str]:
    """Lines filled greedily: the fewest there can be. A word wider than a line has one for itself."""
    rows: list[str] = []
    for word in words:
        if rows and width_of(rows[-1] + word.text) <= width:
            rows[-1] += word.text
        else:
            rows.append(word.text.strip())
    return rows


def _lines(words: Sequence[Word], width: int, lines: int) -> tuple[str, ...]:
    """The words in as few lines as they need, two of them balanced."""
    rows = _filled(words, width)
    if len(rows) == 2 and lines >= 2:
        best = rows

        def unevenness(pair: list[str]) -> tuple[bool, int]:
            clause = pair[0].endswith(_CLAUSES)
            return (not clause, abs(width_of(pair[0]) - width_of(pair[1])))

        for at in range(1, len(words)):
            pair = [
                "".join(word.text for word in words[:at]).strip(),
                "".join(word.text for word in words[at:]).strip(),
            ]
            if max(map(width_of, pair)) <= width and unevenness(pair) < unevenness(best):
                best = pair
        rows = best
    return tuple(row for row in rows if row) or ("",)


def _escaped(line: str) -> str:
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
