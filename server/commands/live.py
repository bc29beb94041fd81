"""`open-speech listen` and `open-speech stream`: live captions of a microphone or a file, from any server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import ssl
import sys
import threading
from collections.abc import AsyncGenerator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from open_speech_client import (
    End,
    Error,
    Event,
    Final,
    Ready,
    Reconnecting,
    async_connect,
)
from open_speech_client.address import address, local
from open_speech_client.events import encode
from open_speech_client.microphone import Microphone, devices
from server.display import Display, lost

if TYPE_CHECKING:
    from server.subtitles import Subtitles

PIECE = 0.05
"""Seconds of a file's audio in one message."""
AHEAD = 64
"""Pieces that wait between the thread that makes them and the connection: 3 s of a microphone."""


def listen(given: dict[str, Any]) -> int:
    """Captions of the microphone until Ctrl-C."""
    if given["list_devices"]:
        print(devices())
        return 0
    device = given["device"]
    if device is not None and device.isdecimal():
        device = int(device)
    with Microphone(device) as microphone:
        on_terminal = sys.stderr.isatty()
        if on_terminal:
            print("listening; Ctrl-C ends", file=sys.stderr)
        return asyncio.run(
            _run(given, microphone, microphone.close, sample_rate=microphone.sample_rate)
        )


def stream(given: dict[str, Any]) -> int:
    """Captions of a file, as fast as it plays or as fast as the server is."""
    path = Path(given["file"])
    with path.open("rb"):
        pass  # a missing file is told before anything else
    ended = threading.Event()
    return asyncio.run(_run(given, _pieces(path, ended), ended.set, speed=given["speed"]))


def _pieces(path: Path, ended: threading.Event) -> Iterator[bytes]:
    """16-bit audio at 16 kHz."""
    import numpy as np

    from streaming.audio import files
    from streaming.types import RATE

    size = int(PIECE * RATE)
    rest = np.zeros(0, np.float32)
    for chunk in files.decode(path):
        rest = np.concatenate([rest, chunk])
        whole = len(rest) - len(rest) % size
        for at in range(0, whole, size):
            if ended.is_set():
                return
            yield _int16(rest[at : at + size])
        rest = rest[whole:]
    if len(rest):
        yield _int16(rest)


def _int16(samples: Any) -> bytes:
    data: bytes = (samples * 32768.0).round().clip(-32768, 32767).astype("<i2").tobytes()
    return data


async def _run(
    given: dict[str, Any],
    source: Iterable[bytes],
    stop: Any,
    *,
    speed: float = 0.0,
    sample_rate: int = 16000,
) -> int:
    """One stream from its first piece to its last final."""
    options = {
        "model": given["model_name"],
        "language": given["language"],
        "task": given["task"],
        "prompt": given["prompt"] or None,
        "hotwords": given["hotwords"] or None,
        "endpointing_ms": given["endpointing_ms"],
        "words": True if given["srt"] or given["json"] else None,
        "sample_rate": sample_rate,
    }
    url = given["url"] or _default_url()
    loop = asyncio.get_running_loop()
    with contextlib.closing(_Output(given)) as output:
        async with async_connect(url, key=_key(given), ssl=_trust(url), **options) as live:
            pieces = _threaded(source, stop)

            async def feed() -> None:
                until = loop.time()
                try:
                    async with contextlib.aclosing(pieces):
                        async for piece in pieces:
                            if speed > 0:
                                await asyncio.sleep(until - loop.time())
                                until += len(piece) / (2 * sample_rate * speed)
                            await live.send(piece)
                    await live.end()
                except Exception:
                    await live.aclose()  # nobody shall wait for audio that never comes
                    raise

            feeding = asyncio.create_task(feed())
            with _interruptible(stop):
                try:
                    async for event in live:
                        output.receive(event)
                    await feeding
                finally:
                    output.close()
                    stop()
                    feeding.cancel()
                    await asyncio.gather(feeding, return_exceptions=True)
    return output.status


