"""The catalogue: which models there are, under which names, and where their weights lie.

Names come from clients, so a name is only ever looked up, never joined to a path: what the catalogue does not list, and
what is no hub id, does not exist.
"""

from __future__ import annotations

import difflib
import json
import logging
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from streaming import hub, trust
from streaming.backends.base import Capabilities, Loader
from streaming.errors import ModelBusy, ModelUnavailable, NotAllowed, UnknownModel, Unsupported
from streaming.observer import Observer
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
Downloads = Literal["known", "any", "never"]
"""What a request may have downloaded: the models of the catalogue and the settings, any of the hub, or none."""
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
STALE = 2.0
"""Seconds after which the disk is looked at again where that may change the answer: a folder being copied changes
nothing in the folder above it."""
AGAIN = 30.0
"""Seconds between two questions to a hub that did not answer."""

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


class Catalogue:
    """Thread-safe. Looking up a name reads the disk, so call it off the event loop; `default` and `notice` never do,
    once `settle` has run."""

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
        downloads: Downloads = "known",
        repositories: Sequence[str] = (),
        hosts: Sequence[str] = (),
        code: bool = False,
        gpu: bool = False,
        reachable: Callable[[], bool] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loaders = loaders
        self._explicit = default
        self._backend = default_backend
        self._translation = translation or (TRANSLATION_GPU if gpu else None)
        self._directory = directory
        self._aliases = dict(aliases or {})
        self._paths = dict(paths or {})
        self._offline = offline or hub.offline()
        self._setting = "STT_OFFLINE" if offline else "HF_HUB_OFFLINE"
        self._policy = downloads
        self._repositories = tuple(repositories)
        self._hosts = tuple(hosts)
        self._code = code
        self._implicit = DEFAULT_GPU if gpu else DEFAULT_CPU
        self._reachable = reachable or (lambda: hub.answers(self._implicit))
        self._clock = clock
        self.observer = Observer()
        """Hears of downloads that end."""
        self._lock = threading.RLock()  # held while the disk is read
        self._entries: dict[str, Entry] | None = None  # replaced, never changed
        self._dirty = False
        self._stamp: tuple[float, ...] = ()
        self._looked = 0.0
        self._flags = threading.Lock()  # held for a moment only
        self._fallback = False
        self._asked = 0.0
        self._asking = False
        self._running: dict[
            str, hub.Download
        ] = {}  # by repository; bounded by the downloads under way
        for name, path in self._paths.items():
            if not path.is_dir():
                raise ModelUnavailable(
                    f"model {name}: {path} is no directory; give the folder that holds model.bin"
                )
            if self._inspect(name, path) is None:
                raise ModelUnavailable(
                    f"model {name}: {path} holds no weights that an installed backend reads"
                )

    # Names.

    @property
    def default(self) -> Entry:
        """The model used where a request names none. Reads no disk and asks nobody."""
        self._reconsider()
        known = self._entries if self._entries is not None else self._published()
        name = self._target(BUILT_IN if self._fallback else self._default_name(), known)
        return known.get(name) or self._hub_entry(name)

    @property
    def notice(self) -> str | None:
        """One line for the operator, if the built-in recogniser stands in for the default model."""
        if not self._fallback:
            return None
        why = f"{self._setting} is set" if self._offline else "the model hub cannot be reached"
        return (
            f"using the built-in recogniser PocketSphinx (English only, modest accuracy): {self._implicit} is not"
            f" downloaded and {why}; connect once, or put a model into STT_MODEL_DIR and name it with STT_DEFAULT_MODEL"
        )

    def settle(self) -> str | None:
        """Decide what the default is: blocks for seconds at most where the hub must be asked. Answers `notice`.

        Where the built-in recogniser stands in, it does so until the download appears or the hub answers.
        """
        hub.clean(self._cache())
        known = self._all()
        if self._default_name() == self._implicit and BUILT_IN in known:
            there = known[self._implicit].downloaded
            fallback = not there and (self._offline or not self._reachable())
            with self._flags:
                self._fallback, self._asked = fallback, self._clock()
        return self.notice

    def aliases(self) -> dict[str, str]:
        """Every alias with the id it stands for, OpenAI's names included; not those that a local model has taken."""
        known = self._all()
        found = dict.fromkeys(OPENAI_NAMES, self.default.id)
        for short, repository, *_ in _KNOWN:
            found[short] = repository
        for name, target in _SYNONYMS.items():
            found[name] = found[target]
        found |= {name: self._target(target, known) for name, target in self._aliases.items()}
        return {name: target for name, target in found.items() if name not in known}

    def entries(self) -> list[Entry]:
        """All models, downloaded or not: local ones first, then the published ones, each with its aliases."""
        known = self._all(fresh=True)
        names: dict[str, list[str]] = {}
        for alias, target in self.aliases().items():
            names.setdefault(target, []).append(alias)
        return [replace(entry, aliases=tuple(names.get(entry.id, ()))) for entry in known.values()]

    def entry(self, name: str) -> Entry:
        """The model of that name, id or alias; of the default one for an empty name. Raises UnknownModel."""
        known = self._all(fresh=self._fallback)
        wanted = name or self.default.id
        target = self._target(wanted, known)
        if target not in known or not known[target].downloaded:
            known = self._all(fresh=True)
            target = self._target(wanted, known)
        if target in known:
            return known[target]
        if HUB_ID.fullmatch(target) and ".." not in target and "--" not in target:
            return self._hub_entry(target)
        close = difflib.get_close_matches(wanted, [*known, *self.aliases()], 3, 0.6)
        hint = f"; did you mean {' or '.join(close)}?" if close else "; GET /v1/models lists them"
        raise UnknownModel(f"the model {wanted[:100]!r} does not exist{hint}")

    def resolve(
        self, name: str = "", *, task: Task = "transcribe", language: str | None = None
    ) -> Entry:
        """The model that serves such a request.

        Where the named model cannot and the name was only an alias or the default, the translation model takes over;
        otherwise Unsupported, naming models that can. Raises UnknownModel for what is not downloaded and may not be
        for a request's sake.
        """
        entry = self.entry(name)
        problem = self._problem(entry, task, language)
        if problem is not None and self._loose(name) and self._translation is not None:
            other = self.entry(self._translation)
            if self._problem(other, task, language) is None:
                entry, problem = other, None
        if problem is not None:
            raise problem
        if not entry.downloaded and not self._may_download(entry):
            raise UnknownModel(
                f"the model {entry.id!r} is not on this server; have it downloaded with POST /api/pull/{entry.id},"
                " or set STT_ALLOW_DOWNLOADS=any"
            )
        return entry

    def _problem(self, entry: Entry, task: Task, language: str | None) -> Unsupported | None:
        """Why `entry` cannot serve such a request: it would print wrong text instead of failing."""
        can = entry.capabilities
        if task == "detect" and not can.detects_language:
            return Unsupported(
                f"model {entry.id} cannot tell languages apart; choose a multilingual one, such as"
                f" {self._able('transcribe', None)}",
                param="model",
            )
        if task == "translate" and "translate" not in can.tasks:
            return Unsupported(
                f"model {entry.id} was not trained to translate; choose one that was, such as"
                f" {self._able('translate', language)}",
                param="model",
            )
        if language is not None and language not in can.languages:
            known = ", ".join(can.languages[:12]) + (", …" if len(can.languages) > 12 else "")
            return Unsupported(
                f"model {entry.id} does not know the language {language!r}, it knows {known}; choose one that does,"
                f" such as {self._able('transcribe', language)}",
                param="language",
            )
        return None

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

    def _loose(self, name: str) -> bool:
        """The request did not insist on this model: it named none, or an alias."""
        if name in self._aliases or name in OPENAI_NAMES:
            return self._target(name, self._all()) != name
        return not name

    def _may_download(self, entry: Entry) -> bool:
        """A request's need is reason enough to download `entry`."""
        if self._policy == "known":
            known = self._all()
            named = [self._default_name(), self._translation, *self._aliases]
            targets = {self._target(name, known) for name in named if name}
            return entry.id in known or entry.id in targets
        return self._policy == "any"

    def _default_name(self) -> str:
        """The default's name by the settings; OpenAI's names, which mean the default, cannot say which that is."""
        name = self._explicit
        for _ in range(5):
            if name is None or name in self._paths or name not in self._aliases:
                break
            name = self._aliases[name]
        known = self._entries or {}
        if name is None or (name in OPENAI_NAMES and name not in self._paths and name not in known):
            return self._implicit
        return name

    def _target(self, name: str, known: Mapping[str, Entry]) -> str:
        """The id behind a name: first what is here by the very name, then the settings' aliases, then OpenAI's names
        and the short ones."""
        for _ in range(5):  # aliases of aliases, but no circles
            if name in known and (known[name].repository is None or name not in self._aliases):
                return name
            if name not in self._aliases:
                break
            name = self._aliases[name]
        if name in OPENAI_NAMES:
            name = BUILT_IN if self._fallback else self._default_name()
            return name if name in known else self._target(name, known)
        name = _SYNONYMS.get(name, name)
        return next((repository for short, repository, *_ in _KNOWN if short == name), name)

    def _reconsider(self) -> None:
        """See now and then, off the caller's thread, whether the fallback may end."""
        with self._flags:
            now = self._clock()
            if not self._fallback or self._asking or now - self._asked < AGAIN:
                return
            self._asked, self._asking = now, True

        def look() -> None:
            try:
                self._all(fresh=True)
                if not self._offline and self._reachable():
                    self._end_fallback()
            finally:
                self._asking = False

        threading.Thread(target=look, name="hub", daemon=True).start()

    def _end_fallback(self) -> None:
        with self._flags:
            ended, self._fallback = self._fallback, False
        if ended:
            log.info("the default model is %s from now on", self._implicit)

    # Weights.

    def refresh(self) -> None:
        """Forget what was seen on the disk."""
        self._dirty = True

    def _all(self, *, fresh: bool = False) -> dict[str, Entry]:
        """What there is, by id; looked up again if something came or went, or for `fresh` after a moment."""
        with self._lock:
            stamp = self._stamps()
            old = fresh and self._clock() - self._looked >= STALE
            if self._entries is None or stamp != self._stamp or old or self._dirty:
                self._dirty = False
                self._entries = self._look()
                self._stamp, self._looked = stamp, self._clock()
            if self._fallback and self._entries[self._implicit].downloaded:
                self._end_fallback()
            return self._entries

    def _stamps(self) -> tuple[float, ...]:
        """Changes when a model appears or goes, though not when one has become complete."""
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
            # What was there at the start and is not now fails when it is loaded, with a sentence.
            entry = self._inspect(name, path) or (self._entries or {}).get(name)
            if entry is not None:
                found[name] = entry
        for name, path in self._folders().items():
            if name not in found and (entry := self._inspect(name, path)) is not None:
                found[name] = entry
        for repository, path in hub.snapshots(self._cache()).items():
            if repository not in found and (entry := self._inspect(repository, path)) is not None:
                found[repository] = replace(
                    entry, repository=repository, licence=_licence(repository)
                )
        return found | {id: entry for id, entry in self._published().items() if id not in found}

    def _folders(self) -> dict[str, Path]:
        """Folders of the model directory, by name."""
        if self._directory is None:
            return {}
        try:
            inside = sorted(self._directory.iterdir())
        except OSError:
            return {}
        return {
            path.name: path
            for path in inside
            if not path.name.startswith((".", "models--")) and path.is_dir()
        }

    def _published(self) -> dict[str, Entry]:
        """What there is without a look at the disk."""
        found = {
            repository: Entry(
                repository,
                "faster_whisper",
                None,
                repository,
                _claimed(multilingual, translates, "v3" in repository),
                size=size,
                licence=_licence(repository),
            )
            for _, repository, size, multilingual, translates in _KNOWN
        }
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
            try:
                capabilities = loader.inspect(path)
                if capabilities is not None:
                    stats = [file.stat() for file in path.rglob("*") if file.is_file()]
                    size = sum(stat.st_size for stat in stats)
                    created = int(max((stat.st_mtime for stat in stats), default=0))
                    return Entry(
                        name, backend, path, None, capabilities, size=size, created=created
                    )
            except OSError:  # it is being copied or removed
                continue
        return None

    def _cache(self) -> Path:
        """Where downloads go: the model directory, else the hub's cache; both in the hub's own layout."""
        return self._directory if self._directory is not None else hub.cache()

    def _hub_entry(self, repository: str) -> Entry:
        """A repository we know nothing of but its id: taken for a multilingual Whisper until it is there."""
        english = ".en" in repository
        cut = "turbo" in repository or "distil" in repository
        return Entry(
            repository,
            self._backend,
            None,
            repository,
            _claimed(not english, not english and not cut, True),
        )

    # Downloads.

    def ensure(self, entry: Entry) -> Path:
        """Where the weights lie, downloading them first if need be. Raises ModelUnavailable, UnknownModel."""
        if entry.path is None:
            self.download(entry).done.result()
            entry = self.entry(entry.id)
        if entry.path is None:
            raise ModelUnavailable(f"model {entry.id} is not on this machine any more; ask again")
        if entry.backend != BUILT_IN:
            if not self._code:
                # This backend opens no other file; of the others nobody knows.
                names = hub.FILES if entry.backend == "faster_whisper" else None
                trust.check(entry.id, entry.path, names)
            if entry.repository is not None:
                trust.verify(entry.id, entry.path)
        return entry.path

    def fetch(self, entry: Entry) -> Iterator[hub.Progress]:
        """Download `entry`, yielding progress; blocks. Picks up where an earlier try ended."""
        if entry.path is None:
            yield from self.download(entry).watch()

    def download(self, entry: Entry) -> hub.Download:
        """The download of `entry` that is under way, or a new one. Raises ModelUnavailable where there can be none."""
        repository = entry.repository
        if repository is None:
            raise ModelUnavailable(f"model {entry.id} cannot be downloaded; it is a folder here")
        allowed = self._repositories
        if allowed and not any(fnmatchcase(repository, pattern) for pattern in allowed):
            raise NotAllowed(
                f"{repository} may not be downloaded to this server; allowed are {', '.join(allowed)}"
                " (STT_ALLOW_REPOSITORIES)",
                param="model",
            )
        if self._offline:
            raise ModelUnavailable(
                f"{repository} is not downloaded and the server is offline ({self._setting}); download it where there"
                " is a network and copy it into STT_MODEL_DIR"
            )
        with self._lock:
            found = self._running.get(repository)
            if found is None:

                def arrived() -> None:
                    self.refresh()
                    if not self.entry(repository).downloaded:
                        raise Unsupported(
                            f"{repository} was downloaded but holds no weights that an installed backend reads; choose"
                            " a repository with a CTranslate2 model",
                            param="model",
                        )

                found = hub.Download(
                    repository, self._cache(), arrived, hosts=self._hosts, code=self._code
                )
                self._running[repository] = found
                found.done.add_done_callback(lambda _: self._running.pop(repository, None))
                found.done.add_done_callback(
                    lambda done: self.observer.download_ended(done.exception() is None)
                )
                found.start()
            return found

    def downloading(self) -> int:
        """Downloads under way."""
        return len(self._running)

    def stays(self, entry: Entry) -> bool:
        """It is no download that may be deleted: built in, or given by path."""
        return entry.id == BUILT_IN or entry.id in self._paths

    @property
    def offline(self) -> bool:
        """Nothing is downloaded, by the settings or the hub's own variable."""
        return self._offline

    def removable(self, name: str) -> Entry:
        """The model of that name, if it may be deleted; raises Unsupported for what stays, ModelBusy for what comes.

        An alias is refused: whoever deletes `whisper-1` may not know what it stands for today.
        """
        entry = self.entry(name)
        if self._loose(name):
            raise Unsupported(
                f"{name} is only another name of {entry.id}; to delete that model, name it",
                param="model",
            )
        if entry.repository in self._running:
            raise ModelBusy(f"model {entry.id} is being downloaded; delete it when it is there")
        if entry.id == BUILT_IN:
            raise Unsupported(f"{entry.id} is part of the server; it stays", param="model")
        if entry.id in self._paths:
            raise Unsupported(
                f"{entry.id} was given by path in the settings; delete its folder by hand",
                param="model",
            )
        return entry

    def remove(self, name: str) -> bool:
        """Delete a downloaded model; False if there is none to delete. Raises as `removable`."""
        entry = self.removable(name)
        if entry.path is None:
            return False
        folder = entry.path if entry.repository is None else entry.path.parent.parent
        if folder.parent.resolve() != self._cache().resolve():
            raise Unsupported(f"{entry.id} does not lie in the model directory", param="model")
        try:
            _delete(folder)
        except OSError as error:
            raise ModelUnavailable(
                f"{entry.id} could not be deleted ({(error.strerror or '').lower()}); the server may not write to its"
                " folder"
            ) from error
        finally:
            self.refresh()
        return True


def _delete(folder: Path) -> None:
    """Gone at one stroke, as far as others see; then its bytes."""
    if folder.is_symlink():
        folder.unlink()
        return
    aside = folder.with_name(f".{folder.name}.deleted")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    shutil.rmtree(aside)


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


def _claimed(multilingual: bool, translates: bool, cantonese: bool) -> Capabilities:
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
