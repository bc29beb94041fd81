"""Requests as the SDKs and hand-written clients send them, and every answer, letter by letter."""

import asyncio
import json
import logging
import threading
from collections.abc import Iterator

import httpx2
import pytest

from streaming.errors import (
    BackendError,
    ModelResting,
    ModelUnavailable,
    Overloaded,
    TooLong,
    UnknownModel,
)
from streaming.types import RATE, Segment, Summary, Token, Word
from tests.fakes import tone, wav
from tests.serving import Talker, running, with_engine

SEGMENTS = [
    Segment(
        0,
        RATE,
        " Hello world.",
        (Word(" Hello", 0, RATE // 2, 0.9, (1,)), Word(" world.", RATE // 2, RATE, 0.8, (2,))),
        (Token(b" Hello", -0.1, 1), Token(b" world.", -0.2, 2)),
        "en",
        0.0,
        -0.15,
        0.9,
        0.01,
    ),
    Segment(
        2 * RATE,
        3 * RATE,
        " Bye.",
        (Word(" Bye.", 2 * RATE, 3 * RATE, 0.7, (3,)),),
        (Token(b" Bye.", -0.3, 3),),
        "en",
    ),
]
TRANSCRIPTIONS = "/v1/audio/transcriptions"
RECORDING = wav(tone(1.0))


@pytest.fixture
def talker() -> Talker:
    return Talker(SEGMENTS)


@pytest.fixture
def client(talker: Talker) -> Iterator[httpx2.Client]:
    with (
        running(with_engine(talker, max_upload_mb=1, body_timeout=1.0)) as url,
        httpx2.Client(base_url=url, timeout=20) as client,
    ):
        yield client


def post(
    client: httpx2.Client, path: str = TRANSCRIPTIONS, **fields: str | list[str]
) -> httpx2.Response:
    return client.post(path, files={"file": ("a.wav", RECORDING)}, data=fields)


def fault(
    response: httpx2.Response, status: int, param: str | None = None, code: str | None = None
) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"].startswith("req_")
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    too_large = code == "payload_too_large"
    assert error["type"] == (
        "server_error" if status >= 500 or too_large else "invalid_request_error"
    )
    if param is not None:
        assert error["param"] == param
    if code is not None:
        assert error["code"] == code
    message: str = error["message"]
    return message


def test_json_has_the_text_and_its_usage(client: httpx2.Client) -> None:
    response = post(client, model="whisper-1")
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {
        "text": "Hello world. Bye.",
        "languages": [{"code": "en"}],
        "usage": {"type": "duration", "seconds": 10},
    }


def test_verbose_json_has_every_field_of_the_contract(client: httpx2.Client) -> None:
    found = post(
        client, response_format="verbose_json", **{"timestamp_granularities[]": ["word", "segment"]}
    ).json()
    assert found["task"] == "transcribe"
    assert found["language"] == "english"
    assert found["language_code"] == "en"
    assert found["duration"] == 10.0
    assert found["text"] == "Hello world. Bye."
    assert found["words"][1] == {"word": "world.", "start": 0.5, "end": 1.0, "probability": 0.8}
    first = found["segments"][0]
    assert first == {
        "id": 0,
        "seek": 0,
        "start": 0.0,
        "end": 1.0,
        "text": " Hello world.",
        "tokens": [1, 2],
        "temperature": 0.0,
        "avg_logprob": -0.15,
        "compression_ratio": 0.9,
        "no_speech_prob": 0.01,
        "words": found["words"][:2],
    }


def test_granularities_choose_what_is_listed(client: httpx2.Client) -> None:
    assert "words" not in post(client, response_format="verbose_json").json()
    only = post(
        client, response_format="verbose_json", **{"timestamp_granularities[]": "word"}
    ).json()
    assert "segments" not in only
    assert len(only["words"]) == 3
    plain = post(client, response_format="verbose_json", timestamp_granularities="word").json()
    assert "words" in plain


def test_text_and_subtitles_are_raw(client: httpx2.Client) -> None:
    text = post(client, response_format="text")
    assert (text.text, text.headers["content-type"]) == (
        "Hello world. Bye.\n",
        "text/plain; charset=utf-8",
    )
    srt = post(client, response_format="srt")
    assert (
        srt.text
        == "1\n00:00:00,000 --> 00:00:01,000\nHello world.\n\n2\n00:00:02,000 --> 00:00:03,000\nBye.\n\n"
    )
    assert srt.headers["content-type"] == "text/plain; charset=utf-8"
    vtt = post(client, response_format="vtt", max_line_width="8", max_line_count="1")
    assert vtt.text.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:00.500\nHello\n\n00:00:00.500 -->")
    assert vtt.headers["content-type"] == "text/vtt; charset=utf-8"


def test_logprobs_come_with_json(client: httpx2.Client) -> None:
    found = post(client, **{"include[]": "logprobs"}).json()
    assert found["logprobs"][0] == {"token": " Hello", "bytes": list(b" Hello"), "logprob": -0.1}
    events = [
        json.loads(frame)
        for frame in frames(post(client, stream="true", **{"include[]": "logprobs"}))
    ]
    assert [each for event in events[:-1] for each in event["logprobs"]] == found["logprobs"]
    assert events[-1]["logprobs"] == found["logprobs"]


def test_silence_is_no_fault_but_a_click_is(client: httpx2.Client, talker: Talker) -> None:
    talker.segments, talker.summary = [], Summary(RATE, 0, "toy")
    assert post(client).json() == {
        "text": "",
        "languages": [],
        "usage": {"type": "duration", "seconds": 1},
    }
    assert post(client, response_format="verbose_json").json()["segments"] == []
    assert "languages" not in post(client, language="en").json()
    talker.summary = Summary(RATE // 10 - 1, 0, "toy")
    for stream in ("false", "true"):
        assert "0.1 s" in fault(post(client, stream=stream), 400, "file", "audio_too_short")


def frames(response: httpx2.Response) -> list[str]:
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.text.endswith("\n\n")
    return [
        "\n".join(line.removeprefix("data: ") for line in frame.split("\n"))
        for frame in response.text[:-2].split("\n\n")
    ]


def test_streamed_json_is_deltas_that_join_to_the_text(client: httpx2.Client) -> None:
    events = [json.loads(frame) for frame in frames(post(client, stream="true", model="whisper-1"))]
    assert [event["type"] for event in events] == ["transcript.text.delta"] * 2 + [
        "transcript.text.done"
    ]
    assert (
        "".join(event["delta"] for event in events[:-1])
        == events[-1]["text"]
        == "Hello world. Bye."
    )


def test_streamed_subtitles_are_a_frame_a_cue(client: httpx2.Client) -> None:
    assert frames(post(client, stream="true", response_format="srt")) == [
        "1\n00:00:00,000 --> 00:00:01,000\nHello world.",
        "2\n00:00:02,000 --> 00:00:03,000\nBye.",
    ]
    assert frames(post(client, stream="true", response_format="text")) == ["Hello world.", "Bye."]
    # A WebVTT header is followed by an empty line, which ends an event's data line, not the event.
    verbose = [
        json.loads(frame)
        for frame in frames(post(client, stream="true", response_format="verbose_json"))
    ]
    assert [each["segments"][0]["id"] for each in verbose] == [0, 1]
    assert verbose[1]["duration"] == 1.0


def test_streamed_cues_wait_for_the_next_so_that_none_overlap(
    client: httpx2.Client, talker: Talker
) -> None:
    talker.segments = [
        Segment(0, RATE // 4, " Yes.", language="en"),
        Segment(RATE // 2, RATE, " No.", language="en"),
    ]
    found = frames(post(client, stream="true", response_format="srt"))
    assert found == [
        "1\n00:00:00,000 --> 00:00:00,500\nYes.",
        "2\n00:00:00,500 --> 00:00:01,500\nNo.",
    ]
    whole = post(client, response_format="srt").text
    assert "\n\n".join(found) + "\n\n" == whole
    talker.fault, talker.fail_after = BackendError("it broke"), 1
    assert "Yes." in frames(post(client, stream="true", response_format="vtt"))[0]


def test_streamed_webvtt_begins_as_webvtt_even_for_silence(
    client: httpx2.Client, talker: Talker
) -> None:
    assert post(client, stream="true", response_format="vtt").text.startswith(
        "data: WEBVTT\ndata: \ndata: 00:00:00.000"
    )
    talker.segments = []
    assert frames(post(client, stream="true", response_format="vtt")) == ["WEBVTT"]
    assert post(client, stream="true", response_format="srt").text == ""


def test_fields_reach_the_engine_in_every_encoding(client: httpx2.Client, talker: Talker) -> None:
    post(
        client,
        model="toy",
        language="en-US",
        prompt="Dear all,",
        temperature="0.2",
        hotwords="apples, pears",
        unknown_field="ignored",
        vad_filter="false",
        **{
            "keywords[]": ["New York, NY", "Rome"],
            "languages[]": ["en", "fr"],
            "chunking_strategy[type]": "server_vad",
            "chunking_strategy[threshold]": "0.7",
            "chunking_strategy[silence_duration_ms]": "200",
        },
    )
    asked = talker.asked[-1]
    assert (asked.model, asked.language, asked.prompt, asked.temperature) == (
        "toy",
        "en",
        "Dear all,",
        0.2,
    )
    assert asked.hotwords == ("New York, NY", "Rome", "apples", "pears")
    assert asked.languages == ("en", "fr")
    assert (asked.vad_threshold, asked.endpointing_ms, asked.pre_roll_ms) == (0.7, 200, 320)
    post(
        client,
        chunking_strategy='{"type": "server_vad", "prefix_padding_ms": 100}',
        language="French",
    )
    assert (talker.asked[-1].pre_roll_ms, talker.asked[-1].language) == (100, "fr")
    post(client, chunking_strategy="auto", language="", prompt="", temperature="", model="")
    assert talker.asked[-1].model == ""
    assert talker.asked[-1].language is None
    post(client, **{"languages[]": "de"})
    assert talker.asked[-1].language == "de"


def test_translations_ask_for_english(client: httpx2.Client, talker: Talker) -> None:
    found = post(client, "/v1/audio/translations", response_format="verbose_json").json()
    assert talker.asked[-1].task == "translate"
    assert (found["task"], found["language"]) == ("translate", "english")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": "mp3"}, "response_format"),
        ({"response_format": "diarized_json"}, "response_format"),
        ({"temperature": "1.5"}, "temperature"),
        ({"temperature": "nan"}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"language": "klingon"}, "language"),
        ({"languages[]": "xx"}, "languages"),
        ({"timestamp_granularities[]": "letter"}, "timestamp_granularities"),
        ({"include[]": "everything"}, "include"),
        ({"include[]": "logprobs", "response_format": "text"}, "include"),
        ({"stream": "perhaps"}, "stream"),
        ({"known_speaker_names[]": "Ann"}, "known_speaker_names"),
        ({"model": "gpt-4o-transcribe-diarize"}, "model"),
        ({"chunking_strategy": "sometimes"}, "chunking_strategy"),
        ({"chunking_strategy": "{"}, "chunking_strategy"),
        (
            {"chunking_strategy[type]": "server_vad", "chunking_strategy[threshold]": "9"},
            "chunking_strategy",
        ),
        ({"max_line_width": "2"}, "max_line_width"),
        ({"max_line_count": "1.5"}, "max_line_count"),
        ({"keywords[]": "x" * 2000}, "keywords"),
        ({"keywords": "[" * 100_000}, "keywords"),
        ({"keywords": "[[1]]"}, "keywords"),
        ({"keywords": "[null]"}, "keywords"),
        ({"languages": "[" * 100_000}, "languages"),
        ({"chunking_strategy": '{"type":' * 100_000}, "chunking_strategy"),
        (
            {"chunking_strategy": '{"type": "server_vad", "prefix_padding_ms": 1.5}'},
            "chunking_strategy",
        ),
        ({"beam_size": "2.5"}, "beam_size"),
        ({"beam_size": "0"}, "beam_size"),
    ],
)
def test_wrong_values_name_their_field_and_what_is_right(
    client: httpx2.Client, fields: dict[str, str], param: str
) -> None:
    assert len(fault(post(client, **fields), 400, param)) > 30


@pytest.mark.parametrize(
    "fields",
    [
        {"known_speaker_names[]": "Ann"},
        {"model": "gpt-4o-transcribe-diarize"},
        {"response_format": "diarized_json"},
    ],
)
def test_telling_speakers_apart_is_refused_as_unsupported(
    client: httpx2.Client, fields: dict[str, str]
) -> None:
    fault(post(client, **fields), 400, code="unsupported_value")


def test_json_in_fields_is_read_as_it_was_meant(client: httpx2.Client, talker: Talker) -> None:
    post(
        client,
        keywords='["New York, NY", 1984]',
        languages='["fr", "en", "french"]',
        beam_size="2",
        chunking_strategy='{"type": "server_vad", "threshold": null, "silence_duration_ms": 300}',
    )
    asked = talker.asked[-1]
    assert asked.hotwords == ("New York, NY", "1984")
    assert asked.languages == ("fr", "en")
    assert (asked.beam, asked.vad_threshold, asked.endpointing_ms) == (2, 0.5, 300)
    post(client, keywords='["\\ud800half", "\\u0000"]')
    assert talker.asked[-1].hotwords == ("half",)
    # A part of a list is never JSON: it is the phrase itself.
    post(client, **{"keywords[]": ["[1]", "[draft"]})
    assert talker.asked[-1].hotwords == ("[1]", "[draft")


def test_what_is_no_upload_is_refused_kindly(client: httpx2.Client) -> None:
    assert "is missing" in fault(
        client.post(TRANSCRIPTIONS, files={"other": ("a", b"x")}), 400, "file"
    )
    assert "without a filename" in fault(
        client.post(TRANSCRIPTIONS, data={"file": "text"}, files={"other": ("a", b"")}), 400, "file"
    )
    assert "multipart/form-data" in fault(
        client.post(TRANSCRIPTIONS, json={"file": "x"}), 400, "file"
    )
    assert "multipart/form-data" in fault(client.post(TRANSCRIPTIONS), 400, "file")
    assert "empty" in fault(
        client.post(TRANSCRIPTIONS, files={"file": ("a.wav", b"")}), 400, "file"
    )
    broken = {"content-type": "multipart/form-data; boundary=x"}
    for body in (
        b"--x\r\nnonsense",
        b"garbage",
        b"--x--",
        b'--x\r\nContent-Disposition: form-data; name="fi',
    ):
        fault(client.post(TRANSCRIPTIONS, content=body, headers=broken), 400)
    fault(
        client.post(TRANSCRIPTIONS, content=b"x", headers={"content-type": "multipart/form-data"}),
        400,
    )


def test_the_file_may_come_first_in_pieces_without_a_length(client: httpx2.Client) -> None:
    def body() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="speech.mp3"\r\nContent-Type: application/octet-stream\r\n\r\n'
        for at in range(0, len(RECORDING), 1000):
            yield RECORDING[at : at + 1000]
        yield b'\r\n--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--x--\r\n'

    headers = {"content-type": "multipart/form-data; boundary=x"}
    assert (
        client.post(TRANSCRIPTIONS, content=body(), headers=headers).json()["text"]
        == "Hello world. Bye."
    )


def test_a_body_over_the_limit_is_413_with_or_without_a_length(client: httpx2.Client) -> None:
    big = b"x" * (2 * 2**20)
    assert "or raise STT_MAX_UPLOAD_MB" in fault(
        client.post(TRANSCRIPTIONS, files={"file": ("a", big)}), 413, code="payload_too_large"
    )

    def pieces() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(64):
            yield bytes(2**15)

    headers = {"content-type": "multipart/form-data; boundary=x"}
    refused = client.post(TRANSCRIPTIONS, content=pieces(), headers=headers)
    fault(refused, 413, code="payload_too_large")
    assert post(client).status_code == 200


def test_a_client_that_stops_sending_is_told_so(client: httpx2.Client) -> None:
    import socket

    with socket.create_connection((client.base_url.host, client.base_url.port), 10) as raw:
        raw.sendall(
            b"POST /v1/audio/transcriptions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n"
            b"content-type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
        )
        answer = raw.recv(4096)
    assert answer.startswith(b"HTTP/1.1 408")
    assert post(client).status_code == 200


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (UnknownModel("the model 'x' does not exist"), 404, "model_not_found"),
        (TooLong("too long; cut it"), 413, "audio_too_long"),
        (ModelUnavailable("cannot be loaded; reinstall"), 503, "model_unavailable"),
        (ModelResting("it died; wait", retry_after=2.5), 503, "model_unavailable"),
        (Overloaded("busy", retry_after=2.5), 503, "overloaded"),
        (BackendError("it broke; try again"), 500, "recognition_failed"),
    ],
)
@pytest.mark.parametrize("stream", ["false", "true"])
def test_faults_before_the_first_text_are_statuses(
    client: httpx2.Client, talker: Talker, error: Exception, status: int, code: str, stream: str
) -> None:
    talker.fault = error  # type: ignore[assignment]
    response = post(client, stream=stream)
    fault(response, status, code=code)
    if isinstance(error, Overloaded | ModelResting):
        assert response.headers["retry-after"] == "3"
        assert response.headers.get("x-should-retry", "true") == "true"
    elif status >= 500:
        assert response.headers["x-should-retry"] == "false"