@contextlib.contextmanager
def _interruptible(stop: Any) -> Iterator[None]:
    """The first Ctrl-C ends the audio and waits for its text; the second leaves."""
    loop, asked = asyncio.get_running_loop(), False

    def interrupt() -> None:
        nonlocal asked
        if asked:
            loop.remove_signal_handler(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            return
        asked = True
        stop()

    with contextlib.suppress(
        NotImplementedError, ValueError
    ):  # not on Windows, not off the main thread
        loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        with contextlib.suppress(NotImplementedError, ValueError):
            loop.remove_signal_handler(signal.SIGINT)


async def _threaded(source: Iterable[bytes], stop: Any) -> AsyncGenerator[bytes, None]:
    """The pieces of a source that blocks, made on a thread; at most AHEAD of them wait."""
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
    room = threading.Semaphore(AHEAD)
    left = threading.Event()

    def put(item: bytes | Exception | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            loop.call_soon_threadsafe(pieces.put_nowait, item)

    def produce() -> None:
        try:
            for piece in source:
                room.acquire()
                if left.is_set():
                    return
                put(piece)
            put(None)
        except Exception as error:
            put(error)

    threading.Thread(target=produce, name="audio", daemon=True).start()
    try:
        while (item := await pieces.get()) is not None:
            if isinstance(item, Exception):
                raise item
            room.release()
            yield item
    finally:
        left.set()
        room.release()
        stop()


class _Output:
    """Where events go: the terminal, lines of text or JSON on stdout, and a file of subtitles."""

    def __init__(self, given: dict[str, Any]) -> None:
        self._json = given["json"]
        self._subtitles: Subtitles | None = None
        if given["srt"]:
            from server.subtitles import Subtitles  # and numpy, which not every command needs

            # A file that cannot be written is told before the speech.
            self._subtitles = Subtitles(Path(given["srt"]))
        self._display: Display | None = None
        if sys.stdout.isatty() and not self._json:
            size = shutil.get_terminal_size()
            plain = "NO_COLOR" in os.environ
            self._display = Display(size.columns, size.lines, colour=not plain)
        self._away = False
        self.status = 1

    def receive(self, event: Event) -> None:
        """Show, write, remember."""
        if self._json:
            print(json.dumps(encode(event), ensure_ascii=False), flush=True)
        elif self._display is not None:
            sys.stdout.write(self._display.receive(event))
            sys.stdout.flush()
        elif isinstance(event, Final) and event.text:
            print(event.text, flush=True)
        elif isinstance(event, Error):
            print(f"open-speech: {event.message}", file=sys.stderr)
        elif isinstance(event, Reconnecting):
            if not self._away:
                print(f"open-speech: {lost(event.message)}", file=sys.stderr)
            self._away = True
        elif isinstance(event, Ready) and self._away:
            self._away = False
            print("open-speech: connected again", file=sys.stderr)
        if isinstance(event, End):
            self.status = 0
        if isinstance(event, Final) and self._subtitles is not None:
            self._subtitles.receive(event)

    def close(self) -> None:
        """Leave the screen and the file in order. Idempotent."""
        if self._display is not None:
            sys.stdout.write(self._display.close())
            sys.stdout.flush()
        if self._subtitles is not None:
            self._subtitles.close()


def _key(given: dict[str, Any]) -> str | None:
    for name in ("STT_API_KEY", "OPEN_SPEECH_KEY", "STT_API_KEYS"):
        if given["key"]:
            break
        given["key"] = os.environ.get(name, "").split(",")[0]
    key: str | None = given["key"] or None
    return key


def _trust(url: str) -> ssl.SSLContext | None:
    if not local(address(url)):
        return None
    context = ssl.create_default_context()
    context.check_hostname = False  # its own certificate names another host
    context.verify_mode = ssl.CERT_NONE
    return context


def _default_url() -> str:
    port = os.environ.get("STT_PORT", "")
    scheme = "https" if os.environ.get("STT_TLS_CERT") else "http"
    return f"{scheme}://localhost:{port if port.isdecimal() else 8100}"
