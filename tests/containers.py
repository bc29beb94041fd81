"""Recordings as a browser or an encoder would send them, made with PyAV."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
import soxr

from streaming.types import RATE, Samples

FRAGMENTS = {
    "movflags": "frag_keyframe+empty_moov+default_base_moof",
    "frag_duration": "200000",
}
KINDS: dict[str, tuple[str, str, int, dict[str, str]]] = {
    # as Chrome's MediaRecorder, Firefox's, Safari's; then what else may be streamed
    "webm-opus": ("webm", "libopus", 48_000, {"live": "1", "cluster_time_limit": "500"}),
    "ogg-opus": ("ogg", "libopus", 48_000, {"page_duration": "250000"}),
    "mp4-aac": ("mp4", "aac", 44_100, FRAGMENTS),
    "ogg-vorbis": ("ogg", "vorbis", 44_100, {"page_duration": "250000"}),
    "mp3": ("mp3", "libmp3lame", 44_100, {}),
    "flac": ("flac", "flac", 16_000, {}),
    "adts": ("adts", "aac", 32_000, {}),
    "wav": ("wav", "pcm_s16le", 16_000, {}),
    "webm-pcm": ("matroska", "pcm_f32le", 16_000, {"live": "1"}),
}


def contained(samples: Samples, kind: str) -> bytes:
    """`samples` in a container written to a pipe: what needs seeking back is missing, as it is live."""
    format, codec, rate, options = KINDS[kind]
    written = io.BytesIO()

    class Pipe:
        write = written.write

    with av.open(Pipe(), "w", format, options) as container:  # type: ignore[call-overload]
        stream = container.add_stream(codec, rate=rate)
        if codec == "vorbis":  # FFmpeg's own encoder is called experimental, and does stereo only
            stream.codec_context.options = {"strict": "experimental"}
        stream.layout = "stereo" if codec == "vorbis" else "mono"
        for frame in _frames(samples, rate, stream.layout.name):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return written.getvalue()


def packets(samples: Samples, layout: str = "mono") -> list[bytes]:
    """`samples` as Opus packets of 20 ms, without any container."""
    encoder = av.CodecContext.create("libopus", "w")
    encoder.sample_rate = 48_000
    encoder.layout = layout
    encoder.format = "flt"
    encoder.time_base = Fraction(1, 48_000)
    found = []
    for frame in [*_frames(samples, 48_000, layout), None]:
        found += [bytes(packet) for packet in encoder.encode(frame)]
    return found


def _frames(samples: Samples, rate: int, layout: str) -> list[av.AudioFrame]:
    sound = soxr.resample(samples, RATE, rate).astype(np.float32)
    wide = np.repeat(sound, 2 if layout == "stereo" else 1)[None]
    step = rate // 50
    channels = 2 if layout == "stereo" else 1
    found = []
    for at in range(0, len(sound), step):
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(wide[:, at * channels : (at + step) * channels]), "flt", layout
        )
        frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
        found.append(frame)
    return found
