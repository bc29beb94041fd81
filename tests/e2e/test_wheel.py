"""The wheel and the source distribution, built and installed as a user would."""

import tarfile
import zipfile
from pathlib import Path

import httpx2
import pytest

from server import __version__
from tests import toy
from tests.fakes import lines, word_errors
from tests.installed import run, serving, uv

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both; the wheel is built from the source distribution."""
    out = tmp_path_factory.mktemp("dist")
    run([uv(), "build", "--out-dir", out])
    return out


@pytest.fixture(scope="module")
def command(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`open-speech` of a fresh virtual environment that holds the wheel."""
    place = tmp_path_factory.mktemp("fresh") / "venv"
    run([uv(), "venv", place])
    run([uv(), "pip", "install", "--python", place, next(built.glob("*.whl"))])
    return place / "bin" / "open-speech"


def test_the_wheel_holds_the_page_and_no_tests(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = wheel.namelist()
    assert {"server/_web/index.html", "server/_web/client/open-speech.js"} <= set(names)
    assert "streaming/local.py" in names
    assert not [name for name in names if name.startswith(("tests/", "web/", "docker/"))]


def test_the_source_distribution_can_be_tested_and_read(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    assert {
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "web/index.html",
        "tests/data/toy/toy-whisper.npz",
        "docs/configuration.md",
    } <= names
    assert not [name for name in names if name.startswith((".venv", "dist", ".git/"))]


def test_the_command_knows_its_version(command: Path, tmp_path: Path) -> None:
    assert run([command, "--version"], tmp_path) == f"open-speech {__version__}\n"
    assert "transcribe" in run([command, "--help"], tmp_path)


def test_an_installed_server_serves_page_and_text_and_stops_cleanly(
    command: Path, tmp_path: Path
) -> None:
    settings = {
        "STT_MODEL": f"toy={toy.build()}",
        "STT_DEFAULT_MODEL": "toy",
        "STT_DEVICE": "cpu",
        "STT_OFFLINE": "true",
    }
    with serving(command, tmp_path, **settings) as server:
        assert httpx2.get(server.url + "/livez").status_code == 200
        assert "<title>open-speech</title>" in httpx2.get(server.url + "/").text
        assert "swagger" in httpx2.get(server.url + "/docs").text
        with lines()[0].path.open("rb") as file:
            answer = httpx2.post(
                server.url + "/v1/audio/transcriptions", files={"file": file}, timeout=60
            )
        assert word_errors(lines()[0].text, answer.json()["text"]) <= 1
    assert server.status == 0, "".join(server.said)


def test_without_a_model_and_a_hub_the_built_in_recogniser_answers(
    command: Path, tmp_path: Path
) -> None:
    settings = {"STT_OFFLINE": "true", "STT_DEVICE": "cpu", "HF_HOME": str(tmp_path / "empty")}
    with serving(command, tmp_path, **settings) as server:
        with lines()[1].path.open("rb") as file:
            answer = httpx2.post(
                server.url + "/v1/audio/transcriptions", files={"file": file}, timeout=60
            )
        assert answer.status_code == 200
        assert answer.json()["text"].strip()
        health = httpx2.get(server.url + "/health").json()
    assert health["backend"] == "pocketsphinx"
    assert "PocketSphinx" in "".join(server.said)
    assert server.status == 0


def test_the_command_transcribes_without_a_server(command: Path, tmp_path: Path) -> None:
    said = run(
        [command, "transcribe", lines()[0].path, "--format", "srt"],
        tmp_path,
        STT_MODEL=f"toy={toy.build()}",
        STT_DEFAULT_MODEL="toy",
        STT_DEVICE="cpu",
        STT_OFFLINE="true",
    )
    assert "00:00:00," in said
    assert " --> " in said
