"""The catalogue, and downloads from a hub of our own on this machine."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from streaming.errors import ModelUnavailable, UnknownModel, Unsupported
from streaming.models import OPENAI_NAMES, Catalogue
from tests import toy
from tests.hub import Hub
from tests.serving import catalogue, running, with_toy


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as found:
        found.add("acme/toy-whisper", toy.build())
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        yield found


def names(found: Catalogue) -> set[str]:
    return {entry.id for entry in found.entries() if entry.downloaded}


def test_names_short_long_and_borrowed_lead_to_models() -> None:
    found = catalogue(default=None, paths={}, offline=True)
    found.settle()
    assert found.entry("tiny").id == "Systran/faster-whisper-tiny"
    assert found.entry("turbo").id == "deepdml/faster-whisper-large-v3-turbo-ct2"
    assert found.entry("distil-large-v3").capabilities.tasks == ("transcribe",)
    assert found.entry("small.en").capabilities.languages == ("en",)
    assert found.entry("someone/finetuned-whisper").repository == "someone/finetuned-whisper"
    for name in OPENAI_NAMES:
        assert found.entry(name).id == found.default.id == "pocketsphinx"


@pytest.mark.parametrize(
    "name", ["/etc", "../secret", "a/../b", "a/b/c", "~root", "C:\\x", "x\0y", "sma11", "."]
)
def test_paths_and_nonsense_are_unknown(name: str) -> None:
    with pytest.raises(UnknownModel):
        catalogue().entry(name)


def test_a_near_miss_is_suggested() -> None:
    with pytest.raises(UnknownModel, match="did you mean large-v3"):
        catalogue().entry("larg-v3")


def test_aliases_may_name_aliases_but_not_themselves_for_ever() -> None:
    found = catalogue(aliases={"mine": "whisper-1", "loop": "pool", "pool": "loop"})
    assert found.entry("mine").id == "toy"
    with pytest.raises(UnknownModel):
        found.entry("loop")


def test_without_a_hub_the_built_in_recogniser_stands_in_and_says_so() -> None:
    found = catalogue(default=None, paths={}, offline=False, reachable=lambda: False)
    notice = found.settle()
    assert found.default.id == "pocketsphinx"
    assert notice is not None
    assert "PocketSphinx" in notice
    assert "cannot be reached" in notice
    online = catalogue(default=None, paths={}, offline=False, reachable=lambda: True)
    assert online.settle() is None
    assert online.default.id == "Systran/faster-whisper-base"
    gpu = catalogue(default=None, paths={}, offline=False, gpu=True, reachable=lambda: True)
    gpu.settle()
    assert gpu.default.id == "deepdml/faster-whisper-large-v3-turbo-ct2"


def test_a_model_named_explicitly_is_never_replaced() -> None:
    found = catalogue(default="small", paths={}, offline=True)
    assert found.settle() is None
    assert found.default.id == "Systran/faster-whisper-small"
    with pytest.raises(ModelUnavailable, match="offline"):
        found.ensure(found.default)


def test_translation_goes_to_a_model_that_can() -> None:
    found = catalogue(default="turbo", translation="toy")
    assert found.resolve("", task="translate").id == "toy"
    assert found.resolve("whisper-1", task="translate").id == "toy"
    with pytest.raises(Unsupported, match="toy") as caught:
        found.resolve("turbo", task="translate")
    assert caught.value.param == "model"
    with pytest.raises(Unsupported):
        catalogue(default="turbo").resolve("", task="translate")
    gpu = catalogue(default="turbo", gpu=True)
    assert gpu.resolve("", task="translate").id == "Systran/faster-whisper-large-v3"


def test_a_language_a_model_does_not_know_is_refused() -> None:
    with pytest.raises(Unsupported, match="knows en") as caught:
        catalogue(paths={"english": toy.build(layout="en")}).resolve("english", language="fr")
    assert caught.value.param == "language"
    with pytest.raises(Unsupported, match="tell languages apart"):
        catalogue().resolve("pocketsphinx", task="detect")


def test_folders_of_the_model_directory_are_models(tmp_path: Path) -> None:
    found = catalogue(default=None, paths={}, directory=tmp_path)
    assert "mine" not in names(found)
    (tmp_path / "mine").symlink_to(toy.build())
    (tmp_path / "empty").mkdir()
    assert names(found) == {"mine", "pocketsphinx"}
    entry = found.entry("mine")
    assert entry.size is not None
    assert entry.size > 5_000_000
    assert "translate" in entry.capabilities.tasks


def test_models_are_pulled_loaded_listed_and_removed_over_http(hub: Hub, tmp_path: Path) -> None:
    with (
        running(with_toy(offline=False, model_dir=tmp_path)) as url,
        httpx2.Client(base_url=url, timeout=30) as client,
    ):
        assert client.post("/api/pull/toy").json()["status"] == "success"
        lines = [
            json.loads(line) for line in client.post("/api/pull/acme/toy-whisper").text.splitlines()
        ]
        assert lines[-1] == {"status": "success"}
        assert lines[0]["status"] == "downloading"
        assert client.post("/api/pull/acme%2Ftoy-whisper").status_code == 200
        assert client.post("/api/pull/acme/nothing").status_code == 404
        assert client.get("/api/ps").json() == {"models": [], "loaded": []}
        loaded = client.post("/api/ps/acme/toy-whisper")
        assert loaded.status_code == 201
        assert loaded.json()["backend"] == "faster_whisper"
        assert client.post("/api/ps/acme/toy-whisper").status_code == 409
        assert client.post("/api/ps/acme/toy-whisper", json={"keep_alive": -1}).status_code == 200
        row = client.get("/api/ps").json()["loaded"][0]
        assert (row["id"], row["in_use"], row["expires_in"]) == ("acme/toy-whisper", 0, None)
        assert client.post("/api/ps/acme/toy-whisper?keep_alive=soon").status_code == 400
        assert client.post("/api/ps/acme/toy-whisper", content=b"[" * 60_000).status_code == 400
        long = client.post("/api/ps/acme/toy-whisper", content=b"[" * 100_000)
        assert long.status_code == 413
        assert "more than 65536 bytes" in long.json()["error"]["message"]
        assert client.delete("/v1/models/acme/toy-whisper").status_code == 409
        assert client.delete("/api/ps/acme/toy-whisper").status_code == 204
        assert client.delete("/api/ps/acme/toy-whisper").status_code == 404
        assert client.post("/api/ps/nothing").status_code == 404
        listed = {row["id"]: row for row in client.get("/v1/models").json()["data"]}
        assert listed["acme/toy-whisper"]["downloaded"]
        assert listed["whisper-1"]["alias_of"] == "toy"
        everything = {row["id"] for row in client.get("/v1/models?all=true").json()["data"]}
        assert {"Systran/faster-whisper-large-v3", "large-v3"} <= everything
        assert client.delete("/v1/models/acme/toy-whisper").json()["deleted"]
        assert client.delete("/api/pull/acme/toy-whisper").status_code == 404
        assert client.delete("/v1/models/toy").status_code == 400


def test_a_model_is_swapped_and_expires_while_requests_run(tmp_path: Path) -> None:
    from tests.serving import speech_file

    with (
        running(with_toy(max_models=1, model_keep_alive=0.2)) as url,
        httpx2.Client(base_url=url, timeout=60) as client,
    ):
        texts: list[str] = []

        def ask(model: str) -> None:
            with speech_file("000-en.flac").open("rb") as file:
                answer = httpx2.post(
                    url + "/v1/audio/transcriptions",
                    files={"file": file},
                    data={"model": model},
                    timeout=60,
                )
            texts.append(answer.json().get("text", answer.text))

        for model in ("toy", "english", "toy"):
            ask(model)
        assert len(set(texts)) == 1, texts
        until = time.monotonic() + 10
        while client.get("/api/ps").json()["models"] and time.monotonic() < until:
            pass
        assert client.get("/api/ps").json()["models"] == []
        threads = [threading.Thread(target=ask, args=("toy",)) for _ in range(4)]
        for thread in threads:
            thread.start()
        client.delete("/api/ps/toy")
        for thread in threads:
            thread.join()
        assert len(set(texts)) == 1, texts


def test_a_default_that_is_not_here_is_told_at_once_where_it_cannot_come(tmp_path: Path) -> None:
    settings = {"default_model": "Systran/faster-whisper-small", "model_dir": tmp_path}
    with running(with_toy(**settings)) as url:
        while not httpx2.get(f"{url}/readyz").is_success:
            pass
        notice = httpx2.get(f"{url}/health").json()["notice"]
    assert "Systran/faster-whisper-small is not downloaded and the server is offline" in notice
