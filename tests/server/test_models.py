"""The catalogue, and downloads from a hub of our own on this machine."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest

from streaming.backends import loaders
from streaming.errors import ModelUnavailable, UnknownModel, Unsupported
from streaming.models import OPENAI_NAMES, Catalogue
from tests import toy
from tests.serving import catalogue, running, with_toy

COMMIT = "a" * 40


class Hub:
    """What `snapshot_download` needs of the model hub, serving the toy as `acme/toy-whisper`."""

    def __init__(self, files: Path) -> None:
        self.files = {path.name: path.read_bytes() for path in files.iterdir()}
        self.files["README.md"] = b"not wanted"
        self.files["pickle.pt"] = b"not wanted either"
        self.requests: list[str] = []
        self.break_after: int | None = None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.answer(send=False)

            def do_GET(self) -> None:
                self.answer(send=True)

            def answer(self, *, send: bool) -> None:
                hub.requests.append(self.path)
                path = self.path.split("?")[0]
                if "/acme/toy-whisper" not in path:
                    return self.reply(
                        404,
                        b'{"error": "Repository not found"}',
                        send,
                        {"x-error-code": "RepoNotFound"},
                    )
                if "/tree/" in path:
                    listed = [
                        {
                            "type": "file",
                            "path": name,
                            "size": len(data),
                            "oid": hashlib.sha1(data, usedforsecurity=False).hexdigest(),
                        }
                        for name, data in hub.files.items()
                    ]
                    return self.reply(
                        200, json.dumps(listed).encode(), send, {"content-type": "application/json"}
                    )
                if "/api/models/" in path:
                    siblings = [
                        {"rfilename": name, "size": len(data)} for name, data in hub.files.items()
                    ]
                    found = {
                        "id": "acme/toy-whisper",
                        "modelId": "acme/toy-whisper",
                        "sha": COMMIT,
                        "siblings": siblings,
                        "tags": [],
                        "downloads": 0,
                        "private": False,
                        "gated": False,
                    }
                    return self.reply(
                        200, json.dumps(found).encode(), send, {"content-type": "application/json"}
                    )
                data = hub.files[path.rpartition("/")[2]]
                headers = {
                    "etag": f'"{hashlib.sha1(data, usedforsecurity=False).hexdigest()}"',
                    "x-repo-commit": COMMIT,
                }
                return self.reply(200, data, send, headers)

            def reply(self, status: int, data: bytes, send: bool, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                if send:
                    if hub.break_after is not None and len(data) > 1_000_000:
                        self.wfile.write(data[: hub.break_after])
                        self.close_connection = True
                        return
                    self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub(toy.build())
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        hub.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    yield hub
    hub.server.shutdown()
    hub.server.server_close()
    hub.thread.join()


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


def test_a_download_arrives_with_progress_and_is_found_again(hub: Hub, tmp_path: Path) -> None:
    found = Catalogue(loaders(), directory=tmp_path)
    entry = found.entry("acme/toy-whisper")
    assert not entry.downloaded
    progress = list(found.fetch(entry))
    assert progress[-1].done == progress[-1].total
    assert "acme/toy-whisper" in names(found)
    assert names(Catalogue(loaders(), directory=tmp_path, offline=True)) == {
        "acme/toy-whisper",
        "pocketsphinx",
    }
    assert not any("README" in path or "pickle" in path for path in hub.requests)
    path = found.ensure(found.entry("acme/toy-whisper"))
    assert (path / "model.bin").stat().st_size == len(hub.files["model.bin"])
    assert found.remove("acme/toy-whisper")
    assert not found.remove("acme/toy-whisper")
    assert list(tmp_path.glob("models--*")) == []


def test_an_unknown_repository_and_a_broken_line_are_told_with_a_remedy(
    hub: Hub, tmp_path: Path
) -> None:
    found = Catalogue(loaders(), directory=tmp_path)
    with pytest.raises(UnknownModel, match="the hub has no model"):
        list(found.fetch(found.entry("acme/nothing")))
    del hub.files["model.bin"]
    with pytest.raises(ModelUnavailable, match="holds no CTranslate2 model"):
        list(found.fetch(found.entry("acme/toy-whisper")))


def test_a_full_disk_is_noticed_before_the_download(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**6)
    )  # type: ignore[attr-defined]
    found = Catalogue(loaders(), directory=tmp_path)
    with pytest.raises(ModelUnavailable, match="GB are free"):
        list(found.fetch(found.entry("acme/toy-whisper")))


def test_offline_never_touches_the_network(hub: Hub, tmp_path: Path) -> None:
    found = Catalogue(loaders(), directory=tmp_path, offline=True)
    found.settle()
    with pytest.raises(ModelUnavailable, match="offline"):
        found.ensure(found.entry("acme/toy-whisper"))
    assert hub.requests == []


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
        assert client.post("/api/ps/acme/toy-whisper", content=b"[" * 100_000).status_code == 400
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
