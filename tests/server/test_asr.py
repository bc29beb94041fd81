"""`/asr` and `/detect-language` with a real Whisper: what clients of whisper-asr-webservice send."""

from collections.abc import Iterator

import httpx2
import pytest

from tests.fakes import pcm, speech, wav
from tests.serving import running, speech_file, with_toy


@pytest.fixture(scope="module")
def client() -> Iterator[httpx2.Client]:
    with running(with_toy()) as url, httpx2.Client(base_url=url, timeout=60) as client:
        yield client


def ask(client: httpx2.Client, recording: bytes, path: str = "/asr", **query: str) -> str:
    found = client.post(path, params=query, files={"audio_file": ("audio_file", recording)})
    assert found.status_code == 200, found.text
    return found.text


def test_bare_samples_are_read_where_the_client_says_so(client: httpx2.Client) -> None:
    samples = speech("000-en.flac")
    text = ask(client, speech_file("000-en.flac").read_bytes(), encode="true")
    assert "soldier" in text
    assert ask(client, pcm(samples), encode="false") == text
    assert ask(client, pcm(samples) + b"\0", encode="false") == text
    # Some clients send a WAV file as if it were bare samples.
    assert ask(client, wav(samples), encode="false") == text


def test_the_language_of_bare_samples(client: httpx2.Client) -> None:
    found = ask(client, pcm(speech("003-fr.flac")), "/detect-language", encode="false")
    assert '"language_code":"fr"' in found


def test_bare_samples_that_were_not_announced_are_refused(client: httpx2.Client) -> None:
    refused = client.post("/asr", files={"audio_file": ("a", pcm(speech("000-en.flac")))})
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "invalid_audio"
