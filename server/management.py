"""`/api/ps` and `/api/pull`: what is in memory, and getting more, as faster-whisper-server has them."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from server import errors, uploads
from server.context import context
from server.errors import BadRequest, problem
from server.routes import Endpoint, Parameter, Reply
from streaming.errors import OpenSpeechError, UnknownModel
from streaming.hub import Download, Progress
from streaming.types import ModelInfo

LINES = 0.25
"""Seconds between two lines of a pull, at least."""


class Loaded(msgspec.Struct):
    """A model in memory."""

    id: str
    backend: str
    device: str
    compute_type: str
    memory: int | None
    """Bytes, where known."""
    in_use: int
    """Streams and recordings."""
    idle_seconds: float
    expires_in: float | None
    """Seconds until it is unloaded; null: while in use, or never."""
    load_seconds: float
    process: int | None
    """Its process, where it has one of its own."""
    restarts: int
    """Times that process died and was replaced."""


class Running(msgspec.Struct):
    """What is in memory."""

    models: list[str]
    loaded: list[Loaded]


class PullProgress(msgspec.Struct):
    """A line of a pull."""

    status: str
    """`downloading`, `success` or `error`."""
    completed: int | None = None
    total: int | None = None


async def running(request: Request) -> Response:
    """Models in memory."""
    loaded = [_loaded(info) for info in context(request).engine.loaded()]
    return JSONResponse(
        {
            "models": [each.id for each in loaded],
            "loaded": [msgspec.to_builtins(each) for each in loaded],
        }
    )


async def load(request: Request) -> Response:
    """Load a model: 201, or 409 if it is in memory already."""
    here = context(request)
    entry = await asyncio.to_thread(here.catalogue.entry, named(request, "model"))
    keep_alive = await _keep_alive(request)
    there = any(info.id == entry.id for info in here.engine.loaded())
    info = await here.engine.load(entry.id, keep_alive=keep_alive)
    if there and keep_alive is None:
        return problem(
            409,
            f"model {entry.id} is already loaded",
            param="model",
            code="model_loaded",
            headers={"x-should-retry": "false"},
        )
    now = next((each for each in here.engine.loaded() if each.id == entry.id), info)
    return JSONResponse(msgspec.to_builtins(_loaded(now)), 200 if there else 201)


async def unload(request: Request) -> Response:
    """Unload a model: at once when idle or with `?force=true`, else when its work is done."""
    here = context(request)
    entry = await asyncio.to_thread(here.catalogue.entry, named(request, "model"))
    force = request.query_params.get("force", "").lower() in ("1", "true", "yes")
    if not await here.engine.unload(entry.id, force=force):
        return problem(
            404, f"model {entry.id} is not loaded", param="model", code="model_not_loaded"
        )
    return Response(status_code=204)


async def pull(request: Request) -> Response:
    """Download a model."""
    return await pull_response(request, named(request, "model"))


async def remove(request: Request) -> Response:
    """Remove a download."""
    from server.catalogue import delete

    request.path_params["id"] = request.path_params["model"]
    return await delete(request)


def named(request: Request, parameter: str) -> str:
    """The model a path names; an empty one means none, not the default."""
    name: str = request.path_params[parameter]
    if not name.strip("/"):
        raise UnknownModel("the path names no model; GET /v1/models lists them")
    return name


async def pull_response(request: Request, name: str) -> Response:
    """200 if it is there, 201 with progress while it comes; 404, 503 before the first byte where that is known."""
    here = context(request)
    entry = await asyncio.to_thread(here.catalogue.entry, name)
    if entry.downloaded:
        return JSONResponse({"status": "success", "message": f"model {entry.id} already exists"})
    pull = _Pull(here.catalogue.download(entry))
    await pull.begun()
    if request.query_params.get("stream", "").lower() in ("0", "false", "no"):
        await pull.finished()
        return JSONResponse({"status": "success", "message": f"model {entry.id} downloaded"}, 201)
    return StreamingResponse(pull.lines(), 201, media_type="application/x-ndjson")


class _Pull:
    """One client's view of a download, which others may wait for too and which goes on when they leave."""

    def __init__(self, download: Download) -> None:
        self._download = download
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._forget = download.listen(self._tell)

    async def begun(self) -> None:
        """Returns once bytes come; raises what went wrong before."""
        try:
            while self._download.progress is None and not self._download.done.done():
                await self._wait()
            if self._download.progress is None:
                self._download.done.result()
        except BaseException:
            self._forget()
            raise

    async def finished(self) -> None:
        """Returns once all is there; raises what went wrong."""
        self._forget()
        await asyncio.wrap_future(self._download.done)

    async def lines(self) -> AsyncGenerator[str, None]:
        """Progress, one JSON object a line; the last says `success` or `error`."""
        seen: Progress | None = None
        shown = -math.inf
        try:
            while True:
                over, now = self._download.done.done(), self._download.progress
                late = self._loop.time() - shown > LINES
                if now is not None and now != seen and (over or late):
                    seen, shown = now, self._loop.time()
                    yield _line(status="downloading", completed=now.done, total=now.total)
                if over:
                    break
                await self._wait()
            error = self._download.done.exception()
            if error is None:
                yield _line(status="success")
            else:
                assert isinstance(error, OpenSpeechError)
                yield _line(status="error", **errors.envelope(error))
        finally:
            self._forget()

    async def _wait(self) -> None:
        await self._news.wait()
        self._news.clear()

    def _tell(self) -> None:
        """On the download's thread."""
        with suppress(RuntimeError):  # the server stopped, the download goes on
            self._loop.call_soon_threadsafe(self._news.set)


