"""A route and what the API description says of it, in one value: none can be missing from `/openapi.json`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from starlette.requests import Request
from starlette.responses import Response

Schema: TypeAlias = type | Mapping[str, Any]
"""A msgspec type, or JSON Schema written by hand."""

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A path or query parameter."""

    name: str
    description: str
    schema: Schema = field(default_factory=lambda: {"type": "string"})
    where: Literal["path", "query"] = "query"
    required: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """One possible answer."""

    description: str
    media: Mapping[str, Schema | None] = field(default_factory=dict)
    """By media type; empty for no body. None: text without structure."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method on one path. The error replies (400, 401, 404, 413, 503 …) are added by `openapi.py` to all."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    """Starlette's syntax, such as ``/v1/models/{id:path}``."""
    handle: Handler
    tag: str
    summary: str
    description: str = ""
    parameters: tuple[Parameter, ...] = ()
    body: Mapping[str, Schema] = field(default_factory=dict)
    """By media type, such as ``multipart/form-data``; empty for none."""
    replies: Mapping[int, Reply] = field(default_factory=dict)
    public: bool = False
    """Answers without a key."""
    scope: Literal["transcribe", "manage", "metrics", "any"] = "transcribe"
    """What a key must be good for; any: each of them."""
    always: bool = False
    """Answers while the server stops, too."""
