"""Downloads from a hub of our own: the right files, resumed, verified, shared, and refused with a remedy."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from streaming import hub as real
from streaming.backends import loaders
from streaming.errors import (
    ModelBusy,
    ModelUnavailable,
    StorageFull,
    UnknownModel,
    Unsupported,
)
from streaming.models import Catalogue
from tests import toy
from tests.hub import TOKEN, Hub, lay_out

NAME = "acme/toy-whisper"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as found:
        found.add(NAME, toy.build())
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(real, "PAUSE", 0.0)
        yield found


def catalogue(folder: Path, **more: object) -> Catalogue:
    return Catalogue(loaders(), directory=folder, **more)  # type: ignore[arg-type]


def pull(found: Catalogue, name: str = NAME) -> list[real.Progress]:
    return list(found.fetch(found.entry(name)))


def downloaded(found: Catalogue) -> set[str]:
    return {entry.id for entry in found.entries() if entry.downloaded} - {"pocketsphinx"}


def test_a_download_holds_what_whisper_needs_and_nothing_else(hub: Hub, tmp_path: Path) -> None:
    found = catalogue(tmp_path)
    progress = pull(found)
    path = found.ensure(found.entry(NAME))
    files = {file.name for file in path.iterdir()}
    assert files == {
        "config.json",
        "model.bin",
        "preprocessor_config.json",
        "tokenizer.json",
        "vocabulary.json",
    }
    for name in files:
        assert (path / name).read_bytes() == hub.repositories[NAME].files[name]
    assert not [path for _, path, _ in hub.requests if "pytorch" in path or "README" in path]
    total = sum(len(hub.repositories[NAME].files[name]) for name in files)
    assert progress[-1] == real.Progress(total, total)
    assert [each.done for each in progress] == sorted(each.done for each in progress)


def test_the_layout_is_the_hubs_own(hub: Hub, tmp_path: Path) -> None:
    from huggingface_hub import scan_cache_dir, try_to_load_from_cache

    pull(catalogue(tmp_path))
    assert isinstance(try_to_load_from_cache(NAME, "model.bin", cache_dir=tmp_path), str)
    (repository,) = scan_cache_dir(tmp_path).repos
    assert (repository.repo_id, repository.nb_files) == (NAME, 5)
    assert downloaded(catalogue(tmp_path, offline=True)) == {NAME}


def test_a_broken_connection_is_taken_up_again(hub: Hub, tmp_path: Path) -> None:
    hub.break_after, hub.breaks = 1_500_000, 2
    pull(catalogue(tmp_path))
    assert downloaded(catalogue(tmp_path)) == {NAME}
    first, second, third = hub.asked("model.bin")[::2]  # each is sent on to where large files lie
    assert first is None
    assert second == "bytes=1500000-"
    assert third == "bytes=3000000-"


def test_an_interrupted_download_never_looks_complete_and_is_resumed(
    hub: Hub, tmp_path: Path
) -> None:
    hub.break_after, hub.breaks = 1_000_000, 1_000_000
    hub.before_file = lambda: setattr(hub, "down", True)
    with pytest.raises(ModelUnavailable, match="could not be downloaded"):
        pull(catalogue(tmp_path))
    again = catalogue(tmp_path)
    assert downloaded(again) == set()
    hub.break_after, hub.down, hub.before_file = None, False, lambda: None
    hub.requests.clear()
    progress = pull(again)
    assert hub.asked("model.bin")[0] == "bytes=1000000-"
    assert progress[0].done >= 1_000_000
    assert not hub.asked("tokenizer.json"), "what was there is not fetched again"
    assert downloaded(again) == {NAME}


def test_a_hub_that_knows_no_ranges_sends_it_all_again(hub: Hub, tmp_path: Path) -> None:
    hub.break_after, hub.breaks, hub.ranges = 1_000_000, 1, False
    found = catalogue(tmp_path)
    pull(found)
    path = found.ensure(found.entry(NAME))
    assert (path / "model.bin").read_bytes() == hub.repositories[NAME].files["model.bin"]


def test_bytes_that_are_not_the_ones_announced_are_thrown_away(hub: Hub, tmp_path: Path) -> None:
    good = hub.repositories[NAME].files["model.bin"]
    found = catalogue(tmp_path)
    entry = found.entry(NAME)

    def swap() -> None:
        hub.repositories[NAME].files["model.bin"] = good[:-1] + b"?"

    hub.before_file = swap
    with pytest.raises(ModelUnavailable, match="arrived damaged"):
        list(found.fetch(entry))
    assert downloaded(found) == set()
    hub.before_file = lambda: None
    hub.repositories[NAME].files["model.bin"] = good
    pull(found)
    assert downloaded(found) == {NAME}


def test_two_who_ask_at_once_share_one_download(hub: Hub, tmp_path: Path) -> None:
    go = threading.Event()
    hub.before_file = lambda: go.wait(10) and None
    found = catalogue(tmp_path)
    first = found.download(found.entry(NAME))
    second = found.download(found.entry(NAME))
    assert first is second
    with pytest.raises(ModelBusy, match="being downloaded"):
        found.remove(NAME)
    other = catalogue(tmp_path)
    beside = other.download(other.entry(NAME))  # another process would do so
    go.set()
    for each in (first, beside):
        each.done.result(20)
    assert len([path for _, path, _ in hub.requests if path == f"/cdn/{NAME}/model.bin"]) == 1
    assert found.remove(NAME)
    assert not found.remove(NAME)
    assert list(tmp_path.glob("*")) == []


def test_a_file_that_two_processes_link_is_never_gone(tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_text("weights")
    start, gone = threading.Barrier(2), []

    def link(name: Path) -> None:
        start.wait(10)
        real._link(blob, name)
        gone.append(not name.exists())

    for turn in range(300):
        both = [threading.Thread(target=link, args=(tmp_path / f"name{turn}",)) for _ in "ab"]
        for each in both:
            each.start()
        for each in both:
            each.join()
    assert len(gone) == 600
    assert not any(gone)
    assert len(list(tmp_path.iterdir())) == 301


def test_a_gated_repository_asks_for_consent_and_a_token(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("acme/gated", toy.build(), access="gated")
    hub.add("acme/secret", toy.build(), access="secret")
    found = catalogue(tmp_path)
    for name in ("acme/gated", "acme/secret"):
        with pytest.raises(ModelUnavailable, match=r"accept its terms.*HF_TOKEN"):
            pull(found, name)
        assert downloaded(found) == set()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    pull(found, "acme/gated")
    assert downloaded(found) == {"acme/gated"}


def test_private_and_unknown_repositories_are_told_alike(hub: Hub, tmp_path: Path) -> None:
    hub.add("acme/private", toy.build(), access="private")
    for name in ("acme/private", "acme/nothing"):
        with pytest.raises(UnknownModel, match="check its name, or set HF_TOKEN"):
            pull(catalogue(tmp_path), name)


def test_a_repository_without_ctranslate2_weights_is_refused(hub: Hub, tmp_path: Path) -> None:
    del hub.repositories[NAME].files["model.bin"]
    with pytest.raises(Unsupported, match="holds no CTranslate2 model"):
        pull(catalogue(tmp_path))
    hub.repositories[NAME].files["model.bin"] = b"no weights at all"
    with pytest.raises(Unsupported, match="no weights that an installed backend reads"):
        pull(catalogue(tmp_path))


def test_a_full_disk_is_noticed_before_the_download(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(
        len(data) for name, data in hub.repositories[NAME].files.items() if name in real.FILES
    )
    free = real.RESERVE + size - 1
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, free)
    )  # type: ignore[attr-defined]
    with pytest.raises(StorageFull, match=r"GB are free.*are missing"):
        pull(catalogue(tmp_path / "not" / "there" / "yet"))
    assert not (tmp_path / "not").exists()
    assert not hub.asked("config.json")
    free += 1
    pull(catalogue(tmp_path))


def test_a_folder_that_cannot_be_written_is_told_as_such(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ModelUnavailable, match=r"could not be stored.*STT_MODEL_DIR"):
        pull(catalogue(tmp_path / "file"))


def test_a_hub_that_is_down_is_told_with_a_remedy(hub: Hub, tmp_path: Path) -> None:
    hub.down = True
    with pytest.raises(ModelUnavailable, match="check the network"):
        pull(catalogue(tmp_path))


def test_offline_never_touches_the_network(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = catalogue(tmp_path, offline=True)
    found.settle()
    with pytest.raises(ModelUnavailable, match=r"offline .STT_OFFLINE"):
        found.ensure(found.entry(NAME))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = catalogue(tmp_path)
    assert "HF_HUB_OFFLINE" in (found.settle() or "")
    with pytest.raises(ModelUnavailable, match=r"offline .HF_HUB_OFFLINE"):
        found.ensure(found.entry("tiny"))
    assert hub.requests == []


@pytest.mark.parametrize(
    ("variable", "inside"),
    [
        ("HF_HUB_CACHE", ""),
        ("HUGGINGFACE_HUB_CACHE", ""),
        ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface/hub"),
        ("HOME", ".cache/huggingface/hub"),
    ],
)
def test_without_a_folder_of_our_own_the_hubs_cache_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, inside: str
) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    lay_out(tmp_path / inside, NAME, toy.build())
    assert downloaded(Catalogue(loaders(), offline=True)) == {NAME}


def test_a_snapshot_of_another_tool_counts_when_its_weights_are_there(tmp_path: Path) -> None:
    old = lay_out(tmp_path, NAME, toy.build())
    (old.parents[1] / "refs" / "main").write_text("b" * 40)  # an update that never arrived
    (old.parent / ("b" * 40)).mkdir()
    found = catalogue(tmp_path, offline=True)
    assert found.entry(NAME).path == old
    (old / "vocabulary.json").unlink()
    assert downloaded(catalogue(tmp_path, offline=True)) == set()


def test_the_hub_is_asked_through_a_proxy(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A name that nobody resolves answers, because the proxy is asked for it."""
    from huggingface_hub import close_session

    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    close_session()
    assert not real.answers("acme/toy-whisper")
    monkeypatch.setenv("HTTP_PROXY", hub.url)
    monkeypatch.setenv("http_proxy", hub.url)
    close_session()
    try:
        assert real.answers("acme/toy-whisper")
        assert real.answers("acme/nothing"), "it says no, so it is there"
        hub.down = True
        assert not real.answers("acme/toy-whisper")
        hub.down = False
        pull(catalogue(tmp_path))
    finally:
        close_session()


def test_removing_takes_one_download_and_refuses_what_is_not_its_own(
    hub: Hub, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(toy.build(), elsewhere)
    models = tmp_path / "models"
    models.mkdir()
    shutil.copytree(toy.build(), models / "mine")
    (models / "link").symlink_to(elsewhere)
    lay_out(models, NAME, toy.build())
    found = catalogue(
        models, offline=True, default=NAME, aliases={"nick": "mine"}, paths={"fixed": elsewhere}
    )
    for alias in ("whisper-1", "nick"):
        target = found.entry(alias).id
        with pytest.raises(Unsupported, match=f"only another name of {target}"):
            found.remove(alias)
    with pytest.raises(Unsupported, match="given by path"):
        found.remove("fixed")
    with pytest.raises(Unsupported, match="part of the server"):
        found.remove("pocketsphinx")
    assert found.remove("link")
    assert (elsewhere / "model.bin").is_file()
    assert found.remove("mine")
    assert found.remove(NAME)
    assert list(models.iterdir()) == []
    assert not found.entry(NAME).downloaded
