"""The catalogue: which models there are, under which names, and where their weights lie.

Names come from clients, so a name is only ever looked up, never joined to a path: what the catalogue does not list, and
what is no hub id, does not exist.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from streaming.backends.base import Capabilities, Loader
from streaming.errors import ModelUnavailable, UnknownModel, Unsupported
from streaming.types import RATE, Task

log = logging.getLogger(__name__)

OPENAI_NAMES = (
    "whisper-1",
    "gpt-transcribe",
    "gpt-4o-transcribe",
    "gpt-4o-mini-transcribe",
    "gpt-4o-mini-transcribe-2025-12-15",
    "gpt-4o-transcribe-diarize",
    "gpt-live-transcribe",
    "gpt-realtime-whisper",
)
"""What clients written for OpenAI ask for; here they mean the default model."""
BUILT_IN = "pocketsphinx"
"""The recogniser that needs no download."""
DEFAULT_GPU = "deepdml/faster-whisper-large-v3-turbo-ct2"
DEFAULT_CPU = "Systran/faster-whisper-base"
TRANSLATION_GPU = "Systran/faster-whisper-large-v3"
FILES = ("*.bin", "*.json", "*.txt", "*.model", "*.onnx")
"""What is downloaded: weights and vocabularies of CTranslate2; nothing that unpickles."""
RESERVE = 512 * 2**20
"""Bytes that stay free on the disk after a download."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")

