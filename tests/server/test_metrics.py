"""What `/metrics` says of what a server does."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Iterator

import httpx2
import pytest
import websockets
from prometheus_client.parser import text_string_to_metric_families

from server import metrics
from server.metrics import MODELS, OTHER, Metrics
from streaming.types import RATE
from tests.fakes import lines, pcm, silence, wav
from tests.serving import Talker, running, with_engine, with_toy

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "FRESH", 0.0)


def series(text: str) -> Series:
    """Every sample by its name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Series, name: str, **labels: str) -> float:
    return found.get((f"open_speech_{name}", tuple(sorted(labels.items()))), 0.0)


def scrape(url: str, **headers: str) -> Series:
    answer = httpx2.get(f"{url}/metrics", headers=headers)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return series(answer.text)


@pytest.fixture(scope="module")
def toy() -> Iterator[str]:
    with running(with_toy()) as url:
        yield url


async def speak(url: str, query: str = "") -> list[dict[str, object]]:
    """The first sentence of the fixture as a live stream."""
    samples = lines()[0].samples
    async with websockets.connect(
        f"ws{url[4:]}/v1/audio/transcriptions/stream?language=en{query}"
    ) as socket:
        await socket.send(pcm(samples) + pcm(silence(1.0)))
        await socket.send(json.dumps({"type": "end"}))
        return [json.loads(text) async for text in socket]


