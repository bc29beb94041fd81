"""argparse whose complaints are one sentence with a suggestion, and status 2. Standard library only."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """Says what is wrong instead of how everything is used; takes no abbreviations."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **(options | {"allow_abbrev": False}))

    def error(self, message: str) -> NoReturn:
        """One line on stderr, status 2."""
        self.exit(2, f"{self.prog}: {message} ({self.prog} --help says more)\n")

    def parse_known_args(  # type: ignore[override] # the overloads only differ in the namespace
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """As argparse's, but what is left over is an error of the command that it was given to."""
        found, rest = super().parse_known_args(args, namespace)
        for extra in rest:
            name = extra.partition("=")[0]
            if name.startswith("-"):
                self.error(f"there is no flag {name}{nearest(name, self._option_string_actions)}")
            self.error(f"{extra!r} is one argument too many")
        return found, rest

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """argparse's own, whose message lists the choices without saying which one was near."""
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        if action.option_strings:
            self.error(
                f"{action.option_strings[-1]} is {value!r}; it must be one of {', '.join(choices)}"
            )
        kind = str(action.metavar or "choice").lower()
        close = nearest(str(value), choices)
        self.error(f"there is no {kind} {value!r}{close or '; choose ' + ', '.join(choices)}")


def nearest(name: str, known: Iterable[str], *, ignoring: str = "") -> str:
    """A suggestion, or nothing. `ignoring` is a beginning that all have, and that would make them look alike."""
    bare = {each.removeprefix(ignoring): each for each in known}
    close = difflib.get_close_matches(name.removeprefix(ignoring), list(bare), 1, 0.6)
    return f"; did you mean {bare[close[0]]}?" if close else ""
