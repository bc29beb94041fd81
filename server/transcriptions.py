"""`POST /v1/audio/transcriptions` and `/v1/audio/translations`, as OpenAI's, and streaming for every model."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from typing import Any, TypeVar

import anyio
import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from server import errors, fields, formats, languages, logs, timings, uploads
from server.context import context
from server.fields import Output
from server.gate import gate
from server.routes import Endpoint, Parameter, Reply
from server.timings import Clock
from streaming.errors import OpenSpeechError, TooShort
from streaming.types import (
    RATE,
    Options,
    Recording,
    Segment,
    Summary,
    Task,
    Transcribed,
    Word,
)

log = logging.getLogger(__name__)

KEEP_ALIVE = 15.0
"""Seconds of silence on an event stream after which a comment tells proxies that somebody is there."""
SHORTEST = RATE // 10
T = TypeVar("T")


class Gone(Exception):
    """The client left; nobody reads an answer."""


async def transcriptions(request: Request) -> Response:
    """Text in the language spoken."""
    return await _serve(request, "transcribe")


async def translations(request: Request) -> Response:
    """Text in English."""
    return await _serve(request, "translate")


async def _serve(request: Request, task: Task) -> Response:
    here = context(request)
    async with AsyncExitStack() as stack:
        upload = await stack.enter_async_context(uploads.receive(request))
        clock = timings.uploaded(request)
        asked = [pair for pair in request.query_params.multi_items() if pair[0] == "timings"]
        form = fields.Form([*upload.fields, *asked])
        options, output = fields.parse(form, here.settings, task=task)
        recording = Recording(upload.path, here.settings.max_audio_seconds)
        items = await stack.enter_async_context(
            aclosing(gate(request).metered(request, here.engine.transcribe(recording, options)))
        )
        if output.stream:
            # What the client did wrong shows in the first step: it gets a status, not an event.
            first = await while_connected(request, anext(items))
            _check_length(first)
            # The file and the generator live as long as the response.
            return _Live(stack.pop_all(), _events(first, items, options, output, clock))
        segments, summary = await while_connected(request, gathered(items))
        _check_length(summary)
    table = clock.table(summary) if output.timings else None
    return answer(segments, summary, options, output, table)


def _check_length(item: Transcribed) -> None:
    """OpenAI refuses what is too short for a word; silence is fine."""
    if isinstance(item, Summary) and item.samples < SHORTEST:
        raise TooShort(
            f"the recording is {item.samples / RATE:.3f} s long; the shortest that is taken is {SHORTEST / RATE:g} s"
        )


async def gathered(items: AsyncIterator[Transcribed]) -> tuple[list[Segment], Summary]:
    """A whole transcription."""
    segments: list[Segment] = []
    async for item in items:
        if isinstance(item, Segment):
            segments.append(item)
        elif isinstance(item, Summary):
            return segments, item
    raise AssertionError("a transcription ends in its summary")


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled if the client leaves. Raises Gone then."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(left())
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            log.info("a client left; its work is dropped")
            raise Gone
        return working.result()
    finally:
        for task in (working, leaving):
            if not task.done():
                task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


def answer(
    segments: list[Segment],
    summary: Summary,
    options: Options,
    output: Output,
    table: dict[str, float] | None = None,
) -> Response:
    """The whole transcript in the format asked for; `table`: of timings, if they are wanted."""
    headers = {"server-timing": timings.header(table)} if table is not None else None
    more = {"timings": table} if table is not None else {}
    match output.format:
        case "json":
            return JSONResponse(_json(segments, summary, options, output) | more, headers=headers)
        case "verbose_json":
            return JSONResponse(verbose(segments, summary, options, output) | more, headers=headers)
        case "text":
            return PlainTextResponse(formats.text(segments) + "\n", headers=headers)
        case "srt":
            cues = formats.cues(segments, width=output.width, lines=output.lines)
            return PlainTextResponse(formats.srt(cues), headers=headers)
        case "vtt":
            cues = formats.cues(segments, width=output.width, lines=output.lines)
            return PlainTextResponse(formats.vtt(cues), media_type="text/vtt", headers=headers)


def _usage(summary: Summary) -> dict[str, Any]:
    return {"type": "duration", "seconds": math.ceil(summary.samples / RATE)}


def _json(
    segments: list[Segment], summary: Summary, options: Options, output: Output
) -> dict[str, Any]:
    found: dict[str, Any] = {"text": formats.text(segments)}
    if options.task == "transcribe" and (detected := _detected(summary, options)) is not None:
        found["languages"] = detected
    if output.logprobs:
        found["logprobs"] = [entry for segment in segments for entry in _logprobs(segment)]
    found["usage"] = _usage(summary)
    return found


def _detected(summary: Summary, options: Options) -> list[dict[str, Any]] | None:
    """The language that was found, none for silence; None where nobody had to look."""
    if summary.language is not None and summary.language_probability is not None:
        return [{"code": summary.language}]
    return [] if options.language is None and summary.language is None else None


def _logprobs(segment: Segment) -> list[dict[str, Any]]:
    return [
        {
            "token": token.text.decode("utf-8", "replace"),
            "bytes": list(token.text),
            "logprob": token.log_probability,
        }
        for token in segment.tokens
    ]


def verbose(
    segments: list[Segment], summary: Summary, options: Options, output: Output
) -> dict[str, Any]:
    code = "en" if options.task == "translate" else summary.language or options.language
    found: dict[str, Any] = {
        "task": options.task,
        "language": languages.name(code),
        "language_code": code,
        "duration": seconds(summary.samples),
        "text": formats.text(segments),
    }
    if output.segments:
        found["segments"] = [
            segment_object(number, segment, words=output.words)
            for number, segment in enumerate(segments)
        ]
    if output.words:
        found["words"] = [word_object(word) for segment in segments for word in segment.words]
    found["usage"] = _usage(summary)
    return found


def segment_object(number: int, segment: Segment, *, words: bool) -> dict[str, Any]:
    """OpenAI's `TranscriptionSegment`, and faster-whisper-server's `words` beside it."""
    return {
        "id": number,
        "seek": segment.start * 100 // RATE,
        "start": seconds(segment.start),
        "end": seconds(segment.end),
        "text": segment.text,
        "tokens": [token.id for token in segment.tokens if token.id is not None],
        "temperature": segment.temperature,
        "avg_logprob": segment.log_probability,
        "compression_ratio": segment.compression_ratio,
        "no_speech_prob": segment.no_speech,
        "words": [word_object(word) for word in segment.words] if words else None,
    }


def word_object(word: Word) -> dict[str, Any]:
    """OpenAI's `TranscriptionWord`, and its probability."""
    return {
        "word": word.text.strip(),
        "start": seconds(word.start),
        "end": seconds(word.end),
        "probability": round(word.probability, 4),
    }


