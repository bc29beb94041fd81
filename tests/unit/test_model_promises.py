"""What the server promises about models, a sentence a test, through its own routes with real weights and a hub."""

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from streaming import hub as real
from tests import toy
from tests.hub import Hub, lay_out
from tests.serving import running, speech_file, with_toy

SPOKEN = speech_file("000-en.flac").read_bytes()
FRENCH = speech_file("003-fr.flac").read_bytes()
TINY, BASE, ENGLISH = (
    "Systran/faster-whisper-tiny",
    "Systran/faster-whisper-base",
    "Systran/faster-whisper-base.en",
)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as found:
        found.add(TINY, toy.build())
        found.add("acme/other", toy.build())
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        monkeypatch.setattr(real, "PAUSE", 0.0)
        yield found


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A model directory as the hub's tools leave it, with a folder beside."""
    lay_out(tmp_path, BASE, toy.build())
    lay_out(tmp_path, ENGLISH, toy.build(layout="en"))
    shutil.copytree(toy.build(), tmp_path / "mine")
    return tmp_path


@contextmanager
def serving(folder: Path, **more: object) -> Iterator[httpx2.Client]:
    settings: dict[str, object] = {"model": (), "model_dir": folder, "default_model": "base"}
    with (
        running(with_toy(**(settings | more))) as url,
        httpx2.Client(base_url=url, timeout=60) as client,
    ):
        yield client


def ask(
    client: httpx2.Client,
    model: str = "",
    *,
    data: bytes = SPOKEN,
    to: str = "transcriptions",
    **fields: str,
) -> httpx2.Response:
    return client.post(
        f"/v1/audio/{to}", files={"file": ("a", data)}, data={"model": model} | fields
    )


def loaded(client: httpx2.Client) -> list[str]:
    found: list[str] = client.get("/api/ps").json()["models"]
    return found


def until(client: httpx2.Client, wanted: list[str]) -> None:
    """Returns once exactly these are in memory."""
    for _ in range(2000):
        if loaded(client) == wanted:
            return
    raise AssertionError(loaded(client))


def test_names_are_ids_folders_short_names_and_aliases(models: Path) -> None:
    with serving(models, alias=("nick=mine", "whisper-1=base")) as client:
        texts = {}
        for name in ("", BASE, "base", "mine", "nick", "whisper-1", "gpt-4o-transcribe"):
            answer = ask(client, name)
            assert answer.status_code == 200, answer.text
            texts[name] = answer.json()["text"]
        assert len(set(texts.values())) == 1
        assert sorted(loaded(client)) == [BASE, "mine"]


@pytest.mark.parametrize(
    "name", ["/etc", "../mine", "./mine", "mine/../mine", "models--a--b", ".mine"]
)
def test_paths_are_no_names(models: Path, name: str) -> None:
    (models / ".mine").symlink_to(models / "mine")
    with serving(models) as client:
        for answer in (ask(client, name), ask(client, str(models / "mine"))):
            assert answer.status_code == 404
            assert answer.json()["error"]["code"] == "model_not_found"


def test_the_catalogue_says_what_is_here_and_what_it_can_do(models: Path) -> None:
    with serving(models) as client:
        rows = {row["id"]: row for row in client.get("/v1/models?all=true").json()["data"]}
        base, english, turbo = (
            rows[BASE],
            rows[ENGLISH],
            rows["deepdml/faster-whisper-large-v3-turbo-ct2"],
        )
        assert base["downloaded"]
        assert base["backend"] == "faster_whisper"
        assert base["licence"] == "MIT"
        assert base["tasks"] == ["transcribe", "translate"]
        assert base["size"] == sum(file.stat().st_size for file in toy.build().iterdir())
        assert {"en", "fr", "yue"} <= set(base["languages"])
        assert (english["languages"], english["tasks"]) == (["en"], ["transcribe"])
        assert not turbo["downloaded"]
        assert turbo["tasks"] == ["transcribe"]
        assert turbo["size"] > 1e9
        assert "base" in base["aliases"]
        assert rows["mine"]["licence"] is None
        assert client.get(f"/v1/models/{BASE}").json()["id"] == BASE
        assert client.get("/v1/models/base").json()["alias_of"] == BASE


