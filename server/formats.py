"""A transcript in every format. Pure: segments in, text out.

Readable subtitles: a cue has at most so many lines of so many characters, shows no words across a pause, and does not
overlap the next one. Segments already end at sentences or pauses and last at most 7 s.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
    made: list[Cue] = []
    for segment in segments:
        words = segment.words or _spread(segment)
        made += [
            Cue(group[0].start, max(group[-1].end, group[0].start + 1), _lines(group, width, lines))
            for group in _groups(words, width, lines)
        ]
    timed: list[Cue] = []
    for at, cue in enumerate(made):
        limit = made[at + 1].start if at + 1 < len(made) else cue.end + LINGER
        end = min(max(cue.end, cue.start + READABLE), cue.end + LINGER, max(limit, cue.start + 1))
        timed.append(Cue(cue.start, end, cue.lines))
    return timed


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
    """Start and end in milliseconds, text, by tabs, as Whisper's own."""
    rows = [
        f"{segment.start * 1000 // RATE}\t{segment.end * 1000 // RATE}\t{segment.text.strip()}".replace(
            "\n", " "
        )
        for segment in segments
    ]
    return "start\tend\ttext\n" + "".join(row + "\n" for row in rows)


def clock(sample: int, mark: str) -> str:
    """`01:02:03,456`, always with hours."""
    milliseconds = round(sample * 1000 / RATE)
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}{mark}{milliseconds:03d}"


def width_of(line: str) -> int:
    """Columns of a line: East Asian characters take two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in line)


def _spread(segment: Segment) -> tuple[Word, ...]:
    """Words of a segment that was not aligned, their times by length."""
    parts = re.findall(r"\s*\S+", segment.text)
    total = sum(len(part) for part in parts) or 1
    words, at = [], 0
    length = segment.end - segment.start
    for part in parts:
        start = segment.start + length * at // total
        at += len(part)
        words.append(Word(part, start, segment.start + length * at // total, 0.0))
    return tuple(words)


def _groups(words: Sequence[Word], width: int, lines: int) -> list[list[Word]]:
    """Words that share a cue: as many as fit, cut at pauses, and at clauses where a cut is needed anyway."""
    groups: list[list[Word]] = []
    for stretch in _stretches(words):
        rest = list(stretch)
        while rest:
            fit = 1
            while fit < len(rest) and _fits(rest[: fit + 1], width, lines):
                fit += 1
            if fit < len(rest):
                clauses = [
                    at
                    for at in range(fit // 2 + 1, fit + 1)
                    if rest[at - 1]
                    .text.rstrip()
                    .endswith((",", ";", ":", "，", "、", ".", "?", "!"))
                ]
                fit = clauses[-1] if clauses else fit
            groups.append(rest[:fit])
            rest = rest[fit:]
    return groups


def _stretches(words: Sequence[Word]) -> list[list[Word]]:
    stretches: list[list[Word]] = []
    for word in words:
        if stretches and word.start - stretches[-1][-1].end < PAUSE:
            stretches[-1].append(word)
        else:
            stretches.append([word])
    return stretches


def _fits(words: Sequence[Word], width: int, lines: int) -> bool:
    return len(_filled(words, width)) <= lines


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
            clause = pair[0].endswith((",", ";", ":", ".", "?", "!", "，", "、"))
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
