"""Every container and codec that PyAV can write comes back as the same tone, under a name that says nothing."""

from pathlib import Path

import av
import numpy as np
import pytest

from streaming.audio import files
from streaming.types import RATE
from tests.fakes import tone

PAIRS = [
    # container, codec, sample rate, channels
    ("wav", "pcm_s16le", 44100, 2),
    ("wav", "pcm_s16le", 192000, 1),
    ("wav", "pcm_s16le", 16000, 6),
    ("wav", "pcm_s24le", 48000, 2),
    ("wav", "pcm_s32le", 96000, 1),
    ("wav", "pcm_f32le", 16000, 1),
    ("wav", "pcm_f64le", 22050, 1),
    ("wav", "pcm_u8", 8000, 1),
    ("wav", "pcm_mulaw", 8000, 1),
    ("wav", "pcm_alaw", 8000, 2),
    ("wav", "adpcm_ms", 22050, 1),
    ("wav", "adpcm_ima_wav", 22050, 1),
    ("wav", "libmp3lame", 44100, 1),
    ("w64", "pcm_s16le", 48000, 1),
    ("mp3", "libmp3lame", 44100, 2),
    ("mp3", "libmp3lame", 16000, 1),
    ("mp2", "mp2", 48000, 1),
    ("flac", "flac", 44100, 2),
    ("flac", "flac", 96000, 1),
    ("ogg", "vorbis", 44100, 2),
    ("ogg", "libopus", 48000, 1),
    ("ogg", "flac", 44100, 1),
    ("opus", "libopus", 48000, 2),
    ("webm", "libopus", 48000, 1),
    ("webm", "vorbis", 48000, 2),
    ("ipod", "aac", 44100, 2),
    ("ipod", "alac", 44100, 1),
    ("mp4", "aac", 48000, 1),
    ("mp4", "libmp3lame", 44100, 1),
    ("mp4", "libopus", 48000, 1),
    ("mp4", "flac", 44100, 1),
    ("mov", "pcm_s16le", 44100, 1),
    ("mov", "alac", 48000, 2),
    ("3gp", "libopencore_amrnb", 8000, 1),
    ("3gp", "aac", 16000, 1),
    ("matroska", "aac", 48000, 1),
    ("matroska", "flac", 48000, 2),
    ("matroska", "pcm_s16le", 16000, 1),
    ("matroska", "libopus", 48000, 6),
    ("adts", "aac", 44100, 1),
    ("aiff", "pcm_s16be", 44100, 2),
    ("aiff", "pcm_s24be", 48000, 1),
    ("au", "pcm_s16be", 8000, 1),
    ("au", "pcm_mulaw", 8000, 1),
    ("asf", "wmav1", 44100, 1),
    ("asf", "wmav2", 44100, 2),
    ("amr", "libopencore_amrnb", 8000, 1),
    ("caf", "pcm_s16le", 44100, 1),
    ("caf", "alac", 44100, 1),
    ("tta", "tta", 44100, 1),
    ("wv", "wavpack", 44100, 2),
    ("ac3", "ac3", 48000, 2),
    ("eac3", "eac3", 48000, 1),
    ("avi", "libmp3lame", 44100, 1),
    ("avi", "pcm_s16le", 16000, 1),
    ("mpegts", "aac", 48000, 1),
    ("mpegts", "mp2", 48000, 1),
    ("mpeg", "mp2", 48000, 1),
    ("flv", "aac", 44100, 1),
    ("flv", "libmp3lame", 44100, 1),
]
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}


def encode(path: Path, form: str, codec: str, rate: int, channels: int) -> Path:
    """Two seconds of 440 Hz on every channel."""
    layout = LAYOUTS[channels]
    samples = np.repeat(tone(2.0, 440, 0.3, rate)[None], channels, axis=0)
    strict = {"strict": "experimental"}
    with av.open(str(path), "w", format=form, options=strict) as out:
        stream = out.add_stream(codec, rate=rate, layout=layout, options=strict)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        if codec.startswith("wma"):
            stream.bit_rate = 96_000
        if codec != "flac":  # its description is known only after it has encoded
            out.start_encoding()
        resampler = av.AudioResampler(
            format=stream.codec_context.format,
            layout=layout,
            rate=rate,
            frame_size=stream.codec_context.frame_size or 1024,
        )
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("form", "codec", "rate", "channels"), PAIRS)
def test_a_recording_of_any_kind_gives_its_sound(
    tmp_path: Path, form: str, codec: str, rate: int, channels: int
) -> None:
    path = encode(tmp_path / "upload", form, codec, rate, channels)
    probe = files.probe(path)
    # AMR and some MPEG streams do not say how long they are; those that do are right.
    assert probe.duration is None or abs(probe.duration / RATE - 2.0) < 0.3
    assert (probe.rate, probe.channels) == (rate, channels)
    samples = np.concatenate(list(files.decode(path)))
    assert samples.dtype == np.float32
    assert abs(len(samples) / RATE - 2.0) < 0.15
    middle = samples[4000:-4000] * np.hanning(len(samples) - 8000)
    peak = np.argmax(np.abs(np.fft.rfft(middle))) * RATE / len(middle)
    assert abs(peak - 440) < 2
    assert 0.15 < np.sqrt(np.mean(samples[4000:-4000] ** 2) * 2) < 0.4
