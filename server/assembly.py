"""Puts a server together from its settings. The only place that knows every part."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from server.configuration import Misconfigured
from server.settings import Settings
from streaming.types import Device

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from server.context import Context
    from streaming.engine import Engine
    from streaming.local import LocalEngine, Plan
    from streaming.models import Catalogue
    from streaming.observer import Observer

log = logging.getLogger(__name__)


class NoGpu(Exception):
    """A GPU was asked for and none is there; the message names the remedy."""


def device(settings: Settings) -> Device:
    """Where models run, and how wide. Raises NoGpu."""
    kind = settings.device
    gpus = 0 if kind == "cpu" else visible_gpus()
    if kind == "cuda" and not gpus:
        raise NoGpu(
            "no NVIDIA GPU is visible; start the container with --gpus all (it needs the NVIDIA container toolkit),"
            " check nvidia-smi, or set STT_DEVICE=cpu"
        )
    if gpus:
        return Device(
            "cuda",
            settings.device_index,
            settings.compute_type,
            settings.workers or 2,
            settings.threads or 1,
        )
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    workers = settings.workers or (max(1, cores // 2) if cores != 2 else 2)
    threads = settings.threads or max(1, cores // workers)
    return Device("cpu", 0, settings.compute_type, workers, threads)


def visible_gpus() -> int:
    """NVIDIA GPUs that CTranslate2 would see, without loading it: devices of the driver."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is not None and wanted.strip() in ("", "-1"):
        return 0
    import ctypes

    try:
        driver = ctypes.CDLL("libcuda.so.1")
        count = ctypes.c_int(0)
        if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
            return 0
    except (OSError, AttributeError):
        return 0
    return count.value


def make_catalogue(settings: Settings, where: Device) -> Catalogue:
    """The catalogue of the settings."""
    from streaming.backends import canonical, loaders
    from streaming.models import Catalogue, read_aliases

    aliases = read_aliases(settings.alias_file) if settings.alias_file is not None else {}
    aliases |= _pairs(settings.alias, "alias")
    paths = {
        name: Path(path).expanduser() for name, path in _pairs(settings.model, "model").items()
    }
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    backends = loaders()
    if canonical(settings.default_backend) not in backends:
        raise Misconfigured(
            f"default_backend is {settings.default_backend!r}; it must be one of {', '.join(sorted(backends))}"
        )
    return Catalogue(
        backends,
        default=settings.default_model,
        default_backend=canonical(settings.default_backend),
        translation=settings.translation_model,
        directory=settings.model_dir.expanduser() if settings.model_dir is not None else None,
        aliases=aliases,
        paths=paths,
        offline=settings.offline,
        downloads=settings.allow_downloads,
        repositories=settings.allow_repositories,
        hosts=settings.hub_hosts,
        code=settings.allow_code,
        gpu=where.kind == "cuda",
    )


def plan(settings: Settings, where: Device) -> Plan:
    """How the engine uses the machine."""
    from streaming.local import Plan

    return Plan(
        where,
        settings.window,
        settings.beam,
        settings.model_keep_alive,
        settings.max_models,
        settings.max_requests,
        settings.max_streams,
        settings.max_wait_seconds,
        settings.max_backlog_mb * 2**20,
        settings.runners and os.name == "posix",
        settings.decode_timeout,
    )


def make_engine(
    settings: Settings, catalogue: Catalogue, where: Device, observer: Observer | None = None
) -> LocalEngine:
    """The engine; nothing is loaded yet."""
    from streaming.backends import loaders
    from streaming.local import LocalEngine
    from streaming.vad.silero import Silero

    return LocalEngine(catalogue, loaders(), Silero, plan(settings, where), observer)


def make_app(settings: Settings, where: Device) -> tuple[Starlette, Context]:
    """The server, ready to run; models load after it listens."""
    from server import flight, tracing
    from server.app import create_app
    from server.context import Context
    from server.metrics import Metrics
    from server.watch import watch

    catalogue = make_catalogue(settings, where)
    runs = where.kind if where.kind == "cpu" else f"{where.kind}:{where.index}"
    catalogue.observer = metrics = Metrics(runs)
    engine: Engine = make_engine(settings, catalogue, where, metrics)
    if settings.flight_dir is not None:
        engine = flight.Recorder(engine, settings)
    here = Context(settings, engine, catalogue, metrics)
    metrics.watch(here)
    spans = tracing.provider() if tracing.wanted() else None

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None, None]:
        del app
        preparing = asyncio.create_task(_prepare(here))
        watching = asyncio.create_task(watch(here))
        try:
            yield
        finally:
            preparing.cancel()
            watching.cancel()
            await asyncio.gather(preparing, watching, return_exceptions=True)
            await here.engine.aclose()
            if spans is not None:
                await asyncio.to_thread(spans.shutdown)

    return create_app(here, lifespan, spans), here


async def _prepare(here: Context) -> None:
    """After the server listens: settle on the default model, load what is to be preloaded."""
    from streaming import hub
    from streaming.audio.media import nursery
    from streaming.errors import OpenSpeechError

    await asyncio.to_thread(nursery.warm)
    notice = await asyncio.to_thread(here.catalogue.settle)
    if notice:
        log.warning(notice)
    try:
        default = await asyncio.to_thread(here.catalogue.entry, "")
        if not default.downloaded and (here.settings.offline or hub.offline()):
            here.notice = (
                f"the default model {default.id} is not downloaded and the server is offline; copy it into"
                " STT_MODEL_DIR, or let the server go online once"
            )
            log.warning(here.notice)
    except OpenSpeechError as error:
        log.warning("STT_DEFAULT_MODEL: %s", error)
        here.notice = f"STT_DEFAULT_MODEL: {error}"
    for name in here.settings.preload:
        try:
            await here.engine.load(name)
        except OpenSpeechError as error:
            log.warning("cannot preload %s: %s", name, error)
            here.notice = f"cannot preload {name}: {error}"
        except Exception:
            log.exception("cannot preload %s", name)
    here.ready = True


def _pairs(values: tuple[str, ...], setting: str) -> dict[str, str]:
    found = {}
    for value in values:
        name, equals, target = value.partition("=")
        if not equals or not name.strip() or not target.strip():
            hint = (
                "; to use a model: serve NAME, or transcribe -m NAME" if setting == "model" else ""
            )
            raise Misconfigured(f"{setting} is {value!r}; it must be name=value{hint}")
        found[name.strip()] = target.strip()
    return found
