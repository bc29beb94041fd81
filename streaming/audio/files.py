"""Samples from any container, by content, through PyAV. What a file claims about itself is never believed.

Demuxers that open other files or sockets (playlists, concat scripts, SDP) are not on the list; FFmpeg sees an object
without a name and no protocol; decoders of video and pictures are not on the list either, so that not even a cover is
decoded; lengths are counted, not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import SEEK_END, SEEK_SET
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from streaming.audio.frames import check, mono
from streaming.errors import AudioError, NoAudio, TooLong
from streaming.types import RATE, Samples

DEMUXERS = (
    "wav,w64,aiff,au,flac,mp3,ogg,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,aac,amr,asf,caf,ac3,eac3,wv,tta,"
    "avi,flv,mpegts,mpeg,adts,loas,ape,dsf,oga,opus"
)
"""Those that read one file and nothing else."""
CODECS = (
    "aac,aac_fixed,aac_latm,ac3,ac3_fixed,adpcm_g722,adpcm_g726,adpcm_g726le,adpcm_ima_qt,adpcm_ima_wav,adpcm_ms,"
    "adpcm_swf,adpcm_yamaha,alac,amrnb,amrwb,ape,atrac3,atrac3al,atrac3p,atrac3pal,atrac3plus,atrac3plusal,cook,dca,"
    "dsd_lsbf,dsd_lsbf_planar,dsd_msbf,dsd_msbf_planar,eac3,flac,g722,g723_1,g726,g726le,g729,gsm,gsm_ms,ilbc,"
    "libopencore_amrnb,libopencore_amrwb,libopus,libspeex,libvorbis,mlp,mp1,mp1float,mp2,mp2float,mp3,mp3adu,"
    "mp3adufloat,mp3float,mpc7,mpc8,nellymoser,opus,pcm_alaw,pcm_bluray,pcm_dvd,pcm_f16le,pcm_f24le,pcm_f32be,"
    "pcm_f32le,pcm_f64be,pcm_f64le,pcm_mulaw,pcm_s16be,pcm_s16be_planar,pcm_s16le,pcm_s16le_planar,pcm_s24be,"
    "pcm_s24le,pcm_s24le_planar,pcm_s32be,pcm_s32le,pcm_s32le_planar,pcm_s64be,pcm_s64le,pcm_s8,pcm_s8_planar,"
    "pcm_u16be,pcm_u16le,pcm_u24be,pcm_u24le,pcm_u32be,pcm_u32le,pcm_u8,qdm2,s302m,shorten,speex,tak,truehd,tta,"
    "vorbis,wavpack,wmalossless,wmapro,wmav1,wmav2,wmavoice"
)
"""Decoders that may be opened: those of recordings that people have."""
_CODECS = frozenset(CODECS.split(","))
KNOWN = "flac, m4a, mp3, mp4, mpeg, mpga, oga, ogg, wav and webm"
"""What the error messages promise; more works."""
CHUNK = RATE
"""Samples yielded at a time, about."""
LIMIT = 4 * 3600.0
"""Seconds of audio that are decoded where nobody says more or less."""
BAD_PACKETS = 50
"""Broken packets in a row that are skipped before the rest of the file is given up."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What a container says about its audio."""

    duration: int | None
    """Samples at 16 kHz; None where it does not say or cannot be believed."""
    codec: str
    rate: int
    channels: int


class _Nameless:
    """A file without `.name`, which PyAV would take for a URL."""

    def __init__(self, file: BinaryIO) -> None:
        self.read = file.read
        self.tell = file.tell
        self._file = file

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        """The new position; -1 where a damaged file points nowhere: PyAV would print the traceback of an exception."""
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return -1


def probe(path: Path) -> Probe:
    """Open and look, without decoding. Raises NoAudio or AudioError."""
    with path.open("rb") as file, opened(file) as sound:
        return sound.probe


def decode(path: Path, *, limit: float = LIMIT) -> Iterator[Samples]:
    """The audio of a file that its owner gives us, decoded in this process; see `Sound.decode`.

    Files of strangers go through `media`.
    """
    with path.open("rb") as file, opened(file) as sound:
        yield from sound.decode(limit)


