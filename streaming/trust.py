"""What makes a model's files fit to be loaded: none of them is a program, and they are the bytes that were downloaded.

A pickle runs what its author wrote when it is loaded, and so do `.nemo` archives and configurations with an `auto_map`:
such models are refused by their content, whatever their names. Weights of CTranslate2, safetensors and ONNX are data.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from streaming.errors import ModelUnavailable, Unsupported

log = logging.getLogger(__name__)

PROGRAMS = (".nemo", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill", ".py", ".so")
"""Endings of files that run when they are loaded."""
RECORD = "open-speech.json"
"""In the folder of a downloaded repository: what was downloaded."""
_PICKLE = re.compile(rb"\x80[\x02-\x05]|PK\x03\x04|\(dp\d|c__builtin__\n|cposix\n|cos\n|ctorch")
"""How pickles begin, and the archives in which torch keeps them."""
_KEYS = ("auto_map", "custom_pipelines", "_target_")
"""Of a configuration: what names code to be imported."""
_LARGEST = 64 * 2**20
"""Bytes of a configuration that is looked into; a larger one is refused."""


def dangerous(name: str) -> bool:
    """A file of that name runs code when it is loaded, or may."""
    lower = name.lower()
    return lower.endswith(PROGRAMS) or (lower.endswith(".bin") and "pytorch" in lower)


def check(model: str, folder: Path, names: Iterable[str] | None = None) -> None:
    """Raises Unsupported if one of the files in `folder` is a program: those of `names`, or any."""
    if names is None:
        files = [path for path in folder.rglob("*") if path.is_file()]
    else:
        files = [path for name in names if (path := folder / name).is_file()]
    for path in sorted(files):
        check_file(model, path, path.name)


def check_file(model: str, path: Path, name: str) -> None:
    """Raises Unsupported if the file, whose real name is `name`, is a program."""
    if dangerous(name):
        raise _refused(model, f"{name} runs code when it is loaded")
    try:
        with path.open("rb") as file:
            if name.endswith(".bin") and _PICKLE.match(file.read(16)):
                raise _refused(model, f"{name} is a pickle, which runs code when it is loaded")
            if name.endswith("config.json"):
                file.seek(0)
                data = file.read(_LARGEST + 1)
                if len(data) > _LARGEST:
                    raise _refused(
                        model, f"{name} is too large to be looked into for code that would run"
                    )
                found = json.loads(data)
                key = next((key for key in _KEYS if _holds(found, key)), None)
                if key is not None:
                    raise _refused(model, f"{name} names code to be run ({key})")
    except (OSError, ValueError, RecursionError):
        return  # whoever reads it will say so


def _holds(found: object, key: str) -> bool:
    if isinstance(found, dict):
        return key in found or any(_holds(each, key) for each in found.values())
    return isinstance(found, list) and any(_holds(each, key) for each in found)


def _refused(model: str, why: str) -> Unsupported:
    return Unsupported(
        f"model {model} is refused: {why}; choose one whose weights are data alone (CTranslate2, safetensors,"
        " ONNX), or set STT_ALLOW_CODE if you trust its author like a program's",
        param="model",
    )


# What was downloaded.


def record(home: Path, commit: str, digests: Mapping[str, str | None]) -> None:
    """Write down the files of `home`'s snapshot `commit`, with the SHA-256 of those that have one."""
    snapshot = home / "snapshots" / commit
    files = {}
    for name, digest in digests.items():
        stat = (snapshot / name).stat()
        files[name] = {"size": stat.st_size, "modified": stat.st_mtime_ns, "sha256": digest}
    _write(home / RECORD, {"commit": commit, "files": files})


def verify(model: str, snapshot: Path) -> None:
    """Raises ModelUnavailable if a file is not what was downloaded. What others downloaded is not known, and passes.

    A file with the size and the time of then is taken for it; another is read to the end.
    """
    home = snapshot.parent.parent
    try:
        known = json.loads((home / RECORD).read_bytes())
        if known["commit"] != snapshot.name:
            return
        files: dict[str, dict[str, object]] = known["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    touched = False
    for name, then in files.items():
        path = snapshot / name
        try:
            now = path.stat()
        except OSError:
            raise _changed(model, f"{name} is gone") from None
        if now.st_size != then["size"]:
            raise _changed(model, f"{name} has {now.st_size} bytes, and had {then['size']}")
        if now.st_mtime_ns == then["modified"]:
            continue
        if then["sha256"] is not None:
            log.info("%s of %s was touched since its download; reading it", name, model)
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != then["sha256"]:
                    raise _changed(model, f"{name} has other bytes (its SHA-256 is another)")
        then["modified"], touched = now.st_mtime_ns, True
    if touched:
        with suppress(OSError):
            _write(home / RECORD, known)


def _write(path: Path, found: object) -> None:
    # A name of its own: another process may have downloaded the same at the same time.
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fresh.write_text(json.dumps(found, indent=1), "utf-8")
    fresh.replace(path)


def _changed(model: str, what: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"model {model} is not as it was downloaded: {what}; remove it and download it again"
    )
