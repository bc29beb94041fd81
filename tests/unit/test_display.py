"""Live captions on a terminal that is modelled here: text, line breaks, and the few commands that the display uses."""

import re

from hypothesis import given
from hypothesis import strategies as st

from open_speech_client import Error, Event, Final, Partial, Ready, Reconnecting
from server.display import Display, clock, printable


class Terminal:
    """Rows of text; a row that scrolls off the top can no longer be changed."""

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.height = columns, rows
        self.rows = [""]
        self.at = 0
        self.bright = False
        self.styles: dict[str, bool] = {}

    def write(self, text: str) -> None:
        for token in re.findall(r"\x1b\[\d*[A-Za-z]|\r|\n|[^\x1b\r\n]", text):
            if token == "\r":
                pass  # every use is followed by a command that clears the row
            elif token == "\n":
                self.at += 1
                if self.at == len(self.rows):
                    self.rows.append("")
            elif token[0] == "\x1b" and token[-1] == "A":
                self.at -= int(token[2:-1])
                assert self.at >= max(0, len(self.rows) - self.height), "above the screen"
            elif token == "\x1b[J":
                del self.rows[self.at + 1 :]
                self.rows[self.at] = ""
            elif token[0] == "\x1b":
                self.bright = token == "\x1b[1m"
            else:
                self.rows[self.at] += token
                self.styles[token] = self.bright
                if token != " ":
                    assert len(self.rows[self.at]) <= self.columns or self.at < len(self.rows) - 1


def partial(committed: str, tentative: str, number: int = 0) -> Partial:
    return Partial(1, number, 1, committed, tentative, 0)


def final(text: str, start: float = 0.0, number: int = 0) -> Final:
    return Final(1, number, text, start, start + 1, 0)


def shown(*events: Event, columns: int = 40, rows: int = 10) -> Terminal:
    display, terminal = Display(columns, rows), Terminal(columns, rows)
    for event in events:
        terminal.write(display.receive(event))
    terminal.write(display.close())
    return terminal


def test_finals_scroll_up_with_their_times_and_partials_leave_nothing() -> None:
    terminal = shown(
        partial("", "The"),
        partial("The small", " dog"),
        final("The small dog.", 3.2),
        partial("And " * 20, "more"),
        final("And more.", 3725.0, 1),
    )
    assert terminal.rows == ["00:03  The small dog.", "1:02:05  And more.", ""]


def test_committed_is_bright_and_tentative_dim() -> None:
    display, terminal = Display(40, 10), Terminal(40, 10)
    terminal.write(display.receive(partial("ab", "xy")))
    assert terminal.rows == ["abxy"]
    assert [terminal.styles[letter] for letter in "abxy"] == [True, True, False, False]
    assert "\x1b" not in Display(40, 10, colour=False).receive(partial("ab", "xy"))


def test_a_long_partial_stays_on_the_screen_and_shows_its_end() -> None:
    display, terminal = Display(20, 4), Terminal(20, 4)
    for length in range(0, 200, 7):
        terminal.write(display.receive(partial("word " * length, "end")))
        assert len(terminal.rows) <= 3
        assert "".join(terminal.rows).endswith("end")


def test_what_is_void_disappears_and_errors_stay() -> None:
    terminal = shown(
        partial("lost", ""), Ready(0, "s", "m", 16000, 0), Error(2, "x", "something is wrong")
    )
    assert terminal.rows == ["error  something is wrong", ""]


def test_nobody_commands_the_terminal_by_speaking() -> None:
    assert printable("a\x1b[2Jb\nc\u202e") == "a [2Jb c "
    assert "\x1b[2J" not in Display().receive(final("a\x1b[2Jb"))
    assert clock(59.9) == "00:59"


@given(st.lists(st.tuples(st.text(), st.text(), st.booleans()), max_size=15), st.integers(20, 60))
def test_whatever_is_said_finals_are_all_that_stays(
    said: list[tuple[str, str, bool]], columns: int
) -> None:
    display = Display(columns, 5, colour=False)
    terminal = Terminal(10**6, 5)  # text as wide as it likes: widths are the display's own count
    stays = []
    for number, (committed, tentative, ends) in enumerate(said):
        terminal.write(display.receive(partial(committed, tentative, number)))
        if ends:
            terminal.write(display.receive(final(committed, number, number)))
            if committed:
                stays.append(f"{clock(number)}  {printable(committed)}")
    terminal.write(display.close())
    assert terminal.rows == [*stays, ""]


def test_a_line_that_is_no_caption_stays() -> None:
    display, terminal = Display(60, 10), Terminal(60, 10)
    for text in (
        display.receive(partial("It was", " a")),
        display.tell("3.8 s of audio\x1b[2J were dropped"),
        display.receive(final("It was a dark night.")),
        display.close(),
    ):
        terminal.write(text)
    assert terminal.rows == ["3.8 s of audio [2J were dropped", "00:00  It was a dark night.", ""]


def ready(*, resumed: bool) -> Ready:
    return Ready(0, "s_1", "toy", 16000, 0, 30.0, resumed)


def test_a_connection_that_is_away_and_back_is_a_line_each() -> None:
    away = Reconnecting(3, "the connection broke")
    terminal = shown(
        ready(resumed=False),
        partial("It was", " a"),
        away,
        away,
        away,
        ready(resumed=True),
        final("It was a dark night."),
        columns=60,
    )
    assert terminal.rows == [
        "the connection broke; trying again",
        "connected again; what was said meanwhile follows",
        "00:00  It was a dark night.",
        "",
    ]
    assert not terminal.styles["b"], "dim"
