"""Files that nobody's recorder writes, by what they try. All are made here, small, and the same in each run."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from collections.abc import Callable
from fractions import Fraction
from functools import cache

import av
import numpy as np

from streaming.types import RATE, Samples
from tests.containers import KINDS, contained
from tests.drive import speak
from tests.fakes import pcm, silence, tone, wav
from tests.faults.process import words

SAID = words(3, 6)
"""What the good files say."""


@cache
def spoken() -> Samples:
    return speak([0.3, *SAID, 0.7])


@cache
def good(kind: str) -> bytes:
    """What is said, in a container."""
    if kind in KINDS:
        return contained(spoken(), kind)
    format, codec = LOSSLESS[kind]
    out = io.BytesIO()
    with av.open(out, "w", format=format) as container:
        stream = container.add_stream(codec, rate=RATE, layout="mono")
        if codec in ("wavpack", "tta"):  # whose first choice is 8 bits
            stream.codec_context.format = "s16p" if codec == "wavpack" else "s16"
        sound = (spoken() * 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(sound, format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        cut = av.AudioResampler(
            format=stream.codec_context.format, layout="mono", rate=RATE, frame_size=1024
        )
        for piece in [*cut.resample(frame), *cut.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return out.getvalue()


LOSSLESS = {
    "w64": ("w64", "pcm_s16le"),
    "aiff": ("aiff", "pcm_s16be"),
    "au": ("au", "pcm_s16be"),
    "caf": ("caf", "pcm_s16le"),
    "mov": ("mov", "pcm_s16le"),
    "m4a": ("ipod", "alac"),
    "wavpack": ("wv", "wavpack"),
    "tta": ("tta", "tta"),
    "mkv": ("matroska", "flac"),
    "avi": ("avi", "pcm_s16le"),
}


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
    head = b"RIFF" + struct.pack("<I", min(2**32 - 1, size + 36)) + b"WAVEfmt "
    return head + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", size) + data


def lying() -> dict[str, bytes]:
    """Headers that say what is not so."""
    data = pcm(tone(1.0))
    found = {
        f"{rate} Hz": riff(data, rate=rate) for rate in (0, 1, 100, 3999, 768_001, 2**31, 2**32 - 1)
    }
    found |= {f"{count} channels": riff(data, channels=count) for count in (0, 17, 255, 65535)}
    found |= {f"{bits} bits": riff(data, bits=bits) for bits in (0, 1, 7, 65, 65535)}
    found |= {f"{size} bytes": riff(data, said=size) for size in (0, 1, 3, 2**31 - 1, 2**32 - 1)}
    found |= {
        f"codec {tag:#x}": riff(data, tag=tag)
        for tag in (0, 2, 0x11, 0x55, 0xFF, 0x161, 0x9999, 0xFFFE)
    }
    flac = good("flac")
    # STREAMINFO: rate, channels, bits and length share eight bytes from the 18th on.
    for name, bits in (
        ("no rate", 0),
        ("all ones", 2**64 - 1),
        ("2**36 samples", (RATE << 44) | (15 << 36) | (2**36 - 1)),
    ):
        found["flac of " + name] = flac[:18] + struct.pack(">Q", bits) + flac[26:]
    m4a = good("m4a")
    for box in (b"mdhd", b"stsz", b"stco", b"stsc", b"stts", b"mvhd"):
        at = m4a.index(box) + 4
        found[f"m4a of a wild {box.decode()}"] = m4a[: at + 4] + b"\xff" * 12 + m4a[at + 16 :]
    return found


def truncated() -> dict[str, bytes]:
    """The beginnings of good files."""
    found = {}
    for kind in (*KINDS, *LOSSLESS):
        whole = good(kind)
        for at in (4, 13, 40, len(whole) // 4, len(whole) * 3 // 4, len(whole) - 1):
            found[f"{at} bytes of {kind}"] = whole[:at]
    return found


def mutated(rounds: int = 4) -> dict[str, bytes]:
    """Good files with a few bytes changed, most of them at the beginning."""
    chance = np.random.default_rng(8)
    found = {}
    for kind in (*KINDS, *LOSSLESS):
        for turn in range(rounds):
            data = bytearray(good(kind))
            for _ in range(1 + 3 * turn):
                within = 200 if chance.random() < 0.6 else len(data)
                data[chance.integers(min(within, len(data)))] = chance.integers(256)
            found[f"{kind}, {turn}"] = bytes(data)
    return found


def wrong() -> dict[str, bytes]:
    """What is no recording at all."""
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as file:
        file.writestr("a.wav", wav(tone(0.2)))
    return {
        "text": b"a letter, not a recording\n" * 100,
        "html": b"<!doctype html><script>alert(1)</script>" * 20,
        "json": b'{"file": "nothing"}',
        "xml": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>',
        "zip": zipped.getvalue(),
        "gzip": gzip.compress(wav(tone(0.2))),
        "png": b"\x89PNG\r\n\x1a\n" + bytes(200),
        "gif": b"GIF89a" + bytes(100),
        "jpeg": b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(100),
        "pdf": b"%PDF-1.7\n" + bytes(500),
        "elf": b"\x7fELF\x02\x01\x01" + bytes(200),
        "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94.",
        "subtitles": b"1\n00:00:00,000 --> 00:00:05,000\nhello\n",
        "lyrics": b"[00:01.00]la la la\n",
        "ass": b"[Script Info]\nScriptType: v4.00+\n",
        "midi": b"MThd\x00\x00\x00\x06\x00\x01\x00\x02\x00\x60MTrk" + bytes(20),
        "zeros": bytes(30_000),
        "ones": b"\xff" * 30_000,
        "noise": np.random.default_rng(1).bytes(30_000),
        "a byte": b"R",
    }


REFERENCES: dict[str, str] = {
    "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{}\n#EXT-X-ENDLIST\n",
    "m3u8 of a key": '#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{}"\n#EXTINF:5,\nx.ts\n#EXT-X-ENDLIST\n',
    "m3u8 of a map": '#EXTM3U\n#EXT-X-MAP:URI="{}"\n#EXTINF:5,\nx.mp4\n#EXT-X-ENDLIST\n',
    "master m3u8": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{}\n",
    "m3u": "{}\n{}\n",
    "ffconcat": "ffconcat version 1.0\nfile '{}'\n",
    "ffconcat without safety": "ffconcat version 1.0\noption safe 0\nfile '{}'\n",
    "pls": "[playlist]\nFile1={}\nNumberOfEntries=1\n",
    "xspf": '<?xml version="1.0"?><playlist version="1" xmlns="http://xspf.org/ns/0/"><trackList><track><location>{}'
    "</location></track></trackList></playlist>",
    "asx": '<asx version="3.0"><entry><ref href="{}"/></entry></asx>',
    "smil": '<smil><body><audio src="{}"/></body></smil>',
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet'
    ' mimeType="audio/mp4"><Representation id="1" bandwidth="1"><BaseURL>{}</BaseURL></Representation>'
    "</AdaptationSet></Period></MPD>",
    "reference of Windows Media": "[Reference]\nRef1={}\n",
    "imf": '<AssetMap xmlns="http://www.smpte-ra.org/schemas/429-9/2007/AM"><Path>{}</Path></AssetMap>',
    "sdp of a session": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\na=control:{}\nm=audio 5004 RTP/AVP 0\n",
    "bare address": "{}\n",
}
"""Files that name another; it goes where the braces are."""


def references(url: str, secret: str) -> dict[str, bytes]:
    """Each naming an address of ours and a file that holds a recording, in the ways FFmpeg knows."""
    found = {}
    for kind, form in REFERENCES.items():
        for target in (
            url,
            secret,
            f"file://{secret}",
            "secret.wav",
            f"subfile,,start,0,end,0,,:{secret}",
            f"crypto:{secret}",
        ):
            found[f"{kind} of {target[:12]}"] = form.replace("{}", target).encode()
    return found


SDP = b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n"


def hours(count: float, codec: str = "flac", rate: int = RATE) -> bytes:
    """Hours of zeros in as few bytes as the codec needs."""
    out = io.BytesIO()
    with av.open(out, "w", format=codec) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 4608), np.int16), format="s16", layout="mono"
        )
        frame.sample_rate = rate
        for _ in range(int(count * 3600 * rate / 4608)):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


def bombs() -> dict[str, bytes]:
    """Little files of much audio, all of more than two minutes."""
    return {
        "an hour of FLAC": hours(1),
        "FLAC at 4 kHz": hours(1, rate=4000),
        "FLAC at 655350 Hz": hours(0.05, rate=655_350),
        "a hundred chained Oggs": contained(silence(2.0), "ogg-opus") * 100,
        "a hundred MP3s in a row": contained(silence(2.0), "mp3") * 100,
    }


def stress() -> dict[str, bytes]:
    """Files that make a demuxer work for nothing."""
    mp3, flac, ogg = good("mp3"), good("flac"), good("ogg-opus")

    def id3(size: int) -> bytes:
        return (
            b"ID3\x04\x00\x00"
            + bytes((size >> shift) & 0x7F for shift in (21, 14, 7, 0))
            + bytes(size)
        )

    comment = bytes([4]) + (200_000 + 8).to_bytes(3, "big")
    many = b"".join(struct.pack("<I", 8) + b"ARTIST=x" for _ in range(16_000))
    return {
        "a megabyte of ID3": id3(2**20) + mp3,
        "two hundred ID3 tags": id3(1000) * 200 + mp3,
        "sixteen thousand comments": flac[:42].replace(flac[4:5], bytes([flac[4] & 0x7F]), 1)
        + comment
        + struct.pack("<I", 0)
        + struct.pack("<I", 16_000)
        + many[:200_000]
        + flac[42:],
        "pages of a thousand streams": b"".join(
            ogg[:14] + struct.pack("<I", serial) + ogg[18:60] for serial in range(1000)
        )
        + ogg,
        "a megabyte before the first frame": bytes(2**20) + mp3,
        "a box of boxes": struct.pack(">I", 24) + b"ftypisom" + bytes(12) + _nested(2000),
        "no end of EBML": good("webm-opus")[:200]
        + b"\x1a\x45\xdf\xa3\x01\xff\xff\xff\xff\xff\xff\xff" * 2000,
        "a chunk of no length, again and again": riff(b"")[:36] + b"junk\0\0\0\0" * 100_000,
    }


def _nested(depth: int) -> bytes:
    box = b""
    for _ in range(depth):
        box = struct.pack(">I", 8 + len(box)) + b"moov" + box
    return box


NAMES = (
    "../../../etc/passwd.wav",
    "/etc/passwd",
    "a.m3u8",
    "http://127.0.0.1/a.wav",
    "concat:a|b",
    "%d.wav",
    "-i.wav",
    "a\\..\\b.wav",
    "a;rm -rf.wav",
    "$(id).wav",
    "рекорд.wav",
    "a" * 3000 + ".wav",
    "con",
    ".",
    "..",
    " ",
    "\u202egpj.wav",
    "<img src=x onerror=alert(1)>.wav",
    "a.sdp",
    "pipe:0",
)

FAMILIES: dict[str, Callable[[], dict[str, bytes]]] = {
    "lying": lying,
    "truncated": truncated,
    "mutated": mutated,
    "wrong": wrong,
    "bombs": bombs,
    "stress": stress,
}
