"""A real browser on somebody else's page: of another site, on a name pointed here, in a frame."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("playwright", reason="playwright is not installed")

from tests.e2e.browser import CHROMIUM, visiting
from tests.serving import Talker, running, with_engine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed"),
]

ATTACK = """async (url) => {
    const found = {};
    const socket = (path, protocols) => new Promise((resolve) => {
        const opened = new WebSocket(url.replace("http", "ws") + path, protocols);
        opened.onopen = () => resolve("open");
        opened.onclose = (event) => resolve(event.code);
    });
    for (const path of ["/v1/audio/transcriptions/stream", "/v1/realtime", "/v1/audio/transcriptions"]) {
        found["socket " + path] = await socket(path, []);
    }
    const form = new FormData();
    form.append("file", new Blob(["x"]), "a.wav");
    for (const [path, body] of [
        ["/v1/audio/transcriptions", form], ["/asr", form], ["/api/ps/toy", null], ["/api/pull/toy", null],
        ["/v1/realtime/client_secrets", null],
    ]) {
        const sent = await fetch(url + path, { method: "POST", body, mode: "no-cors" }).then((a) => a.type, String);
        found["blind " + path] = sent;
        const read = await fetch(url + path, { method: "POST", body }).then((a) => a.status, () => "no answer");
        found["read " + path] = read;
    }
    found.delete = await fetch(url + "/api/ps/toy", { method: "DELETE" }).then((a) => a.status, () => "no answer");
    found.models = await fetch(url + "/v1/models").then((a) => a.text(), () => "no answer");
    found.script = await import(url + "/client/open-speech.js").then(() => "loaded", () => "no answer");
    return found;
}"""


@contextmanager
def site() -> Iterator[str]:
    """Somebody else's site, on a port of this machine: an empty page, and one that frames what its query names."""

    class Site(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            framed = self.path.partition("?")[2]
            body = (
                f"<!doctype html><title>other</title><iframe src='{framed}'></iframe>"
                if framed
                else "<p>"
            )
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *values: object) -> None:
            del values

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def talker() -> Talker:
    return Talker()


def test_a_page_of_another_site_can_do_nothing(talker: Talker) -> None:
    with running(with_engine(talker)) as url, site() as other, visiting(other) as visit:
        found: dict[str, Any] = visit.page.evaluate(ATTACK, url)
        assert {value for name, value in found.items() if name.startswith("socket")} == {1006}
        assert {value for name, value in found.items() if name.startswith("read")} == {"no answer"}
        assert found["delete"] == found["models"] == found["script"] == "no answer"
        # What was sent blindly did nothing.
        assert talker.asked == []
        assert talker.in_memory == {}


def test_the_same_page_may_if_the_settings_name_it(talker: Talker) -> None:
    with site() as other, running(with_engine(talker, allow_origins=(other,))) as url:
        with visiting(other) as visit:
            found: dict[str, Any] = visit.page.evaluate(ATTACK, url)
        assert {value for name, value in found.items() if name.startswith("socket")} == {"open"}
        assert found["read /v1/audio/transcriptions"] == 200
        assert found["delete"] == 204
        assert found["script"] == "loaded"


def test_a_name_that_points_here_gets_nothing(talker: Talker) -> None:
    with running(with_engine(talker)) as url:
        port = url.rpartition(":")[2]
        flags = ["--host-resolver-rules=MAP evil.example 127.0.0.1"]
        with visiting(f"http://evil.example:{port}/", flags=flags) as visit:
            assert "host_not_allowed" in visit.page.inner_text("body")
            found: dict[str, Any] = visit.page.evaluate(ATTACK, f"http://evil.example:{port}")
        assert {value for name, value in found.items() if name.startswith("socket")} == {1006}
        assert {value for name, value in found.items() if name.startswith("read")} == {421}
        assert "host_not_allowed" in found["models"]
        assert talker.asked == []
        assert talker.in_memory == {}


def test_the_page_cannot_be_framed(talker: Talker) -> None:
    with (
        running(with_engine(talker)) as url,
        site() as other,
        visiting(f"{other}/?{url}/") as visit,
    ):
        frames = [frame.url for frame in visit.page.frames[1:]]
        assert not any(frame.startswith(url) for frame in frames)
        assert any("frame" in said.lower() for said in visit.complaints)