class Sound:
    """The first stream of an open container that can be decoded."""

    def __init__(self, container: Any, stream: Any) -> None:
        self._container = container
        self._stream = stream

    @property
    def probe(self) -> Probe:
        """What the container says."""
        duration = None
        container, stream = self._container, self._stream
        if stream.duration is not None and stream.time_base is not None:
            duration = int(stream.duration * stream.time_base * RATE)
        elif container.duration:
            duration = container.duration * RATE // 1_000_000
        if duration is not None and not 0 < duration < 10**12:
            duration = None
        codec = stream.codec_context
        return Probe(duration, codec.name, codec.sample_rate or 0, codec.channels or 0)

    def decode(self, limit: float = LIMIT) -> Iterator[Samples]:
        """The audio in chunks of about a second: float32 mono at 16 kHz.

        Lazy: memory holds a few chunks, however long the file is or says it is. What decodes before a file breaks off
        is yielded; a file of which nothing decodes raises AudioError, one longer than `limit` seconds TooLong.
        """
        import av
        import soxr

        most = int(limit * RATE)
        container, stream = self._container, self._stream
        resampler: Any = None
        shape: tuple[int, int] | None = None  # rate and channels of the frames so far
        held: list[Samples] = []
        have = total = bad = packed = 0  # bad: packets in a row
        broken = False
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
                packed += 0 if packet is None else packet.size
                frames = [] if packet is None else packet.decode()
            except (av.FFmpegError, ValueError, OSError) as error:
                bad, broken = bad + 1, True
                if bad > BAD_PACKETS or isinstance(error, av.EOFError | av.ExitError):
                    break
                continue
            for frame in frames:
                bad = 0
                check(frame.sample_rate, len(frame.layout.channels))
                now = frame.sample_rate, len(frame.layout.channels)
                if shape is not None and now[0] != shape[0] and resampler is not None:
                    held.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
                    resampler = None
                shape = now
                samples = mono(frame)
                if frame.sample_rate != RATE:
                    if resampler is None:
                        resampler = soxr.ResampleStream(frame.sample_rate, RATE, 1, "float32")
                    samples = resampler.resample_chunk(samples)
                held.append(samples)
                have += len(samples)
                total += len(samples)
                if total > most:
                    raise TooLong(
                        f"the recording is longer than {limit:g} seconds, the longest allowed here;"
                        " send it in pieces or raise max_audio_seconds"
                    )
                while have >= CHUNK:
                    joined = np.concatenate(held)
                    yield joined[:CHUNK]
                    held, have = [joined[CHUNK:]], have - CHUNK
            if packet is None:
                break
        if resampler is not None:
            held.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
        rest = np.concatenate(held) if held else np.zeros(0, np.float32)
        if total + len(rest) == 0 and have == 0:
            if not broken and not packed:
                raise NoAudio("the file holds no samples; send a recording that is not empty")
            raise AudioError(
                f"the audio could not be decoded: the file is damaged; send one of {KNOWN}"
            )
        if len(rest):
            yield rest


@contextmanager
def opened(file: BinaryIO) -> Iterator[Sound]:
    """The container in `file`, which can be sought. Raises NoAudio or AudioError."""
    import av

    av.logging.set_level(None)
    if file.seek(0, SEEK_END) == 0:
        raise NoAudio("the file is empty; send a recording")
    file.seek(0)
    try:
        container = av.open(
            _Nameless(file),
            mode="r",
            metadata_errors="ignore",
            timeout=5,
            options={
                "protocol_whitelist": "none",
                "format_whitelist": DEMUXERS,
                "codec_whitelist": CODECS,
            },
        )
    except (av.FFmpegError, ValueError, OSError, UnicodeError):
        raise AudioError(
            f"the file is not audio that can be decoded; send one of {KNOWN} (headerless samples need a header)"
        ) from None
    with container:
        if not container.streams.audio:
            raise NoAudio("the file has no audio stream; send a recording with sound")
        # A film may have several; the first that can be decoded is taken.
        codecs = [(each, each.codec_context) for each in container.streams.audio]
        stream, codec = next(
            (pair for pair in codecs if pair[1] is not None and pair[1].name in _CODECS),
            codecs[0],
        )
        if codec is None or codec.name not in _CODECS:
            raise AudioError(
                f"the file's audio is in a format that cannot be decoded here; send one of {KNOWN}"
            )
        rate, channels = codec.sample_rate or 0, codec.channels or 0
        if rate or channels:
            check(rate, channels)
        codec.thread_count = 1  # threads gain nothing on sound, and a sandbox may start none
        yield Sound(container, stream)
