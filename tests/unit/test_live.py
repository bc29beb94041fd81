"""Audio as live clients send it: raw, as Opus packets, in containers that are decoded while they arrive."""

import threading
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.audio import live
from streaming.audio.containers import BARREN, Container, Opus
from streaming.errors import AudioError
from streaming.types import Samples
from tests.containers import KINDS, contained, packets
from tests.fakes import pcm, silence, speech, tone

CLIP = speech("000-en.flac")[16_000:48_000]


def decoded(
    source: live.Source, data: bytes, sizes: Sequence[int] = (4000,), *, flush: bool = True
) -> Samples:
    found: list[Samples] = [np.zeros(0, np.float32)]
    at = turn = 0
    try:
        while at < len(data):
            size = sizes[turn % len(sizes)]
            found += source.decode(data[at : at + size])
            at, turn = at + size, turn + 1
        if flush:
            found += source.flush()
    finally:
        source.close()
    return np.concatenate(found)


@pytest.mark.parametrize("kind", KINDS)
def test_a_container_holds_what_went_in(kind: str) -> None:
    heard = decoded(Container(), contained(CLIP, kind))
    lag = int(np.argmax(np.correlate(heard[:20_000], CLIP[2000:12_000], "valid"))) - 2000
    assert 0 <= lag <= 600, "encoders may delay the sound, by 40 ms at most"
    assert 0 <= len(heard) - len(CLIP) < 1500
    there = heard[lag : lag + len(CLIP)]
    assert np.corrcoef(there, CLIP[: len(there)])[0, 1] > 0.96


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(sizes=st.lists(st.integers(1, 20_000), min_size=1, max_size=8))
def test_where_the_bytes_are_cut_never_matters(kind: str, sizes: list[int]) -> None:
    data = contained(CLIP[:16_000], kind)
    if sum(sizes) / len(sizes) < 50:
        data = data[:24_000]  # enough for the slowest parser, FLAC's
    whole = decoded(Container(), data, (len(data),))
    assert len(whole) > 1000
    assert np.array_equal(decoded(Container(), data, sizes), whole)


def test_sound_comes_before_the_stream_ends() -> None:
    for kind in ("webm-opus", "ogg-opus", "mp4-aac", "mp3", "adts"):
        data = contained(speech("000-en.flac"), kind)
        early = decoded(Container(), data[: len(data) // 2], flush=False)
        assert len(early) > 16_000, kind


@pytest.mark.parametrize("layout", ["mono", "stereo"])
def test_opus_packets(layout: str) -> None:
    opus, found = Opus(), []
    for packet in packets(CLIP, layout):
        found += opus.decode(packet)
    heard = np.concatenate([*found, *opus.flush()])
    lag = int(np.argmax(np.correlate(heard[:20_000], CLIP[2000:12_000], "valid"))) - 2000
    assert 0 < lag < 200, "the encoder's 6.5 ms, which bare packets do not tell"
    assert np.corrcoef(heard[lag : lag + 20_000], CLIP[:20_000])[0, 1] > 0.96


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (contained(tone(0.1), "ogg-opus"), "encoding=container"),
        (contained(tone(0.1), "webm-opus"), "encoding=container"),
        (b"\xff" * 70_000, "more than an Opus packet can have"),
        (b"\xff\xff\xff", "no Opus packet"),
    ],
)
def test_what_is_no_opus_packet_is_explained(packet: bytes, expected: str) -> None:
    with pytest.raises(AudioError, match=expected):
        list(Opus().decode(packet))


@pytest.mark.parametrize(
    "data",
    [
        b"\x00" * 5000,
        pcm(tone(1.0)),
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n",
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
        b"ffconcat version 1.0\nfile secret.wav\n",
        b"<html>",
    ],
)
def test_what_is_no_container_is_refused_at_once(data: bytes) -> None:
    with pytest.raises(AudioError, match="webm, ogg, mp4"):
        decoded(Container(), data, flush=len(data) < 12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_that_breaks_off_gives_what_it_had(kind: str) -> None:
    data = contained(speech("000-en.flac"), kind)
    heard = decoded(Container(), data[: len(data) * 3 // 4 + 1])
    assert len(heard) > 32_000


@pytest.mark.parametrize("kind", KINDS)
def test_a_header_alone_is_explained(kind: str) -> None:
    with pytest.raises(AudioError, match="breaks off before its first sound"):
        decoded(Container(), contained(CLIP, kind)[:30])


def test_nothing_at_all_is_no_fault() -> None:
    assert len(decoded(Container(), b"")) == 0


@pytest.mark.parametrize(
    "head",
    [
        b"\x1aE\xdf\xa3\x01\xff\xff\xff\xff\xff\xff\xff",  # an EBML header without end
        contained(CLIP, "webm-opus")[:200] + b"\xec\x01\x00\x00\x7f\xff\xff\xff\xff",  # a void
        b"\x00\x00\x00\x1cftypiso5\x00\x00\x02\x00iso5iso6mp41" + b"\x00\x00\x00\x01free\x7f" + bytes(7),
        b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f",
        b"fLaC\x01\xff\xff\xff",
        b"OggS",
        b"RIFF\xff\xff\xff\xffWAVEjunk\xff\xff\xff\xff",
        b"\xff\xfb",
    ],
)  # fmt: skip
def test_a_header_that_never_ends_is_given_up(head: bytes) -> None:
    data = head + bytes(BARREN + 50_000)
    with pytest.raises(AudioError, match="webm, ogg, mp4"):
        decoded(Container(), data, (16_384,))


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    at=st.integers(0, 6000),
    junk=st.binary(min_size=1, max_size=40),
    size=st.integers(100, 9000),
)
def test_damage_is_an_audio_error_or_less_sound(kind: str, at: int, junk: bytes, size: int) -> None:
    data = bytearray(contained(CLIP[:8000], kind))
    at = min(at, len(data) - 1)
    data[at : at + len(junk)] = junk
    with suppress(AudioError):
        assert np.isfinite(decoded(Container(), bytes(data), (size,))).all()


def test_bytes_after_a_container_that_ended_are_explained() -> None:
    source = Container()
    list(source.decode(contained(CLIP, "flac")))
    list(source.flush())
    with pytest.raises(AudioError, match="open a new session"):
        list(source.decode(b"more"))


def test_a_bomb_of_silence_comes_out_in_small_pieces() -> None:
    data = contained(silence(600), "flac")
    assert len(data) < 200_000
    source, longest, total = Container(), 0, 0
    for at in range(0, len(data), 16_384):
        for samples in source.decode(data[at : at + 16_384]):
            longest, total = max(longest, len(samples)), total + len(samples)
    total += sum(map(len, source.flush()))
    source.close()
    assert total == 600 * 16_000
    assert longest < 32_000


def test_a_closed_source_leaves_no_thread() -> None:
    before = threading.active_count()
    sources = [Container() for _ in range(3)]
    for number, source in enumerate(sources):
        list(source.decode(contained(CLIP, "webm-opus")[: 5 + 700 * number]))
        source.close()
        source.close()
        assert source._thread is not None
        source._thread.join(10)
    assert threading.active_count() == before


def test_raw_samples_at_any_rate() -> None:
    for rate in (8000, 16_000, 44_100):
        data = pcm(tone(1.0, rate=rate))
        heard = decoded(live.source("pcm_s16le", rate, 1), data, (333,))
        assert abs(len(heard) - 16_000) <= 1
