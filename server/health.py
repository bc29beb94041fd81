"""Probes: no model call, no key, not in the access log."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from server import __version__
from server.context import context
from server.routes import Endpoint, Reply


class Health(msgspec.Struct):
    """What the server is doing, for people and proxies."""

    status: str
    """`ok`, `starting` or `draining`."""
    version: str
    default_model: str
    backend: str
    loaded: list[str]
    """Models in memory."""
    offline: bool
    """Models cannot be downloaded: the server was told never to touch the network."""
    notice: str | None = None
    """What an operator should know, such as that the built-in recogniser stands in for the default model."""


class Alive(msgspec.Struct):
    """The event loop answers."""

    status: str


class Ready(msgspec.Struct):
    """Each check with its state."""

    ready: bool
    checks: dict[str, bool]


async def health(request: Request) -> Response:
    """200 while requests are taken, else 503."""
    here = context(request)
    default = here.catalogue.default
    found = Health(
        "draining" if here.draining else "ok" if here.ready else "starting",
        __version__,
        default.id,
        default.backend,
        [model.id for model in here.engine.loaded()],
        here.catalogue.offline,
        here.catalogue.notice or here.notice,
    )
    return JSONResponse(msgspec.to_builtins(found), 503 if here.draining else 200)


async def livez(request: Request) -> Response:
    """200 whenever the loop turns."""
    del request
    return JSONResponse({"status": "ok"})


async def readyz(request: Request) -> Response:
    """503 before the preloaded models are in memory and after SIGTERM."""
    here = context(request)
    checks = {"started": here.ready, "not draining": not here.draining}
    found = {"ready": all(checks.values()), "checks": checks}
    return JSONResponse(found, 200 if found["ready"] else 503)


def _probe(path: str, handle: Any, summary: str, shape: type) -> Endpoint:
    replies = {
        200: Reply("yes", {"application/json": shape}),
        503: Reply("not now", {"application/json": shape}),
    }
    return Endpoint("GET", path, handle, "health", summary, replies=replies, public=True)


ENDPOINTS = (
    _probe("/health", health, "State, version, default model", Health),
    _probe("/livez", livez, "The process answers", Alive),
    _probe("/readyz", readyz, "The server takes work", Ready),
)
