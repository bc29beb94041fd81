"""A model that loads on a GPU and then hears nothing is refused, with the remedy; and its memory is given back."""

import asyncio
import math
import subprocess
import sys
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from streaming import selftest
from streaming.backends import loaders
from streaming.backends.base import Capabilities, Hypothesis, Window
from streaming.errors import BackendError, ModelUnavailable
from streaming.local import LocalEngine, Plan
from streaming.models import Catalogue
from streaming.types import RATE, Device, Word
from tests import toy
from tests.fakes import Loudness

GOOD = Hypothesis(
    " The price is seven dollars.",
    words=(Word(" The", 0, RATE // 10, 0.9),),
    log_probability=-0.2,
    no_speech=0.01,
    compression_ratio=0.9,
)
BROKEN = {
    "empty": replace(GOOD, text=""),
    "blanks": replace(GOOD, text="  "),
    "token nought": replace(GOOD, text=" !!!!!!!!!!!!!!!!!!"),
    "no numbers": replace(GOOD, log_probability=math.nan),
    "no numbers in words": replace(GOOD, words=(Word(" The", 0, 1, math.nan),)),
    "noise": replace(GOOD, log_probability=-6.0),
    "a loop": replace(GOOD, text=" the the the", compression_ratio=9.0),
    "silence": replace(GOOD, log_probability=-1.5, no_speech=0.9),
}


class Card:
    """A loader, and the model it loads: a GPU that answers as it is told."""

    name = "faster_whisper"
    compute_type = "float16"
    memory = 1

    def __init__(self, answer: Hypothesis | BackendError) -> None:
        self.answer = answer
        self.capabilities = Capabilities()
        self.closed = 0
        self.loaded = 0

    def inspect(self, path: Path) -> Capabilities | None:
        return self.capabilities if (path / "model.bin").exists() else None

    def load(self, path: Path, device: Device) -> "Card":
        self.loaded += 1
        return self

    def key(self, window: Window) -> Hashable:
        return 0

    def decode(self, windows: Sequence[Window]) -> list[Hypothesis]:
        if isinstance(self.answer, BackendError):
            raise self.answer
        return [self.answer] * len(windows)

    def close(self) -> None:
        self.closed += 1


def engine(card: Card, kind: str) -> LocalEngine:
    found = Catalogue({card.name: card}, default="toy", paths={"toy": toy.build()}, offline=True)
    device = Device(kind, 0, None, 1, 1)  # type: ignore[arg-type]
    return LocalEngine(found, {card.name: card}, Loudness, Plan(device))


def load(card: Card, kind: str = "cuda") -> None:
    async def run() -> None:
        made = engine(card, kind)
        try:
            await made.load("toy")
            assert [info.id for info in made.loaded()] == ["toy"]
        finally:
            assert made.loading() == []
            await made.aclose()

    asyncio.run(run())


@pytest.mark.parametrize("layout", ["v3", "v2", "en"])
def test_a_real_whisper_passes(layout: str) -> None:
    backend = loaders()["faster_whisper"].load(
        toy.build(layout=layout), Device(workers=1, threads=1)
    )
    selftest.check(backend, "toy")  # type: ignore[arg-type]
    backend.close()
    with pytest.raises(ModelUnavailable, match="was unloaded"):
        selftest.check(backend, "toy")  # type: ignore[arg-type]


def test_the_clip_is_a_short_sentence_and_a_small_file() -> None:
    assert 2.5 < len(selftest.clip()) / RATE < 3.5
    assert selftest.CLIP.stat().st_size < 20_000


def test_a_gpu_that_works_serves() -> None:
    card = Card(GOOD)
    load(card)
    assert (card.loaded, card.closed) == (1, 1), "closed with the engine"


@pytest.mark.parametrize("kind", BROKEN)
def test_a_gpu_that_prints_nonsense_is_refused_with_the_remedy(kind: str) -> None:
    card = Card(BROKEN[kind])
    with pytest.raises(ModelUnavailable, match="toy loads but fails its self-test") as caught:
        load(card)
    for remedy in ("570", "open-speech-server[cuda]", "STT_COMPUTE_TYPE", "STT_DEVICE=cpu"):
        assert remedy in str(caught.value)
    assert card.closed == 1


def test_a_gpu_whose_library_is_missing_is_refused_with_the_remedy() -> None:
    card = Card(BackendError("library libcublas.so.12 is not found or cannot be loaded"))
    with pytest.raises(ModelUnavailable, match=r"libcublas\.so\.12.*open-speech-server\[cuda\]"):
        load(card)
    assert card.closed == 1


def test_a_cpu_is_not_asked() -> None:
    load(Card(BROKEN["empty"]), "cpu")


def test_unloading_gives_the_memory_back(tmp_path: Path) -> None:
    """In a process of its own: models come and go, and what they took goes with them."""
    script = """
import asyncio, sys
from pathlib import Path
from streaming import selftest
from streaming.backends import loaders
from streaming.local import LocalEngine, Plan
from streaming.models import Catalogue
from streaming.types import Device, Options, Recording
from tests.fakes import Loudness

def used():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1024

async def main():
    found = loaders()
    models = {"a": Path(sys.argv[1]), "b": Path(sys.argv[1])}
    catalogue = Catalogue(found, default="a", paths=models, offline=True)
    engine = LocalEngine(catalogue, found, Loudness, Plan(Device(workers=2, threads=1), max_models=1))
    for name in "abab":
        async for _ in engine.transcribe(Recording(selftest.CLIP), Options(name, beam=1, window="short")):
            pass
        loaded = used()
        if name == "b":
            await engine.unload(name)
        print(loaded, used())
    await engine.aclose()

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(toy.build(shape="base"))],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    rows = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    (_, _), (loaded, first), (_, _), (_, second) = rows
    assert loaded - first > 50, rows
    assert second - first < 60, rows
