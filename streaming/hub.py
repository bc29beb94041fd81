"""The model hub: where its cache lies, whether it answers, and downloads that resume, verify and are shared.

Files are stored in the hub's own layout, so that its other tools find them. The weights come last: a snapshot that
holds `model.bin` is complete, one that broke off never looks so.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, urljoin, urlsplit

from streaming import trust
from streaming.errors import (
    ModelUnavailable,
    OpenSpeechError,
    StorageFull,
    UnknownModel,
    Unsupported,
)

log = logging.getLogger(__name__)

WEIGHTS = "model.bin"
FILES = (
    "config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "vocabulary.json",
    "vocabulary.txt",
    WEIGHTS,
)
"""All that a CTranslate2 Whisper needs, in the order of their download; nothing that unpickles."""
FAMILY = ("huggingface.co", "hf.co")
"""Hosts, with all below them, to which the hub itself sends downloads on; mirrors do too."""
REDIRECTS = 5
"""Times that a request may be sent on."""
KEPT = 7 * 86_400.0
"""Seconds for which what came of a download that broke off is kept to be taken up again."""
LISTING = 32 * 2**20
"""Bytes of the longest description of a repository."""
RESERVE = 512 * 2**20
"""Bytes that stay free on the disk after a download."""
TRIES = 5
"""Broken connections in a row, without a byte between them, before a download is given up; a later one resumes."""
PAUSE = 1.0
"""Seconds before the next try."""
_SAFE = re.compile(r"[0-9A-Za-z]{6,128}")
_FRESH = re.compile(r"\..+\.[0-9a-f]{16}")
"""Names of files that are about to get another."""


def endpoint() -> str:
    """The hub's address; a mirror's where `HF_ENDPOINT` names one."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def offline() -> bool:
    """The hub's own variables forbid the network."""
    said = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return said.strip().upper() in ("1", "ON", "YES", "TRUE")


def cache() -> Path:
    """The cache that all tools of the hub share."""
    for name, inside in (
        ("HF_HUB_CACHE", ""),
        ("HUGGINGFACE_HUB_CACHE", ""),
        ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface/hub"),
    ):
        found = os.environ.get(name)
        if found:
            return Path(os.path.expandvars(found)).expanduser() / inside
    return Path("~/.cache/huggingface/hub").expanduser()


