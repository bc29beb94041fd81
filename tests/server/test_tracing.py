"""Spans: one a request, one a WebSocket, and none where nobody asks."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import httpx2
import pytest
import websockets
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from server import tracing
from server.app import create_app
from tests.fakes import silence, wav
from tests.serving import Talker, context, running

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_each_request_and_each_websocket_has_a_span() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    def make() -> tuple[object, object]:
        here = context(Talker())
        return create_app(here, spans=provider), here

    async def talk(url: str) -> None:
        path = "/v1/audio/transcriptions/stream?model=toy&key=secret"
        async with websockets.connect(f"ws{url[4:]}{path}") as socket:
            await socket.send(json.dumps({"type": "end"}))
            async for _ in socket:
                pass

    with running(make) as url:
        answer = httpx2.post(
            f"{url}/v1/audio/transcriptions",
            files={"file": wav(silence(1.0))},
            headers={"traceparent": PARENT},
        )
        httpx2.get(f"{url}/secret/{'x' * 100}")
        httpx2.get(f"{url}/livez")
        asyncio.run(talk(url))
    provider.shutdown()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {
        "POST /v1/audio/transcriptions",
        "GET (unknown)",
        "WEBSOCKET /v1/audio/transcriptions/stream",
    }
    posted = spans["POST /v1/audio/transcriptions"]
    assert posted.attributes is not None
    assert posted.attributes["http.response.status_code"] == 200
    assert posted.attributes["open_speech.request"] == answer.headers["x-request-id"]
    assert posted.context is not None
    assert f"{posted.context.trace_id:032x}" == PARENT.split("-")[1]
    live = spans["WEBSOCKET /v1/audio/transcriptions/stream"].attributes
    assert live is not None
    assert live["http.response.status_code"] == 101
    assert live["open_speech.close_code"] == 1000
    assert "secret" not in "".join(span.to_json() for span in spans.values())


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_the_environment_asks(environment: dict[str, str], wanted: bool) -> None:
    assert tracing.wanted(environment) is wanted


def test_nothing_of_it_is_imported_unasked() -> None:
    code = "import sys, server.app; sys.exit(any('opentelemetry' in name for name in sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True)