def test_what_the_default_cannot_do_goes_to_the_translation_model(models: Path) -> None:
    with serving(models, default_model="base.en", translation_model="base") as client:
        translated = ask(client, data=FRENCH, to="translations")
        assert translated.status_code == 200, translated.text
        assert loaded(client) == [BASE]
        assert translated.json()["text"] != ask(client, BASE, data=FRENCH).json()["text"]
        assert ask(client, "whisper-1", data=FRENCH, language="fr").status_code == 200
        assert loaded(client) == [BASE]
        for refused in (
            ask(client, "base.en", data=FRENCH, to="translations"),
            ask(client, ENGLISH, data=FRENCH, language="fr"),
        ):
            assert refused.status_code == 400
            assert BASE in refused.json()["error"]["message"]
            assert refused.json()["error"]["param"] in ("model", "language")


def test_a_known_model_is_fetched_at_first_use_and_others_are_not(hub: Hub, models: Path) -> None:
    with serving(models, offline=False) as client:
        refused = ask(client, "acme/other")
        assert refused.status_code == 404
        assert "POST /api/pull/acme/other" in refused.json()["error"]["message"]
        assert hub.requests == []
        assert ask(client, "tiny").status_code == 200
        assert TINY in loaded(client)
        lines = client.post("/api/pull/acme/other").text.splitlines()
        assert json.loads(lines[-1]) == {"status": "success"}
        first = json.loads(lines[0])
        assert (first["status"], first["total"] > 5_000_000) == ("downloading", True)
        assert ask(client, "acme/other").status_code == 200
    with serving(models, offline=False, allow_downloads="any") as client:
        assert client.delete("/v1/models/acme/other").status_code == 200
        assert ask(client, "acme/other").status_code == 200


def test_what_is_being_loaded_is_neither_unloaded_nor_deleted(hub: Hub, models: Path) -> None:
    fetching, go = threading.Event(), threading.Event()

    def hold() -> None:
        fetching.set()
        go.wait(20)

    hub.before_file = hold
    with serving(models, offline=False) as client:
        answers: list[httpx2.Response] = []
        asking = threading.Thread(target=lambda: answers.append(ask(client, "tiny")))
        asking.start()
        assert fetching.wait(20)
        for path in ("/v1/models/tiny", f"/api/pull/{TINY}"):
            busy = client.delete(path)
            assert busy.status_code == 409, busy.text
            assert "being" in busy.json()["error"]["message"]
        loading = threading.Thread(target=lambda: answers.append(client.post("/api/ps/tiny")))
        loading.start()
        for _ in range(2000):
            busy = client.delete("/api/ps/tiny")
            if busy.status_code != 404:  # the load has begun
                break
        assert busy.status_code == 409
        assert "being loaded" in busy.json()["error"]["message"]
        beside = client.get("/health")
        assert beside.status_code == 200
        go.set()
        asking.join(60)
        loading.join(60)
        assert {answer.status_code for answer in answers} <= {200, 201, 409}
        assert client.delete("/v1/models/tiny").status_code == 409, "in memory"
        assert client.delete("/api/ps/tiny").status_code == 204
        assert client.delete("/v1/models/tiny").status_code == 200
        assert not (models / f"models--{TINY.replace('/', '--')}").exists()


def test_a_pull_that_the_hub_refuses_has_a_status_before_its_first_byte(
    hub: Hub, models: Path
) -> None:
    hub.add("acme/gated", toy.build(), access="gated")
    hub.add("acme/pickle", toy.build())
    del hub.repositories["acme/pickle"].files["model.bin"]
    with serving(models, offline=False) as client:
        for name, status, said in (
            ("acme/gated", 503, "accept its terms"),
            ("acme/pickle", 400, "holds no CTranslate2 model"),
            ("acme/nothing", 404, "check its name"),
        ):
            refused = client.post(f"/api/pull/{name}")
            assert refused.status_code == status, refused.text
            assert said in refused.json()["error"]["message"]


