"""The scripted recogniser with words that harm it, for tests of what stands around a recogniser.

Before ``w62``, ``w60`` aborts the process, ``w59`` does so once if the model's folder holds a file `once`, ``w58`` hangs,
``w57`` finds the device's memory full, ``w56`` breaks the device for good, ``w55`` raises what nobody foresaw. A folder with
a file `stillborn` aborts while it loads, one with a file `dumb` raises, one with a file `endless` never comes to an end.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from streaming.backends import scripted
from streaming.backends.base import Capabilities, Hypothesis, StepResult, Window
from streaming.backends.scripted import ScriptedBackend, ScriptedSteps
from streaming.errors import BackendError
from streaming.types import Device, Samples


def _harm(samples: Samples, folder: Path) -> None:
    said = [word.text.strip() for word in scripted.read(samples)]
    words = {word for word, following in pairwise(said) if following == "w62"}
    if "w60" in words:
        print("terminate called after throwing an instance of 'std::runtime_error'", flush=True)
        os.abort()
    if "w59" in words and (folder / "once").exists():
        (folder / "once").unlink()
        os.abort()
    if "w58" in words:
        threading.Event().wait()
    if "w57" in words:
        raise BackendError("the device has too little free memory for this model or batch")
    if "w56" in words:
        raise BackendError("CUDA failed with error unspecified launch failure")
    if "w55" in words:
        raise ZeroDivisionError("a bug")


@dataclass(slots=True)
class _Windows(ScriptedBackend):
    folder: Path = Path()

    def decode(self, windows: Sequence[Window]) -> list[Hypothesis]:
        for window in windows:
            _harm(window.samples, self.folder)
        return ScriptedBackend.decode(self, windows)


@dataclass(slots=True)
class _Steps(ScriptedSteps):
    folder: Path = Path()

    def step(self, states: Sequence[object], chunks: Sequence[Samples]) -> list[StepResult]:
        found = ScriptedSteps.step(self, states, chunks)  # type: ignore[arg-type]
        for state in states:
            _harm(state.samples, self.folder)  # type: ignore[attr-defined]
        return found


class _Loader:
    name = "deadly"

    def inspect(self, path: Path) -> Capabilities | None:
        return scripted.LOADER.inspect(path)

    def key(self, window: Window) -> object:
        return scripted.LOADER.key(window)

    def load(self, path: Path, device: Device) -> ScriptedBackend | ScriptedSteps:
        del device
        if (path / "stillborn").exists():
            print("Unable to load any of {libcudnn_ops.so.9, libcudnn_ops.so}", flush=True)
            os.abort()
        if (path / "endless").exists():
            threading.Event().wait()
        if (path / "dumb").exists():
            raise ValueError("no such arithmetic")
        steps = (path / "scripted").read_text("utf-8").strip() == "steps"
        return _Steps(folder=path) if steps else _Windows(folder=path)


LOADER = _Loader()
