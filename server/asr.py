"""`POST /asr` and `POST /detect-language`, as whisper-asr-webservice has them, for clients written for it."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from server import fields, formats, languages, uploads
from server.context import context
from server.errors import BadRequest
from server.routes import Endpoint, Parameter, Reply
from server.transcriptions import gathered, segment_object, while_connected
from streaming.errors import Unsupported
from streaming.types import Options, Recording, Segment, Summary

OUTPUTS = {
    "txt": "text/plain",
    "vtt": "text/vtt",
    "srt": "text/plain",
    "tsv": "text/tab-separated-values",
    "json": "application/json",
}


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
    async with uploads.receive(request, "audio_file") as upload:
        recording = Recording(upload.path, here.settings.max_audio_seconds)
        async with aclosing(here.engine.transcribe(recording, options)) as items:
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
    async with uploads.receive(request, "audio_file") as upload:
        recording = Recording(upload.path, here.settings.max_audio_seconds)
        options = Options(task="detect")
        async with aclosing(here.engine.transcribe(recording, options)) as items:
            _, summary = await while_connected(request, gathered(items))
    return JSONResponse(
        {
            "detected_language": languages.name(summary.language),
            "language_code": summary.language,
            "confidence": summary.language_probability,
        }
    )


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
            Parameter(
                "encode", "accepted; every container is read", {"type": "boolean", "default": True}
            ),
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
