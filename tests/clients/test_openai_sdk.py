"""The unmodified OpenAI SDK, sync and async, against a running server with a real Whisper."""

import asyncio
import warnings
from collections.abc import Iterator

import openai
import pytest

from tests.fakes import lines, word_errors
from tests.serving import running, speech_file, with_toy


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(with_toy()) as url:
        yield url + "/v1"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key="any", base_url=url, max_retries=0) as client:
        yield client


def test_every_sentence_of_the_fixture(client: openai.OpenAI) -> None:
    errors = sum(
        word_errors(
            line.text, client.audio.transcriptions.create(file=line.path, model="whisper-1").text
        )
        for line in lines()[:24]
    )
    assert errors <= 4, "of 216 words"


def test_json_is_a_transcription_with_usage(client: openai.OpenAI) -> None:
    found = client.audio.transcriptions.create(file=speech_file("000-en.flac"), model="toy")
    assert type(found).__name__ == "Transcription"
    assert found.usage is not None
    assert found.usage.type == "duration"
    assert found.languages is not None
    assert found.languages[0].code == "en"


def test_verbose_json_is_strictly_valid(url: str) -> None:
    with openai.OpenAI(api_key="any", base_url=url, _strict_response_validation=True) as strict:
        found = strict.audio.transcriptions.create(
            file=speech_file("003-fr.flac"),
            model="toy",
            response_format="verbose_json",
            timestamp_granularities=["word", "segment"],
        )
    assert found.language == "french"
    assert found.words is not None
    assert found.segments is not None
    assert found.words[0].word == "Le"
    assert found.segments[0].text.strip() == found.text
    assert 3 < found.duration < 4


@pytest.mark.parametrize("form", ["text", "srt", "vtt"])
def test_raw_formats_are_strings(client: openai.OpenAI, form: str) -> None:
    found = client.audio.transcriptions.create(
        file=speech_file("000-en.flac"), model="toy", response_format=form
    )  # type: ignore[call-overload]
    assert isinstance(found, str)
    assert "soldier" in found
    if form != "text":
        assert "-->" in found


def test_subtitles_of_the_long_recording_can_be_read(client: openai.OpenAI) -> None:
    srt = client.audio.transcriptions.create(
        file=speech_file("long-0.flac"), model="toy", response_format="srt"
    )
    cues = [cue.split("\n") for cue in str(srt).strip().split("\n\n")]
    said = []
    for cue in cues:
        assert 1 <= len(cue) - 2 <= 2
        assert all(len(line) <= 42 for line in cue[2:])
        start, _, end = cue[1].partition(" --> ")
        assert seconds(end) - seconds(start) <= 7.001
        said += cue[2:]
    truth = lines()[24].text
    assert word_errors(truth, " ".join(said)) <= 3, "of 156 words"
    assert sum(line.endswith((".", "?", "!")) for cue in cues for line in cue[-1:]) >= 0.8 * len(
        cues
    )


def seconds(clock: str) -> float:
    hours, minutes, rest = clock.replace(",", ".").split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


def test_streams_come_for_every_model_as_deltas(client: openai.OpenAI) -> None:
    events = list(
        client.audio.transcriptions.create(
            file=speech_file("long-0.flac"), model="whisper-1", stream=True
        )
    )
    assert [event.type for event in events[:-1]] == ["transcript.text.delta"] * (len(events) - 1)
    assert len(events) > 10
    assert "".join(event.delta for event in events[:-1]) == events[-1].text  # type: ignore[union-attr]


def test_logprobs_spell_the_text(client: openai.OpenAI) -> None:
    found = client.audio.transcriptions.create(
        file=speech_file("000-en.flac"), model="toy", include=["logprobs"]
    )
    assert found.logprobs
    spelt = b"".join(bytes(map(int, each.bytes or [])) for each in found.logprobs).decode()
    assert spelt.strip() == found.text
    assert all(each.logprob is not None and each.logprob <= 0 for each in found.logprobs)


def test_prompts_languages_keywords_and_chunking_are_taken(client: openai.OpenAI) -> None:
    found = client.audio.transcriptions.create(
        file=("speech.mp3", speech_file("000-en.flac").read_bytes()),
        model="toy",
        language="en",
        prompt="It was a large night.",
        temperature=0.0,
        keywords=["soldier"],
        chunking_strategy={"type": "server_vad", "silence_duration_ms": 300, "threshold": 0.4},
        extra_body={"hotwords": "window", "vad_filter": True},
    )
    assert "soldier" in found.text
    found = client.audio.transcriptions.create(
        file=speech_file("003-fr.flac"), model="toy", languages=["fr", "de"]
    )
    assert "chat" in found.text


def test_translations_are_english(client: openai.OpenAI) -> None:
    errors = 0
    for line in [line for line in lines()[:24] if line.language != "en"]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            found = client.audio.translations.create(file=line.path, model="toy")
        errors += word_errors(line.translation, found.text)
    assert errors <= 4, "of 100 words"


def test_models_are_listed_and_found_by_ids_with_slashes(client: openai.OpenAI) -> None:
    ids = [model.id for model in client.models.list()]
    assert {"toy", "english", "pocketsphinx", "whisper-1", "gpt-4o-transcribe"} <= set(ids)
    assert (
        client.models.retrieve("Systran/faster-whisper-small").id == "Systran/faster-whisper-small"
    )
    assert client.models.retrieve("whisper-1").object == "model"


def test_faults_are_the_exceptions_the_sdk_knows(client: openai.OpenAI) -> None:
    create = client.audio.transcriptions.create
    with pytest.raises(openai.NotFoundError) as unknown:
        create(file=speech_file("000-en.flac"), model="gpt-9")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    assert unknown.value.request_id is not None
    with pytest.raises(openai.BadRequestError, match="not audio that can be decoded"):
        create(file=("a.wav", b"RIFF of nonsense"), model="toy")
    with pytest.raises(openai.BadRequestError, match=r"knows en"):
        create(file=speech_file("003-fr.flac"), model="english", language="fr")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with pytest.raises(openai.BadRequestError, match="not trained to translate"):
            client.audio.translations.create(file=speech_file("003-fr.flac"), model="english")
    with pytest.raises(openai.InternalServerError, match="offline"):
        create(file=speech_file("000-en.flac"), model="Systran/faster-whisper-small")
    assert create(file=speech_file("000-en.flac"), model="english").text


def test_many_at_once_through_the_async_client(url: str) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(api_key="any", base_url=url) as client:
            found = await asyncio.gather(
                *(
                    client.audio.transcriptions.create(file=line.path, model="toy")
                    for line in lines()[:8]
                )
            )
            stream = await client.audio.transcriptions.create(
                file=lines()[24].path, model="toy", stream=True
            )
            streamed = [event async for event in stream]
        return [each.text for each in found] + [streamed[-1].text]  # type: ignore[union-attr]

    texts = asyncio.run(ask())
    assert (
        sum(word_errors(line.text, text) for line, text in zip(lines()[:8], texts, strict=False))
        <= 2
    )
    assert word_errors(lines()[24].text, texts[-1]) <= 3