def test_a_fault_in_the_middle_of_a_stream_is_an_event(
    client: httpx2.Client, talker: Talker
) -> None:
    talker.fault, talker.fail_after = BackendError("it broke"), 1
    found = frames(post(client, stream="true"))
    assert json.loads(found[-1])["error"]["code"] == "recognition_failed"


@pytest.mark.parametrize("stream", ["false", "true"])
def test_a_client_that_leaves_stops_its_work(
    client: httpx2.Client, talker: Talker, stream: str
) -> None:
    talker.hold = asyncio.Event()
    with pytest.raises(httpx2.ReadTimeout):
        client.post(
            TRANSCRIPTIONS,
            files={"file": ("a.wav", RECORDING)},
            data={"stream": stream},
            timeout=0.5,
        )
    client.close()
    assert talker.stopped.wait(5)


def test_asr_answers_as_whisper_asr_webservice(client: httpx2.Client, talker: Talker) -> None:
    def ask(**query: str) -> httpx2.Response:
        return client.post("/asr", params=query, files={"audio_file": ("my talk.mp3", RECORDING)})

    assert ask().text == "Hello world. Bye.\n"
    assert ask(output="srt").text.startswith("1\n00:00:00,000")
    assert ask(output="vtt").text.startswith("WEBVTT")
    assert ask(output="tsv").text.startswith("start\tend\ttext\n0\t1000\tHello world.")
    found = ask(
        output="json", word_timestamps="true", task="translate", language="de", initial_prompt="Hi"
    )
    assert found.json()["segments"][0]["words"][0]["word"] == "Hello"
    assert found.headers["content-disposition"] == 'attachment; filename="my%20talk.mp3.json"'
    assert (talker.asked[-1].task, talker.asked[-1].language, talker.asked[-1].prompt) == (
        "translate",
        "de",
        "Hi",
    )
    fault(ask(output="docx"), 400, "output")
    fault(ask(task="sing"), 400, "task")
    fault(ask(vad_filter="perhaps"), 400, "vad_filter")
    fault(ask(diarize="true"), 400, "diarize", "unsupported_value")
    fault(client.post("/asr"), 400, "audio_file")
    told = client.post("/detect-language", files={"audio_file": ("a", RECORDING)}).json()
    assert told == {"detected_language": "english", "language_code": "en", "confidence": 0.99}
    assert talker.asked[-1].task == "detect"


