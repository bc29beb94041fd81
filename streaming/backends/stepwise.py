"""Driving a recogniser that steps: the utterances of live streams side by side, or a whole window at once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from streaming.backends.base import (
    Capabilities,
    Hypothesis,
    Step,
    StepBackend,
    StepResult,
    Window,
    WindowBackend,
)


class Steps:
    """What a StepBackend keeps of open utterances, each known by its owner and a tag of the owner's own.

    `run` may be called from several threads, but not for one utterance at a time.
    """

    def __init__(self, backend: StepBackend) -> None:
        self._backend = backend
        self._states: dict[Hashable, dict[object, Any]] = {}

    def run(self, steps: Sequence[tuple[Hashable, object, Step]]) -> list[Hypothesis | StepResult]:
        """One step of each utterance, in as few calls as their lengths allow. Answers in order.

        If it fails all of them are forgotten, and have to begin anew.
        """
        try:
            return self._run(steps)
        except Exception:
            for owner, tag, _ in steps:
                if tag in self._states.get(owner, {}):
                    with suppress(Exception):
                        self._backend.drop(self._states[owner].pop(tag))
            raise

    def _run(self, steps: Sequence[tuple[Hashable, object, Step]]) -> list[Hypothesis | StepResult]:
        backend, chunk = self._backend, self._backend.capabilities.chunk
        states, pieces = [], []
        for owner, tag, step in steps:
            mine = self._states.setdefault(owner, {})
            if step.first:
                if tag in mine:
                    backend.drop(mine.pop(tag))
                mine[tag] = backend.open(step.decoding)
            states.append(mine[tag])
            size = chunk or max(1, len(step.samples))
            parts = [step.samples[at : at + size] for at in range(0, len(step.samples), size)]
            if chunk and parts and len(parts[-1]) < chunk:  # the end of the utterance
                parts[-1] = np.pad(parts[-1], (0, chunk - len(parts[-1])))
            pieces.append(parts)
        found: list[Hypothesis | StepResult] = [StepResult(())] * len(steps)
        for turn in range(max(map(len, pieces))):
            rows = [row for row, parts in enumerate(pieces) if turn < len(parts)]
            said = backend.step([states[row] for row in rows], [pieces[row][turn] for row in rows])
            for row, result in zip(rows, said, strict=True):
                found[row] = result
        for row, (owner, tag, step) in enumerate(steps):
            if step.last:
                found[row] = backend.finish(self._states[owner].pop(tag))
        return found

    def drop(self, owner: Hashable) -> None:
        """Free everything of `owner`, none of whose steps is running."""
        for state in self._states.pop(owner, {}).values():
            self._backend.drop(state)


def whole(backend: WindowBackend | StepBackend) -> WindowBackend:
    """`backend` itself if it decodes windows, else an adapter that feeds it each window from beginning to end."""
    return backend if isinstance(backend, WindowBackend) else _Whole(backend)


class _Whole:
    """A WindowBackend over a StepBackend."""

    def __init__(self, backend: StepBackend) -> None:
        self.capabilities: Capabilities = backend.capabilities
        self.compute_type: str = backend.compute_type
        self.memory: int | None = backend.memory
        self._backend = backend

    def key(self, window: Window) -> Hashable:
        """All windows may share a batch: each has a state of its own."""
        del window
        return "whole"

    def decode(self, windows: Sequence[Window]) -> list[Hypothesis]:
        """See `WindowBackend.decode`: one state a window, all of them in each step that they reach."""
        states = [self._backend.open(window.decoding) for window in windows]
        size = self.capabilities.chunk or max(1, *(len(window.samples) for window in windows))
        for at in range(0, max(len(window.samples) for window in windows), size):
            rows = [row for row, window in enumerate(windows) if at < len(window.samples)]
            chunks = [windows[row].samples[at : at + size] for row in rows]
            if self.capabilities.chunk:
                chunks = [np.pad(chunk, (0, size - len(chunk))) for chunk in chunks]
            self._backend.step([states[row] for row in rows], chunks)
        return [self._backend.finish(state) for state in states]

    def close(self) -> None:
        """See `Backend.close`."""
        self._backend.close()
