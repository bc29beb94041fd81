"""Rows F: models that are not what they should be, hubs that are not what they should be, and disks that are full."""

import json
import os
import pickle
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests import toy
from tests.fakes import SPEECH
from tests.faults.process import FILES, PATIENCE, Process, alive, serving, until
from tests.hub import COMMIT, Hub

NAME = "acme/toy-whisper"
KNOWN = "streaming.hub.PAUSE"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as found:
        found.add(NAME, toy.build())
        yield found


def bare(hub: Hub, models: Path, **variables: str) -> Any:
    """A server whose models come from `hub` and go to `models`."""
    models.mkdir(exist_ok=True)
    more = {"STT_OFFLINE": "false", "HF_ENDPOINT": hub.url, "STT_MODEL_DIR": str(models)}
    return serving(faults={KNOWN: 0.05}, **(more | variables))


@contextmanager
def pulling(hub: Hub, models: Path, **variables: str) -> Iterator[Process]:
    """The same with an honest stream beside; what is wrong with a model may be told in the log, and two models are
    loaded meanwhile, each with a process."""
    with bare(hub, models, **variables) as server, alive(server, errors=True, few=16):
        yield server


def pull(server: Process, name: str = NAME) -> httpx2.Response:
    return httpx2.post(f"{server.url}/api/pull/{name}?stream=false", timeout=60)


def told(answer: httpx2.Response, status: int, words: str) -> None:
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]["message"], answer.text


def weights(models: Path) -> list[str]:
    """Files that could be taken for a model."""
    return [str(path) for path in models.rglob("model.bin")]


def works(server: Process) -> None:
    """The model can be had, and hears."""
    answer = pull(server)
    assert answer.status_code in (200, 201), answer.text
    data = (SPEECH / "000-en.flac").read_bytes()
    heard = httpx2.post(server.url + FILES, files={"file": data}, data={"model": NAME}, timeout=60)
    assert heard.status_code == 200, heard.text
    assert len(heard.json()["text"].split()) > 3


@pytest.mark.quick
@pytest.mark.fault(
    "F02", "a pull of a repository that is not on the list", "403; the hub is not asked"
)
def test_a_repository_that_is_not_allowed(hub: Hub, tmp_path: Path) -> None:
    """STT_ALLOW_REPOSITORIES names others"""
    with pulling(hub, tmp_path / "m", STT_ALLOW_REPOSITORIES="acme/toy-*,Systran/*") as server:
        hub.add("evil/toy-whisper", toy.build())
        told(pull(server, "evil/toy-whisper"), 403, "may not be downloaded")
        assert not [path for _, path, _ in hub.requests if "evil" in path]
        works(server)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        pytest.param("redirect to a port of this machine", "not known to belong", marks=pytest.mark.fault("F03a", "a hub that sends downloads to a port of this machine", "503; the port is not asked")),
        pytest.param("redirect to a foreign host", "not known to belong", marks=pytest.mark.fault("F03b", "a hub that sends downloads to a foreign host", "503; the key of the hub goes nowhere else")),
        pytest.param("redirect in a circle", "circles", marks=pytest.mark.fault("F03c", "a hub that sends downloads round in circles", "503")),
        pytest.param("wrong bytes", "SHA-256", marks=pytest.mark.fault("F03d", "a hub that sends other bytes than it said", "503; the bytes are thrown away")),
        pytest.param("wrong configuration", "SHA-1", marks=pytest.mark.fault("F03e", "a hub that changes a small file on the way", "503; the bytes are thrown away")),
        pytest.param("no end", "could not be downloaded", marks=pytest.mark.fault("F03f", "a hub whose file does not end", "503 soon after the size it said")),
        pytest.param("breaks", "could not be downloaded", marks=pytest.mark.fault("F03g", "a hub that breaks off each time", "503; a later pull takes it up again")),
    ],
)  # fmt: skip
def test_a_hub_that_misbehaves(hub: Hub, tmp_path: Path, fault: str, words: str) -> None:
    """a hub on this machine does so during a pull, and is well at the next"""
    with Hub() as other, pulling(hub, tmp_path / "m", HF_TOKEN="hf_secret") as server:
        other.add(NAME, toy.build())
        files = hub.repositories[NAME].files
        before = dict(files)
        match fault:
            case "redirect to a port of this machine":
                hub.elsewhere = f"{other.url}/cdn/{NAME}/model.bin"
            case "redirect to a foreign host":
                hub.elsewhere = "https://models.example.com/model.bin"
            case "redirect in a circle":
                hub.elsewhere = f"/{NAME}/resolve/{COMMIT}/model.bin"
            case "wrong bytes":
                hub.before_file = lambda: files.update(
                    {"model.bin": before["model.bin"][:-1] + b"?"}
                )
            case "wrong configuration":
                files["config.json"] = files["config.json"] + b" "
                listed = hub.describe(NAME)
                hub.described = {NAME: listed}
                files["config.json"] = before["config.json"] + b"\n"
            case "no end":
                hub.endless = True
            case "breaks":
                hub.break_after, hub.breaks = 0, 10**6
        told(pull(server), 503, words)
        assert weights(tmp_path / "m") == []
        assert other.requests == []
        hub.elsewhere, hub.endless, hub.break_after, hub.before_file = (
            None,
            False,
            None,
            lambda: None,
        )
        hub.described = {}
        files.update(before)
        works(server)


