"""Keys: any of the configured ones, as bearer."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse

from server.errors import problem


class Keys:
    """Compares in constant time; holds digests only. Without keys everybody may pass."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    @property
    def required(self) -> bool:
        """Somebody configured a key."""
        return bool(self._digests)

    def accept(self, key: str | None) -> bool:
        """`key` is one of the configured ones, or none is needed."""
        if not self._digests:
            return True
        given = _digest(key or "")
        # All are compared, so that the time tells nothing about which one was close.
        return sum(hmac.compare_digest(given, each) for each in self._digests) > 0 and bool(key)


def presented(connection: HTTPConnection) -> str | None:
    """The key a request carries: `Authorization: Bearer` or `X-API-Key`."""
    header = connection.headers.get("authorization", "")
    scheme, _, key = header.partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return connection.headers.get("x-api-key") or None


def refusal(key: str | None) -> JSONResponse:
    """401, in OpenAI's words."""
    headers = {"www-authenticate": "Bearer"}
    if key is None:
        return problem(
            401,
            "you did not provide an API key; send it as a header: Authorization: Bearer YOUR_KEY",
            headers=headers,
        )
    return problem(
        401,
        "the API key provided is not one of this server's; ask its operator for one",
        code="invalid_api_key",
        headers=headers,
    )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