def seconds(sample: int) -> float:
    """A position on the wire, to the millisecond."""
    return round(sample / RATE, 3)


class _Live(StreamingResponse):
    """Server-sent events; gives back what they are made from, even if not one is ever taken."""

    def __init__(self, stack: AsyncExitStack, events: AsyncGenerator[str, None]) -> None:
        super().__init__(
            events,
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )
        self._stack = stack
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # The client may have left, which cancels this task: the work must be stopped all the same.
            with anyio.CancelScope(shield=True):
                await self._events.aclose()
                await self._stack.aclose()


async def _events(
    first: Transcribed,
    items: AsyncGenerator[Transcribed, None],
    options: Options,
    output: Output,
    clock: Clock,
) -> AsyncGenerator[str, None]:
    """Server-sent events: a frame a segment, in the format asked for; comments while there is none."""
    writer = _Writer(options, output, clock)
    item = first
    upcoming: asyncio.Task[Transcribed] | None = None
    try:
        while True:
            for frame in writer.frames(item):
                yield frame
            if isinstance(item, Summary):
                return
            upcoming = asyncio.ensure_future(_next(items))
            while not (await asyncio.wait([upcoming], timeout=KEEP_ALIVE))[0]:
                yield ": keep-alive\n\n"
            item = upcoming.result()
    except OpenSpeechError as error:
        for frame in writer.rest():
            yield frame
        yield _frame(json.dumps(errors.envelope(error) | _named()))
    except Exception:
        log.exception("a transcription failed after its first event")
        for frame in writer.rest():
            yield frame
        broken = errors.body("the server failed; its log says why", kind="server_error")
        yield _frame(json.dumps(broken | _named()))
    finally:
        if upcoming is not None and not upcoming.done():
            upcoming.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.gather(upcoming, return_exceptions=True)