@pytest.mark.quick
@pytest.mark.fault(
    "F04", "a model larger than the disk", "507, how much is missing, before a byte is fetched"
)
def test_a_model_larger_than_the_disk(hub: Hub, tmp_path: Path) -> None:
    """the hub says that the weights have a petabyte"""
    with pulling(hub, tmp_path / "m") as server:
        hub.claim = 10**15
        told(pull(server), 507, "are missing")
        assert not hub.asked("config.json")
        assert list((tmp_path / "m").iterdir()) == []
        hub.claim = None
        works(server)


@pytest.mark.fault(
    "F04b",
    "two downloads that the disk can hold only one of",
    "the second gets 507 at once; the first goes on",
)
def test_two_downloads_for_one_place(hub: Hub, tmp_path: Path) -> None:
    """each is said to need six tenths of what is free"""
    go, asked = threading.Event(), threading.Event()

    def hold() -> None:
        asked.set()
        go.wait(PATIENCE)

    with pulling(hub, tmp_path / "m") as server:
        hub.add("acme/second", toy.build())
        hub.claim = int(shutil.disk_usage(tmp_path).free * 0.6)
        hub.before_file = hold
        first: list[httpx2.Response] = []
        thread = threading.Thread(target=lambda: first.append(pull(server)))
        thread.start()
        try:
            assert asked.wait(PATIENCE)
            told(pull(server, "acme/second"), 507, "beside other downloads")
        finally:
            go.set()
            thread.join()
        told(first[0], 503, "could not be downloaded")  # since it was not as large as was said
        hub.claim, hub.before_file = None, lambda: None
        works(server)


class Payload:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self._mark,)


SPOILT = (
    "model.bin is a pickle",
    "model.bin is torch's archive",
    "auto_map",
    "a target of hydra",
    "pickles only",
    "nemo",
)


def spoilt(kind: str, mark: Path) -> dict[str, bytes]:
    """The files of a model with something in them that runs."""
    files = {path.name: path.read_bytes() for path in toy.build().iterdir()}
    payload = pickle.dumps(Payload(mark))
    config = json.loads(files["config.json"])
    match kind:
        case "model.bin is a pickle":
            files["model.bin"] = payload
        case "model.bin is torch's archive":
            files["model.bin"] = b"PK\x03\x04" + payload
        case "auto_map":
            files["config.json"] = json.dumps(
                config | {"auto_map": {"AutoModel": "evil.Model"}}
            ).encode()
        case "a target of hydra":
            files["config.json"] = json.dumps(config | {"x": [{"_target_": "os.system"}]}).encode()
        case "pickles only":
            del files["model.bin"]
            files["pytorch_model.bin"] = payload
        case "nemo":
            del files["model.bin"]
            files["model.nemo"] = payload
    return files


@pytest.mark.quick
@pytest.mark.fault(
    "F08",
    "models that run code when they are loaded",
    "400 at the pull, in a sentence; nothing runs",
)
def test_models_that_run_code(hub: Hub, tmp_path: Path) -> None:
    """six repositories, each with a file that leaves a mark if it is unpickled or imported"""
    mark = tmp_path / "mark"
    with pulling(hub, tmp_path / "m") as server:
        for number, kind in enumerate(SPOILT):
            name = f"acme/evil-{number}"
            hub.add(name, toy.build()).files = spoilt(kind, mark)
            told(pull(server, name), 400, "code")
        assert weights(tmp_path / "m") == []
        works(server)
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["model.bin is a pickle", "auto_map"])
@pytest.mark.fault(
    "F08b",
    "folders of models that run code when they are loaded",
    "refused at the load, in a sentence; nothing runs",
)
def test_folders_that_run_code(hub: Hub, tmp_path: Path, kind: str) -> None:
    """such a folder copied into STT_MODEL_DIR"""
    mark, folder = tmp_path / "mark", tmp_path / "m" / "mine"
    folder.mkdir(parents=True)
    for name, data in spoilt(kind, mark).items():
        (folder / name).write_bytes(data)
    with pulling(hub, tmp_path / "m") as server:
        answer = httpx2.post(f"{server.url}/api/ps/mine", timeout=60)
        assert answer.status_code in (400, 404), answer.text
        if answer.status_code == 400:
            told(answer, 400, "is refused")
    assert not mark.exists()


