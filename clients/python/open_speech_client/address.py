"""Where a server's stream is, from what people type."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

from open_speech_client.errors import Refused

PATH = "/v1/audio/transcriptions/stream"
PORT = 8100


def address(url: str) -> str:
    """The WebSocket's address for `localhost`, `host:8100`, `http://…`, `https://…/prefix/v1` or the whole of it.

    Without a scheme the port is 8100 where none is named. Raises Refused.
    """
    bare = "://" not in url
    if bare:
        url = "ws://" + url
    found = urlsplit(url)
    scheme = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}.get(found.scheme)
    try:
        port, host = found.port, found.hostname
    except ValueError:
        port, host = None, None
    if scheme is None or not host:
        raise Refused(
            f"{url!r} is no address of a server; expected is one like http://localhost:8100"
        )
    place = found.netloc
    if port is None and bare:
        place = f"{place.rstrip(':')}:{PORT}"
    path = found.path.rstrip("/")
    if not path.endswith(PATH):
        path = path.removesuffix("/v1") + PATH
    return urlunsplit((scheme, place, path, found.query, ""))


def local(address: str) -> bool:
    """The address is on this machine: no proxy leads there."""
    host = urlsplit(address).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")
