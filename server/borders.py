"""What pages of other sites may make a browser do here: nothing, unless the settings name them.

Three doors are shut. A page elsewhere may open sockets to this machine and send requests that need no permission:
`Origin` and `Sec-Fetch-Site` tell on it. A name that somebody else owns may be made to point here (DNS rebinding), so
that his page counts as ours: `Host` tells on it. That only works on a name, and only where no key is needed, because
a key is nothing that a browser adds by itself.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import problem

PRIVATE = (".localhost", ".local", ".internal", ".home.arpa", ".lan", ".svc", ".test")
"""Ends of names that nobody on the internet can own; containers and home networks use them."""
_HOST = re.compile(
    r"(?:\[([0-9A-Fa-f:.]+(?:%[\w.~-]+)?)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?", re.ASCII
)
SAFE = ("GET", "HEAD", "OPTIONS")
"""Methods that change nothing here."""


class Borders:
    """The rules, for one server."""

    def __init__(
        self,
        hosts: Collection[str],
        origins: Collection[str],
        *,
        bound: str,
        machine: str | None = None,
    ) -> None:
        """`hosts` and `origins` are what the settings allow, `bound` is the address listened on, `machine` the name of
        this machine."""
        machine = (machine if machine is not None else socket.gethostname()).lower().rstrip(".")
        self._names = {"localhost", bound.lower(), machine, machine.partition(".")[0]}
        self._names |= {each.lower().rstrip(".") for each in hosts if not each.startswith("*")}
        self._below = [each[1:].lower() for each in hosts if each.startswith("*.")]
        self._any_host = "*" in hosts
        self._origins = {each.lower().rstrip("/") for each in origins}

    def host(self, host: str | None) -> bool:
        """A browser that sends this `Host` was not tricked into it."""
        if host is None or self._any_host:
            return True  # HTTP/1.0; no browser speaks it
        name = _split(host)[0]
        if name is None:
            return False
        if name in self._names or _address(name):
            return True
        if any(name.endswith(below) for below in self._below):
            return True
        # Of a container, a service, a machine at home: no page on the internet can have such a name.
        return "." not in name or name.endswith(PRIVATE)

    def origin(self, origin: str | None, host: str | None) -> bool:
        """The page is one of ours or of the list; None: no browser, or no page."""
        if origin is None or "*" in self._origins or origin.lower().rstrip("/") in self._origins:
            return True
        scheme, _, rest = origin.lower().partition("://")
        usual = {"http": 80, "https": 443}.get(scheme)
        (name, port), (own, own_port) = _split(rest), _split(host or "")
        return (
            usual is not None
            and name is not None
            and (name, port or usual) == (own, own_port or usual)
        )

    def site(self, headers: Headers) -> bool:
        """Whether a request that changes something comes from a page of ours, of the list, or from no page."""
        origin = headers.get("origin")
        if headers.get("sec-fetch-site") in ("same-origin", "none"):
            return True  # a browser says so itself, even where a proxy changed Host
        if "sec-fetch-site" in headers:
            return origin is not None and self.listed(origin)
        return self.origin(origin, headers.get("host"))

    def listed(self, origin: str) -> bool:
        """The settings name the origin."""
        return "*" in self._origins or origin.lower().rstrip("/") in self._origins


class Guarded:
    """ASGI: refuses what crosses the borders, before any route sees it."""

    def __init__(self, app: ASGIApp, borders: Borders, keyed: Callable[[], bool]) -> None:
        self._app = app
        self._borders = borders
        self._keyed = keyed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = self._refusal(scope) if scope["type"] in ("http", "websocket") else None
        if refused is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http" or "websocket.http.response" in scope.get("extensions", {}):
            # For a socket Starlette turns it into the answer to the handshake.
            status, message, code = refused
            await problem(status, message, code=code)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": "not allowed"})

    def _refusal(self, scope: Scope) -> tuple[int, str, str] | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host"), headers.get("origin")
        # A certificate binds the name: a foreign one fails in the browser before it gets here.
        if (
            not self._keyed()
            and scope["scheme"] not in ("https", "wss")
            and not self._borders.host(host)
        ):
            return (
                421,
                f"this server does not answer to the name {_shown(host)}; use its address, set"
                " STT_ALLOWED_HOSTS to the name, or set STT_API_KEYS",
                "host_not_allowed",
            )
        crossing = (
            not self._borders.origin(origin, host)
            if scope["type"] == "websocket"
            else scope["method"] not in SAFE and not self._borders.site(headers)
        )
        if crossing:
            return (
                403,
                f"pages of {_shown(origin)} may not call this server; set STT_ALLOW_ORIGINS to allow them",
                "origin_not_allowed",
            )
        return None


def _split(host: str) -> tuple[str | None, int | None]:
    """Name, in lower case and without brackets and a last dot, and port of a `Host`; no name if it is none.

    Stricter than `urlsplit`, which finds an address in ``[::1].evil.example``.
    """
    found = _HOST.fullmatch(host)
    if found is None:
        return None, None
    name = (found[1] or found[2].removesuffix(".")).lower()
    return name or None, int(found[3]) if found[3] else None


def _address(name: str) -> bool:
    """An address cannot be rebound: a browser goes where it says."""
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def _shown(text: str | None) -> str:
    """For a message: short, and without what a page could do something with."""
    kept = "".join(
        each for each in (text or "another site")[:100] if each.isalnum() or each in "-.:/[]_ "
    )
    return kept or "another site"