def test_unknown_routes_and_methods_are_told_in_the_envelope(client: httpx2.Client) -> None:
    fault(client.get("/v1/nothing"), 404, code="unknown_url")
    wanted = client.get(TRANSCRIPTIONS + "/stream")
    fault(wanted, 426, code="upgrade_required")
    assert wanted.headers["upgrade"] == "websocket"
    refused = client.get(TRANSCRIPTIONS)
    assert "takes POST" in fault(refused, 405, code="method_not_allowed")
    assert refused.headers["allow"] == "POST"
    refused = client.put("/v1/models/toy")
    assert "takes DELETE, GET, HEAD, POST" in fault(refused, 405)
    assert refused.headers["allow"] == "DELETE, GET, HEAD, POST"
    fault(client.post("/docs/start.js"), 405)
    fault(client.get("/docs/assets/nothing.js"), 404, code="unknown_url")
    assert client.head("/livez").status_code == 200
    fault(client.get("/v1/models/nope"), 404, "model", "model_not_found")
    fault(client.get("/v1/models/..%2F..%2Fetc%2Fpasswd"), 404, "model")
    fault(client.post("/v1/models/"), 404)


def test_keys_are_asked_for_where_there_are_any(talker: Talker) -> None:
    with (
        running(with_engine(talker, api_keys=("secret", "other"))) as url,
        httpx2.Client(base_url=url) as client,
    ):
        message = fault(client.get("/v1/models"), 401)
        assert "Authorization" in message
        fault(
            client.get("/v1/models", headers={"authorization": "Bearer wrong"}),
            401,
            code="invalid_api_key",
        )
        for header in ({"authorization": "Bearer other"}, {"x-api-key": "secret"}):
            assert client.get("/v1/models", headers=header).status_code == 200
        for path in ("/health", "/livez", "/readyz", "/docs", "/openapi.json", "/"):
            assert client.get(path).status_code == 200, path


