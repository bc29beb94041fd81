"""`/v1/models`: OpenAI's list, with what each model is and can do beside it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from server.context import context
from server.errors import problem
from server.management import named, pull_response
from server.routes import Endpoint, Parameter, Reply
from streaming.models import OPENAI_NAMES, Entry


class Model(msgspec.Struct):
    """OpenAI's `Model`, and more."""

    id: str
    created: int
    """Unix seconds of the newest file; 0 for what is not downloaded."""
    object: str = msgspec.field(default="model")
    owned_by: str = ""
    backend: str = ""
    downloaded: bool = False
    loaded: bool = False
    size: int | None = None
    """Bytes on disk, or of the download."""
    languages: list[str] = []
    """ISO-639 codes."""
    language: list[str] = []
    """The same, under faster-whisper-server's name."""
    tasks: list[str] = []
    task: str = "automatic-speech-recognition"
    licence: str | None = None
    aliases: list[str] = []
    alias_of: str | None = None
    """For an alias: the model behind it."""
    removable: bool = False
    """It is a download that may be deleted here."""


class Models(msgspec.Struct):
    """OpenAI's list."""

    data: list[Model]
    object: str = "list"


class Deleted(msgspec.Struct):
    """OpenAI's answer to a deletion."""

    id: str
    deleted: bool
    object: str = "model"


async def models(request: Request) -> Response:
    """Downloaded models, the default and the aliases; with `?all=true` everything that could be downloaded."""
    here = context(request)
    everything = request.query_params.get("all", "").lower() in ("1", "true", "yes")
    entries = await asyncio.to_thread(here.catalogue.entries)
    loaded = {model.id for model in here.engine.loaded()}
    default = here.catalogue.default.id
    shown = [each for each in entries if everything or each.downloaded or each.id == default]
    ids = {each.id for each in shown}
    rows = [_model(each, each.id, loaded, here.catalogue.stays(each)) for each in shown]
    for entry in shown:
        wanted = [alias for alias in entry.aliases if alias not in ids]
        rows += [_model(entry, alias, loaded, True) for alias in wanted]
    return JSONResponse({"object": "list", "data": [_builtins(row) for row in rows]})


async def model(request: Request) -> Response:
    """One model, by id or alias."""
    here = context(request)
    name = named(request, "id")
    entry, entries = await asyncio.to_thread(
        lambda: (here.catalogue.entry(name), here.catalogue.entries())
    )
    if not entry.downloaded and not _published(entry, entries):
        return problem(
            404,
            f"the model {name[:100]!r} does not exist; GET /v1/models lists them",
            param="model",
            code="model_not_found",
        )
    loaded = {each.id for each in here.engine.loaded()}
    return JSONResponse(_builtins(_model(entry, name, loaded, here.catalogue.stays(entry))))


async def download(request: Request) -> Response:
    """speaches' name for `POST /api/pull/{model}`."""
    return await pull_response(request, named(request, "id"))


async def delete(request: Request) -> Response:
    """Remove a download."""
    here = context(request)
    name = named(request, "id")
    entry = await asyncio.to_thread(here.catalogue.removable, name)
    if entry.id in here.engine.loading():
        return problem(
            409,
            f"model {entry.id} is being loaded; remove it when nobody needs it",
            param="model",
            code="model_busy",
        )
    if any(each.id == entry.id for each in here.engine.loaded()):
        return problem(
            409,
            f"model {entry.id} is in memory; unload it first with DELETE /api/ps/{entry.id}",
            param="model",
            code="model_loaded",
            headers={"x-should-retry": "false"},
        )
    if not await asyncio.to_thread(here.catalogue.remove, name):
        return problem(
            404, f"model {entry.id} is not downloaded", param="model", code="model_not_found"
        )
    return JSONResponse({"id": name, "object": "model", "deleted": True})


def _published(entry: Entry, entries: list[Entry]) -> bool:
    return any(each.id == entry.id for each in entries)


def _model(entry: Entry, name: str, loaded: set[str], stays: bool) -> Model:
    languages = list(entry.capabilities.languages)
    alias = name != entry.id
    return Model(
        id=name,
        created=entry.created,
        owned_by="openai" if name in OPENAI_NAMES else entry.id.split("/")[0],
        backend=entry.backend,
        downloaded=entry.downloaded,
        loaded=entry.id in loaded,
        size=entry.size,
        languages=languages,
        language=languages,
        tasks=list(entry.capabilities.tasks),
        licence=entry.licence,
        aliases=[] if alias else list(entry.aliases),
        alias_of=entry.id if alias else None,
        removable=entry.downloaded and not alias and not stays,
    )


def _builtins(row: Model) -> dict[str, Any]:
    found = {"id": row.id, "object": "model", "created": row.created, "owned_by": row.owned_by}
    more: dict[str, Any] = msgspec.to_builtins(row)
    return found | more


_ID = Parameter("id", "id or alias; may contain slashes", where="path")
_MODEL = {200: Reply("the model", {"application/json": Model})}
ENDPOINTS = (
    Endpoint(
        "GET",
        "/v1/models",
        models,
        "models",
        "List models",
        parameters=(Parameter("all", "also those that are not downloaded", {"type": "boolean"}),),
        replies={200: Reply("the models", {"application/json": Models})},
        scope="any",
    ),
    Endpoint(
        "GET",
        "/v1/models/{id:path}",
        model,
        "models",
        "Describe a model",
        parameters=(_ID,),
        replies=_MODEL,
        scope="any",
    ),
    Endpoint(
        "POST",
        "/v1/models/{id:path}",
        download,
        "models",
        "Download a model",
        parameters=(_ID,),
        replies={
            200: Reply("it is there", {"application/json": {"type": "object"}}),
            201: Reply("progress, a JSON object a line", {"application/x-ndjson": None}),
        },
        scope="manage",
    ),
    Endpoint(
        "DELETE",
        "/v1/models/{id:path}",
        delete,
        "models",
        "Remove a downloaded model",
        parameters=(_ID,),
        replies={200: Reply("it is gone", {"application/json": Deleted})},
        scope="manage",
    ),
)
