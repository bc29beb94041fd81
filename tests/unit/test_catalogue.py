"""Names lead to models: which of several meanings wins, what appears while the server runs, what may be fetched."""

import shutil
import threading
from pathlib import Path

import pytest

from streaming.backends import loaders
from streaming.errors import ModelUnavailable, UnknownModel, Unsupported
from streaming.models import AGAIN, STALE, Catalogue
from tests import toy
from tests.hub import lay_out

MULTILINGUAL = toy.build()
ENGLISH = toy.build(layout="en")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def catalogue(directory: Path | None = None, **more: object) -> Catalogue:
    settings: dict[str, object] = {"offline": True, "directory": directory}
    return Catalogue(loaders(), **(settings | more))  # type: ignore[arg-type]


def copied(path: Path, source: Path = MULTILINGUAL) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(source)
    return path


# Which meaning wins.


def test_a_configured_name_wins_over_every_other_meaning(tmp_path: Path) -> None:
    copied(tmp_path / "large-v3", MULTILINGUAL)
    lay_out(tmp_path, "Systran/faster-whisper-base", MULTILINGUAL)
    names = ("tiny", "large-v3", "whisper-1", "Systran/faster-whisper-base", "mine")
    found = catalogue(
        tmp_path, paths=dict.fromkeys(names, ENGLISH), aliases={"mine": "small"}, default="mine"
    )
    for name in names:
        assert found.entry(name).path == ENGLISH, name
        assert found.entry(name).id == name
    assert found.default.path == ENGLISH
    assert not {"tiny", "large-v3", "whisper-1", "mine"} & found.aliases().keys()
    assert found.entry("gpt-4o-transcribe").id == "mine"


def test_a_folder_wins_over_aliases_short_and_borrowed_names(tmp_path: Path) -> None:
    for name in ("tiny", "turbo", "whisper-1"):
        copied(tmp_path / name)
    found = catalogue(tmp_path, aliases={"turbo": "small"}, default="tiny")
    for name in ("tiny", "turbo", "whisper-1"):
        assert found.entry(name).path == tmp_path / name
        assert found.resolve(name).id == name
    assert found.default.id == "tiny"


def test_an_alias_of_the_settings_wins_over_published_names(tmp_path: Path) -> None:
    lay_out(tmp_path, "Systran/faster-whisper-base", MULTILINGUAL)
    found = catalogue(
        tmp_path,
        aliases={"tiny": "base", "Systran/faster-whisper-small": "base", "whisper-1": "base"},
    )
    for name in ("tiny", "Systran/faster-whisper-small", "whisper-1"):
        assert found.entry(name).id == "Systran/faster-whisper-base"


@pytest.mark.parametrize("default", ["whisper-1", "nick", "loop"])
def test_a_default_that_means_the_default_is_the_one_of_this_machine(default: str) -> None:
    aliases = {"nick": "whisper-1", "loop": "pool", "pool": "loop"}
    found = catalogue(default=default, aliases=aliases)
    found.settle()
    if default == "loop":
        with pytest.raises(UnknownModel):
            found.entry("")
    else:
        assert found.entry("").id == "pocketsphinx"
        assert found.entry("whisper-1").id == "pocketsphinx"


def test_a_default_that_does_not_exist_is_told_with_a_guess() -> None:
    found = catalogue(default="sma11")
    found.settle()
    with pytest.raises(UnknownModel, match="'sma11' does not exist; did you mean small"):
        found.entry("")


# What appears while the server runs.


def test_a_folder_copied_slowly_is_found_once_it_is_whole(tmp_path: Path) -> None:
    clock = Clock()
    found = catalogue(tmp_path, clock=clock)
    (tmp_path / "mine").mkdir()
    whole = (MULTILINGUAL / "model.bin").read_bytes()
    for name in ("config.json", "tokenizer.json", "vocabulary.json", "preprocessor_config.json"):
        shutil.copy(MULTILINGUAL / name, tmp_path / "mine" / name)
    for part in (b"", whole[:1000], whole[: len(whole) - 300_000]):
        (tmp_path / "mine" / "model.bin").write_bytes(part)
        clock.now += STALE
        with pytest.raises(UnknownModel):
            found.entry("mine")
    (tmp_path / "mine" / "model.bin").write_bytes(whole)
    clock.now += STALE
    assert found.entry("mine").downloaded
    assert "mine" in {entry.id for entry in found.entries()}


def test_a_download_of_another_program_is_found_once_it_is_there(tmp_path: Path) -> None:
    clock = Clock()
    found = catalogue(tmp_path, clock=clock, default="tiny")
    snapshot = lay_out(tmp_path, "Systran/faster-whisper-tiny", MULTILINGUAL)
    (snapshot / "model.bin").rename(snapshot / "not.yet")
    assert not found.entry("tiny").downloaded
    (snapshot / "not.yet").rename(snapshot / "model.bin")
    clock.now += STALE
    assert found.entry("tiny").downloaded
    assert found.default.downloaded


def test_the_fallback_ends_when_the_download_appears(tmp_path: Path) -> None:
    clock = Clock()
    found = catalogue(tmp_path, clock=clock)
    assert "PocketSphinx" in (found.settle() or "")
    assert found.default.id == found.entry("whisper-1").id == "pocketsphinx"
    lay_out(tmp_path, "Systran/faster-whisper-base", MULTILINGUAL)
    clock.now += STALE
    assert found.entry("").id == "Systran/faster-whisper-base"
    assert found.default.id == "Systran/faster-whisper-base"
    assert found.notice is None


