"""A model hub of our own on a port of this machine: listing, files with ranges, refusals, connections that break."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40
TOKEN = "hf_secret"


@dataclass
class Repository:
    """Files by name, and who may have them."""

    files: dict[str, bytes]
    commit: str = COMMIT
    access: str = "open"
    """`gated` and `private` want `TOKEN`; gated ones are listed without."""


@dataclass
class Hub:
    """Serves `repositories` by id. `requests` holds (method, path, range) of each request, in order."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    break_after: int | None = None
    """Bytes of a large file after which connections break."""
    breaks: int = 0
    """How many connections break so; then all is well."""
    ranges: bool = True
    down: bool = False
    elsewhere: str | None = None
    """Where large files are said to lie, in place of this hub's own store."""
    claim: int | None = None
    """Bytes that weights are said to have."""
    described: dict[str, dict[str, object]] = field(default_factory=dict)
    """Descriptions that no longer fit the files."""
    endless: bool = False
    """Descriptions and weights do not end."""
    before_file: Callable[[], None] = lambda: None
    """Called before the bytes of a large file are sent, on the hub's thread."""

    def add(self, name: str, folder: Path, **more: str) -> Repository:
        """The files of a model directory as a repository, with some that nobody should want."""
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        files["README.md"] = b"# a model"
        files["pytorch_model.bin"] = b"a pickle" * 1000
        files["optimizer/model.bin"] = b"another pickle"
        found = self.repositories[name] = Repository(files, **more)
        return found

    def asked(self, name: str) -> list[str | None]:
        """The ranges of the requests for a file."""
        return [
            wanted
            for method, path, wanted in self.requests
            if method == "GET" and path.endswith("/" + name)
        ]

    def describe(self, name: str) -> dict[str, object]:
        """What is said of a repository."""
        found = self.repositories[name]
        siblings = []
        for file, data in found.files.items():
            sibling: dict[str, object] = {
                "rfilename": file,
                "size": len(data),
                "blobId": hashlib.sha1(
                    b"blob %d\0" % len(data) + data, usedforsecurity=False
                ).hexdigest(),
            }
            if file.endswith(".bin"):
                sha256 = hashlib.sha256(data).hexdigest()
                sibling["lfs"] = {"size": len(data), "sha256": sha256, "pointerSize": 134}
                if self.claim is not None:
                    sibling["size"] = self.claim
            siblings.append(sibling)
        return {
            "id": name,
            "modelId": name,
            "sha": found.commit,
            "siblings": siblings,
            "tags": [],
            "downloads": 0,
            "private": False,
            "gated": False,
        }

    def __enter__(self) -> Hub:
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.hub
        # A proxy is asked for whole addresses.
        path = unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path, self.headers.get("range")))
        if hub.down:
            return self._reply(503, b"down")
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self._describe("/".join(parts[2:4]))
        if len(parts) > 4 and parts[2] == "resolve":
            return self._file("/".join(parts[:2]), "/".join(parts[4:]))
        if parts[0] == "cdn":
            return self._bytes("/".join(parts[1:3]), "/".join(parts[3:]))
        return self._reply(404, b"not found")

    def _allowed(self) -> bool:
        return self.headers.get("authorization") == f"Bearer {TOKEN}"

    def _describe(self, name: str) -> None:
        found = self.hub.repositories.get(name)
        if found is None or (found.access == "private" and not self._allowed()):
            return self._reply(401, b"{}", {"x-error-code": "RepoNotFound"})
        if found.access == "secret" and not self._allowed():
            return self._reply(403, b"{}", {"x-error-code": "GatedRepo"})
        described = self.hub.described.get(name) or self.hub.describe(name)
        return self._reply(
            200, json.dumps(described).encode(), {"content-type": "application/json"}
        )

    def _file(self, name: str, file: str) -> None:
        found = self.hub.repositories[name]
        if found.access == "gated" and not self._allowed():
            return self._reply(403, b"", {"x-error-code": "GatedRepo"})
        if file.endswith(".bin"):  # large files come from elsewhere
            location = self.hub.elsewhere or f"/cdn/{name}/{file}"
            return self._reply(302, b"", {"location": location})
        return self._bytes(name, file)

    def _bytes(self, name: str, file: str) -> None:
        large = file.endswith(".bin")
        if large:
            self.hub.before_file()
            if self.hub.endless:
                return self._flood()
        data = self.hub.repositories[name].files[file]
        wanted = self.headers.get("range")
        status, headers = 200, {}
        if wanted is not None and self.hub.ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            headers["content-range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            status, data = 206, data[start:]
        if large and self.hub.break_after is not None and self.hub.breaks > 0:
            self.hub.breaks -= 1
            self._reply(status, data, headers, send=data[: self.hub.break_after])
            self.close_connection = True
            return None
        return self._reply(status, data, headers)

    def _flood(self) -> None:
        """Bytes until the other side hangs up."""
        self.send_response(200)
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        with suppress(OSError):
            while True:
                self.wfile.write(b" " * 2**16)

    def _reply(
        self,
        status: int,
        data: bytes,
        headers: dict[str, str] | None = None,
        send: bytes | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data if send is None else send)

    def log_message(self, *_: object) -> None:
        pass


def lay_out(cache: Path, name: str, folder: Path, commit: str = COMMIT) -> Path:
    """A model directory as the hub's tools would have downloaded it; answers its snapshot."""
    home = cache / f"models--{name.replace('/', '--')}"
    snapshot = home / "snapshots" / commit
    for each in (home / "blobs", home / "refs", snapshot):
        each.mkdir(parents=True, exist_ok=True)
    for file in sorted(folder.iterdir()):
        blob = home / "blobs" / hashlib.sha1(file.name.encode()).hexdigest()
        if not blob.exists():
            blob.symlink_to(file)
        (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
    (home / "refs" / "main").write_text(commit)
    return snapshot