_MB = 1_000_000
_KNOWN: tuple[tuple[str, str, int, bool, bool], ...] = (
    # short name, repository, bytes of the download, multilingual, translates
    ("tiny", "Systran/faster-whisper-tiny", 78 * _MB, True, True),
    ("tiny.en", "Systran/faster-whisper-tiny.en", 78 * _MB, False, False),
    ("base", "Systran/faster-whisper-base", 148 * _MB, True, True),
    ("base.en", "Systran/faster-whisper-base.en", 148 * _MB, False, False),
    ("small", "Systran/faster-whisper-small", 486 * _MB, True, True),
    ("small.en", "Systran/faster-whisper-small.en", 486 * _MB, False, False),
    ("medium", "Systran/faster-whisper-medium", 1530 * _MB, True, True),
    ("medium.en", "Systran/faster-whisper-medium.en", 1530 * _MB, False, False),
    ("large-v1", "Systran/faster-whisper-large-v1", 3090 * _MB, True, True),
    ("large-v2", "Systran/faster-whisper-large-v2", 3090 * _MB, True, True),
    ("large-v3", "Systran/faster-whisper-large-v3", 3090 * _MB, True, True),
    ("large-v3-turbo", "deepdml/faster-whisper-large-v3-turbo-ct2", 1620 * _MB, True, False),
    ("distil-small.en", "Systran/faster-distil-whisper-small.en", 334 * _MB, False, False),
    ("distil-medium.en", "Systran/faster-distil-whisper-medium.en", 790 * _MB, False, False),
    ("distil-large-v2", "Systran/faster-distil-whisper-large-v2", 1510 * _MB, False, False),
    ("distil-large-v3", "Systran/faster-distil-whisper-large-v3", 1510 * _MB, False, False),
    ("distil-large-v3.5", "distil-whisper/distil-large-v3.5-ct2", 1510 * _MB, False, False),
)
_SYNONYMS = {"large": "large-v3", "turbo": "large-v3-turbo"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the catalogue."""

    id: str
    """A hub id, a folder's name in the model directory, a name from the settings, or ``pocketsphinx``."""
    backend: str
    path: Path | None
    """Where the weights lie; None while they are not downloaded."""
    repository: str | None
    """Hub id to download from; None for local models."""
    capabilities: Capabilities
    """Languages and tasks; for weights not yet seen, as published."""
    aliases: tuple[str, ...] = ()
    size: int | None = None
    """Bytes on disk, or of the download where known."""
    licence: str | None = None
    created: int = 0
    """Unix seconds."""

    @property
    def downloaded(self) -> bool:
        """The weights are on this machine."""
        return self.path is not None


@dataclass(frozen=True, slots=True)
class Download:
    """Progress of a download, in bytes over all files."""

    done: int
    total: int | None


class Catalogue:
    """Thread-safe. Looking up a name reads no disk unless the model directory changed; downloads block their caller."""

    def __init__(
        self,
        loaders: Mapping[str, Loader],
        *,
        default: str | None = None,
        default_backend: str = "faster_whisper",
        translation: str | None = None,
        directory: Path | None = None,
        aliases: Mapping[str, str] | None = None,
        paths: Mapping[str, Path] | None = None,
        offline: bool = False,
        gpu: bool = False,
        reachable: Callable[[], bool] | None = None,
    ) -> None:
        self._loaders = loaders
        self._explicit = default
        self._backend = default_backend
        self._translation = translation or (TRANSLATION_GPU if gpu else None)
        self._directory = directory
        self._aliases = dict(aliases or {})
        self._paths = dict(paths or {})
        self._offline = offline
        self._implicit = DEFAULT_GPU if gpu else DEFAULT_CPU
        self._reachable = reachable or hub_answers
        self._lock = threading.RLock()
        self._entries: dict[str, Entry] | None = None
        self._seen: tuple[float, ...] = ()
        self._fallback = False
        for name, path in self._paths.items():
            if not path.is_dir():
                raise ModelUnavailable(
                    f"model {name}: {path} is no directory; give the folder that holds model.bin"
                )

    # Names.

    @property
    def default(self) -> Entry:
        """The model used where a request names none."""
        if self._explicit is not None:
            return self.entry(self._explicit)
        if self._fallback:
            return self.entry(BUILT_IN)
        return self.entry(self._implicit)

    @property
    def notice(self) -> str | None:
        """One line for the operator, if the built-in recogniser stands in for the default model."""
        if not self._fallback or self._explicit is not None:
            return None
        why = "STT_OFFLINE is set" if self._offline else "the model hub cannot be reached"
        return (
            f"using the built-in recogniser PocketSphinx (English only, modest accuracy): {self._implicit} is not"
            f" downloaded and {why}; connect once, or put a model into STT_MODEL_DIR"
        )

    def settle(self) -> str | None:
        """Decide what the default is: blocks for a second at most where the hub must be asked. Answers `notice`."""
        if self._explicit is None:
            downloaded = self.entry(self._implicit).downloaded
            self._fallback = not downloaded and (self._offline or not self._reachable())
        return self.notice

    def aliases(self) -> dict[str, str]:
        """Every alias with the id it stands for, OpenAI's names included."""
        default = self.default.id
        found = dict.fromkeys(OPENAI_NAMES, default)
        for short, repository, *_ in _KNOWN:
            found[short] = repository
        for name, target in _SYNONYMS.items():
            found[name] = found[target]
        return found | self._aliases

    def entries(self) -> list[Entry]:
        """All models, downloaded or not: local ones first, then the published ones, each with its aliases."""
        names: dict[str, list[str]] = {}
        for alias, target in self.aliases().items():
            names.setdefault(self._target(target), []).append(alias)
        return [
            replace(entry, aliases=tuple(names.get(entry.id, ()))) for entry in self._all().values()
        ]

    def entry(self, name: str) -> Entry:
        """The model of that name, id or alias; of the default one for an empty name. Raises UnknownModel."""
        known = self._all()
        target = self._target(name) if name else self.default.id
        if target in known:
            return known[target]
        if HUB_ID.fullmatch(target) and ".." not in target:
            return self._hub_entry(target)
        close = difflib.get_close_matches(name, [*known, *self.aliases()], 3, 0.6)
        hint = f"; did you mean {' or '.join(close)}?" if close else "; GET /v1/models lists them"
        raise UnknownModel(f"the model {name[:100]!r} does not exist{hint}")

    def resolve(
        self, name: str = "", *, task: Task = "transcribe", language: str | None = None
    ) -> Entry:
        """The model that serves such a request.

        Where the named model cannot and the name was only an alias or the default, the translation model takes over;
        otherwise Unsupported, naming models that can.
        """
        entry = self.entry(name)
        if task == "detect" and not entry.capabilities.detects_language:
            raise Unsupported(
                f"model {entry.id} cannot tell languages apart; choose a multilingual one such as"
                f" {self._able('transcribe', None)}",
                param="model",
            )
        if task == "translate" and "translate" not in entry.capabilities.tasks:
            loose = not name or name in OPENAI_NAMES or name in self._aliases
            if loose and self._translation is not None:
                return self.resolve(self._translation, task=task, language=language)
            raise Unsupported(
                f"model {entry.id} was not trained to translate; choose one that was, such as"
                f" {self._able('translate', language)}",
                param="model",
            )
        languages = entry.capabilities.languages
        if language is not None and language not in languages:
            known = ", ".join(languages[:12]) + (", …" if len(languages) > 12 else "")
            raise Unsupported(
                f"model {entry.id} does not know the language {language!r}; it knows {known}",
                param="language",
            )
        return entry

    def _able(self, task: Task, language: str | None) -> str:
        able = [
            entry
            for entry in self._all().values()
            if task in entry.capabilities.tasks
            and entry.capabilities.detects_language
            and (language is None or language in entry.capabilities.languages)
        ]
        able.sort(key=lambda entry: not entry.downloaded)
        return " or ".join(entry.id for entry in able[:3]) or "a multilingual Whisper"

    def _target(self, name: str) -> str:
        """The id behind a name, through aliases."""
        for _ in range(5):  # aliases of aliases, but no circles
            if name in self._aliases:
                name = self._aliases[name]
            elif name in OPENAI_NAMES:
                return self.default.id
            else:
                break
        name = _SYNONYMS.get(name, name)
        return next((repository for short, repository, *_ in _KNOWN if short == name), name)

    # Weights.

    def refresh(self) -> None:
        """Forget what was seen on the disk."""
        with self._lock:
            self._entries = None

    def _all(self) -> dict[str, Entry]:
        with self._lock:
            stamp = self._stamp()
            if self._entries is None or stamp != self._seen:
                self._entries = self._look()
                self._seen = stamp
            return self._entries

    def _stamp(self) -> tuple[float, ...]:
        """Changes when a model appears or goes."""
        stamps = []
        for folder in (self._directory, self._cache()):
            try:
                stamps.append(folder.stat().st_mtime if folder else 0.0)
            except OSError:
                stamps.append(0.0)
        return tuple(stamps)

    def _look(self) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        for name, path in self._paths.items():
            entry = self._inspect(name, path)
            if entry is None:
                raise ModelUnavailable(
                    f"model {name}: {path} holds no weights that an installed backend reads"
                )
            found[name] = entry
        if self._directory is not None and self._directory.is_dir():
            for path in sorted(self._directory.iterdir()):
                if path.is_dir() and not path.name.startswith((".", "models--")):
                    entry = self._inspect(path.name, path)
                    if entry is not None:
                        found.setdefault(path.name, entry)
        for repository, path in self._snapshots().items():
            entry = self._inspect(repository, path)
            if entry is not None:
                found[repository] = replace(
                    entry, repository=repository, licence=_licence(repository)
                )
        for _, repository, size, multilingual, translates in _KNOWN:
            if repository not in found:
                found[repository] = Entry(
                    repository,
                    "faster_whisper",
                    None,
                    repository,
                    _published(multilingual, translates, "v3" in repository),
                    size=size,
                    licence=_licence(repository),
                )
        if BUILT_IN in self._loaders:
            capabilities = self._loaders[BUILT_IN].inspect(Path())
            if capabilities is not None:
                found[BUILT_IN] = Entry(
                    BUILT_IN, BUILT_IN, Path(), None, capabilities, licence="BSD-2-Clause"
                )
        return found

    def _inspect(self, name: str, path: Path) -> Entry | None:
        order = sorted(self._loaders.items(), key=lambda item: item[0] != self._backend)
        for backend, loader in order:
            if backend == BUILT_IN:
                continue
            capabilities = loader.inspect(path)
            if capabilities is not None:
                files = [file for file in path.rglob("*") if file.is_file()]
                size = sum(file.stat().st_size for file in files)
                return Entry(
                    name,
                    backend,
                    path,
                    None,
                    capabilities,
                    size=size,
                    created=int(max((file.stat().st_mtime for file in files), default=0)),
                )
        return None

    def _cache(self) -> Path | None:
        """Where downloads go: the model directory, else the Hugging Face cache; both in the hub's own layout."""
        if self._directory is not None:
            return self._directory
        hub = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
        if hub:
            return Path(hub)
        return Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser() / "hub"

    def _snapshots(self) -> dict[str, Path]:
        """Downloaded repositories that are complete enough to load, by id."""
        cache = self._cache()
        found: dict[str, Path] = {}
        if cache is None or not cache.is_dir():
            return found
        for folder in sorted(cache.glob("models--*--*")):
            repository = folder.name.removeprefix("models--").replace("--", "/", 1)
            try:
                commit = (folder / "refs" / "main").read_text().strip()
            except OSError:
                continue
            path = folder / "snapshots" / commit
            if (path / "model.bin").exists():
                found[repository] = path
        return found

    def _hub_entry(self, repository: str) -> Entry:
        """A repository we know nothing of but its id: taken for a multilingual Whisper until it is there."""
        english = ".en" in repository
        cut = "turbo" in repository or "distil" in repository
        return Entry(
            repository,
            self._backend,
            None,
            repository,
            _published(not english, not english and not cut, True),
        )

    # Downloads.

    def ensure(self, entry: Entry) -> Path:
        """Where the weights lie, downloading them first if need be. Raises ModelUnavailable, UnknownModel."""
        current = self._all().get(entry.id, entry)
        if current.path is None:
            for _ in self.fetch(current):
                pass
            current = self._all().get(entry.id, entry)
        if current.path is None:
            raise ModelUnavailable(
                f"{entry.id} was downloaded but holds no weights that an installed backend reads;"
                " choose a repository with a CTranslate2 model"
            )
        return current.path

    def fetch(self, entry: Entry) -> Iterator[Download]:
        """Download `entry`, yielding progress about twice a second; blocks. Picks up where an earlier try ended."""
        repository = entry.repository
        if entry.path is not None or repository is None:
            return
        if self._offline:
            raise ModelUnavailable(
                f"{repository} is not downloaded and the server is offline (STT_OFFLINE); download it where there is"
                " a network and copy it into STT_MODEL_DIR"
            )
        yield from _download(repository, self._cache())
        self.refresh()

    def remove(self, name: str) -> bool:
        """Delete a downloaded model; False if there is none to delete. Models from the settings stay."""
        entry = self.entry(name)
        if entry.path is None or entry.id == BUILT_IN:
            return False
        if entry.id in self._paths:
            raise Unsupported(
                f"{entry.id} was given by path in the settings; delete its folder by hand",
                param="model",
            )
        folder = entry.path if entry.repository is None else entry.path.parent.parent
        cache = self._cache()
        if cache is None or folder.resolve().parent != cache.resolve():
            raise Unsupported(f"{entry.id} does not lie in the model directory", param="model")
        shutil.rmtree(folder)
        self.refresh()
        return True


def hub_answers(seconds: float = 1.0) -> bool:
    """The hub can be reached: a connection to it opens within `seconds`."""
    import socket
    from urllib.parse import urlsplit

    endpoint = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    port = endpoint.port or (443 if endpoint.scheme == "https" else 80)
    result: list[bool] = []

    def look() -> None:
        try:
            socket.create_connection((endpoint.hostname or "", port), seconds).close()
            result.append(True)
        except OSError:
            result.append(False)

    # In a thread, because resolving a name knows no timeout.
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(result and result[0])


def read_aliases(file: Path) -> dict[str, str]:
    """Aliases of a JSON file, ``{"name": "model"}``."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"the alias file {file} cannot be read: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
        raise ModelUnavailable(
            f'the alias file {file} must hold an object such as {{"whisper-1": "small"}}'
        )
    return {str(name): target for name, target in found.items()}


def _published(multilingual: bool, translates: bool, cantonese: bool) -> Capabilities:
    from streaming.backends.whisper_weights import LANGUAGES

    languages = (LANGUAGES if cantonese else LANGUAGES[:-1]) if multilingual else ("en",)
    tasks: tuple[Task, ...] = ("transcribe", "translate") if translates else ("transcribe",)
    return Capabilities(
        languages=languages,
        tasks=tasks,
        detects_language=multilingual,
        full=30 * RATE,
        max_batch=16,
    )


def _licence(repository: str) -> str | None:
    return "MIT" if any(repository == known[1] for known in _KNOWN) else None


def _download(repository: str, cache: Path | None) -> Iterator[Download]:
    """Through huggingface_hub, whose progress bars are read instead of printed."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
    )

    try:
        info = HfApi().model_info(repository, files_metadata=True, timeout=10)
    except RepositoryNotFoundError as error:
        raise UnknownModel(f"the hub has no model {repository}; check its name") from error
    except GatedRepoError as error:
        raise ModelUnavailable(
            f"{repository} asks for consent: accept its terms on the hub and set HF_TOKEN"
        ) from error
    except Exception as error:
        raise ModelUnavailable(_hub_trouble(repository, error)) from error
    wanted = [
        sibling
        for sibling in info.siblings or []
        if any(Path(sibling.rfilename).match(pattern) for pattern in FILES)
    ]
    if not any(Path(sibling.rfilename).name == "model.bin" for sibling in wanted):
        raise ModelUnavailable(
            f"{repository} holds no CTranslate2 model (model.bin); choose a converted one, such as {DEFAULT_CPU}"
        )
    total = sum(sibling.size or 0 for sibling in wanted) or None
    folder = cache or Path.home()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if total is not None and free < total + RESERVE:
        raise ModelUnavailable(
            f"{repository} needs {total / 1e9:.1f} GB and {free / 1e9:.1f} GB are free on the disk of {folder};"
            " remove other models or choose another STT_MODEL_DIR"
        )
    state: dict[str, Any] = {}

    def work() -> None:
        try:
            snapshot_download(
                repository,
                cache_dir=cache,
                revision="main",
                allow_patterns=list(FILES),
                tqdm_class=_silent_class(),
                max_workers=4,
            )
        except Exception as error:  # reported by the loop below
            state["error"] = error
        state["done"] = True

    thread = threading.Thread(target=work, name=f"download {repository}", daemon=True)
    thread.start()
    blobs = None if cache is None else cache / f"models--{repository.replace('/', '--')}" / "blobs"
    while not state.get("done"):
        thread.join(0.5)
        done = 0 if blobs is None else sum(_size(blob) for blob in blobs.glob("*"))
        yield Download(min(done, total or done), total)
    if "error" in state:
        raise ModelUnavailable(_hub_trouble(repository, state["error"])) from state["error"]
    log.info("downloaded %s", repository)
    yield Download(total or 0, total)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _hub_trouble(repository: str, error: Exception) -> str:
    text = str(error).strip().split("\n")[0].rstrip(".")[:200]
    return (
        f"{repository} could not be downloaded ({type(error).__name__}: {text}); check the network, or copy the model"
        " into STT_MODEL_DIR"
    )


def _silent_class() -> Any:
    from tqdm.auto import tqdm

    class Silent(tqdm):  # type: ignore[misc]
        """A progress bar that shows nothing."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs["disable"] = True
            kwargs.pop("name", None)
            super().__init__(*args, **kwargs)

    return Silent
