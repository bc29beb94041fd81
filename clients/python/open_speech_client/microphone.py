"""A microphone as audio for a stream, through PortAudio: `pip install 'open-speech-client[microphone]'`."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from open_speech_client.errors import OpenSpeechError

BLOCK = 0.04
"""Seconds of audio in one piece."""
HELD = 60.0
"""Seconds of audio that wait while a connection is away; after that the oldest is dropped."""
RATES = 8000, 48000
"""What servers take."""


class NoMicrophone(OpenSpeechError):
    """There is no microphone, or nothing to reach it with."""


def devices() -> str:
    """A table of the audio devices. Raises NoMicrophone."""
    return str(_library().query_devices())


class Microphone:
    """16-bit mono audio from an input device, to be entered with `with` and iterated until `close`.

    `device` is a number, or part of a name, of `devices()`; None is the system's default.
    """

    def __init__(self, device: int | str | None = None) -> None:
        self._library = library = _library()
        try:
            found = library.query_devices(device, "input")
        except (ValueError, library.PortAudioError) as error:
            raise NoMicrophone(f"no such microphone: {error}") from None
        self.sample_rate = min(RATES[1], max(RATES[0], int(found["default_samplerate"])))
        """The device's own rate, so that nothing resamples here."""
        self.dropped = 0
        """Pieces that were dropped because nobody took them."""
        self.missing = 0.0
        """Seconds that were dropped before the piece that came last: what follows was heard so much later than who
        counts pieces thinks."""
        # (sample at which a piece begins, the piece); None is the end.
        self._pieces: queue.Queue[tuple[int, bytes] | None] = queue.Queue(int(HELD / BLOCK))
        self._heard = 0  # samples
        self._given = 0  # samples, of those
        try:
            self._stream = library.RawInputStream(
                samplerate=self.sample_rate,
                blocksize=int(self.sample_rate * BLOCK),
                device=device,
                channels=1,
                dtype="int16",
                callback=self._receive,
            )
        except (ValueError, library.PortAudioError) as error:
            raise NoMicrophone(f"the microphone cannot be opened: {error}") from None

    def __enter__(self) -> Self:
        self._stream.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
        self._stream.close()

    def __iter__(self) -> Iterator[bytes]:
        while (item := self._pieces.get()) is not None:
            start, piece = item
            self.missing = (start - self._given) / self.sample_rate
            self._given += len(piece) // 2
            yield piece

    def close(self) -> None:
        """Stop listening; iteration ends after what was heard already. May be called from anywhere."""
        self._stream.stop()
        self._put(None)

    def _receive(self, data: Any, frames: int, time: Any, status: Any) -> None:
        """Called by PortAudio's thread."""
        piece = bytes(data)
        self._put((self._heard, piece))
        self._heard += len(piece) // 2

    def _put(self, item: tuple[int, bytes] | None) -> None:
        while True:
            try:
                self._pieces.put_nowait(item)
                return
            except queue.Full:
                with suppress(queue.Empty):  # somebody took one meanwhile
                    self._pieces.get_nowait()
                    self.dropped += 1


def _library() -> Any:
    try:
        import sounddevice
    except ImportError:
        raise NoMicrophone(
            "listening needs the package sounddevice; install it with: pip install sounddevice"
        ) from None
    except OSError:
        raise NoMicrophone(
            "listening needs the library PortAudio; on Debian and Ubuntu: apt install libportaudio2"
        ) from None
    return sounddevice
