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
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
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
from open_speech_client.microphone import BLOCK, HELD, Microphone, devices
from server.display import Display, lost
from server.gaps import Gaps

if TYPE_CHECKING:
    from server.subtitles import Subtitles

PIECE = 0.05
"""Seconds of a file's audio in one message."""
AHEAD = 64
"""Pieces that wait between the thread that makes them and the connection: 3 s of a microphone."""
LOOK = 1.0
"""Seconds between two looks at whether the microphone had to drop something."""


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
        gaps = Gaps()
        return asyncio.run(
            _run(
                given,
                _heard(microphone, gaps),
                microphone.close,
                sample_rate=microphone.sample_rate,
                gaps=gaps,
                dropped=lambda: microphone.dropped * BLOCK,
            )
        )


def stream(given: dict[str, Any]) -> int:
    """Captions of a file, as fast as it plays or as fast as the server is."""
    path = Path(given["file"])
    with path.open("rb"):
        pass  # a missing file is told before anything else
    ended = threading.Event()
    return asyncio.run(_run(given, _pieces(path, ended), ended.set, speed=given["speed"]))


def _heard(microphone: Microphone, gaps: Gaps) -> Iterator[bytes]:
    """The pieces of a microphone. `gaps` learns where some are missing before the next one is sent."""
    given = 0
    for piece in microphone:
        gaps.note(given / (2 * microphone.sample_rate), microphone.missing)
        given += len(piece)
        yield piece


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
    gaps: Gaps | None = None,
    dropped: Callable[[], float] | None = None,
) -> int:
    """One stream from its first piece to its last final. `dropped` says how many seconds the source had to drop."""
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

            async def look() -> None:
                while dropped is not None:
                    output.miss(dropped())
                    await asyncio.sleep(LOOK)

            work = [asyncio.create_task(feed()), asyncio.create_task(look())]
            with _interruptible(stop):
                try:
                    async for event in live:
                        output.receive(event if gaps is None else gaps.placed(event))
                    await work[0]
                finally:
                    if dropped is not None:
                        output.miss(dropped())
                    output.close()
                    stop()
                    for task in work:
                        task.cancel()
                    await asyncio.gather(*work, return_exceptions=True)
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
        self._dropped = self._told = (
            0.0  # seconds that the microphone had to drop; those that were told
        )
        self._dropping = False
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

    def miss(self, seconds: float) -> None:
        """The microphone had to drop so much in all; told when that begins, and when it is over."""
        if seconds > self._dropped:
            if not self._dropping:
                self._tell(
                    f"the server is {HELD:g} s behind; the oldest of what it has not heard is dropped"
                )
            self._dropping = True
        elif self._dropping:
            self._dropping = False
            self._tell_missed(seconds)
        self._dropped = seconds

    def close(self) -> None:
        """Leave the screen and the file in order. Idempotent."""
        if self._dropping:
            self._dropping = False
            self._tell_missed(self._dropped)
        if self._display is not None:
            sys.stdout.write(self._display.close())
            sys.stdout.flush()
        if self._subtitles is not None:
            self._subtitles.close()

    def _tell_missed(self, seconds: float) -> None:
        self._tell(
            f"{seconds - self._told:.1f} s of audio were dropped; times go on as if they had been heard"
        )
        self._told = seconds

    def _tell(self, line: str) -> None:
        """What is no caption."""
        if self._display is not None:
            sys.stdout.write(self._display.tell(line))
            sys.stdout.flush()
        else:
            print(f"open-speech: {line}", file=sys.stderr)


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