def test_a_stream_shows_in_every_stage(toy: str) -> None:
    before = scrape(toy)
    said = asyncio.run(speak(toy))
    after = scrape(toy)
    finals = [each for each in said if each["type"] == "final"]

    def grew(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    length = len(lines()[0].samples) / RATE + 1
    assert grew("audio_received_seconds_total", model="toy", mode="stream") == pytest.approx(length)
    assert grew("utterances_total", model="toy") == len(finals) > 0
    spoken = sum(float(each["end"]) - float(each["start"]) for each in finals)
    assert grew("speech_seconds_total", model="toy") == pytest.approx(spoken, abs=0.01)
    assert grew("final_latency_seconds_count", model="toy") == len(finals)
    words = sum(len(str(each["text"]).split()) for each in finals)
    assert grew("commit_delay_seconds_count", model="toy") == words
    decodes = sum(
        grew("decode_duration_seconds_count", model="toy", kind=kind)
        for kind in ("final", "speculative", "partial")
    )
    assert decodes >= 1
    assert grew("decode_batch_size_count", model="toy") == decodes
    assert grew("streams_total", dialect="native", outcome="done") == 1
    assert value(after, "streams_open", dialect="native") == 0
    assert value(after, "engine_streams_open") == 0
    assert all(value(after, "decodes_waiting", kind=kind) == 0 for kind in ("final", "partial"))
    assert value(after, "model_loaded", model="toy", backend="faster_whisper") == 1
    assert value(after, "model_memory_bytes", model="toy") > 0
    assert value(after, "model_load_duration_seconds_count") >= 1
    assert ("process_resident_memory_bytes", ()) in after


def test_a_recording_shows_too(toy: str) -> None:
    before = scrape(toy)
    answer = httpx2.post(
        f"{toy}/v1/audio/transcriptions",
        files={"file": wav(lines()[0].samples)},
        data={"language": "en"},
    )
    assert answer.status_code == 200
    after = scrape(toy)
    labels = {"route": "/v1/audio/transcriptions", "method": "POST", "status": "200"}
    for name in ("http_requests_total", "http_request_duration_seconds_count"):
        assert value(after, name, **labels) == value(before, name, **labels) + 1
    heard = value(after, "audio_received_seconds_total", model="toy", mode="file")
    assert heard - value(
        before, "audio_received_seconds_total", model="toy", mode="file"
    ) == pytest.approx(len(lines()[0].samples) / RATE)
    assert value(after, "decode_duration_seconds_count", model="toy", kind="file") > 0
    assert value(after, "recordings_open") == 0


def test_it_says_what_runs_and_where(toy: str) -> None:
    def device(found: Series) -> list[str]:
        return [
            dict(labels)["device"] for name, labels in found if name == "open_speech_build_info"
        ]

    assert device(scrape(toy)) == ["cpu"]
    assert device(series(asyncio.run(Metrics("cuda:1").text()).decode())) == ["cuda:1"]


def test_clients_cannot_make_series() -> None:
    with running(with_engine(Talker())) as url, httpx2.Client(base_url=url) as client:
        for number in range(200):
            client.get(f"/nothing/{number}?key=secret{number}")
            client.request(f"M{number}", "/v1/models")
            client.get(f"/v1/models/{number}", headers={"authorization": f"Bearer {number}"})
        text = client.get("/metrics").text
    assert len(text) < 20_000
    assert "secret" not in text
    assert re.search(r'route="\(unknown\)"', text)
    assert f'method="{OTHER}"' in text


def test_the_text_is_bounded_however_many_models_are_used() -> None:
    full = Metrics()
    for number in range(1000):
        model = f"{number:04}{'o' * 92}/{'n' * 96}"
        for kind in ("final", "speculative", "partial", "file"):
            full.decoded(model, [kind], [0.1], 0.2)
        full.final(model, 0.5)
        full.heard(model, "file", 1.0)
    from server.app import ENDPOINTS

    for endpoint in ENDPOINTS:
        for status in (200, 400, 401, 404, 405, 413, 429, 499, 500, 503):
            full.answered(endpoint.path, endpoint.method, status, 0.1)
    text = asyncio.run(full.text())
    assert len(text) < 500_000
    found = series(text.decode())
    names = {dict(labels).get("model") for _, labels in found} - {None}
    assert len(names) == MODELS + 1
    rest = sum(
        value for (name, labels), value in found.items()
        if name == "open_speech_final_latency_seconds_count" and dict(labels)["model"] == OTHER
    )  # fmt: skip
    assert rest == 1000 - MODELS


def test_asking_often_costs_one_look_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    render = metrics.prometheus_client.generate_latest
    monkeypatch.setattr(metrics, "FRESH", 1e9)
    monkeypatch.setattr(
        metrics.prometheus_client,
        "generate_latest",
        lambda registry: looks.append(registry) or render(registry),
    )
    with running(with_engine(Talker())) as url, httpx2.Client(base_url=url) as client:
        texts = {client.get("/metrics").text for _ in range(20)}
    assert len(texts) == len(looks) == 1


def test_it_wants_a_key_where_others_do_and_answers_while_the_server_stops() -> None:
    made = []

    def make() -> tuple[object, object]:
        made.append(with_engine(Talker(), api_keys=("k",))())
        return made[0]

    with running(make) as url:
        assert httpx2.get(f"{url}/metrics").status_code == 401
        made[0][1].draining = True
        scrape(url, authorization="Bearer k")


def test_how_sessions_end_is_told() -> None:
    talker = Talker()

    async def leave(url: str) -> None:
        async with websockets.connect(
            f"ws{url[4:]}/v1/audio/transcriptions/stream?model=toy"
        ) as socket:
            await socket.recv()
            socket.transport.abort()

    async def refused(url: str) -> None:
        async with websockets.connect(
            f"ws{url[4:]}/v1/audio/transcriptions/stream?nonsense=1"
        ) as socket:
            assert json.loads(await socket.recv())["type"] == "error"
            await socket.wait_closed()

    with running(with_engine(talker, resume_seconds=0.0)) as url:
        asyncio.run(refused(url))
        asyncio.run(leave(url))
        assert talker.streams[0].closed.wait(10)
        found = scrape(url)
        while value(found, "streams_open", dialect="native"):
            found = scrape(url)
    assert value(found, "streams_total", dialect="native", outcome="refused") == 1
    assert value(found, "streams_total", dialect="native", outcome="client_gone") == 1


def test_a_websocket_has_a_request_id_and_its_log_lines_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    from server.logs import _Json

    kept: list[dict[str, str]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept.append(json.loads(_Json().format(record)))

    async def talk(url: str) -> str:
        async with websockets.connect(
            f"ws{url[4:]}/v1/audio/transcriptions/stream?model=toy"
        ) as socket:
            await socket.send(json.dumps({"type": "end"}))
            session = json.loads(await socket.recv())["session"]
            async for _ in socket:
                pass
            assert socket.response is not None
            return socket.response.headers["x-request-id"] + " " + session

    handler = Keep()
    with caplog.at_level(logging.INFO):
        logging.getLogger().addHandler(handler)
        try:
            with running(with_engine(Talker())) as url:
                request, session = asyncio.run(talk(url)).split(" ")
        finally:
            logging.getLogger().removeHandler(handler)
    about = [
        line
        for line in kept
        if line.get("request") == request and line["logger"].startswith("server")
    ]
    assert len(about) >= 2
    # Whoever knows the whole name may resume the session, so the log has its beginning.
    assert all(line["stream"] == session[:10] for line in about)