def test_two_pulls_share_a_download_and_its_progress(hub: Hub, models: Path) -> None:
    both = threading.Semaphore(0)
    hub.before_file = lambda: both.acquire(timeout=20) and None
    with serving(models, offline=False) as client:
        bodies: list[str] = []

        def pull() -> None:
            with client.stream("POST", "/api/pull/tiny") as answer:
                assert answer.status_code == 201
                lines = answer.iter_lines()
                first = next(lines)
                both.release()
                bodies.append("\n".join([first, *lines]))

        pulls = [threading.Thread(target=pull) for _ in range(2)]
        for each in pulls:
            each.start()
        for each in pulls:
            each.join(30)
        assert [json.loads(body.splitlines()[-1]) for body in bodies] == [{"status": "success"}] * 2
        assert len([path for _, path, _ in hub.requests if path.startswith("/cdn/")]) == 1
        assert client.post("/api/pull/tiny").status_code == 200


def test_deleting_an_alias_names_the_model(models: Path) -> None:
    with serving(models, alias=("nick=mine",)) as client:
        for alias, target in (("whisper-1", BASE), ("nick", "mine")):
            refused = client.delete(f"/v1/models/{alias}")
            assert refused.status_code == 400
            assert f"only another name of {target}" in refused.json()["error"]["message"]
        assert client.delete("/v1/models/mine").status_code == 200
        assert not (models / "mine").exists()


def test_idle_models_go_and_each_may_have_its_own_time(models: Path) -> None:
    with serving(models, model_keep_alive=0.05, preload=("base.en",)) as client:
        until(client, [])
        assert client.post("/api/ps/mine", json={"keep_alive": 500}).json()["expires_in"] > 400
        assert client.post("/api/ps/mine", json={"keep_alive": -1}).json()["expires_in"] is None
        assert ask(client).status_code == 200
        until(client, ["mine"])
        assert client.post("/api/ps/mine?keep_alive=0").status_code == 200
        until(client, [])


def test_preloaded_models_are_there_before_the_server_is_ready(models: Path) -> None:
    with serving(models, preload=("base", "nothing")) as client:
        for _ in range(2000):
            if client.get("/readyz").status_code == 200:
                break
        assert loaded(client) == [BASE]
        health = client.get("/health").json()
        assert "cannot preload nothing" in health["notice"]


def test_the_least_recently_used_makes_room(models: Path) -> None:
    with serving(models, max_models=2) as client:
        for name in ("mine", "base", "mine", "base.en"):
            assert ask(client, name).status_code == 200
        assert sorted(loaded(client)) == sorted([ENGLISH, "mine"])


def test_offline_never_touches_the_network(hub: Hub, models: Path) -> None:
    (models / "mine" / "tokenizer.json").unlink()
    with serving(models, offline=True, default_model=None) as client:
        refused = ask(client, "tiny")
        assert refused.status_code == 503
        assert "STT_OFFLINE" in refused.json()["error"]["message"]
        assert client.post("/api/pull/tiny").status_code == 503
        lacking = ask(client, "mine")
        assert lacking.status_code == 503
        assert "lacks tokenizer.json" in lacking.json()["error"]["message"]
        assert ask(client).status_code == 200
    assert hub.requests == []


def test_a_model_that_cannot_load_is_told_with_its_remedy_and_the_server_lives_on(
    models: Path,
) -> None:
    weights = models / "mine" / "model.bin"
    data = bytearray(weights.read_bytes())
    data[-200_000:] = bytes(200_000)  # its aliases and last variables
    weights.write_bytes(data)
    (models / "mine" / "config.json").write_text("{")
    with serving(models) as client:
        refused = ask(client, "mine")
        assert refused.status_code == 503, refused.text
        error = refused.json()["error"]
        assert error["code"] == "model_unavailable"
        assert len(error["message"]) > 20
        assert ";" in error["message"]
        assert refused.headers["x-should-retry"] == "false"
        assert client.post("/api/ps/mine").status_code == 503
        assert ask(client).status_code == 200
        assert loaded(client) == [BASE]
