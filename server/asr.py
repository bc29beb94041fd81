"""`POST /asr` and `POST /detect-language`, as whisper-asr-webservice has them, for clients written for it."""

from __future__ import annotations

import json
import struct
from contextlib import aclosing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from server import fields, formats, languages, uploads
from server.context import context
from server.errors import BadRequest
from server.gate import gate
from server.routes import Endpoint, Parameter, Reply
from server.transcriptions import gathered, segment_object, while_connected
from streaming.errors import TooLong, Unsupported
from streaming.types import RATE, Options, Recording, Segment, Summary

OUTPUTS = {
    "txt": "text/plain",
    "vtt": "text/vtt",
    "srt": "text/plain",
    "tsv": "text/tab-separated-values",
    "json": "application/json",
}


_LARGEST = 2**32 - 64
"""Bytes that a WAV file's header can count."""
_HEADER = struct.Struct("<4sI8sIHHIIHH4sI")
"""A WAV file's, from `RIFF` to the length of its samples."""


async def asr(request: Request) -> Response:
    """The transcript as a file."""
    here = context(request)
    query = fields.Form(request.query_params.multi_items())
    output = query.text("output") or "txt"
    if output not in OUTPUTS:
        raise BadRequest(
            f"output is {output[:40]!r}; it must be one of {', '.join(OUTPUTS)}", param="output"
        )
    task = query.text("task") or "transcribe"
    if task not in ("transcribe", "translate"):
        raise BadRequest(f"task is {task[:40]!r}; it must be transcribe or translate", param="task")
    if query.truth("diarize"):
        raise Unsupported("diarize is not possible here yet; leave it out", param="diarize")
    query.truth("vad_filter")
    wanted = [
        ("language", query.text("language") or ""),
        ("prompt", query.text("initial_prompt") or ""),
        ("response_format", "verbose_json"),
    ]
    options, _ = fields.parse(fields.Form(wanted), here.settings, task=task)  # type: ignore[arg-type]
    words = bool(query.truth("word_timestamps"))
    raw = query.truth("encode") is False
    async with uploads.receive(request, "audio_file") as upload:
        if raw:
            await anyio.to_thread.run_sync(_contain, upload.path)
        recording = Recording(upload.path, here.settings.max_audio_seconds)
        async with aclosing(
            gate(request).metered(request, here.engine.transcribe(recording, options))
        ) as items:
            segments, summary = await while_connected(request, gathered(items))
    body = _body(output, segments, summary, words)
    name = quote(upload.name.rpartition("/")[2] or "transcript", safe="")
    return Response(
        body,
        media_type=OUTPUTS[output],
        headers={
            "content-disposition": f'attachment; filename="{name}.{output}"',
            "asr-engine": "open-speech",
        },
    )


async def detect_language(request: Request) -> Response:
    """The language of the first speech in a recording."""
    here = context(request)
    raw = fields.Form(request.query_params.multi_items()).truth("encode") is False
    async with uploads.receive(request, "audio_file") as upload:
        if raw:
            await anyio.to_thread.run_sync(_contain, upload.path)
        recording = Recording(upload.path, here.settings.max_audio_seconds)
        options = Options(task="detect")
        async with aclosing(
            gate(request).metered(request, here.engine.transcribe(recording, options))
        ) as items:
            _, summary = await while_connected(request, gathered(items))
    return JSONResponse(
        {
            "detected_language": languages.name(summary.language),
            "language_code": summary.language,
            "confidence": summary.language_probability,
        }
    )


def _contain(path: Path) -> None:
    """Give bare samples (16-bit little-endian, 16 kHz, mono) the header that says so; a WAV file is left as it is."""
    if path.stat().st_size > _LARGEST:
        raise TooLong("there are more than 4 GiB of samples; send them in a container")
    with path.open("r+b") as file:
        start = file.read(12)
        if start[:4] == b"RIFF" and start[8:] == b"WAVE":
            return
        size = at = path.stat().st_size // 2 * 2
        file.truncate(size)
        while at:  # from the end, to make room for the header
            length = min(2**20, at)
            at -= length
            file.seek(at)
            piece = file.read(length)
            file.seek(at + _HEADER.size)
            file.write(piece)
        file.seek(0)
        told = (b"RIFF", size + 36, b"WAVEfmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16, b"data", size)
        file.write(_HEADER.pack(*told))


def _body(output: str, segments: list[Segment], summary: Summary, words: bool) -> str:
    match output:
        case "vtt":
            return formats.vtt(formats.cues(segments))
        case "srt":
            return formats.srt(formats.cues(segments))
        case "tsv":
            return formats.tsv(segments)
        case "json":
            found: dict[str, Any] = {
                "language": summary.language,
                "text": formats.text(segments),
                "segments": [
                    segment_object(number, segment, words=words)
                    for number, segment in enumerate(segments)
                ],
            }
            return json.dumps(found, ensure_ascii=False)
        case _:
            return formats.text(segments) + "\n"


_BODY = {
    "multipart/form-data": {
        "type": "object",
        "required": ["audio_file"],
        "properties": {"audio_file": {"type": "string", "format": "binary"}},
    }
}
_BOOLEAN = {"type": "boolean", "default": False}
_ENCODE = Parameter(
    "encode",
    "false: the file is bare samples, 16-bit little-endian, 16 kHz, mono; else any container",
    {"type": "boolean", "default": True},
)
ENDPOINTS = (
    Endpoint(
        "POST",
        "/asr",
        asr,
        "whisper-asr-webservice",
        "Turn a recording into text",
        parameters=(
            Parameter(
                "output",
                "shape of the answer",
                {"type": "string", "enum": list(OUTPUTS), "default": "txt"},
            ),
            Parameter(
                "task",
                "transcribe, or translate to English",
                {"type": "string", "default": "transcribe"},
            ),
            Parameter("language", "of the speech; default: detected"),
            Parameter("initial_prompt", "text that precedes the audio"),
            Parameter("word_timestamps", "words in the JSON's segments", _BOOLEAN),
            Parameter("vad_filter", "accepted; speech is always found first", _BOOLEAN),
            _ENCODE,
        ),
        body=_BODY,
        replies={200: Reply("the transcript", dict.fromkeys(sorted(set(OUTPUTS.values()))))},
    ),
    Endpoint(
        "POST",
        "/detect-language",
        detect_language,
        "whisper-asr-webservice",
        "Tell the language of a recording",
        parameters=(_ENCODE,),
        body=_BODY,
        replies={
            200: Reply(
                "the language",
                {
                    "application/json": {
                        "type": "object",
                        "properties": {
                            "detected_language": {"type": "string"},
                            "language_code": {"type": ["string", "null"]},
                            "confidence": {"type": ["number", "null"]},
                        },
                    }
                },
            )
        },
    ),
)
