"""Which key a connection carries, and whether the server knows it. Nothing here keeps or logs a key: only digests."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from starlette.requests import HTTPConnection

from server import keys
from server.keys import BadKeys, Key

log = logging.getLogger(__name__)

PREFIXES = ("open-speech-key.", "openai-insecure-api-key.")
"""Subprotocols that carry a key: ours, and that of OpenAI's browser client. Browsers cannot set headers on sockets."""
QUERY = ("api_key", "key")
"""Query parameters of a WebSocket that carry a key; on HTTP every client can set a header."""
LOOK = 1.0
"""Seconds between two looks at whether the keys file has changed."""


class Keys:
    """The keys of the settings, which may do everything, and those of the keys file, as it is now."""

    def __init__(
        self,
        plain: Sequence[str],
        file: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises BadKeys if the file cannot be used."""
        self._plain = tuple(
            Key(f"#{number}", keys.digest(key)) for number, key in enumerate(plain, 1)
        )
        self._file = file
        self._clock = clock
        self._looked = clock()
        self._stamp = _stamp(file)
        self._found: tuple[Key, ...] = ()
        self._by_digest: dict[bytes, Key] = {}
        self._take(keys.read(file) if file is not None else ())

    @property
    def required(self) -> bool:
        """Somebody configured keys. A keys file without a key in it lets nobody in."""
        return bool(self._plain) or self._file is not None

    def find(self, key: str) -> Key | None:
        """Which of the keys `key` is. Takes the same time whatever it is like."""
        given = keys.digest(key)
        # All are compared, so that the time tells nothing about which one was close.
        same = [each for each in self._all() if hmac.compare_digest(given, each.digest)]
        return same[0] if same else None

    def holds(self, key: Key) -> bool:
        """`key`, found before, is still good, and good for the same. Its limits may be others."""
        self._refresh()
        now = self._by_digest.get(key.digest)
        return now is not None and now.scopes == key.scopes

    def _all(self) -> tuple[Key, ...]:
        self._refresh()
        return self._plain + self._found

    def _take(self, found: Sequence[Key]) -> None:
        self._found = tuple(found)
        self._by_digest = {key.digest: key for key in (*self._found, *self._plain)}

    def _refresh(self) -> None:
        if self._file is None or self._clock() - self._looked < LOOK:
            return
        self._looked = self._clock()
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._take(keys.read(self._file))
        except BadKeys as fault:
            # A slip of an editor must neither lock everybody out nor let anybody in.
            log.error("%s; the keys read before stay", fault)  # noqa: TRY400 (no traceback: it is no crash)
        else:
            log.info("keys_file read again: %d keys", len(self._found))


def presented(connection: HTTPConnection) -> str | None:
    """The key a connection carries: `Authorization: Bearer` or `X-API-Key`; on a WebSocket also a subprotocol or the
    query."""
    scheme, _, key = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    if key := connection.headers.get("x-api-key", ""):
        return key
    if connection.scope["type"] != "websocket":
        return None
    for offered in connection.scope.get("subprotocols", []):
        for prefix in PREFIXES:
            if offered.startswith(prefix) and len(offered) > len(prefix):
                return str(offered.removeprefix(prefix))
    return next(filter(None, map(connection.query_params.get, QUERY)), None)


def _stamp(path: Path | None) -> tuple[int, ...] | None:
    """Changes with the file; None while there is none."""
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino)
