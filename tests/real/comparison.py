"""One model through REST, through the socket, and through faster_whisper itself, on the same speech."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import websockets

from streaming.audio import files
from streaming.types import RATE, Samples
from tests.fakes import noise, pcm, silence, wav, word_count, word_errors
from tests.real.recordings import Utterance

STEP = RATE // 10
"""Samples of a paced message."""


@dataclass
class Row:
    """What was found of one model."""

    model: str
    device: str = ""
    words: int = 0
    audio: float = 0.0
    """Seconds."""
    rest: int = 0
    """Word errors."""
    socket: int = 0
    theirs: int = 0
    rest_seconds: float = 0.0
    their_seconds: float = 0.0
    quiet: int = 0
    """Words heard in 90 s without speech."""
    their_quiet: int = 0
    sights: list[float] = field(default_factory=list)
    """Seconds from the beginning of speech to the first partial."""
    finals: list[float] = field(default_factory=list)
    """Seconds from the end of speech to its final; the endpoint's silence is part of it."""


def quiet() -> list[Samples]:
    """90 s without a word: nothing, hiss, and the hum of mains."""
    at = np.arange(30 * RATE) / RATE
    hum = sum(0.02 / n * np.sin(2 * np.pi * 50 * n * at) for n in (1, 2, 3))
    return [silence(30), noise(30, 0.01), np.asarray(hum, np.float32)]


def compare(url: str, model: str, speech: Sequence[Utterance], paced: int, bare: Any) -> Row:
    """`bare` is faster_whisper's model of the same weights."""
    row = Row(model)
    with httpx2.Client(base_url=url, timeout=None) as client:
        loaded = client.post(f"/api/ps/{model}", params={"keep_alive": -1})
        assert loaded.status_code in (200, 201), loaded.text
        row.device = f"{loaded.json()['device']}, {loaded.json()['compute_type']}"
        for utterance in speech:
            truth = utterance.text
            samples = read(utterance.path)
            row.words += word_count(truth)
            row.audio += len(samples) / RATE
            started = time.perf_counter()
            row.rest += word_errors(truth, _rest(client, model, utterance))
            row.rest_seconds += time.perf_counter() - started
            row.socket += word_errors(truth, asyncio.run(said(url, model, samples, utterance)))
            started = time.perf_counter()
            row.theirs += word_errors(truth, _bare(bare, str(utterance.path), utterance.language))
            row.their_seconds += time.perf_counter() - started
        for samples in quiet():
            sound = {"file": ("quiet.wav", wav(samples))}
            answer = client.post("/v1/audio/transcriptions", files=sound, data={"model": model})
            row.quiet += _count(answer.json()["text"])
            row.their_quiet += _count(_bare(bare, samples, "en"))
        for utterance in speech[:paced]:
            first, last = asyncio.run(paced_latency(url, model, utterance))
            row.sights += first
            row.finals += last
        client.delete(f"/api/ps/{model}", params={"force": "true"})
    return row


def read(path: Path) -> Samples:
    """A recording at 16 kHz."""
    return np.concatenate(list(files.decode(path)))


def _rest(client: httpx2.Client, model: str, utterance: Utterance) -> str:
    with utterance.path.open("rb") as file:
        answer = client.post(
            "/v1/audio/transcriptions",
            files={"file": file},
            data={"model": model, "language": utterance.language},
        )
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["text"]
    return text


def _bare(bare: Any, audio: str | Samples, language: str) -> str:
    pieces, _ = bare.transcribe(audio, language=language)
    return "".join(piece.text for piece in pieces)


def _count(text: str) -> int:
    return word_count(text) if text.strip() else 0


def _address(url: str, model: str, language: str) -> str:
    query = f"model={model}&language={language}&sample_rate={RATE}"
    return url.replace("http", "ws", 1) + f"/v1/audio/transcriptions/stream?{query}"


async def said(url: str, model: str, samples: Samples, utterance: Utterance) -> str:
    """The finals of a recording that is sent as fast as the server takes it."""
    finals = []
    async with websockets.connect(_address(url, model, utterance.language)) as socket:

        async def feed() -> None:
            data = pcm(samples)
            for at in range(0, len(data), 8 * STEP):
                await socket.send(data[at : at + 8 * STEP])
            await socket.send('{"type": "end"}')

        feeding = asyncio.create_task(feed())
        async for message in socket:
            event = json.loads(message)
            assert event["type"] != "error", event
            if event["type"] == "final":
                finals.append(event["text"].strip())
        await feeding
    return " ".join(finals)


async def paced_latency(
    url: str, model: str, utterance: Utterance
) -> tuple[list[float], list[float]]:
    """First sight and final of each utterance, of a recording that is sent as a microphone would."""
    samples = np.concatenate([read(utterance.path), silence(1.5)])
    sights: list[float] = []
    finals: list[float] = []
    async with websockets.connect(_address(url, model, utterance.language)) as socket:
        clock = asyncio.get_running_loop().time
        started = clock()

        async def feed() -> None:
            data = pcm(samples)
            for number, at in enumerate(range(0, len(data), 2 * STEP)):
                await asyncio.sleep(max(0.0, started + (number + 1) * 0.1 - clock()))
                await socket.send(data[at : at + 2 * STEP])
            await socket.send('{"type": "end"}')

        feeding = asyncio.create_task(feed())
        began: float | None = None
        async for message in socket:
            event = json.loads(message)
            assert event["type"] != "error", event
            now = clock() - started
            match event["type"]:
                case "speech_started":
                    began = event["at"]
                case "partial" if began is not None:
                    sights.append(now - began)
                    began = None
                case "final":
                    finals.append(now - event["end"])
                    began = None
        await feeding
    return sights, finals


def table(rows: Iterable[Row]) -> str:
    """Markdown."""
    lines = [
        "| model | on | word errors: REST | socket | faster_whisper | words in 90 s of silence and noise: here |"
        " faster_whisper | speed: REST | faster_whisper | first sight P50, P95 | final P50, P95 |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        cells = [
            f"`{row.model}`",
            row.device,
            *(f"{100 * each / row.words:.1f} %" for each in (row.rest, row.socket, row.theirs)),
            str(row.quiet),
            str(row.their_quiet),
            *(f"{row.audio / each:.1f} ×" for each in (row.rest_seconds, row.their_seconds)),
            _spread(row.sights),
            _spread(row.finals),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _spread(seconds: list[float]) -> str:
    if not seconds:
        return ""
    cuts = statistics.quantiles(seconds, n=20, method="inclusive") if len(seconds) > 1 else []
    middle, high = (cuts[9], cuts[18]) if cuts else (seconds[0], seconds[0])
    return f"{middle:.2f}, {high:.2f} s"
