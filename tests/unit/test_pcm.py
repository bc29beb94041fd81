"""Bytes of a live stream become the same samples however they are cut."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.audio.pcm import ENCODINGS, WIDTH, Decoder
from streaming.audio.resample import Resampler
from streaming.errors import AudioError
from streaming.types import RATE
from tests.fakes import tone


@given(
    st.sampled_from(ENCODINGS),
    st.integers(1, 3),
    st.binary(max_size=4000),
    st.lists(st.integers(0, 4000), max_size=8),
)
def test_cuts_do_not_matter(encoding: str, channels: int, data: bytes, cuts: list[int]) -> None:
    if encoding == "pcm_f32le":
        count = len(data) // 4
        data = np.frombuffer(data, np.uint8, count * 4).astype(np.float32).tobytes()[: count * 4]
    whole = Decoder(encoding, channels).decode(data)  # type: ignore[arg-type]
    decoder = Decoder(encoding, channels)  # type: ignore[arg-type]
    bounds = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    parts = [decoder.decode(data[a:b]) for a, b in itertools.pairwise(bounds)]
    assert np.array_equal(np.concatenate([*parts, decoder.flush()]), whole)
    assert len(whole) == len(data) // (WIDTH[encoding] * channels)  # type: ignore[index]


def test_sixteen_bits_are_scaled_to_one() -> None:
    data = np.array([-32768, 0, 16384, 32767], "<i2").tobytes()
    assert Decoder("pcm_s16le").decode(data).tolist() == [-1.0, 0.0, 0.5, 32767 / 32768]


def test_g711_follows_the_standard() -> None:
    mulaw = Decoder("mulaw").decode(bytes([0xFF, 0x7F, 0x80, 0x00])) * 32768
    assert mulaw.tolist() == [0, 0, 32124, -32124]
    alaw = Decoder("alaw").decode(bytes([0xD5, 0x55, 0xAA, 0x2A])) * 32768
    assert alaw.tolist() == [8, -8, 32256, -32256]


def test_channels_are_averaged() -> None:
    data = np.array([100, 300, -200, 200], "<i2").tobytes()
    assert (Decoder("pcm_s16le", 2).decode(data) * 32768).tolist() == [200, 0]


def test_floats_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(AudioError, match="not numbers"):
        Decoder("pcm_f32le").decode(np.array([0.1, np.nan], "<f4").tobytes())


@given(
    st.sampled_from([8000, 11025, 22050, 24000, 44100, 48000]),
    st.lists(st.integers(1, 3000), min_size=1, max_size=10),
)
def test_resampling_does_not_depend_on_message_sizes(rate: int, sizes: list[int]) -> None:
    audio = tone(0.5, rate=rate)
    whole = Resampler(rate)
    expected = np.concatenate([whole.decode(audio), whole.flush()])
    pieces, at, turn = Resampler(rate), 0, 0
    parts = []
    while at < len(audio):
        size = sizes[turn % len(sizes)]
        parts.append(pieces.decode(audio[at : at + size]))
        at, turn = at + size, turn + 1
    found = np.concatenate([*parts, pieces.flush()])
    assert np.array_equal(found, expected)
    assert abs(len(found) - RATE // 2) <= 2


def test_sixteen_kilohertz_pass_unchanged() -> None:
    audio = tone(0.1)
    assert Resampler(RATE).decode(audio) is audio