def _named() -> dict[str, Any]:
    """The id under which the log knows the request; the headers that have it may be long gone."""
    found = logs.request_id.get()
    return {} if found is None else {"request_id": found}


async def _next(items: AsyncIterator[Transcribed]) -> Transcribed:
    return await anext(items)


class _Writer:
    """Turns items into frames; knows what came before."""

    def __init__(self, options: Options, output: Output, clock: Clock) -> None:
        self._options = options
        self._clock = clock
        self._output = output
        self._text = ""
        self._logprobs: list[dict[str, Any]] = []
        self._count = 0
        self._captions = formats.Captions(output.width, output.lines)

    def frames(self, item: Transcribed) -> list[str]:
        match item:
            case Segment():
                return self._segment(item)
            case Summary() if self._output.format == "json":
                done: dict[str, Any] = {"type": "transcript.text.done", "text": self._text}
                if self._output.logprobs:
                    done["logprobs"] = self._logprobs
                if (detected := _detected(item, self._options)) is not None:
                    done["languages"] = detected
                if self._output.timings:
                    done["timings"] = self._clock.table(item)
                return [_frame(json.dumps(done, ensure_ascii=False))]
            case Summary():
                return self.rest()
            case _:
                return []

    def rest(self) -> list[str]:
        """What was kept back; also after a fault."""
        if self._output.format not in ("srt", "vtt"):
            return []
        left = self._cues(self._captions.flush())
        if self._output.format == "vtt" and not self._count:
            left.append(_frame(formats.vtt([])))
        return left

    def _cues(self, cues: list[formats.Cue]) -> list[str]:
        made = []
        for cue in cues:
            self._count += 1
            if self._output.format == "srt":
                made.append(_frame(formats.srt([cue], self._count)))
            else:
                made.append(_frame(formats.vtt([cue], header=self._count == 1)))
        return made

    def _segment(self, segment: Segment) -> list[str]:
        output = self._output
        match output.format:
            case "json":
                delta = segment.text if self._text else segment.text.lstrip()
                self._text += delta
                event: dict[str, Any] = {"type": "transcript.text.delta", "delta": delta}
                if output.logprobs:
                    event["logprobs"] = _logprobs(segment)
                    self._logprobs += event["logprobs"]
                return [_frame(json.dumps(event, ensure_ascii=False))] if delta else []
            case "text":
                return [_frame(segment.text.strip())]
            case "verbose_json":
                code = "en" if self._options.task == "translate" else segment.language
                alone = {
                    "task": self._options.task,
                    "language": languages.name(code),
                    "language_code": code,
                    "duration": seconds(segment.end - segment.start),
                    "text": segment.text.strip(),
                    "segments": [segment_object(self._count, segment, words=output.words)],
                    "words": [word_object(word) for word in segment.words]
                    if output.words
                    else None,
                }
                self._count += 1
                return [_frame(json.dumps(alone, ensure_ascii=False))]
            case "srt" | "vtt":
                return self._cues(self._captions.decode(segment))


def _frame(text: str) -> str:
    """One event. A line break inside is a further `data:` line."""
    return "".join(f"data: {line}\n" for line in text.rstrip("\n").split("\n")) + "\n"


# What the API description says.


class Usage(msgspec.Struct):
    """What a request is charged by."""

    type: str
    seconds: int


class Logprob(msgspec.Struct):
    """A token with its log-probability."""

    token: str
    bytes: list[int]
    logprob: float