def test_the_fallback_ends_when_the_hub_answers_again(tmp_path: Path) -> None:
    clock, answers, asked, may = Clock(), [False], threading.Semaphore(0), threading.Event()

    def reachable() -> bool:
        asked.release()
        assert may.wait(20)
        return answers[0]

    may.set()
    found = catalogue(tmp_path, offline=False, clock=clock, reachable=reachable)
    assert "cannot be reached" in (found.settle() or "")
    assert asked.acquire(timeout=5)
    answers[0] = True
    may.clear()
    assert found.default.id == "pocketsphinx", "not asked at every request"
    clock.now += AGAIN
    assert found.default.id == "pocketsphinx", "nobody waits for the answer"
    assert asked.acquire(timeout=20)
    hub = [thread for thread in threading.enumerate() if thread.name == "hub"]
    may.set()
    for thread in hub:
        thread.join(20)
    assert found.default.id == "Systran/faster-whisper-base"
    assert found.notice is None
    assert not asked.acquire(blocking=False)


def test_the_default_can_be_told_without_reading_the_disk(tmp_path: Path) -> None:
    copied(tmp_path / "mine")
    found = catalogue(tmp_path, default="mine")
    assert found.default.id == "mine"
    found.settle()

    def forbidden() -> None:
        raise AssertionError("the event loop waits for the disk")

    found._look = forbidden  # type: ignore[method-assign,assignment]
    found.refresh()
    assert found.default.path == tmp_path / "mine"
    assert found.notice is None


def test_a_configured_folder_that_vanishes_takes_only_itself_along(tmp_path: Path) -> None:
    mine = copied(tmp_path / "mine")
    found = catalogue(None, paths={"mine": mine, "other": ENGLISH}, clock=(clock := Clock()))
    assert found.entry("mine").downloaded
    mine.unlink()
    clock.now += STALE
    assert found.entry("other").downloaded
    assert {"mine", "other"} <= {entry.id for entry in found.entries()}
    with pytest.raises(ModelUnavailable, match="no directory"):
        catalogue(None, paths={"mine": mine})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelUnavailable, match="no weights"):
        catalogue(None, paths={"mine": tmp_path / "empty"})


# What a request may have fetched.


def test_a_request_fetches_only_what_the_settings_know() -> None:
    more: dict[str, object] = {
        "offline": False,
        "default": "acme/default",
        "translation": "acme/translator",
        "aliases": {"nick": "acme/nick"},
    }
    known = catalogue(None, **more)
    for name in ("", "tiny", "acme/default", "acme/translator", "nick", "acme/nick", "turbo"):
        assert not known.resolve(name).downloaded
    with pytest.raises(UnknownModel, match=r"POST /api/pull/acme/other.*STT_ALLOW_DOWNLOADS"):
        known.resolve("acme/other")
    assert known.entry("acme/other").repository == "acme/other", "an operator may"
    assert catalogue(None, **more, downloads="any").resolve("acme/other").id == "acme/other"
    never = catalogue(None, **more, downloads="never")
    for name in ("", "tiny"):
        with pytest.raises(UnknownModel, match="not on this server"):
            never.resolve(name)


# Who serves what.


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A model directory as the hub's tools leave it: base translates, turbo does not, base.en knows English only."""
    lay_out(tmp_path, "Systran/faster-whisper-base", MULTILINGUAL)
    lay_out(tmp_path, "Systran/faster-whisper-base.en", ENGLISH)
    return tmp_path


def test_what_only_an_alias_or_the_default_cannot_do_goes_to_the_translation_model(
    models: Path,
) -> None:
    turbo = catalogue(
        models, default="turbo", aliases={"mine": "turbo"}, translation="base", offline=False
    )
    for name in ("", "whisper-1", "mine"):
        assert turbo.resolve(name, task="translate").id == "Systran/faster-whisper-base"
        assert turbo.resolve(name).id == "deepdml/faster-whisper-large-v3-turbo-ct2"
    english = catalogue(models, default="base.en", translation="base")
    for name in ("", "whisper-1"):
        assert english.resolve(name, language="fr").id == "Systran/faster-whisper-base"
        assert english.resolve(name, task="detect").id == "Systran/faster-whisper-base"
        assert english.resolve(name, language="en").id == "Systran/faster-whisper-base.en"


@pytest.mark.parametrize(
    ("name", "request_"),
    [
        ("turbo", {"task": "translate"}),
        ("large-v3-turbo", {"task": "translate"}),
        ("deepdml/faster-whisper-large-v3-turbo-ct2", {"task": "translate"}),
        ("distil-large-v3", {"task": "translate"}),
        ("distil-large-v3", {"language": "fr"}),
        ("base.en", {"language": "fr"}),
        ("base.en", {"task": "detect"}),
        ("base.en", {"task": "translate"}),
        ("pocketsphinx", {"task": "translate"}),
    ],
)
def test_what_a_named_model_cannot_do_is_refused_with_names_of_those_that_can(
    models: Path, name: str, request_: dict[str, str]
) -> None:
    found = catalogue(models, default="turbo", translation="base")
    with pytest.raises(Unsupported, match="such as Systran/faster-whisper-base or ") as caught:
        found.resolve(name, **request_)  # type: ignore[arg-type]
    assert caught.value.param in ("model", "language")


def test_a_translation_model_that_cannot_translate_changes_nothing(models: Path) -> None:
    for translation in ("turbo", "whisper-1", "base.en"):
        found = catalogue(models, default="turbo", translation=translation)
        with pytest.raises(Unsupported, match="not trained to translate"):
            found.resolve("", task="translate")
    with pytest.raises(Unsupported, match="not trained to translate"):
        catalogue(models, default="turbo").resolve("", task="translate")
