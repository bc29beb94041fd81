"""The API description, OpenAPI 3.1, made from the endpoints themselves."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from server import __version__
from server.routes import Endpoint, Schema

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_FAULTS = {
    "400": "the request is wrong; the message says how",
    "401": "no key, or a wrong one",
    "403": "the key lacks the scope, the settings forbid it, or the page is of a foreign origin",
    "404": "no such model or route",
    "408": "the body did not arrive in time",
    "409": "the model was unloaded meanwhile",
    "413": "too large or too long",
    "421": "a server without keys does not answer to this Host",
    "429": "more than this key or address may ask for; Retry-After says when to come again",
    "500": "the server or the recogniser failed",
    "503": "overloaded, stopping, or the model cannot be had",
    "507": "no room on the server's disk",
}


def document(endpoints: Sequence[Endpoint], named: Sequence[type] = ()) -> dict[str, Any]:
    """The description of `endpoints`, as JSON; `named` are types that hand-written schemas refer to."""
    types: list[type] = [*named]
    for endpoint in endpoints:
        for shape in _schemas(endpoint):
            if isinstance(shape, type) and shape not in types:
                types.append(shape)
    _, components = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        path = re.sub(r"\{(\w+):\w+\}", r"{\1}", endpoint.path)
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint, path)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "open-speech",
            "version": __version__,
            "summary": "Speech to text: OpenAI's API and more, on your own machine",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": {
            "schemas": {**components, "Error": _ERROR},
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _schemas(endpoint: Endpoint) -> list[Schema | None]:
    found: list[Schema | None] = [parameter.schema for parameter in endpoint.parameters]
    found += endpoint.body.values()
    for reply in endpoint.replies.values():
        found += reply.media.values()
    return found


def _operation(endpoint: Endpoint, path: str) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "tags": [endpoint.tag],
        "summary": endpoint.summary,
        "operationId": f"{endpoint.method.lower()}{re.sub(r'[^A-Za-z0-9]+', '_', path).rstrip('_')}",
        "responses": {},
    }
    if endpoint.description:
        operation["description"] = endpoint.description
    if not endpoint.public:
        operation["security"] = [{"key": []}, {"header": []}, {}]
    named = {parameter.name for parameter in endpoint.parameters}
    parameters = [
        {
            "name": parameter.name,
            "in": parameter.where,
            "required": parameter.required or parameter.where == "path",
            "description": parameter.description,
            "schema": _reference(parameter.schema),
        }
        for parameter in endpoint.parameters
    ]
    parameters += [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", path)
        if name not in named
    ]
    if parameters:
        operation["parameters"] = parameters
    if endpoint.body:
        operation["requestBody"] = {"required": True, "content": _content(endpoint.body)}
    for status, reply in endpoint.replies.items():
        answer: dict[str, Any] = {"description": reply.description}
        if reply.media:
            answer["content"] = _content(reply.media)
        operation["responses"][str(status)] = answer
    fault = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    public = ("421", "500") if endpoint.public else _FAULTS
    for number in public:
        operation["responses"].setdefault(
            number, {"description": _FAULTS[number], "content": fault}
        )
    return operation


def _content(media: Mapping[str, Schema | None]) -> dict[str, Any]:
    return {
        kind: {"schema": {"type": "string"} if shape is None else _reference(shape)}
        for kind, shape in media.items()
    }


def _reference(shape: Schema) -> Any:
    if isinstance(shape, type):
        return {"$ref": f"#/components/schemas/{shape.__name__}"}
    return dict(shape)