class Language(msgspec.Struct):
    """A detected language."""

    code: str


class Transcription(msgspec.Struct):
    """`response_format=json`."""

    text: str
    usage: Usage
    languages: list[Language] | None = None
    logprobs: list[Logprob] | None = None
    timings: dict[str, float] | None = None
    """With `timings=1`: seconds by stage."""


class TimedWord(msgspec.Struct):
    """A word with its time in seconds."""

    word: str
    start: float
    end: float
    probability: float


class TimedSegment(msgspec.Struct):
    """At most 7 s, ending at a sentence or a pause."""

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    words: list[TimedWord] | None


class VerboseTranscription(msgspec.Struct):
    """`response_format=verbose_json`."""

    task: str
    language: str
    duration: float
    text: str
    usage: Usage
    language_code: str | None = None
    segments: list[TimedSegment] | None = None
    words: list[TimedWord] | None = None
    timings: dict[str, float] | None = None


def _text(description: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "description": description, **more}


def _list(description: str) -> dict[str, Any]:
    return {"type": "array", "items": {"type": "string"}, "description": description}


_COMMON: dict[str, Any] = {
    "file": {
        "type": "string",
        "format": "binary",
        "description": "the recording, in any container",
    },
    "model": _text("a name of GET /v1/models; default: the server's default model"),
    "prompt": _text("text that is supposed to precede the audio: style and vocabulary"),
    "response_format": _text("", enum=list(fields.FORMATS), default="json"),
    "temperature": {"type": "number", "minimum": 0, "maximum": 1, "default": 0},
    "language": _text("of the speech, ISO-639-1; default: detected"),
    "stream": {
        "type": "boolean",
        "default": False,
        "description": "server-sent events, a frame a segment",
    },
    "hotwords": _text("words to listen for, separated by commas"),
    "max_line_width": {
        "type": "integer",
        "default": formats.WIDTH,
        "description": "of a subtitle line",
    },
    "max_line_count": {"type": "integer", "default": formats.LINES, "description": "of a subtitle"},
    "beam_size": {"type": "integer", "description": "hypotheses kept"},
    "vad_filter": {"type": "boolean", "description": "accepted; speech is always found first"},
}
_BODY = {
    "multipart/form-data": {
        "type": "object",
        "required": ["file"],
        "properties": {
            **_COMMON,
            "languages[]": _list("languages to choose from when detecting"),
            "keywords[]": _list("words to listen for"),
            "timestamp_granularities[]": _list("word, segment; with verbose_json"),
            "include[]": _list("logprobs; with json"),
            "chunking_strategy": _text("auto, or a server_vad object"),
        },
    }
}
_TRANSLATION_BODY = {
    "multipart/form-data": {"type": "object", "required": ["file"], "properties": _COMMON}
}
_QUERY = (
    Parameter(
        "timings",
        "where the time went: `timings` in JSON and in the last event, a Server-Timing header elsewhere",
        {"type": "boolean", "default": False},
    ),
)
_REPLIES = {
    200: Reply(
        "the transcript",
        {
            "application/json": {
                "anyOf": [
                    {"$ref": "#/components/schemas/Transcription"},
                    {"$ref": "#/components/schemas/VerboseTranscription"},
                ]
            },
            "text/plain": None,
            "text/vtt": None,
            "text/event-stream": None,
        },
    )
}
SCHEMAS = (Transcription, VerboseTranscription)
"""Named in replies by reference."""

Handle = Callable[[Request], Awaitable[Response]]
ENDPOINTS = (
    Endpoint(
        "POST",
        "/v1/audio/transcriptions",
        transcriptions,
        "audio",
        "Turn a recording into text",
        parameters=_QUERY,
        body=_BODY,
        replies=_REPLIES,
    ),
    Endpoint(
        "POST",
        "/v1/audio/translations",
        translations,
        "audio",
        "Turn a recording into English text",
        parameters=_QUERY,
        body=_TRANSLATION_BODY,
        replies=_REPLIES,
    ),
)
