"""The keys file: a TOML table a key, with the hash of the key, never the key itself.

::

    [captions]
    hash = "sha256:9f86d081884c7d65…"
    scopes = ["transcribe"]
    created = 2026-11-24
    streams = 4

A key is 256 random bits. Nobody can guess it or find it in a dictionary, so one round of SHA-256 protects it as well as
a slow hash would; slow ones (scrypt, Argon2) are for words that people choose, and would cost every request their time.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import re
import secrets
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

Scope: TypeAlias = Literal["transcribe", "manage", "metrics"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
"""What a key may be good for: hearing speech, changing models, reading figures."""
PREFIX = "osk_"
"""Begins every key that is made here, so that people and secret scanners know what they have found."""
MOST = 1000
"""Keys in a file: each is compared with each key that comes. For more, a gateway in front is the better place."""
SIZE = 2**20
"""Bytes of the file that are read."""
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_HEADER = re.compile(r"\s*\[\s*([A-Za-z0-9_-]+)\s*\]\s*(#.*)?")


class BadKeys(Exception):
    """The file cannot be used; the message says where and why, and holds no key."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """How much one client may ask for. None: as much as the server can do."""

    requests_per_minute: int | None = None
    streams: int | None = None
    """Live streams at the same time."""
    audio_seconds_per_hour: int | None = None
    audio_seconds_per_day: int | None = None


LIMITS: tuple[str, ...] = tuple(Allowance.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class Key:
    """A key as the server knows it: by its digest."""

    name: str
    digest: bytes = field(repr=False)
    scopes: frozenset[Scope] = frozenset(SCOPES)
    limits: tuple[tuple[str, int | None], ...] = ()
    """Limits of its own, by name; None: none. What is not named here follows the settings."""
    created: datetime.date | None = None


def digest(key: str) -> bytes:
    """SHA-256, of any text that a header can hold."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def read(path: Path) -> list[Key]:
    """The keys of a file. Raises BadKeys."""
    try:
        with path.open("rb") as file:
            data = file.read(SIZE + 1)
    except OSError as error:
        raise BadKeys(f"keys_file {path} cannot be read: {error.strerror}") from None
    if len(data) > SIZE:
        raise BadKeys(f"keys_file {path} has more than {SIZE} bytes")
    try:
        tables = tomllib.loads(data.decode())
    except UnicodeDecodeError:
        raise BadKeys(f"keys_file {path} is no text in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        # Its message may quote a character of the file, never a line of it.
        raise BadKeys(f"keys_file {path} is no TOML: {error}") from None
    if len(tables) > MOST:
        raise BadKeys(f"keys_file {path} has {len(tables)} keys; at most {MOST} are compared")
    found = [_key(path, name, table) for name, table in tables.items()]
    if len({key.digest for key in found}) < len(found):
        raise BadKeys(f"keys_file {path} has the same hash under two names")
    return found


def _key(path: Path, name: str, table: Any) -> Key:
    where = f"keys_file {path}: {name[:64]}"
    if not isinstance(table, dict) or NAME.fullmatch(name) is None:
        raise BadKeys(
            f"{where} must be a table named by at most 64 letters, digits, - and _, such as [captions]"
        )
    unknown = sorted(table.keys() - {"hash", "scopes", "created", *LIMITS})
    if unknown:
        raise BadKeys(
            f"{where} has {unknown[0][:40]!r}; known are hash, scopes, created, {', '.join(LIMITS)}"
        )
    hashed = table.get("hash")
    if not isinstance(hashed, str) or _HASH.fullmatch(hashed) is None:
        raise BadKeys(
            f'{where} needs hash = "sha256:…" with 64 digits; open-speech keys add makes it'
        )
    scopes = table.get("scopes")
    if not isinstance(scopes, list) or not scopes or not set(map(str, scopes)) <= set(SCOPES):
        raise BadKeys(f"{where} needs scopes, a list out of {', '.join(SCOPES)}")
    created = table.get("created")
    if created is not None and not isinstance(created, datetime.date):
        raise BadKeys(f"{where} has created = {str(created)[:40]!r}; it must be a date")
    limits = []
    for limit in LIMITS:
        if limit in table:
            value = table[limit]
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 10**9:
                raise BadKeys(
                    f"{where} has {limit} = {str(value)[:40]!r}; it must be a whole number, 0 for no limit"
                )
            limits.append((limit, value or None))
    return Key(name, bytes.fromhex(hashed[7:]), frozenset(scopes), tuple(limits), created)


def add(path: Path, name: str, scopes: Sequence[Scope], limits: dict[str, int]) -> str:
    """Write a new key's hash into the file, which need not exist, and answer the key: it is nowhere else. Raises
    BadKeys."""
    if NAME.fullmatch(name) is None:
        raise BadKeys(
            f"a key's name has at most 64 letters, digits, - and _; {name[:64]!r} has others"
        )
    there = read(path) if path.exists() else []
    if any(key.name == name for key in there):
        raise BadKeys(f"there is a key {name} already; remove it, or choose another name")
    if len(there) >= MOST:
        raise BadKeys(f"keys_file {path} has {MOST} keys, the most there may be; remove one")
    key = PREFIX + secrets.token_urlsafe(32)
    for limit, value in limits.items():
        if not 0 <= value <= 10**9:
            raise BadKeys(f"{limit} is {value}; it must be a whole number, 0 for no limit")
    listed = ", ".join(f'"{scope}"' for scope in SCOPES if scope in scopes)
    lines = [
        f"[{name}]",
        f'hash = "sha256:{digest(key).hex()}"',
        f"scopes = [{listed}]",
        f"created = {datetime.datetime.now(datetime.UTC).date().isoformat()}",
        *(f"{limit} = {value}" for limit, value in limits.items()),
    ]
    before = path.read_text("utf-8") if path.exists() else ""
    if before:
        before = before.rstrip("\n") + "\n\n"
    _write(path, before + "\n".join(lines) + "\n")
    return key


def remove(path: Path, name: str) -> None:
    """Take a key out of the file; other lines and comments stay as they are. Raises BadKeys."""
    if all(key.name != name for key in read(path)):
        raise BadKeys(f"there is no key {name[:64]} in {path}; open-speech keys list shows them")
    kept: list[str] = []
    inside = False
    for line in path.read_text("utf-8").splitlines(keepends=True):
        if (header := _HEADER.fullmatch(line.rstrip("\n"))) is not None:
            inside = header[1] == name
        if not inside:
            kept.append(line)
    left = "".join(kept)
    if name in tomllib.loads(left):
        raise BadKeys(f"{name} is written in {path} in a way that only an editor can take out")
    _write(path, left)


def _write(path: Path, text: str) -> None:
    """In one step, so that a server sees the old file or the new one; only its owner may read it."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, made = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            there = path.stat()
            os.chmod(made, there.st_mode & 0o777)
            if hasattr(os, "geteuid") and os.geteuid() == 0:
                os.chown(made, there.st_uid, there.st_gid)  # the server may run as somebody else
        os.replace(made, path)
    except BaseException:
        os.unlink(made)
        raise
