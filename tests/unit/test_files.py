"""Recordings of every kind become samples; hostile ones become a sentence, soon and in little memory."""

import io
import struct
import threading
import time
import wave
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import av
import numpy as np
import pytest

from streaming.audio import files
from streaming.errors import AudioError, NoAudio, TooLong
from streaming.types import RATE
from tests.fakes import SPEECH, silence, speech, tone, wav


def decode(path: Path, **more: float) -> np.ndarray:
    return np.concatenate(list(files.decode(path, **more)))


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def frequency(samples: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(samples[2000:-2000] * np.hanning(len(samples) - 4000)))
    return float(np.argmax(spectrum) * RATE / (len(samples) - 4000))


def test_eight_channels_are_mixed_down(tmp_path: Path) -> None:
    path = write(tmp_path / "eight", wav(tone(1.0), channels=8))
    assert abs(frequency(decode(path)) - 440) < 2
    assert files.probe(path).channels == 8


def test_video_gives_its_sound_and_without_sound_a_sentence(tmp_path: Path) -> None:
    for sound in (True, False):
        path = tmp_path / f"video-{sound}.mp4"
        with av.open(str(path), "w") as out:
            pictures = out.add_stream("mpeg4", rate=10)
            pictures.width = pictures.height = 64
            pictures.pix_fmt = "yuv420p"
            audio = out.add_stream("aac", rate=RATE, layout="mono") if sound else None
            for _ in range(10):
                picture = av.VideoFrame.from_ndarray(
                    np.zeros((64, 64, 3), np.uint8), format="rgb24"
                )
                out.mux(pictures.encode(picture))
            out.mux(pictures.encode(None))
            if audio is not None:
                frame = av.AudioFrame.from_ndarray(tone(1.0)[None], format="fltp", layout="mono")
                frame.sample_rate = RATE
                cut = av.AudioResampler(format="fltp", layout="mono", rate=RATE, frame_size=1024)
                for piece in [*cut.resample(frame), *cut.resample(None)]:
                    out.mux(audio.encode(piece))
                out.mux(audio.encode(None))
        if sound:
            assert abs(frequency(decode(path)) - 440) < 3
        else:
            with pytest.raises(NoAudio, match="no audio stream"):
                decode(path)


def test_chunks_are_short_and_join_to_the_whole() -> None:
    chunks = list(files.decode(SPEECH / "long-0.flac"))
    assert max(map(len, chunks)) <= 2 * RATE
    assert abs(sum(map(len, chunks)) / RATE - 82.2) < 0.1
    assert files.probe(SPEECH / "long-0.flac").duration == sum(map(len, chunks))


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.txt", "hello")
    return out.getvalue()


def header(rate: int = RATE, channels: int = 1, size: int = 0x7FFFFFFF) -> bytes:
    return (
        b"RIFF"
        + struct.pack("<I", size)
        + b"WAVEfmt "
        + struct.pack(
            "<IHHIIHH", 16, 1, channels, rate, rate * channels * 2 % 2**32, channels * 2 % 2**16, 16
        )
        + b"data"
        + struct.pack("<I", size)
    )


BAD = {
    "empty": b"",
    "random": np.random.default_rng(1).bytes(20_000),
    "text": b"this is a letter, not a recording\n" * 50,
    "html": b"<!doctype html><html><body>no</body></html>",
    "json": b'{"file": "nothing"}',
    "zip": zipped(),
    "png": b"\x89PNG\r\n\x1a\n" + bytes(200),
    "pdf": b"%PDF-1.7\n" + bytes(500),
    "wav header alone": header(size=0),
    "riff alone": b"RIFF",
    "wav at 1 Hz": header(rate=1) + bytes(16_000),
    "wav at 4 GHz": header(rate=4_000_000_000) + bytes(16_000),
    "wav of 60000 channels": header(channels=60_000) + bytes(200_000),
    "flac magic": b"fLaC" + bytes(300),
    "ogg magic": b"OggS" + bytes(300),
    "mp4 magic": struct.pack(">I", 24) + b"ftypisom" + bytes(100),
    "id3 alone": b"ID3\x04\x00\x00\x00\x00\x00\x0a" + bytes(100),
    "m3u8": b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nsecret.wav\n#EXT-X-ENDLIST\n",
    "ffconcat": b"ffconcat version 1.0\nfile 'secret.wav'\n",
    "pls": b"[playlist]\nFile1=secret.wav\nNumberOfEntries=1\n",
    "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    "subtitles": b"1\n00:00:00,000 --> 00:00:05,000\nhello\n",
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_recording_is_told_in_a_sentence_within_a_second(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "secret.wav", wav(tone(1.0)))
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    with pytest.raises(AudioError) as caught:
        decode(write(tmp_path / "upload.wav", BAD[kind]))
    assert time.monotonic() - started < 3
    message = str(caught.value)
    assert ";" in message or "must lie" in message or "at most" in message
    assert str(tmp_path) not in message
    assert "0x" not in message


def test_playlists_reach_neither_files_nor_urls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hits: list[str] = []

    class Canary(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hits.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Canary)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/a.ts"
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "secret.wav", wav(tone(1.0)))
    lists = (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{url}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{url}'\n",
        "ffconcat version 1.0\nfile 'secret.wav'\n",
        f"[playlist]\nFile1={url}\n",
    )
    for name in ("list.m3u8", "list.ffconcat", "list.pls", "list.mp3", "list"):
        for text in lists:
            with pytest.raises(AudioError):
                decode(write(tmp_path / name, text.encode()))
    server.shutdown()
    server.server_close()
    thread.join()
    assert hits == []


def test_a_header_that_lies_about_its_length_gives_what_is_there(tmp_path: Path) -> None:
    data = np.asarray(tone(1.0) * 32767, "<i2").tobytes()
    assert abs(len(decode(write(tmp_path / "a", header() + data))) - RATE) < 1200


def test_a_truncated_recording_gives_what_is_there(tmp_path: Path) -> None:
    whole = (SPEECH / "000-en.flac").read_bytes()
    part = decode(write(tmp_path / "a", whole[: len(whole) // 2]))
    assert 0.3 < len(part) / len(speech("000-en.flac")) < 0.7


def test_more_audio_than_allowed_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a", wav(silence(5)))
    with pytest.raises(TooLong, match="longer than 2 seconds"):
        decode(path, limit=2)


def test_a_folder_or_missing_file_is_an_os_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(OSError):
            decode(path)


def test_wave_module_files_decode_exactly(tmp_path: Path) -> None:
    samples = tone(1.0)
    path = write(tmp_path / "a", wav(samples))
    with wave.open(str(path)) as file:
        expected = np.frombuffer(file.readframes(RATE), "<i2").astype(np.float32) / 32768
    assert np.array_equal(decode(path), expected)
