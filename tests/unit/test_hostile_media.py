"""Files that lie, break off, or want to be more than sound: a sentence or the sound in them, in little memory."""

import contextlib
import io
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import av
import httpx2
import numpy as np
import pytest

from streaming.audio import files
from streaming.errors import AudioError, NoAudio, TooLong
from streaming.types import RATE
from tests.fakes import SPEECH, tone, wav
from tests.serving import running, with_toy


def decode(path: Path, **more: float) -> np.ndarray:
    return np.concatenate(list(files.decode(path, **more)))


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def riff(
    data: bytes,
    *,
    tag: int = 1,
    channels: int = 1,
    rate: int = RATE,
    bits: int = 16,
    said: int | None = None,
) -> bytes:
    """A WAV file that says what it is told to say."""
    size = len(data) if said is None else said
    align = max(1, channels * bits // 8) % 2**16
    form = struct.pack("<HHIIHH", tag, channels, rate, rate * align % 2**32, align, bits)
    return (
        b"RIFF"
        + struct.pack("<I", min(2**32 - 1, size + 36))
        + b"WAVEfmt "
        + struct.pack("<I", len(form))
        + form
        + b"data"
        + struct.pack("<I", size)
        + data
    )


SINE = (tone(1.0) * 32767).astype("<i2").tobytes()


def png(side: int) -> bytes:
    """A picture of `side` squared pixels, all black: small here, three bytes a pixel where it is decoded."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + 3 * side)) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def film(*, codec: str = "mpeg4", sound: bool = True, picture: bytes | None = None) -> bytes:
    """A second of video, and of a tone."""
    out = io.BytesIO()
    with av.open(out, "w", format="mov") as container:
        video = container.add_stream(codec, rate=10)
        video.width = video.height = 64
        video.pix_fmt = "rgb24" if codec == "png" else "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=RATE, layout="mono") if sound else None
        container.start_encoding()
        if picture is not None:
            packet = av.Packet(picture)
            packet.stream, packet.pts, packet.dts = video, 0, 0
            packet.time_base, packet.is_keyframe = video.time_base, True
            container.mux(packet)
        else:
            for _ in range(10):
                frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        if audio is not None:
            heard = av.AudioFrame.from_ndarray(
                (tone(1.0) * 32767).astype(np.int16)[None], format="s16", layout="mono"
            )
            heard.sample_rate = RATE
            container.mux(audio.encode(heard))
            container.mux(audio.encode(None))
    return out.getvalue()


def silence(hours: float, codec: str = "flac") -> bytes:
    """Hours of zeros in as few bytes as the codec needs."""
    out = io.BytesIO()
    with av.open(out, "w", format=codec) as container:
        stream = container.add_stream(codec, rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 4608), np.int16), format="s16", layout="mono"
        )
        frame.sample_rate = RATE
        for _ in range(int(hours * 3600 * RATE / 4608)):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


PLAYLISTS = {
    "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{}\n#EXT-X-ENDLIST\n",
    "m3u8 of a key": '#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{}"\n#EXTINF:5,\nx.ts\n#EXT-X-ENDLIST\n',
    "m3u8 after sound": "\xff\xfb\x90\x00#EXTM3U\n#EXTINF:5,\n{}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{}'\n",
    "pls": "[playlist]\nFile1={}\nNumberOfEntries=1\n",
    "xspf": '<?xml version="1.0"?><playlist version="1" xmlns="http://xspf.org/ns/0/"><trackList><track>'
    "<location>{}</location></track></trackList></playlist>",
    "asx": '<asx version="3.0"><entry><ref href="{}"/></entry></asx>',
    "smil": '<smil><body><audio src="{}"/></body></smil>',
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet'
    ' mimeType="audio/mp4"><Representation id="1" bandwidth="1"><BaseURL>{}</BaseURL></Representation>'
    "</AdaptationSet></Period></MPD>",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\na=control:{}\nm=audio 5004 RTP/AVP 0\n",
    "reference of Windows Media": "[Reference]\nRef1={}\n",
    "image sequence": "{}",
    "address": "{}\n",
}


@pytest.fixture
def canary() -> Iterator[tuple[str, list[str]]]:
    """An address, and who asked for it."""
    hits: list[str] = []

    class Canary(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hits.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(wav(tone(1.0)))

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Canary)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/a.wav", hits
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_playlists_are_never_followed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    canary: tuple[str, list[str]],
    kind: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    secret = write(tmp_path / "secret.wav", wav(tone(1.0)))
    url, hits = canary
    for target in (url, str(secret), f"file://{secret}", "secret.wav", f"concat:{secret}"):
        text = PLAYLISTS[kind].format(target)
        for name in ("upload", "list.m3u8", "list.mp3", "list.xspf", "list.sdp", "list.%d.wav"):
            with pytest.raises(AudioError):
                decode(write(tmp_path / name, text.encode("latin-1")))
    assert hits == []


def test_a_film_that_refers_to_another_file_gets_nothing_of_it(tmp_path: Path) -> None:
    """QuickTime may keep its media in another file, by an alias in `dref`."""
    write(tmp_path / "secret.wav", wav(tone(1.0)))
    plain = film()
    at = plain.index(b"dref")
    secret = str(tmp_path / "secret.wav").encode()
    body = struct.pack(">II", 0, 1) + struct.pack(">I", 12 + len(secret)) + b"url \0\0\0\0" + secret
    rest = plain.replace(plain[at : at + 4 + 20], b"dref" + body[:20])
    path = write(tmp_path / "upload", rest)
    with contextlib.suppress(AudioError):
        assert len(decode(path)) <= RATE


@pytest.mark.parametrize("tag", [0, 0x9999, 0xFFFE])
def test_a_wav_of_an_unknown_codec_is_told_as_such(tmp_path: Path, tag: int) -> None:
    path = write(tmp_path / "a", riff(SINE, tag=tag))
    for look in (files.probe, decode):
        with pytest.raises(AudioError, match="send"):
            look(path)


@pytest.mark.parametrize("bits", [0, 65, 65535])
def test_a_wav_of_impossible_samples_is_told_as_such(tmp_path: Path, bits: int) -> None:
    path = write(tmp_path / "a", riff(SINE, bits=bits))
    with pytest.raises(AudioError, match="send"):
        decode(path)


def test_a_wav_without_samples_is_empty(tmp_path: Path) -> None:
    with pytest.raises(NoAudio, match="no samples"):
        decode(write(tmp_path / "a", riff(b"")))


@pytest.mark.parametrize("said", [0, 10, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_length_in_a_header_is_not_believed(tmp_path: Path, said: int) -> None:
    path = write(tmp_path / "a", riff(SINE, said=said))
    files.probe(path)
    if said == 10:  # what lies behind the samples need not be any
        assert len(decode(path)) == 5
    else:
        assert abs(len(decode(path)) - RATE) < 100


def test_samples_beyond_full_scale_are_clipped(tmp_path: Path) -> None:
    for kind, bits in (("<f4", 32), ("<f8", 64)):
        loud = (tone(1.0, 440, 4.0)).astype(kind)
        loud[100], loud[101] = np.inf, -np.inf
        if kind == "<f8":
            loud[102] = 1e300
        found = decode(write(tmp_path / "a", riff(loud.tobytes(), tag=3, bits=bits)))
        assert found.max() == 1.0
        assert found.min() == -1.0
        assert len(found) == RATE
        assert np.array_equal(found[200:], np.clip(loud[200:], -1, 1).astype(np.float32))


def test_stray_samples_that_are_not_numbers_become_silence(tmp_path: Path) -> None:
    samples = tone(1.0).copy()
    samples[[5, 700, 15000]] = np.nan
    found = decode(write(tmp_path / "a", riff(samples.astype("<f4").tobytes(), tag=3, bits=32)))
    assert np.isfinite(found).all()
    assert found[5] == found[700] == found[15000] == 0
    assert np.array_equal(found[16:600], samples[16:600])


def test_a_recording_of_samples_that_are_not_numbers_is_refused(tmp_path: Path) -> None:
    samples = np.full(RATE, np.nan, "<f4")
    with pytest.raises(AudioError, match="not numbers"):
        decode(write(tmp_path / "a", riff(samples.tobytes(), tag=3, bits=32)))


def in_a_process(path: Path, limit: float = 14_400.0) -> tuple[int, int]:
    """Samples decoded (-1: TooLong) and megabytes that took, by a process of its own."""
    script = (
        "import resource, sys, numpy, soxr, av; from pathlib import Path\n"
        "from streaming.audio import files; from streaming.errors import TooLong\n"
        "used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before, total = used(), 0\n"
        "try:\n"
        "    total = sum(map(len, files.decode(Path(sys.argv[1]), limit=float(sys.argv[2]))))\n"
        "except TooLong: total = -1\n"
        "print(total, (used() - before) // 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path), str(limit)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    total, grown = map(int, done.stdout.split())
    return total, grown


def test_pictures_are_never_decoded(tmp_path: Path) -> None:
    """Looking for the streams alone would decode one: 430 MB for this picture of 420 kB."""
    path = write(tmp_path / "a", film(codec="png", picture=png(12_000)))
    assert path.stat().st_size < 500_000
    total, grown = in_a_process(path)
    assert total == RATE
    assert grown < 100


def test_hours_of_silence_stay_within_memory_and_the_limit(tmp_path: Path) -> None:
    path = write(tmp_path / "a", silence(3))
    assert path.stat().st_size < 3_000_000
    total, grown = in_a_process(path)
    assert abs(total - 3 * 3600 * RATE) < RATE
    assert grown < 100
    assert in_a_process(path, limit=60)[0] == -1
    with pytest.raises(TooLong, match="longer than 60 seconds"):
        decode(path, limit=60)


def test_the_sound_of_a_film_is_taken_whichever_stream_it_is(tmp_path: Path) -> None:
    assert len(decode(write(tmp_path / "a", film()))) == RATE
    with pytest.raises(NoAudio, match="no audio stream"):
        decode(write(tmp_path / "b", film(sound=False)))


def test_a_file_that_changes_its_rate_and_channels_is_one_recording(tmp_path: Path) -> None:
    """Two MP3s one after the other, as recorders and podcasts leave them."""
    pieces = b""
    for rate, layout in ((44100, "stereo"), (16000, "mono"), (22050, "mono")):
        out = io.BytesIO()
        with av.open(out, "w", format="mp3") as container:
            stream = container.add_stream("libmp3lame", rate=rate, layout=layout)
            count = 2 if layout == "stereo" else 1
            sound = np.repeat(tone(1.0, 440, 0.3, rate)[None], count, axis=0)
            frame = av.AudioFrame.from_ndarray(sound, format="fltp", layout=layout)
            frame.sample_rate = rate
            cut = av.AudioResampler(format="fltp", layout=layout, rate=rate, frame_size=1152)
            for piece in [*cut.resample(frame), *cut.resample(None)]:
                container.mux(stream.encode(piece))
            container.mux(stream.encode(None))
        pieces += out.getvalue()
    found = decode(write(tmp_path / "a", pieces))
    assert 2.8 < len(found) / RATE < 3.4


BAD = {
    "empty": b"",
    "random": np.random.default_rng(3).bytes(50_000),
    "text": b"a letter, not a recording\n" * 100,
    "truncated": (SPEECH / "000-en.flac").read_bytes()[:40],
    "playlist": PLAYLISTS["m3u8"].format("http://127.0.0.1:9/a").encode(),
    "silent film": film(sound=False),
    "unknown codec": riff(SINE, tag=0x9999),
    "no bits": riff(SINE, bits=0),
    "no samples": riff(b""),
    "no numbers": riff(np.full(RATE, np.nan, "<f4").tobytes(), tag=3, bits=32),
    "no rate": riff(SINE, rate=0),
    "no channels": riff(SINE, channels=0),
    "60000 channels": riff(SINE, channels=60_000),
    "hours": silence(0.1),
}


def test_the_server_answers_each_with_a_sentence_and_then_the_next_request() -> None:
    with (
        running(with_toy(max_audio_seconds=120.0)) as url,
        httpx2.Client(base_url=url, timeout=60) as client,
    ):
        for kind, data in BAD.items():
            for stream in ("false", "true"):
                answer = client.post(
                    "/v1/audio/transcriptions",
                    files={"file": ("upload.wav", data)},
                    data={"model": "toy", "stream": stream},
                )
                assert 400 <= answer.status_code < 500, (kind, answer.status_code, answer.text)
                error = answer.json()["error"]
                assert len(error["message"]) > 20, kind
                assert error["param"] == "file", kind
        good = client.post(
            "/v1/audio/transcriptions",
            files={"file": (SPEECH / "000-en.flac").read_bytes()},
            data={"model": "toy"},
        )
        assert good.status_code == 200
        assert len(good.json()["text"].split()) > 3


def test_damaged_files_end_in_a_sentence_and_print_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Lengths and positions that point nowhere; in a W64 file FFmpeg goes there."""
    wholes = []
    for form in ("w64", "mov"):
        out = io.BytesIO()
        with av.open(out, "w", format=form) as container:
            stream = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
            frame = av.AudioFrame.from_ndarray(
                (tone(0.5) * 32767).astype(np.int16)[None], format="s16", layout="mono"
            )
            frame.sample_rate = RATE
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        wholes.append(out.getvalue())
    for whole in wholes:
        for place in [*range(40, 120, 2), *range(len(whole) - 400, len(whole) - 4, 4)]:
            for wrong in (b"\xff\xff\xff\xff", b"\x80\0\0\0"):
                path = write(tmp_path / "a", whole[:place] + wrong + whole[place + 4 :])
                with contextlib.suppress(AudioError):
                    decode(path, limit=60)
    printed = capfd.readouterr()
    assert printed.err == printed.out == ""
