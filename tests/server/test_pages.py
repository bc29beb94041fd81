"""What a browser is given: the page, the client, and the headers that keep both safe."""

from collections.abc import Iterator

import httpx2
import pytest

from tests.serving import Talker, running, with_engine


@pytest.fixture(scope="module")
def client() -> Iterator[httpx2.Client]:
    with (
        running(with_engine(Talker(), api_keys=("secret",))) as url,
        httpx2.Client(base_url=url) as client,
    ):
        yield client


@pytest.mark.parametrize("name", ["open-speech.js", "open-speech-worklet.js"])
def test_the_client_is_served_without_a_key(client: httpx2.Client, name: str) -> None:
    answer = client.get(f"/client/{name}")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/javascript")
    assert "export" in answer.text or "registerProcessor" in answer.text


def test_the_page_and_its_parts_are_asked_for_again(client: httpx2.Client) -> None:
    for path in ("/", "/assets/page.js", "/client/open-speech.js"):
        answer = client.get(path)
        assert answer.headers["cache-control"] == "no-cache"
        again = client.get(path, headers={"if-none-match": answer.headers["etag"]})
        assert again.status_code == (304 if path.startswith("/assets") else 200)


def test_nothing_inline_and_nothing_from_elsewhere_may_run(client: httpx2.Client) -> None:
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    page = client.get("/").text
    assert "<style" not in page
    assert " style=" not in page
    assert "<script>" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_nothing_else_of_the_client_is_served(client: httpx2.Client) -> None:
    for path in ("/client/package.json", "/client/", "/client/..%2f..%2fpyproject.toml"):
        assert client.get(path).status_code == 404
