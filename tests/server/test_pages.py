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


def test_nothing_else_of_the_client_is_served(client: httpx2.Client) -> None:
    for path in ("/client/package.json", "/client/", "/client/..%2f..%2fpyproject.toml"):
        assert client.get(path).status_code == 404
