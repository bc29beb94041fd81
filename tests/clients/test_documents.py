"""What the documents show is what happens: their examples run, their links lead somewhere."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from server.configuration import FOREIGN, variable
from server.settings import Settings
from tests.fakes import lines, speech, wav, word_errors
from tests.serving import running, with_toy

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("docker/*.md")])
ADDRESS = "localhost:8100"


def blocks(document: str, language: str) -> list[str]:
    """Code blocks of a document, by their language."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text("utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(with_toy()) as url:
        yield url


def run(command: list[str], folder: Path, text: str = "") -> str:
    """What a command prints, in a folder with a recording."""
    (folder / "recording.wav").write_bytes(wav(speech("000-en.flac")))
    done = subprocess.run(
        command,
        input=text,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"PYTHONUTF8": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("number", range(2))
def test_the_python_examples_of_the_readme_print_the_words(
    url: str, tmp_path: Path, number: int
) -> None:
    source = blocks("README.md", "python")[number]
    assert ADDRESS in source
    printed = run(
        [sys.executable, "-"], tmp_path, source.replace(ADDRESS, url.removeprefix("http://"))
    )
    heard = re.sub(r"^ *[\d.]+ +[\d.]+ ", "", printed, flags=re.MULTILINE).replace("\n", " ")
    assert word_errors(lines()[0].text, heard) <= 1


def test_the_curl_command_of_the_readme_gives_cues(url: str, tmp_path: Path) -> None:
    command = next(
        line.removeprefix("$ ")
        for block in blocks("README.md", "console")
        for line in block.splitlines()
        if line.startswith("$ curl")
    )
    host = url.removeprefix("http://")
    command = command.replace(ADDRESS, host).replace("jfk.flac", "recording.wav")
    printed = run(["sh", "-c", command.replace("curl ", "curl -s ", 1)], tmp_path)
    assert printed.startswith("1\n00:00:00,")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text("utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_every_test_that_a_document_names_exists() -> None:
    there = {
        name
        for path in ROOT.glob("tests/*/test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)
    }
    for document in DOCUMENTS:
        named = set(re.findall(r"`(test_\w+)`", document.read_text("utf-8")))
        assert named <= there, f"{document.name} names {sorted(named - there)}"


def test_snippets_of_configuration_can_be_parsed() -> None:
    for document in DOCUMENTS:
        name = str(document.relative_to(ROOT))
        for text in blocks(name, "yaml"):
            assert yaml.safe_load(text), name
        for text in blocks(name, "toml"):
            assert tomllib.loads(text), name
        for text in blocks(name, "json"):
            parts = text.splitlines() if text.startswith("{") and "}\n{" in text else [text]
            assert all(json.loads(part) for part in parts), name


def test_settings_that_a_document_names_exist() -> None:
    known = {variable(field.name) for field in fields(Settings)} | {"STT_CONFIG", *FOREIGN}
    for document in DOCUMENTS:
        named = set(re.findall(r"\b(STT_[A-Z_]+[A-Z])\b", document.read_text("utf-8")))
        assert named <= known, f"{document.name} names {sorted(named - known)}"
