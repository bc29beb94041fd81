"""Live captions on a terminal, as text to write: pure, knows no terminal and no clock.

Finals scroll up and stay. Below them stands what is being said: committed words bright, tentative ones dim.
"""

from __future__ import annotations

import re
import unicodedata

from open_speech_client import Error, Event, Final, Partial, Ready, Reconnecting

_BOLD, _DIM, _PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"


class Display:
    """Feed events; each answers with what to write. The last row is never left with a line break."""

    def __init__(self, columns: int = 80, rows: int = 24, *, colour: bool = True) -> None:
        self._columns = max(20, columns)
        self._rows = max(2, rows)
        self._colour = colour
        self._drawn = 0  # rows that the live part takes now
        self._utterance: int | None = None
        self._away = False

    def receive(self, event: Event) -> str:
        """What changes on the screen."""
        match event:
            case Partial():
                self._utterance = event.utterance
                return self._erase() + self._live(printable(event.committed), event.tentative)
            case Final():
                self._utterance = None
                text = printable(event.text)
                line = f"{self._dim(clock(event.start))}  {text}\n" if text else ""
                return self._erase() + line
            case Ready(resumed=resumed):
                back, self._away = self._away, False
                told = f"{self._dim('connected again; what was said meanwhile follows')}\n"
                # What was shown of an open utterance is void in a new session.
                return ("" if resumed and not back else self._erase()) + (told if back else "")
            case Reconnecting(message=message):
                if self._away:
                    return ""  # one line is enough, however often it fails
                self._away = True
                return self._erase() + f"{self._dim(lost(message))}\n"
            case Error():
                return self._erase() + f"{self._dim('error')}  {printable(event.message)}\n"
            case _:
                return ""

    def tell(self, line: str) -> str:
        """A line that is no caption; the live part comes back with the next partial."""
        return self._erase() + f"{self._dim(printable(line))}\n"

    def close(self) -> str:
        """Leave the screen as whole lines."""
        return self._erase()

    def _erase(self) -> str:
        drawn, self._drawn = self._drawn, 0
        if not drawn:
            return ""
        return "\r" + (f"\x1b[{drawn - 1}A" if drawn > 1 else "") + "\x1b[J"

    def _live(self, committed: str, tentative: str) -> str:
        """The live part, at most the screen without one row: the beginning gives way to the end."""
        shown = [(letter, True) for letter in committed]
        shown += [(letter, False) for letter in printable(tentative)]
        room = (
            self._rows - 1
        ) * self._columns - self._rows  # wide letters may leave a cell free a row
        while sum(_width(letter) for letter, _ in shown) > room:
            shown = shown[len(shown) // 8 + 1 :]
        out, column, self._drawn, bright = [], 0, 1, None
        for letter, committed_ in shown:
            width = _width(letter)
            if (
                column + width > self._columns - 1
            ):  # never in the last column: terminals differ there
                out.append("\n")
                self._drawn += 1
                column = 0
                if letter == " ":
                    continue
            if bright is not committed_ and self._colour:
                bright = committed_
                out.append(_PLAIN + (_BOLD if bright else _DIM))
            out.append(letter)
            column += width
        return "".join(out) + (_PLAIN if self._colour else "")

    def _dim(self, text: str) -> str:
        return f"{_DIM}{text}{_PLAIN}" if self._colour else text


def lost(message: str) -> str:
    """What to tell of a connection that is away."""
    return f"{printable(message)}; trying again"


def clock(seconds: float) -> str:
    """`1:02:03` or `02:03`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


def printable(text: str) -> str:
    """`text` without what would command the terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", " ", text)


def _width(letter: str) -> int:
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1