def test_crashes_are_500_with_an_id_and_no_details(talker: Talker) -> None:
    class Broken(Talker):
        def loaded(self) -> list[object]:  # type: ignore[override]
            raise ZeroDivisionError("a secret")

    with running(with_engine(Broken())) as url:
        response = httpx2.get(url + "/api/ps")
    assert "secret" not in fault(response, 500, code="internal_error")


def test_browsers_of_allowed_origins_may_call(talker: Talker) -> None:
    with running(with_engine(talker, allow_origins=("https://a.example",))) as url:
        asked = {
            "origin": "https://a.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,x-stainless-os",
        }
        allowed = httpx2.options(url + TRANSCRIPTIONS, headers=asked)
        assert allowed.headers["access-control-allow-origin"] == "https://a.example"
        assert allowed.headers["x-request-id"].startswith("req_")
        denied = httpx2.options(
            url + TRANSCRIPTIONS, headers=asked | {"origin": "https://evil.example"}
        )
        assert "access-control-allow-origin" not in denied.headers


def test_a_stopping_server_takes_nothing_new() -> None:
    made = with_engine(Talker(SEGMENTS))()
    started = threading.Event()

    def make() -> tuple[object, object]:
        made[1].draining = True
        started.set()
        return made

    with running(make) as url:  # type: ignore[arg-type]
        assert httpx2.get(url + "/readyz").status_code == 503
        assert httpx2.get(url + "/livez").status_code == 200
        response = httpx2.get(url + "/v1/models")
        fault(response, 503, code="stopping")
        assert int(response.headers["retry-after"]) >= 1


def test_the_access_log_names_routes_not_what_clients_put_into_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with (
        caplog.at_level(logging.INFO, "server.access"),
        running(with_engine(Talker(SEGMENTS))) as url,
        httpx2.Client(base_url=url) as client,
    ):
        client.get("/v1/models/private-name?key=private")
        client.get("/private/place")
        client.get("/docs/start.js")
        client.put("/api/ps/private-name")
    lines = [record.getMessage() for record in caplog.records if record.name == "server.access"]
    assert [line.split(" in ")[0] for line in lines] == [
        "GET /v1/models/{id} 404",
        "GET (unknown) 404",
        "GET /docs/start.js 200",
        "PUT /api/ps/{model} 405",
    ]
