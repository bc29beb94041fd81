"""The files that install open-speech agree with each other and with the settings."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from server import configuration
from server.settings import Settings

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
LOCKS = {"requirements.lock": [], "requirements-cuda.lock": ["cuda"]}
IMAGES = {
    "docker/Dockerfile": ("cuda", "deepdml/faster-whisper-large-v3-turbo-ct2"),
    "docker/Dockerfile.cpu": ("cpu", "Systran/faster-whisper-base"),
}


def pins(lock: str) -> list[Requirement]:
    """What a lock holds; a package may be there once for each Python."""
    text = (ROOT / lock).read_text("utf-8")
    return [
        Requirement(line.rstrip(" \\"))
        for line in text.splitlines()
        if re.match(r"[A-Za-z0-9]", line)
    ]


def image(dockerfile: str) -> tuple[str, dict[str, str]]:
    """A Dockerfile with its continued lines joined, and the environment it sets."""
    text = (ROOT / dockerfile).read_text("utf-8").replace("\\\n", " ")
    variables: dict[str, str] = {}
    for line in re.findall(r"^ENV (.*)$", text, re.MULTILINE):
        variables |= dict(re.findall(r"(\S+?)=(\S+)", line))
    return text, variables


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_satisfies_the_project(lock: str) -> None:
    wanted = [*PROJECT["dependencies"]]
    for extra in LOCKS[lock]:
        wanted += PROJECT["optional-dependencies"][extra]
    pinned = pins(lock)
    for requirement in map(Requirement, wanted):
        found = [
            pin
            for pin in pinned
            if canonicalize_name(pin.name) == canonicalize_name(requirement.name)
        ]
        assert found, f"{requirement.name} is not in {lock}; run docker/lock.sh"
        for pin in found:
            version = str(pin.specifier).removeprefix("==")
            assert requirement.specifier.contains(version), f"{lock} has {pin}; run docker/lock.sh"


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_has_hashes_and_names_no_host(lock: str) -> None:
    text = (ROOT / lock).read_text("utf-8")
    assert "://" not in text
    assert "--index" not in text
    assert "--find-links" not in text
    entries = re.split(r"\n(?=[A-Za-z0-9])", text)
    assert all("--hash=sha256:" in entry for entry in entries[1:])


def test_the_lock_for_the_cpu_holds_nothing_heavy() -> None:
    names = {canonicalize_name(pin.name) for pin in pins("requirements.lock")}
    assert not [name for name in names if name.startswith(("nvidia-", "torch"))]


def test_the_locks_differ_by_the_cuda_libraries_only() -> None:
    small, large = ({str(pin) for pin in pins(lock)} for lock in LOCKS)
    assert small < large
    assert all(pin.startswith("nvidia-") for pin in large - small)


def test_every_locked_package_has_its_licence_in_the_notices() -> None:
    notices = (ROOT / "docker" / "NOTICES.md").read_text("utf-8")
    rows = [line.split("|")[1] for line in notices.splitlines() if line.startswith("| ")]
    named = {canonicalize_name(name.split()[0]) for row in rows for name in row.split(",")}
    missing = {canonicalize_name(pin.name) for pin in pins("requirements-cuda.lock")} - named
    assert not missing


@pytest.mark.parametrize("dockerfile", IMAGES)
def test_an_image_sets_what_its_users_rely_on(dockerfile: str) -> None:
    _, variables = image(dockerfile)
    settings, said = configuration.load({}, variables)
    assert said == []
    assert (settings.device, settings.default_model) == IMAGES[dockerfile]
    assert settings.default_backend.replace("-", "_") == Settings().default_backend
    assert settings.host == "0.0.0.0"
    assert settings.port == 8100
    assert settings.model_dir == Path("/models")


@pytest.mark.parametrize("dockerfile", IMAGES)
def test_an_image_runs_as_nobody_special_and_can_be_probed(dockerfile: str) -> None:
    text, variables = image(dockerfile)
    final = text.rpartition("\nFROM ")[2]
    assert re.search(r"^USER (?!root|0\b)\w+$", final, re.MULTILINE)
    assert final.index("install -d -o speech -g speech /models") < final.index("\nUSER ")
    assert "\nVOLUME /models\n" in final
    assert "\nSTOPSIGNAL SIGTERM\n" in final
    assert re.search(r"^HEALTHCHECK .*\[\"open-speech\", \"health\"\]$", final, re.MULTILINE)
    assert json.loads(re.search(r"^ENTRYPOINT (.*)$", final, re.MULTILINE)[1]) == ["open-speech"]  # type: ignore[index]
    if "NVIDIA_VISIBLE_DEVICES" in variables:
        assert "compute" in variables["NVIDIA_DRIVER_CAPABILITIES"]


@pytest.mark.parametrize("dockerfile", IMAGES)
def test_an_image_is_installed_by_its_script_from_what_docker_sees(dockerfile: str) -> None:
    text, _ = image(dockerfile)
    script = "docker/install-cuda.sh" if "cpu" not in dockerfile else "docker/install-cpu.sh"
    assert re.search(rf"^RUN .*sh /source/{script} /opt/open-speech /source$", text, re.MULTILINE)
    assert (ROOT / script).is_file()
    for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE):
        assert all((ROOT / part).exists() for part in line.split())


@pytest.mark.parametrize(
    ("compose", "dockerfile"),
    [
        ("docker-compose.yml", "docker/Dockerfile"),
        ("docker-compose.cpu.yml", "docker/Dockerfile.cpu"),
    ],
)
def test_compose_builds_the_image_keeps_models_and_listens_here_only(
    compose: str, dockerfile: str
) -> None:
    found: dict[str, Any] = yaml.safe_load((ROOT / compose).read_text("utf-8"))
    service = found["services"]["open-speech"]
    assert service["build"]["dockerfile"] == dockerfile
    assert service["ports"] == ["127.0.0.1:8100:8100"]
    assert service["volumes"] == ["models:/models"]
    assert "models" in found["volumes"]
    devices = service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices")
    if dockerfile == "docker/Dockerfile":
        assert devices == [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]
    else:
        assert devices is None
