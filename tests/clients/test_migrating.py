"""docs/migrating.md row by row: what clients of other servers rely on, against a running server."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from server.configuration import FOREIGN, IGNORED, variable
from tests.fakes import lines, silence, tone, wav
from tests.serving import running, with_toy

TRANSCRIPTIONS = "/v1/audio/transcriptions"


@pytest.fixture(scope="module")
def client() -> Iterator[httpx2.Client]:
    with running(with_toy()) as url, httpx2.Client(base_url=url, timeout=60) as client:
        yield client


def post(client: httpx2.Client, path: str = TRANSCRIPTIONS, **fields: str) -> httpx2.Response:
    with lines()[0].path.open("rb") as file:
        return client.post(path, files={"file": file}, data=fields)


def frames(text: str) -> list[str]:
    """The data of server-sent events."""
    events = [each for each in text.split("\n\n") if each.startswith("data: ")]
    return ["\n".join(line[6:] for line in each.split("\n")) for each in events]


def test_verbose_json_has_the_extras(client: httpx2.Client) -> None:
    found = post(client, response_format="verbose_json").json()
    assert (found["language"], found["language_code"]) == ("english", "en")
    assert all(segment["words"] is None for segment in found["segments"])
    asked = post(
        client, **{"response_format": "verbose_json", "timestamp_granularities[]": "word"}
    ).json()
    assert all("probability" in word for word in asked["words"])


def test_a_filter_that_is_off_changes_nothing(client: httpx2.Client) -> None:
    assert post(client, vad_filter="false").json()["text"] == post(client).json()["text"]


def test_silence_is_an_empty_text(client: httpx2.Client) -> None:
    answer = client.post(TRANSCRIPTIONS, files={"file": ("a.wav", wav(silence(20)))})
    assert (answer.status_code, answer.json()["text"]) == (200, "")


def test_subtitles_have_their_types(client: httpx2.Client) -> None:
    vtt = post(client, response_format="vtt")
    assert vtt.headers["content-type"] == "text/vtt; charset=utf-8"
    assert vtt.text.startswith("WEBVTT\n\n")


def test_streams_are_deltas_or_segments_in_their_format(client: httpx2.Client) -> None:
    events = [json.loads(data) for data in frames(post(client, stream="true").text)]
    assert {event["type"] for event in events[:-1]} == {"transcript.text.delta"}
    assert events[-1]["type"] == "transcript.text.done"
    alone = json.loads(frames(post(client, stream="true", response_format="verbose_json").text)[0])
    (segment,) = alone["segments"]
    assert alone["duration"] == pytest.approx(segment["end"] - segment["start"], abs=0.002)
    cue = frames(post(client, stream="true", response_format="srt").text)[0]
    assert cue.startswith("1\n00:00:")


def test_a_model_that_cannot_translate_is_a_400_that_names_one_that_can(
    client: httpx2.Client,
) -> None:
    refused = post(client, "/v1/audio/translations", model="english")
    assert refused.status_code == 400
    assert "toy" in refused.json()["error"]["message"]


def test_a_file_without_sound_is_a_400(client: httpx2.Client) -> None:
    answer = client.post(TRANSCRIPTIONS, files={"file": ("a.wav", b"no sound at all")})
    assert answer.status_code == 400
    assert client.post(TRANSCRIPTIONS, data={"model": "toy"}).status_code == 400


def test_models_are_loaded_and_unloaded_with_their_codes(client: httpx2.Client) -> None:
    rows = {row["id"]: row for row in client.get("/v1/models").json()["data"]}
    assert {"created", "object", "owned_by", "language", "backend", "downloaded"} <= set(
        rows["toy"]
    )
    assert rows["whisper-1"]["alias_of"] == "toy"
    everything = client.get("/v1/models", params={"all": "true"}).json()["data"]
    assert len(everything) > len(rows)
    assert client.post("/api/ps/english").status_code == 201
    assert client.post("/api/ps/english").status_code == 409
    assert client.post("/api/ps/english", params={"keep_alive": 60}).status_code == 200
    assert client.post("/api/ps/nothing").status_code == 404
    running = client.get("/api/ps").json()
    assert "english" in running["models"]
    assert {"english"} <= {row["id"] for row in running["loaded"]}
    assert client.delete("/api/ps/english").status_code == 204
    assert client.delete("/api/ps/english").status_code == 404
    assert client.post("/api/pull/toy").status_code == 200
    assert client.post("/v1/models/toy").status_code == 200
    assert client.post("/api/pull/nothing").status_code == 404


def test_other_talents_are_404(client: httpx2.Client) -> None:
    for path in ("/v1/audio/speech", "/v1/chat/completions"):
        assert client.post(path, json={}).status_code == 404
    assert client.get("/health").json()["status"] == "ok"
    assert client.get("/").headers["content-type"].startswith("text/html")


@pytest.mark.parametrize("output", ["txt", "json", "srt", "vtt", "tsv"])
def test_asr_answers_in_each_output(client: httpx2.Client, output: str) -> None:
    with lines()[0].path.open("rb") as file:
        answer = client.post("/asr", params={"output": output}, files={"audio_file": file})
    assert answer.headers["content-disposition"].endswith(f'.{output}"')
    assert answer.headers["asr-engine"] == "open-speech"
    if output == "json":
        assert {"text", "segments", "language"} <= set(answer.json())
    assert "soldier" in answer.text


def test_asr_knows_no_speakers_and_detection_answers(client: httpx2.Client) -> None:
    sound = {"audio_file": ("a.wav", wav(tone(0.5)))}
    assert client.post("/asr", params={"diarize": "true"}, files=sound).status_code == 400
    with lines()[3].path.open("rb") as file:
        found = client.post("/detect-language", files={"audio_file": file}).json()
    assert (found["detected_language"], found["language_code"]) == ("french", "fr")


def test_every_foreign_variable_is_in_the_table_with_its_own_name() -> None:
    text = (Path(__file__).parents[2] / "docs" / "migrating.md").read_text("utf-8")
    for name, own in FOREIGN.items():
        assert f"`{name}`" in text, name
        if not name.startswith(("ASR_", "MODEL_IDLE")):
            row = next(line for line in text.splitlines() if f"`{name}`" in line and "STT_" in line)
            assert f"`{variable(own)}`" in row, name
    for name in IGNORED:
        assert f"`{name}`" in text, name
