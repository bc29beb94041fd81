"""Models that are loaded and closed take no thread that others wait for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from streaming.backends import scripted
from streaming.backends.base import Capabilities, Window
from streaming.backends.scripted import ScriptedBackend, ScriptedSteps
from streaming.local import LOADS, LocalEngine, Plan
from streaming.models import Catalogue
from streaming.types import Device, Options
from tests.fakes import Loudness

SLOW = [f"slow{number}" for number in range(6)]


class _Loader:
    """Loads what is called slow, and closes what is called stubborn, when it may."""

    name = "scripted"

    def __init__(self) -> None:
        self.may = threading.Event()
        self.begun: list[str] = []

    def inspect(self, path: Path) -> Capabilities | None:
        return scripted.LOADER.inspect(path)

    def key(self, window: Window) -> object:
        return scripted.LOADER.key(window)

    def load(self, path: Path, device: Device) -> ScriptedBackend | ScriptedSteps:
        if path.name in SLOW:
            self.begun.append(path.name)
            assert self.may.wait(30)
        backend = _Stubborn() if path.name.startswith("stubborn") else ScriptedBackend()
        if isinstance(backend, _Stubborn):
            backend.may = self.may
        return backend


class _Stubborn(ScriptedBackend):
    may: threading.Event

    def close(self) -> None:
        assert self.may.wait(30)


def _run(tmp_path: Path, scenario: Callable[[LocalEngine, _Loader], Awaitable[None]]) -> None:
    names = [*SLOW, "ready", "stubborn0", "stubborn1"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "scripted").touch()
    loader = _Loader()
    found = {loader.name: loader}
    paths = {name: tmp_path / name for name in names}
    catalogue = Catalogue(found, default="ready", paths=paths, offline=True)

    async def run() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        engine = LocalEngine(catalogue, found, Loudness, Plan(Device(workers=1)))
        try:
            async with asyncio.timeout(20):
                await scenario(engine, loader)
        finally:
            loader.may.set()
            await engine.aclose()

    asyncio.run(run())


def test_streams_open_and_models_go_while_many_are_loaded(tmp_path: Path) -> None:
    async def scenario(engine: LocalEngine, loader: _Loader) -> None:
        await engine.load("ready")
        loads = [asyncio.create_task(engine.load(name)) for name in SLOW]
        while len(loader.begun) < LOADS:
            await asyncio.sleep(0.01)
        await (await engine.open_stream(Options(model="ready"))).aclose()
        assert await engine.unload("ready")
        assert engine.loaded() == []
        assert len(loader.begun) == LOADS
        loader.may.set()
        await asyncio.gather(*loads)
        assert sorted(loader.begun) == SLOW

    _run(tmp_path, scenario)


def test_a_model_that_takes_long_to_close_holds_up_nobody(tmp_path: Path) -> None:
    async def scenario(engine: LocalEngine, loader: _Loader) -> None:
        for name in ("stubborn0", "stubborn1", "ready"):
            await engine.load(name)
        closing = [asyncio.create_task(engine.unload(name)) for name in ("stubborn0", "stubborn1")]
        while len(engine.loaded()) > 1:
            await asyncio.sleep(0.01)
        await (await engine.open_stream(Options(model="ready"))).aclose()
        assert await engine.unload("ready")
        assert not any(each.done() for each in closing)
        loader.may.set()
        assert await asyncio.gather(*closing) == [True, True]

    _run(tmp_path, scenario)
