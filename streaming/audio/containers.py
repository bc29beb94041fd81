"""Samples from a compressed stream while it arrives: packets of Opus, or the bytes of a container.

FFmpeg pulls its input, messages are pushed: so a demuxer runs on a thread of its own and the two take turns. Only one
of them ever runs, which makes the result the same however the bytes are cut, and needs no lock. What the stream claims
about itself is never believed: the format is told by its first bytes and forced, FFmpeg sees an object without a name
and no protocol, video is never decoded.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from streaming.audio.frames import check, mono
from streaming.audio.resample import Resampler
from streaming.errors import AudioError
from streaming.types import RATE, Samples

FORMATS = "webm, ogg, mp4 in fragments, mp3, flac, aac and wav"
"""What messages promise."""
DECODERS = (
    "opus,libopus,vorbis,mp3float,mp3,flac,aac,alac,pcm_s16le,pcm_s24le,pcm_s32le,pcm_u8,pcm_f32le,pcm_f64le,"
    "pcm_mulaw,pcm_alaw,pcm_s16be,pcm_f32be"
)
"""Those that may run; none for video."""
BLOCK = 1024, 256
"""Bytes given to FFmpeg at a time, before and after the first sound. Always the same, since it can look back only as
far as its last reads went: then the result cannot depend on messages. Short, since what is missing of a block waits."""
BARREN = 4 * 2**20
"""Bytes without any audio after which a stream is given up: an endless header, a film, or nothing sensible."""
BAD_PACKETS = 50
"""Broken packets in a row that are skipped."""
PACKET = 64 * 2**10
"""Bytes of the largest Opus packet; RFC 6716 allows 61,298 for all of its streams."""
BROKEN = "the container is damaged or breaks off before its first sound; expected is a stream of "


class Opus:
    """Bare Opus packets, one a message, as WebCodecs and RTP carry them (RFC 6716)."""

    blocking = False
    piece: int | None = None

    def __init__(self) -> None:
        import av

        av.logging.set_level(None)
        self._decoder: Any = av.CodecContext.create("libopus", "r")
        self._decoder.sample_rate = 48_000  # Opus always decodes at this rate, whatever went in
        self._decoder.layout = (
            "stereo"  # of a mono packet both sides are equal, and so is their mean
        )
        self._resampler = Resampler(48_000)

    def decode(self, chunk: bytes) -> Iterator[Samples]:
        """See `Source.decode`; `chunk` is one packet."""
        import av

        if chunk[:4] == b"OggS" or chunk[:4] == b"\x1aE\xdf\xa3":
            raise AudioError(
                "the message is a container, not an Opus packet; open the session with encoding=container"
            )
        if len(chunk) > PACKET:
            raise AudioError(
                f"the message has {len(chunk)} bytes, more than an Opus packet can have; send one packet a message"
            )
        try:
            frames = self._decoder.decode(av.Packet(chunk))
        except (av.FFmpegError, ValueError):
            raise AudioError(
                "the message is no Opus packet; send one packet a message, or a stream with encoding=container"
            ) from None
        for frame in frames:
            yield self._resampler.decode(mono(frame))

    def flush(self) -> Iterator[Samples]:
        """See `Source.flush`."""
        yield self._resampler.flush()

    def close(self) -> None:
        """See `Source.close`."""


class Container:
    """The byte stream of a container, such as a browser's MediaRecorder gives piece by piece.

    `decode` and `flush` run the demuxer until it wants more bytes; call them from a thread that may be held.
    """

    blocking = True
    piece: int | None = 16 * 2**10

    def __init__(self) -> None:
        self._fed = b""  # not yet read by FFmpeg; at most a piece and a block
        self._ended = False
        self._closed = False
        self._held: list[Samples] = []  # decoded, at most about a second
        self._have = 0
        self._total = 0
        self._barren = 0  # bytes read since the last sound
        self._hungry = False  # the thread waits for bytes
        self._done = False
        self._fault: Exception | None = None
        self._thread: threading.Thread | None = None
        # Whoever is not waiting for one of these runs.
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)

    def decode(self, chunk: bytes) -> Iterator[Samples]:
        """See `Source.decode`."""
        if not chunk:
            return
        if self._done:
            raise AudioError(
                f"the container ended after {self._total / RATE:.1f} s; open a new session for another"
            )
        self._fed += chunk
        yield from self._run()

    def flush(self) -> Iterator[Samples]:
        """See `Source.flush`."""
        if self._thread is None and not self._fed:
            return
        self._ended = True
        if not self._done:
            yield from self._run()
        if not self._total:
            raise AudioError(BROKEN + FORMATS)

    def close(self) -> None:
        """See `Source.close`."""
        self._closed = True
        self._go.release()

    def _run(self) -> Iterator[Samples]:
        """Let the thread run until it wants bytes or is done; what it decodes comes in pieces of a second."""
        self._hungry = False
        while not (self._hungry or self._done or self._closed):
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, name="container", daemon=True
                )  # a daemon: it only ever waits for bytes that need not come
                self._thread.start()
            else:
                self._go.release()
            self._back.acquire()
            if self._have:
                samples, self._held, self._have = np.concatenate(self._held), [], 0
                yield samples
        if self._fault is not None:
            raise self._fault

    # On the thread.

    def _work(self) -> None:
        import av

        try:
            self._demux()
        except AudioError as error:
            self._fault = error
        except (av.FFmpegError, ValueError, OSError, UnicodeError):
            # Where sound came before, the stream has broken off, and what there was is good.
            if not self._total:
                self._fault = AudioError(BROKEN + FORMATS)
        except Exception as error:
            self._fault = error
        finally:
            if self._barren > BARREN:
                self._fault = AudioError(
                    f"no sound in {self._barren} bytes; expected is a stream of {FORMATS}"
                )
            self._done = True
            self._back.release()

    def _demux(self) -> None:
        import av

        av.logging.set_level(None)
        kind = self._told()
        if kind is None:
            return
        # Nothing is probed: parameters come from the headers and from the frames themselves, so the first sound is
        # not held back.
        options = {
            "protocol_whitelist": "none",
            "format_whitelist": kind,
            "codec_whitelist": DECODERS,
            "probesize": "32",
            "analyzeduration": "0",
            "max_size": "4096",  # of a packet of WAV
        }
        with av.open(
            _Pipe(self._read), "r", kind, options, metadata_errors="ignore", buffer_size=4096
        ) as container:
            if not container.streams.audio:
                raise AudioError("the container has no audio stream; record with sound")
            stream = container.streams.audio[0]
            if stream.codec_context is None:
                raise AudioError(
                    "the container's codec is not known here; record with opus, aac or mp3"
                )
            stream.codec_context.thread_count = 1
            resampler: Resampler | None = None
            rate = bad = 0
            packets = container.demux(stream)
            while not self._closed and bad <= BAD_PACKETS:
                try:
                    packet = next(packets, None)
                    frames = [] if packet is None else packet.decode()
                except (av.FFmpegError, ValueError, OSError):
                    bad += 1
                    packets = container.demux(stream)
                    continue
                if packet is None:
                    break
                for frame in frames:
                    bad = 0
                    check(frame.sample_rate, len(frame.layout.channels))
                    if frame.sample_rate != rate:
                        if resampler is not None:
                            self._put(resampler.flush())
                        rate, resampler = frame.sample_rate, Resampler(frame.sample_rate)
                    assert resampler is not None
                    self._put(resampler.decode(mono(frame)))
            if resampler is not None:
                self._put(resampler.flush())

    def _told(self) -> str | None:
        """FFmpeg's name of the format that the first bytes tell; None if nothing comes. Raises AudioError."""
        while len(self._fed) < 12 and not self._ended and not self._closed:
            self._wait()
        head = self._fed[:12]
        if not head or self._closed:
            return None
        kinds = {
            "matroska": head[:4] == b"\x1aE\xdf\xa3",
            "ogg": head[:4] == b"OggS",
            "flac": head[:4] == b"fLaC",
            "wav": head[:4] == b"RIFF" and head[8:] == b"WAVE",
            "mov": head[4:8] in (b"ftyp", b"styp", b"moov", b"moof"),
            "aac": head[0] == 0xFF and len(head) > 1 and head[1] & 0xF6 == 0xF0,
            "mp3": head[:3] == b"ID3"
            or (head[0] == 0xFF and len(head) > 1 and head[1] & 0xE0 == 0xE0),
        }
        for kind, found in kinds.items():
            if found:
                return kind
        raise AudioError(
            f"the bytes are no container that can be decoded while it arrives; expected is a stream of {FORMATS}"
            " from its first byte on, or samples without a header in another encoding"
        )

    def _read(self, most: int) -> bytes:
        """FFmpeg wants up to `most` bytes; no bytes are the end. Nothing may be raised here."""
        size = min(most, BLOCK[self._total > 0])
        while len(self._fed) < size and not self._ended and not self._closed:
            self._wait()
        if self._closed or self._barren > BARREN:
            return b""
        taken, self._fed = self._fed[:size], self._fed[size:]
        self._barren += len(taken)
        return taken

    def _wait(self) -> None:
        """For bytes."""
        self._hungry = True
        self._turn()

    def _put(self, samples: Samples) -> None:
        if len(samples):
            self._barren = 0
            self._held.append(samples)
            self._have += len(samples)
            self._total += len(samples)
        if self._have >= RATE and not self._closed:
            self._turn()

    def _turn(self) -> None:
        self._back.release()
        self._go.acquire()


class _Pipe:
    """What PyAV reads: it cannot seek, and has no `.name`, which would be taken for a URL."""

    def __init__(self, read: Any) -> None:
        self.read = read
