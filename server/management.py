"""`/api/ps` and `/api/pull`: what is in memory, and getting more, as faster-whisper-server has them."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import threading
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from server import errors
from server.context import context
from server.errors import BadRequest, problem
from server.routes import Endpoint, Parameter, Reply
from streaming.errors import ModelUnavailable, OpenSpeechError, UnknownModel
from streaming.models import Catalogue, Download, Entry
from streaming.types import ModelInfo

log = logging.getLogger(__name__)


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
    entry = here.catalogue.entry(named(request, "model"))
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
    return JSONResponse(msgspec.to_builtins(_loaded(info)), 200 if there else 201)


async def unload(request: Request) -> Response:
    """Unload a model: at once when idle or with `?force=true`, else when its work is done."""
    here = context(request)
    entry = here.catalogue.entry(named(request, "model"))
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
    entry = here.catalogue.entry(name)
    if entry.downloaded:
        return JSONResponse({"status": "success", "message": f"model {entry.id} already exists"})
    job = _Pull.of(here.catalogue, entry)
    await job.begun()
    if request.query_params.get("stream", "").lower() in ("0", "false", "no"):
        await job.finished()
        return JSONResponse({"status": "success", "message": f"model {entry.id} downloaded"}, 201)
    return StreamingResponse(job.lines(), 201, media_type="application/x-ndjson")


class _Pull:
    """One download, however many wait for it. It goes on when its client leaves: what is fetched is fetched."""

    _running: dict[str, _Pull] = {}  # noqa: RUF012 - by id, while they run; bounded by the downloads under way

    def __init__(self, catalogue: Catalogue, entry: Entry) -> None:
        self.progress: Download | None = None
        self.error: OpenSpeechError | None = None
        self.done = False
        self._id = entry.id
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        threading.Thread(
            target=self._work, args=(catalogue, entry), name=f"pull {entry.id}", daemon=True
        ).start()

    @classmethod
    def of(cls, catalogue: Catalogue, entry: Entry) -> _Pull:
        """The download of `entry` that runs, or a new one."""
        found = cls._running.get(entry.id)
        if found is None:
            found = cls._running[entry.id] = cls(catalogue, entry)
        return found

    async def begun(self) -> None:
        """Returns once bytes come; raises what went wrong before."""
        while self.progress is None and not self.done:
            await self._wait()
        if self.error is not None and self.progress is None:
            raise self.error

    async def finished(self) -> None:
        """Returns once all is there; raises what went wrong."""
        while not self.done:
            await self._wait()
        if self.error is not None:
            raise self.error

    async def lines(self) -> AsyncGenerator[str, None]:
        """Progress, one JSON object a line; the last says `success` or `error`."""
        seen = None
        while True:
            if self.progress is not None and self.progress != seen:
                seen = self.progress
                yield _line(status="downloading", completed=seen.done, total=seen.total)
            if self.done:
                break
            await self._wait()
        if self.error is None:
            yield _line(status="success")
        else:
            yield _line(status="error", **errors.envelope(self.error))

    async def _wait(self) -> None:
        news = self._news
        await news.wait()

    def _work(self, catalogue: Catalogue, entry: Entry) -> None:
        """On a thread of its own."""
        try:
            for progress in catalogue.fetch(entry):
                self._tell(progress, None, False)
            self._tell(None, None, True)
        except OpenSpeechError as error:
            self._tell(None, error, True)
        except Exception as error:
            log.exception("downloading %s failed", entry.id)
            self._tell(None, ModelUnavailable(f"downloading failed: {type(error).__name__}"), True)

    def _tell(self, progress: Download | None, error: OpenSpeechError | None, done: bool) -> None:
        def tell() -> None:
            self.progress = progress or self.progress
            self.error, self.done = error, done
            if done:
                self._running.pop(self._id, None)
            news, self._news = self._news, asyncio.Event()
            news.set()

        try:
            self._loop.call_soon_threadsafe(tell)
        except RuntimeError:
            log.debug("the server stopped during a download")


def _line(**fields: Any) -> str:
    return json.dumps(fields) + "\n"


async def _keep_alive(request: Request) -> float | None:
    """Seconds, from the query or a JSON body; None if neither says."""
    text: Any = request.query_params.get("keep_alive")
    if text is None:
        body = await request.body()
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
