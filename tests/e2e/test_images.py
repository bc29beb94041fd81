"""What an image's build installs, installed into an empty folder from what the build would see, and started."""

import fnmatch
import shutil
import sys
from pathlib import Path

import httpx2
import pytest

from server import assembly
from tests import toy
from tests.fakes import lines, word_errors
from tests.installed import ROOT, run, serving, uv

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that `.dockerignore` lets through, and no others."""
    place = tmp_path_factory.mktemp("context")
    rules = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    for rule in rules:
        if rule.startswith("!"):
            for path in ROOT.glob(rule.removeprefix("!")):
                target = place / path.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                if path.is_dir():
                    shutil.copytree(path, target, ignore=_caches)
                else:
                    shutil.copy(path, target)
    return place


def _caches(folder: str, names: list[str]) -> list[str]:
    del folder
    return fnmatch.filter(names, "__pycache__") + fnmatch.filter(names, "node_modules")


@pytest.fixture(scope="module", params=["cpu", "cuda"])
def installed(
    request: pytest.FixtureRequest, context: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """An image's kind and its `open-speech`."""
    kind: str = request.param
    place = tmp_path_factory.mktemp(kind) / "open-speech"
    tools = f"{Path(uv()).parent}:/usr/bin:/bin"
    run(
        ["/bin/sh", context / "docker" / f"install-{kind}.sh", place, context],
        PATH=tools,
        PYTHON=sys.executable,
    )
    return kind, place / "bin" / "open-speech"


def test_what_is_installed_fits_together(installed: tuple[str, Path]) -> None:
    run([uv(), "pip", "check", "--python", installed[1].parent / "python"])


def test_the_server_starts_from_it_and_transcribes(
    installed: tuple[str, Path], tmp_path: Path
) -> None:
    settings = {
        "STT_MODEL": f"toy={toy.build()}",
        "STT_DEFAULT_MODEL": "toy",
        "STT_DEFAULT_BACKEND": "faster-whisper",
        "STT_MODEL_DIR": str(tmp_path / "models"),
        "STT_OFFLINE": "true",
        "STT_DEVICE": "cpu",
    }
    with serving(installed[1], tmp_path, **settings) as server:
        with lines()[0].path.open("rb") as file:
            answer = httpx2.post(
                server.url + "/v1/audio/transcriptions", files={"file": file}, timeout=60
            )
        assert word_errors(lines()[0].text, answer.json()["text"]) <= 1
        said = run([installed[1], "health", server.url], tmp_path)
    assert said.startswith("ok: toy")
    assert server.status == 0


def test_the_gpu_image_says_what_is_missing_where_there_is_no_gpu(
    installed: tuple[str, Path], tmp_path: Path
) -> None:
    if installed[0] != "cuda":
        pytest.skip("the CPU image asks for no GPU")
    if assembly.visible_gpus():
        pytest.skip("there is a GPU")
    with (
        pytest.raises(AssertionError, match=r"--gpus all.*STT_DEVICE=cpu"),
        serving(installed[1], tmp_path, STT_DEVICE="cuda"),
    ):
        pass