def answers(repository: str, seconds: float = 3.0) -> bool:
    """The hub answers for `repository` within `seconds`; asked as downloads ask, through a proxy where the environment
    names one."""
    result: list[bool] = []

    def look() -> None:
        try:
            answer = _session().head(
                f"{endpoint()}/api/models/{quote(repository)}",
                timeout=seconds,
                follow_redirects=False,
            )
        except Exception as error:  # whatever is wrong, it cannot be reached
            log.debug("asking the hub failed: %r", error)
        else:
            # The hub may say no to the question; a proxy that says no has other numbers.
            result.append(answer.status_code < 400 or answer.status_code in (401, 404, 429))

    # In a thread, because resolving a name knows no timeout.
    thread = threading.Thread(target=look, name="hub", daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(result and result[0])


def folder_of(repository: str, cache: Path) -> Path:
    """Where the cache keeps a repository."""
    return cache / f"models--{repository.replace('/', '--')}"


def snapshots(cache: Path) -> dict[str, Path]:
    """Downloaded repositories whose weights are there, by id."""
    found: dict[str, Path] = {}
    try:
        folders = sorted(cache.glob("models--*--*"))
    except OSError:
        return found
    for folder in folders:
        path = _snapshot(folder)
        if path is not None:
            found[folder.name.removeprefix("models--").replace("--", "/", 1)] = path
    return found


def _snapshot(folder: Path) -> Path | None:
    """The snapshot that `main` names, or where its download broke off the newest complete one."""
    try:
        wanted = folder / "snapshots" / (folder / "refs" / "main").read_text("utf-8").strip()
        if (wanted / WEIGHTS).is_file():
            return wanted
    except (OSError, ValueError):
        pass
    try:
        whole = [each for each in (folder / "snapshots").iterdir() if (each / WEIGHTS).is_file()]
        return max(whole, key=lambda each: each.stat().st_mtime, default=None)
    except OSError:
        return None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a download is, in bytes over all files."""

    done: int
    total: int | None


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    size: int
    blob: str
    """Its name in the cache: what identifies its bytes, their SHA-256 or else their name in git."""
    sha256: str | None


class Download:
    """One download, however many wait for it; on a thread of its own. It goes on when those leave: what is fetched is
    fetched, and the next try resumes."""

    def __init__(
        self,
        repository: str,
        cache: Path,
        after: Callable[[], None],
        *,
        hosts: Sequence[str] = (),
        code: bool = False,
    ) -> None:
        """`after` is called when all files are there; what it raises is the download's fault. `hosts` may send files
        beside the hub's own; `code` takes models that run code of theirs."""
        self.repository = repository
        self.progress: Progress | None = None
        """None until bytes come: then the hub has agreed to send them."""
        self.done: Future[None] = Future()
        self.done.set_running_or_notify_cancel()  # one who stops waiting does not stop it
        self._cache = cache
        self._after = after
        self._hosts = tuple(hosts)
        self._code = code
        self._news = threading.Condition()
        self._listeners: list[Callable[[], None]] = []

    def start(self) -> None:
        """Begin. Once."""
        name = f"download {self.repository}"
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` on the download's thread whenever there is something new. Answers how to stop that."""
        with self._news:
            self._listeners.append(listener)

        def forget() -> None:
            with self._news:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return forget

    def watch(self) -> Iterator[Progress]:
        """Progress as it comes; blocks. Raises what went wrong."""
        seen: Progress | None = None
        while True:
            with self._news:
                self._news.wait_for(lambda: self.done.done() or self.progress != seen)  # noqa: B023
                over, now = self.done.done(), self.progress
            if now is not None and now != seen:
                yield now
            seen = now
            if over:
                self.done.result()
                return

    def _run(self) -> None:
        try:
            self._fetch()
            self._after()
        except OpenSpeechError as error:
            self._end(error)
        except OSError as error:
            kind = StorageFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else ModelUnavailable
            self._end(kind(_disk_trouble(self.repository, error)))
        except Exception as error:
            log.exception("downloading %s failed", self.repository)
            self._end(ModelUnavailable(_trouble(self.repository, error)))
        else:
            log.info("downloaded %s", self.repository)
            self._end(None)

    def _end(self, error: OpenSpeechError | None) -> None:
        with self._news:
            if error is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(error)
        self._tell(None)

    def _tell(self, progress: Progress | None) -> None:
        with self._news:
            self.progress = progress or self.progress
            self._news.notify_all()
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    def _fetch(self) -> None:
        commit, files = _listing(self.repository, self._hosts)
        folder = folder_of(self.repository, self._cache)
        blobs, snapshot = folder / "blobs", folder / "snapshots" / commit
        total = sum(file.size for file in files)
        here = sum(min(file.size, _here(blobs, file)) for file in files)
        with _promised(self.repository, self._cache, total - here) as promise:
            log.info(
                "downloading %s, %.0f MB of %.0f",
                self.repository,
                (total - here) / 1e6,
                total / 1e6,
            )
            for each in (blobs, snapshot, folder / "refs"):
                each.mkdir(parents=True, exist_ok=True)
            finished = 0
            for file in files:

                def tell(have: int, before: int = finished) -> None:
                    done = max(here, min(before + have, total))
                    promise.left = total - done
                    self._tell(Progress(done, total))

                self._get(commit, file, blobs, tell)
                _link(blobs / file.blob, snapshot / file.name)
                finished += file.size
        trust.record(folder, commit, {file.name: file.sha256 for file in files})
        fresh = folder / "refs" / f".main.{secrets.token_hex(8)}"
        fresh.write_text(commit, "utf-8")
        fresh.replace(folder / "refs" / "main")
        self._tell(Progress(total, total))

    def _get(self, commit: str, file: _File, blobs: Path, tell: Callable[[int], None]) -> None:
        """One file, resumed where an earlier try ended, checked, moved to its place."""
        target, part = blobs / file.blob, _part(blobs, file)
        if target.is_file() and target.stat().st_size != file.size:
            log.warning("%s of %s is damaged; downloading it again", file.name, self.repository)
            target.unlink()
        while not target.is_file():
            with part.open("ab") as out:
                # Another process may be at the same file: one writes, the other finds it done.
                fcntl.flock(out, fcntl.LOCK_EX)
                if not _same(out, part):
                    continue
                self._fill(commit, file, out, tell)
                _verify(self.repository, file, part)
                try:
                    if not self._code:
                        trust.check_file(self.repository, part, file.name)
                except Unsupported:
                    part.unlink()
                    raise
                part.rename(target)

    def _fill(self, commit: str, file: _File, out: BinaryIO, tell: Callable[[int], None]) -> None:
        """Append what is missing; a broken connection is taken up again."""
        have = os.fstat(out.fileno()).st_size
        if have > file.size:
            out.truncate(have := 0)
        tries = 0
        while have < file.size:
            before = have
            try:
                for now in _stream(self.repository, commit, file, out, before, self._hosts):
                    tell(have := now)
            except ConnectionError as error:
                out.flush()
                have = os.fstat(out.fileno()).st_size
                tries = 1 if have > before else tries + 1
                if tries >= TRIES:
                    raise ModelUnavailable(
                        _trouble(self.repository, error.__cause__ or error)
                    ) from error
                log.warning(
                    "the download of %s broke off at %d bytes; trying again", self.repository, have
                )
                threading.Event().wait(PAUSE)
        out.flush()
        os.fsync(out.fileno())


@dataclass(slots=True)
class _Promise:
    """Disk space that a download will need."""

    device: int
    left: int


_promises: list[_Promise] = []
_ledger = threading.Lock()


@contextmanager
def _promised(repository: str, cache: Path, need: int) -> Iterator[_Promise]:
    """Space for `need` more bytes, which no other download of this process counts on. Raises StorageFull."""
    folder = cache
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    device = folder.stat().st_dev
    with _ledger:
        taken = sum(each.left for each in _promises if each.device == device)
        free = shutil.disk_usage(folder).free - taken
        if free < need + RESERVE:
            others = f" beside other downloads, which need {taken / 1e9:.1f} GB" if taken else ""
            raise StorageFull(
                f"{repository} needs {need / 1e9:.1f} GB more and {max(free, 0) / 1e9:.1f} GB are free on the disk of"
                f" the models{others}: {(need + RESERVE - free) / 1e9:.1f} GB are missing, with {RESERVE / 1e9:.1f} GB"
                " kept free; remove other models or choose another STT_MODEL_DIR"
            )
        promise = _Promise(device, need)
        _promises.append(promise)
    try:
        yield promise
    finally:
        with _ledger:
            _promises.remove(promise)


def clean(cache: Path) -> int:
    """Remove what a download or a removal that was killed has left and nobody can use; answers how many files.

    What came of a download stays for a week, to be taken up again. One that is under way, in any process, is not
    touched.
    """
    gone = 0
    now = time.time()
    with suppress(OSError):
        for folder in cache.glob(".models--*.deleted"):
            shutil.rmtree(folder, ignore_errors=True)
            gone += 1
        left = ("blobs/*.open-speech.part", ".*", "refs/.*", "snapshots/*/.*")
        for path in [path for each in left for path in cache.glob(f"models--*/{each}")]:
            with suppress(OSError):
                age = now - path.lstat().st_mtime
                if path.name.endswith(".part"):
                    whole = path.with_name(path.name.removesuffix(".open-speech.part")).is_file()
                    if not (whole or age > KEPT) or _locked(path):
                        continue
                elif not _FRESH.fullmatch(path.name) or age < 60:  # made just now, by another
                    continue
                path.unlink()
                gone += 1
    if gone:
        log.info("removed %d files that broken downloads had left in %s", gone, cache)
    return gone


def _locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _listing(repository: str, hosts: Sequence[str]) -> tuple[str, list[_File]]:
    """The commit that `main` names, and the files we want of it, the weights last."""
    found = _described(repository, hosts)
    files, names = [], []
    try:
        commit = str(found.get("sha") or "")
        for sibling in found.get("siblings") or ():
            name = str(sibling["rfilename"])
            names.append(name)
            if name in FILES:
                lfs = sibling.get("lfs")
                sha256 = str(lfs["sha256"]) if lfs else None
                blob = sha256 or str(sibling.get("blobId") or "")
                size = int(sibling.get("size") or 0)
                if not (_SAFE.fullmatch(blob) and _SAFE.fullmatch(commit) and size >= 0):
                    raise ValueError
                files.append(_File(name, size, blob, sha256))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelUnavailable(
            f"the hub does not say which bytes {repository} consists of; check HF_ENDPOINT"
        ) from None
    if WEIGHTS not in {file.name for file in files}:
        programs = [name for name in names if trust.dangerous(name)]
        why = (
            f", only weights that run code when they are loaded ({programs[0][:80]})"
            if programs
            else ""
        )
        raise Unsupported(
            f"{repository} holds no CTranslate2 model (model.bin){why}; choose a converted one, such as"
            " Systran/faster-whisper-base",
            param="model",
        )
    return commit, sorted(files, key=lambda file: FILES.index(file.name))


def _described(repository: str, hosts: Sequence[str]) -> dict[str, Any]:
    """What the hub says of a repository."""
    url = f"{endpoint()}/api/models/{quote(repository)}?blobs=true"
    data = b""
    try:
        with _asked(repository, url, {}, hosts, timeout=10) as response:
            _raise_for_status(response)
            for piece in response.iter_bytes():
                data += piece
                if len(data) > LISTING:
                    raise ModelUnavailable(
                        f"the hub's description of {repository} does not end; check HF_ENDPOINT"
                    )
        found = json.loads(data)
    except OpenSpeechError:
        raise
    except Exception as error:
        raise _fault(repository, error) from error
    if not isinstance(found, dict):
        raise ModelUnavailable(f"the hub's description of {repository} is none; check HF_ENDPOINT")
    return found


@contextmanager
def _asked(
    repository: str, url: str, headers: dict[str, str], hosts: Sequence[str], *, timeout: float
) -> Iterator[Any]:
    """The answer to a GET of `url`, which may be sent on to hosts of the hub's and no others."""
    from huggingface_hub import utils

    own: dict[str, str] = utils.build_hf_headers()  # type: ignore[attr-defined]  # found at run time
    for _ in range(REDIRECTS):
        told = own | headers
        if urlsplit(url).netloc != urlsplit(endpoint()).netloc:
            told.pop("authorization", None)  # the key is the hub's alone
        with _session().stream(
            "GET", url, headers=told, follow_redirects=False, timeout=timeout
        ) as response:
            target = response.headers.get("location")
            if response.status_code not in (301, 302, 303, 307, 308) or not target:
                yield response
                return
        url = urljoin(url, target)
        if not _ours(url, hosts):
            where = urlsplit(url).netloc.rpartition("@")[2][:100]
            raise ModelUnavailable(
                f"the hub sends the download of {repository} on to {where}, which is not known to belong to it; if it"
                " does, name that host in STT_HUB_HOSTS"
            )
    raise ModelUnavailable(f"the hub sends the download of {repository} round in circles")


def _ours(url: str, hosts: Sequence[str]) -> bool:
    """A place that downloads may come from: the hub, hosts below it, the family's, and those of the settings."""
    try:
        there, here = urlsplit(url), urlsplit(endpoint())
        port = there.port
    except ValueError:
        return False
    host, home = there.hostname or "", here.hostname or ""
    if (there.scheme, host, port) == (here.scheme, home, here.port):
        return True
    named = [name.lower().partition(":") for name in hosts]
    if there.scheme in ("http", "https") and any(
        _below(host, name) and wanted in ("", str(port)) for name, _, wanted in named
    ):
        return True
    names = (*FAMILY, home) if re.search(r"[a-z]", home) and "." in home else FAMILY
    return (
        there.scheme == "https"
        and port in (None, 443)
        and any(_below(host, each) for each in names)
    )


def _below(host: str, name: str) -> bool:
    return host == name or (bool(name) and host.endswith("." + name))


def _raise_for_status(response: Any) -> None:
    from huggingface_hub import utils

    utils.hf_raise_for_status(response)  # type: ignore[attr-defined]  # found at run time


def _part(blobs: Path, file: _File) -> Path:
    return blobs / f"{file.blob}.open-speech.part"


def _here(blobs: Path, file: _File) -> int:
    for path in (blobs / file.blob, _part(blobs, file)):
        try:
            return path.stat().st_size
        except OSError:
            continue
    return 0


def _same(out: BinaryIO, part: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(out.fileno()), part.stat())
    except OSError:
        return False


def _stream(
    repository: str, commit: str, file: _File, out: BinaryIO, have: int, hosts: Sequence[str]
) -> Iterator[int]:
    """Bytes there after each piece. Raises ConnectionError where trying again may help."""
    url = f"{endpoint()}/{quote(repository)}/resolve/{commit}/{quote(file.name)}"
    # Whole bytes: compressed ones could not be counted, nor taken up in the middle.
    headers = {"accept-encoding": "identity"}
    if have:
        headers["range"] = f"bytes={have}-"
    try:
        with _asked(repository, url, headers, hosts, timeout=30) as response:
            if response.status_code in (408, 429) or response.status_code >= 500:
                raise ConnectionError(f"the hub answers {response.status_code}")
            _raise_for_status(response)
            if have and response.status_code != 206:  # it does not know ranges: from the start
                out.truncate(have := 0)
            for piece in response.iter_bytes():
                out.write(piece)
                have += len(piece)
                yield have
                if have > file.size:
                    out.truncate(0)
                    raise ConnectionError(f"{file.name} is longer than the hub said")
    except (OpenSpeechError, ConnectionError):
        raise
    except Exception as error:
        if _is_transport(error):
            raise ConnectionError(str(error)) from error
        if isinstance(error, OSError) and getattr(error, "response", None) is None:
            raise  # the disk's
        raise _fault(repository, error) from error
    if have < file.size:
        raise ConnectionError(f"{file.name} ended early")


def _session() -> Any:
    """The hub library's HTTP client, which knows proxies and certificates; its type differs between versions."""
    from huggingface_hub import utils

    return utils.get_session()  # type: ignore[attr-defined]  # found at run time


def _is_transport(error: Exception) -> bool:
    """A connection that could not be opened or broke; by name, since the hub's client library was renamed once."""
    return any(kind.__name__ == "TransportError" for kind in type(error).__mro__)


def _verify(repository: str, file: _File, part: Path) -> None:
    with part.open("rb") as data:
        if file.sha256:
            found = hashlib.file_digest(data, "sha256").hexdigest()
        elif len(file.blob) == 40:  # git's name of the bytes
            head = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
            found = hashlib.file_digest(data, lambda: head).hexdigest()
        else:
            return
    if found != file.blob:
        part.unlink()
        kind = "SHA-256" if file.sha256 else "SHA-1 in git"
        raise ModelUnavailable(
            f"{file.name} of {repository} arrived damaged (its {kind} is another); download it again"
        )


def _link(blob: Path, name: Path) -> None:
    """Give the blob its name in the snapshot. At once, because another process may be linking the same file, and
    whoever looks meanwhile must not find it gone."""
    if name.exists():
        return
    fresh = name.with_name(f".{name.name}.{secrets.token_hex(8)}")
    try:
        fresh.symlink_to(os.path.relpath(blob, name.parent))
    except OSError:  # a file system without links
        shutil.copyfile(blob, fresh)
    fresh.replace(name)


def _fault(repository: str, error: Exception) -> OpenSpeechError:
    """What the hub's refusal means to the user."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):  # a kind of RepositoryNotFoundError
        return ModelUnavailable(
            f"{repository} asks for consent: accept its terms on the hub, and set HF_TOKEN to a token of that account"
        )
    if isinstance(error, RepositoryNotFoundError):
        return UnknownModel(
            f"the hub has no model {repository}, or it is private; check its name, or set HF_TOKEN"
        )
    return ModelUnavailable(_trouble(repository, error))


def _trouble(repository: str, error: BaseException) -> str:
    text = str(error).strip().split("\n")[0].rstrip(".")[:200]
    return (
        f"{repository} could not be downloaded ({type(error).__name__}: {text}); check the network, or copy the model"
        " into STT_MODEL_DIR"
    )


def _disk_trouble(repository: str, error: OSError) -> str:
    reason = error.strerror or type(error).__name__
    return (
        f"{repository} could not be stored ({reason[:1].lower()}{reason[1:]}); give the server a folder it may write"
        " to with STT_MODEL_DIR, or make room on its disk"
    )
