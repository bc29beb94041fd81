"""What people look at: the start page and Swagger UI, from local files, under a strict content policy."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from server.routes import Endpoint, Reply

_HERE = Path(__file__).parent
WEB = _HERE / "_web" if (_HERE / "_web").is_dir() else _HERE.parent / "web"
"""The page's files: inside the wheel, or beside the package in a checkout."""
CLIENT = WEB / "client" if (WEB / "client").is_dir() else _HERE.parent / "clients" / "js"
"""The JavaScript client's."""

_DOCS = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>open-speech API</title>
<link rel="stylesheet" href="docs/assets/swagger-ui.css">
<div id="swagger-ui"></div>
<script src="docs/assets/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
"""
_DOCS_POLICY = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none';"
    " base-uri 'none'; object-src 'none'"
)
"""Swagger UI sets style attributes; no script is inline there either."""
_START = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
});
"""


_ASK = {"cache-control": "no-cache"}
"""Browsers keep a file but ask whether it is still the one: modules of two versions must not meet."""


class _Assets(StaticFiles):
    """The page's files."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(_ASK)
        return response


def assets() -> Path:
    """Swagger UI's files, in the `swagger-ui-bundle` package."""
    spec = find_spec("swagger_ui_bundle")
    assert spec is not None
    assert spec.origin is not None
    return next(Path(spec.origin).parent.rglob("swagger-ui-bundle.js")).parent


async def _docs(request: Request) -> Response:
    del request
    return HTMLResponse(_DOCS, headers={"content-security-policy": _DOCS_POLICY})


async def _start(request: Request) -> Response:
    del request
    return Response(_START, media_type="text/javascript")


async def _index(request: Request) -> Response:
    del request
    return FileResponse(WEB / "index.html", headers=_ASK)


async def _client(request: Request) -> Response:
    file = CLIENT / request.url.path.rpartition("/")[2]
    return FileResponse(file, media_type="text/javascript", headers=_ASK)


async def _schema(request: Request) -> Response:
    return JSONResponse(request.app.state.openapi)


_CLIENT = ("open-speech.js", "open-speech-worklet.js")
_HTML = {200: Reply("a page", {"text/html": None})}
ENDPOINTS = (
    Endpoint("GET", "/", _index, "pages", "The start page", replies=_HTML, public=True),
    Endpoint("GET", "/docs", _docs, "pages", "This API, to try out", replies=_HTML, public=True),
    Endpoint(
        "GET",
        "/openapi.json",
        _schema,
        "pages",
        "This API, for machines",
        replies={200: Reply("OpenAPI 3.1", {"application/json": {"type": "object"}})},
        public=True,
    ),
)


def static() -> list[Route | Mount]:
    """Files without an entry in the API description."""
    routes: list[Route | Mount] = [
        Route("/docs/start.js", _start),
        Mount("/docs/assets", StaticFiles(directory=assets())),
    ]
    routes += [Route(f"/client/{name}", _client) for name in _CLIENT]
    if (WEB / "assets").is_dir():
        routes.append(Mount("/assets", _Assets(directory=WEB / "assets")))
    return routes