def _line(**fields: Any) -> str:
    return json.dumps(fields) + "\n"


async def _keep_alive(request: Request) -> float | None:
    """Seconds, from the query or a JSON body; None if neither says."""
    text: Any = request.query_params.get("keep_alive")
    if text is None:
        body = await uploads.short(request)
        if not body.strip():
            return None
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            raise BadRequest(
                'the body is no JSON; send {"keep_alive": seconds} or nothing'
            ) from None
        if not isinstance(found, dict):
            raise BadRequest('the body must be an object such as {"keep_alive": 300}')
        text = found.get("keep_alive")
        if text is None:
            return None
    try:
        seconds = float(text)
    except (TypeError, ValueError):
        seconds = math.nan
    if not -1e9 < seconds < 1e9:
        raise BadRequest(
            f"keep_alive is {str(text)[:40]!r}; give seconds, -1 for ever", param="keep_alive"
        )
    return seconds


def _loaded(info: ModelInfo) -> Loaded:
    return Loaded(
        info.id,
        info.backend,
        info.device,
        info.compute_type,
        info.memory,
        info.streams,
        round(info.idle_seconds, 3),
        None if info.expires_in is None else round(info.expires_in, 3),
        round(info.load_seconds, 3),
        info.pid,
        info.restarts,
    )


_MODEL = Parameter("model", "id or alias; may contain slashes", where="path")
_ROW = {"application/json": Loaded}
_STREAM = Parameter("stream", "false waits and answers once", {"type": "boolean", "default": True})
ENDPOINTS = (
    Endpoint(
        "GET",
        "/api/ps",
        running,
        "models",
        "List models in memory",
        replies={200: Reply("the models", {"application/json": Running})},
        scope="any",
    ),
    Endpoint(
        "POST",
        "/api/ps/{model:path}",
        load,
        "models",
        "Load a model",
        parameters=(
            _MODEL,
            Parameter(
                "keep_alive", "seconds without use until it goes; -1 never", {"type": "number"}
            ),
        ),
        replies={
            201: Reply("it is loaded", _ROW),
            200: Reply("it was loaded; keep_alive is set", _ROW),
        },
        scope="manage",
    ),
    Endpoint(
        "DELETE",
        "/api/ps/{model:path}",
        unload,
        "models",
        "Unload a model",
        parameters=(
            _MODEL,
            Parameter("force", "even in use", {"type": "boolean", "default": False}),
        ),
        replies={204: Reply("it goes")},
        scope="manage",
    ),
    Endpoint(
        "POST",
        "/api/pull/{model:path}",
        pull,
        "models",
        "Download a model",
        parameters=(_MODEL, _STREAM),
        replies={
            200: Reply("it is there", {"application/json": PullProgress}),
            201: Reply("progress, a JSON object a line", {"application/x-ndjson": PullProgress}),
        },
        scope="manage",
    ),
    Endpoint(
        "DELETE",
        "/api/pull/{model:path}",
        remove,
        "models",
        "Remove a downloaded model",
        parameters=(_MODEL,),
        replies={200: Reply("it is gone", {"application/json": {"type": "object"}})},
        scope="manage",
    ),
)
