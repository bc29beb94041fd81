"""Questions to a running server: `ps` and `health`. Standard library only: a container's health check is quick."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import sys
import urllib.error
import urllib.request
from typing import Any


class ServerError(Exception):
    """The server did not answer, or said no."""


def health(url: str | None, key: str | None) -> int:
    """0 if the server is well; its state on stdout."""
    found = _get(url, "/health", key)
    notice = f"; {found['notice']}" if found.get("notice") else ""
    print(f"{found['status']}: {found['default_model']} ({found['backend']}){notice}")
    return 0 if found["status"] in ("ok", "starting") else 1


def ps(url: str | None, key: str | None) -> int:
    """A line a model in memory."""
    for row in _get(url, "/api/ps", key)["loaded"]:
        expires = (
            "in use"
            if row["in_use"]
            else "stays"
            if row["expires_in"] is None
            else f"{row['expires_in']:.0f} s left"
        )
        memory = "" if row["memory"] is None else f"{row['memory'] / 1e6:.0f} MB"
        print(
            f"{row['id']}\t{row['backend']}\t{row['device']}\t{row['compute_type']}\t{memory}\t{expires}"
        )
    return 0


def _get(url: str | None, path: str, key: str | None) -> Any:
    if url is None:
        port = os.environ.get("STT_PORT", "")
        scheme = "https" if os.environ.get("STT_TLS_CERT") else "http"
        url = f"{scheme}://127.0.0.1:{port if port.isdecimal() else 8100}"
    if "://" not in url:
        url = "http://" + url
    if not url.startswith(("http://", "https://")):
        raise ServerError(
            f"{url!r} is no address of a server; give one such as http://127.0.0.1:8100"
        )
    request = urllib.request.Request(url.rstrip("/") + path)
    key = (
        key or os.environ.get("OPEN_SPEECH_KEY") or os.environ.get("STT_API_KEYS", "").split(",")[0]
    )
    if key:
        request.add_header("authorization", f"Bearer {key}")
    context = ssl.create_default_context()
    if "://127.0.0.1" in url or "://localhost" in url:
        context.check_hostname = False  # its own certificate names another host
        context.verify_mode = ssl.CERT_NONE
    try:
        with urllib.request.urlopen(request, timeout=4, context=context) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError as error:
        found = _refused(error, url, path)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise ServerError(
            f"no server answers at {url} ({reason}); start one with: open-speech serve"
        ) from None
    if not isinstance(found, dict) or not found.keys() & {"status", "loaded"}:
        raise ServerError(
            f"{url} answers, but not as an open-speech server does; check the address"
        )
    return found


def _refused(error: urllib.error.HTTPError, url: str, path: str) -> Any:
    """What an error's body says: the state of a server that is not well, or a ServerError."""
    try:
        found = json.load(error)
        if path == "/health" and "status" in found:
            return found
        message = found["error"]["message"]
    except (ValueError, KeyError, TypeError):
        raise ServerError(f"{url} answers {error.code}; is it an open-speech server?") from None
    raise ServerError(f"the server says: {message}")


if __name__ == "__main__":
    sys.exit(health(None, None))
