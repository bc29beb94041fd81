"""Rows E: what pages of other sites make a browser send."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest

from tests.faults.process import FILES, PATIENCE, STREAM, Process, alive, serving
from tests.faults.raw import ask, dial, upgrade

SOCKETS = (STREAM, FILES, "/v1/realtime")
FOREIGN = (
    "http://evil.example",
    "null",
    "http://127.0.0.1",
    "http://127.0.0.1:{port}.evil.example",
    "http://127.0.0.1.evil:{port}",
    "http://evil.example/127.0.0.1:{port}",
    "http://127.0.0.1:{port}@evil.example",
    "http://evil.example#127.0.0.1:{port}",
    "http://127.0.0.1:{port}0",
    "http://xn--127-0-0-1:{port}",
    "chrome-extension://127.0.0.1:{port}",
    "file://",
    "https://friend.example.evil.example",
)
REBOUND = (
    "evil.example",
    "evil.example:{port}",
    "evil.example.",
    "127.0.0.1.evil.example",
    "127.0.0.1.nip.io:{port}",
    "localhost.evil.example",
    "[::1].evil.example",
    "evil.example#localhost",
    "user@localhost",
    "2130706433.example",
    "",
)


@pytest.fixture(scope="module")
def page() -> Iterator[Process]:
    """A server without keys that one page may call."""
    with serving("--allow-origins", "https://friend.example") as process:
        yield process


@pytest.fixture
def open_server(page: Process) -> Iterator[Process]:
    with alive(page):
        yield page


def status(answer: bytes) -> int:
    return int(answer.split()[1])


def socket_status(server: Process, path: str, *headers: str, host: str | None = None) -> int:
    """What a handshake gets."""
    said = upgrade(path, *headers, host=host if host is not None else f"127.0.0.1:{server.port}")
    with dial(server.url) as connection:
        connection.sendall(said)
        return status(connection.recv(4096))


@pytest.mark.quick
@pytest.mark.fault("E01", "a WebSocket of a foreign page", "403 before it is accepted")
@pytest.mark.parametrize("path", SOCKETS)
@pytest.mark.parametrize("origin", FOREIGN)
def test_a_foreign_page_opens_a_socket(open_server: Process, path: str, origin: str) -> None:
    """Handshake with an Origin that is foreign, `null`, or like ours at its beginning or end, on each of the sockets"""
    foreign = origin.format(port=open_server.port)
    assert socket_status(open_server, path, f"Origin: {foreign}") == 403
    assert socket_status(open_server, path, f"Origin: {open_server.url}") == 101
    assert socket_status(open_server, path, "Origin: https://friend.example") == 101


@pytest.mark.quick
@pytest.mark.fault(
    "E02", "DNS rebinding: a foreign name that points here", "421, on HTTP and on sockets"
)
@pytest.mark.parametrize("host", REBOUND)
def test_a_foreign_name_points_here(open_server: Process, host: str) -> None:
    """Requests and handshakes whose Host is foreign, has a dot at its end, a port, or an address in it"""
    name = host.format(port=open_server.port)
    for method, path in (("GET", "/"), ("GET", "/v1/models"), ("POST", FILES), ("GET", "/health")):
        said = f"{method} {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n"
        assert status(ask(open_server.url, said.encode())) == 421
    origin = f"Origin: http://{name}"
    for path in SOCKETS:
        assert socket_status(open_server, path, origin, host=name) in (400, 421)


@pytest.mark.fault(
    "E03", "a foreign name where a key is needed", "the name is answered, the missing key is 401"
)
def test_a_foreign_name_with_keys() -> None:
    """The same requests to a server with a key, which rebinding gives to nobody"""
    flags = ("--api-keys", "secret", "--host", "127.0.0.1")
    with serving(*flags, key="secret") as server, alive(server):
        for key, expected in (("", 401), ("Authorization: Bearer secret\r\n", 200)):
            said = (
                f"GET /v1/models HTTP/1.1\r\nHost: speech.example\r\n{key}Connection: close\r\n\r\n"
            )
            assert status(ask(server.url, said.encode())) == expected


@pytest.mark.quick
@pytest.mark.fault(
    "E04",
    "preflights of foreign pages",
    "only configured origins are allowed, never with credentials",
)
@pytest.mark.parametrize("path", [FILES, "/api/ps/x", "/api/pull/x", "/v1/models", "/nowhere"])
def test_preflights(open_server: Process, path: str) -> None:
    """OPTIONS with Origin and Access-Control-Request-Method, and the request after it"""
    for origin, allowed in (
        ("https://friend.example", True),
        ("https://evil.example", False),
        ("http://friend.example", False),
        ("null", False),
        (open_server.url, False),
    ):
        for method in ("POST", "DELETE"):
            asked = {"origin": origin, "access-control-request-method": method}
            answer = httpx2.options(open_server.url + path, headers=asked, timeout=PATIENCE)
            given = answer.headers.get("access-control-allow-origin")
            assert given == (origin if allowed else None)
            assert "access-control-allow-credentials" not in answer.headers
        answer = httpx2.get(
            open_server.url + "/v1/models", headers={"origin": origin}, timeout=PATIENCE
        )
        given = answer.headers.get("access-control-allow-origin")
        assert given == (origin if allowed else None)


@pytest.mark.quick
@pytest.mark.fault(
    "E05",
    "forged requests: uploads, downloads, loading, unloading from a foreign page",
    "403, nothing was done",
)
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "origin": "http://127.0.0.1:3000"},
        {
            "sec-fetch-site": "cross-site",
            "origin": "http://evil.example",
            "content-type": "text/plain",
        },
    ],
)
def test_forged_requests(open_server: Process, headers: dict[str, str]) -> None:
    """POST and DELETE without a preflight, as a form or a `fetch` without CORS sends them"""
    with httpx2.Client(base_url=open_server.url, timeout=PATIENCE) as client:
        before = client.get("/api/ps").json()
        for method, path in (
            ("POST", FILES),
            ("POST", "/v1/audio/translations"),
            ("POST", "/asr"),
            ("POST", "/detect-language"),
            ("POST", "/api/ps/scripted"),
            ("DELETE", "/api/ps/scripted?force=true"),
            ("POST", "/api/pull/tiny"),
            ("DELETE", "/api/pull/tiny"),
            ("POST", "/v1/models/tiny"),
            ("DELETE", "/v1/models/tiny"),
            ("POST", "/v1/realtime/client_secrets"),
        ):
            answer = client.request(method, path, headers=headers)
            assert answer.status_code == 403, (path, answer.text)
            assert answer.json()["error"]["code"] == "origin_not_allowed"
        after = client.get("/api/ps").json()
        assert before["models"] == after["models"]
        own = {"sec-fetch-site": "same-origin", "origin": open_server.url}
        assert client.post("/v1/realtime/client_secrets", headers=own).status_code == 200


@pytest.mark.quick
@pytest.mark.fault(
    "E10",
    "markup in names, paths, headers and errors",
    "JSON with nosniff under a policy without inline script",
)
@pytest.mark.parametrize(
    "markup", ["<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>"]
)
def test_markup_in_what_is_said_back(open_server: Process, markup: str) -> None:
    """Markup as model, path, file name, Origin, Host, option and query; the answers' types and policies are read"""
    url = open_server.url
    audio = {"file": (markup, b"no audio")}
    answers = [
        httpx2.get(url + "/v1/models/" + markup),
        httpx2.get(url + "/" + markup),
        httpx2.get(url + "/v1/models?" + markup),
        httpx2.post(url + FILES, files=audio, data={"model": markup}),
        httpx2.post(url + FILES, files=audio, data={"response_format": markup}),
        httpx2.post(url + FILES, headers={"origin": markup}),
        httpx2.post(url + "/asr?output=" + markup, files=audio),
        httpx2.delete(url + "/api/ps/" + markup),
    ]
    for answer in answers:
        assert answer.headers["content-type"] == "application/json", answer.request.url
        assert answer.headers["x-content-type-options"] == "nosniff"
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'self'" in policy
    said = f"GET / HTTP/1.1\r\nHost: {markup}\r\nConnection: close\r\n\r\n"
    refused = ask(url, said.encode())
    assert status(refused) == 421
    assert b"<" not in refused.partition(b"\r\n\r\n")[2]


@pytest.mark.quick
@pytest.mark.fault(
    "E11",
    "framing, guessing of types, referrers",
    "every answer forbids them, errors and refusals included",
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/assets/live.js"),
        ("GET", "/client/open-speech.js"),
        ("GET", "/health"),
        ("GET", "/metrics"),
        ("GET", "/nowhere"),
        ("PATCH", "/v1/models"),
        ("POST", FILES),
    ],
)
def test_headers_that_bind_browsers(open_server: Process, method: str, path: str) -> None:
    """Each kind of answer is asked for and its headers are read"""
    for headers in ({}, {"host": "evil.example"}, {"origin": "http://evil.example"}):
        found = httpx2.request(method, open_server.url + path, headers=headers).headers
        assert found["x-content-type-options"] == "nosniff"
        assert found["x-frame-options"] == "DENY"
        assert found["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in found["content-security-policy"]
        assert "microphone=(self)" in found["permissions-policy"]
        assert "access-control-allow-origin" not in found
        assert "server" not in found or "uvicorn" not in found["server"]