@pytest.mark.quick
@pytest.mark.fault(
    "F08c",
    "a pickle beside the weights of another recogniser",
    "refused at the load, unless STT_ALLOW_CODE is set",
)
def test_a_pickle_beside_the_weights(hub: Hub, tmp_path: Path) -> None:
    """a file weights.pt in the folder of a backend that may read any file"""
    folder = tmp_path / "m" / "mine"
    folder.mkdir(parents=True)
    (folder / "scripted").write_text("")
    (folder / "weights.pt").write_bytes(b"")
    with pulling(hub, tmp_path / "m") as server:
        told(httpx2.post(f"{server.url}/api/ps/mine", timeout=60), 400, "weights.pt runs code")
    with pulling(hub, tmp_path / "m", STT_ALLOW_CODE="true") as server:
        assert httpx2.post(f"{server.url}/api/ps/mine", timeout=60).status_code == 201


@pytest.mark.fault(
    "F10",
    "the server is killed in the middle of a pull",
    "the next one clears up, takes the download up again, and works",
)
def test_a_server_that_is_killed_while_it_pulls(hub: Hub, tmp_path: Path) -> None:
    """SIGKILL after a third of the weights, and names that were about to be given"""
    models = tmp_path / "m"
    with bare(hub, models) as server:
        hub.break_after, hub.breaks = 1_200_000, 1
        hub.before_file = lambda: setattr(hub, "down", hub.breaks == 0)
        thread = threading.Thread(target=lambda: _quietly(server))
        thread.start()
        part = models / f"models--{NAME.replace('/', '--')}" / "blobs"
        until(lambda: any(each.stat().st_size == 1_200_000 for each in part.glob("*.part")))
        server.signal(signal.SIGKILL)
        server.wait()
        thread.join()
    assert weights(models) == []
    home = part.parent
    fresh = home / "snapshots" / COMMIT / f".model.bin.{'0' * 16}"
    fresh.symlink_to("nowhere")
    os.utime(fresh, (0, 0), follow_symlinks=False)
    (models / ".models--acme--old.deleted").mkdir()
    hub.down, hub.before_file, hub.break_after = False, lambda: None, None
    hub.requests.clear()
    with pulling(hub, models) as server:
        until(lambda: not fresh.is_symlink())
        assert not (models / ".models--acme--old.deleted").exists()
        works(server)
    assert hub.asked("model.bin")[0] == "bytes=1200000-"
    assert not list(home.rglob("*.part"))


def _quietly(server: Process) -> None:
    with suppress(httpx2.HTTPError):
        pull(server)


@pytest.mark.quick
@pytest.mark.fault(
    "F14",
    "weights that changed on the disk after their download",
    "503 at the load, and what to do; what was cut off is downloaded again",
)
def test_weights_that_changed(hub: Hub, tmp_path: Path) -> None:
    """a byte changed, and the end cut off"""
    models = tmp_path / "m"
    with pulling(hub, models) as server:
        assert pull(server).status_code == 201
    (path,) = {Path(each).resolve() for each in weights(models)}
    whole = path.read_bytes()
    path.write_bytes(whole[:-7] + b"?" + whole[-6:])
    with pulling(hub, models) as server:
        told(httpx2.post(f"{server.url}/api/ps/{NAME}", timeout=60), 503, "SHA-256")
    path.write_bytes(whole[:-100])
    with pulling(hub, models) as server:
        works(server)
    assert path.read_bytes() == whole


NAMES = (
    "..%2F..%2Fetc",
    "%2Fetc%2Fpasswd",
    "acme%2F..",
    "acme%2F%2e%2e",
    "http:%2F%2Fx%2Fy",
    "a%2Fb%2Fc",
    "acme%2Ftoy%00",
    "acme%2F%D1%82oy",
    "file:%2F%2F%2Fetc",
    "acme%2Fx--y",
    "models--a--b",
    "-%2F-",
)


@pytest.mark.quick
@pytest.mark.fault(
    "F13",
    "names of models that are paths, addresses or look-alikes",
    "404; nothing is asked for or touched",
)
def test_names_that_are_none(hub: Hub, tmp_path: Path) -> None:
    """twelve of them, pulled, loaded and removed over HTTP"""
    with pulling(hub, tmp_path / "m") as server:
        hub.requests.clear()
        for name in NAMES:
            for method, route in (("POST", "pull"), ("POST", "ps"), ("DELETE", "ps")):
                answer = httpx2.request(method, f"{server.url}/api/{route}/{name}", timeout=60)
                assert answer.status_code == 404, (method, route, name, answer.text)
        assert not [path for _, path, _ in hub.requests if "resolve" in path]
