"""Which names and which pages a server without keys answers to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from server.borders import Borders

HERE = Borders(
    ("speech.example.org", "*.example.net"),
    ("https://friend.example",),
    bound="127.0.0.1",
    machine="Desk.office.example",
)


@pytest.mark.parametrize(
    "host",
    [
        None,
        "localhost",
        "LOCALHOST:8100",
        "localhost.:8100",
        "app.localhost:8100",
        "127.0.0.1:8100",
        "192.168.7.7",
        "[::1]:8100",
        "[fe80::1%25eth0]:8100",
        "desk",
        "desk.local:8100",
        "desk.office.example",
        "speech.example.org",
        "a.b.example.net:443",
        "open-speech:8100",  # a container
        "stt.default.svc",
        "stt.default.svc.cluster.local:8100",
        "host.docker.internal:8100",
    ],
)
def test_names_that_nobody_can_have_pointed_here(host: str | None) -> None:
    assert HERE.host(host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8100",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "127.0.0.1.nip.io:8100",
        "example.net",
        "evilexample.net",
        "notspeech.example.org",
        "evil.example.",
        "",
        ":8100",
        "localhost:port",
        "user@localhost",
        "localhost/path",
        "localhost?x",
        "[::1",
        "0x7f.1",
        "[::1].evil.example",
        "[::1]evil",
        "<img>",
        "a b",
        "löcalhost",
        ".",
    ],
)
def test_names_that_somebody_may_have(host: str) -> None:
    assert not HERE.host(host)


def test_any_name_if_the_settings_say_so() -> None:
    assert Borders(("*",), (), bound="0.0.0.0").host("evil.example")


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (None, "localhost:8100"),
        ("http://localhost:8100", "localhost:8100"),
        ("HTTP://LocalHost:8100", "localhost:8100"),
        ("http://127.0.0.1", "127.0.0.1:80"),
        ("https://speech.example.org", "speech.example.org"),
        ("https://speech.example.org", "speech.example.org:443"),
        ("http://[::1]:8100", "[::1]:8100"),
        ("https://friend.example", "localhost:8100"),
        ("https://Friend.example/", "localhost:8100"),
    ],
)
def test_pages_of_ours(origin: str | None, host: str) -> None:
    assert HERE.origin(origin, host)


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "http://evil.example",
        "http://localhost",
        "http://localhost:3000",
        "http://localhost:81000",
        "http://localhost:8100.evil.example",
        "http://127.0.0.1.evil:8100",
        "http://evil.example/localhost:8100",
        "http://localhost:8100@evil.example",
        "http://user@localhost:8100",
        "http://friend.example",
        "https://friend.example.evil.example",
        "https://evilfriend.example",
        "https://friend.example:8443",
        "file://localhost:8100",
        "chrome-extension://localhost:8100",
        "http://[::1",
        "http://localhost:8100.",
        "http://localhost:8100 ",
        "http://localhost:8100/",
        "http://localhost:8100#",
        "//localhost:8100",
        "localhost:8100",
    ],
)
def test_pages_of_others(origin: str) -> None:
    assert not HERE.origin(origin, "localhost:8100")


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),  # no browser
        ({"origin": "http://localhost:8100"}, True),
        ({"origin": "http://evil.example"}, False),
        ({"origin": "null"}, False),
        ({"sec-fetch-site": "same-origin", "origin": "https://behind.a.proxy"}, True),
        ({"sec-fetch-site": "none"}, True),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "same-site", "origin": "http://localhost:3000"}, False),
        ({"sec-fetch-site": "cross-site", "origin": "https://friend.example"}, True),
        ({"sec-fetch-site": "nonsense", "origin": "http://localhost:8100"}, False),
    ],
)
def test_requests_that_change_something(headers: dict[str, str], allowed: bool) -> None:
    assert HERE.site(Headers({"host": "localhost:8100", **headers})) is allowed


def test_the_star_allows_every_page() -> None:
    open_ = Borders((), ("*",), bound="127.0.0.1")
    assert open_.origin("null", "localhost")
    assert open_.site(Headers({"sec-fetch-site": "cross-site", "origin": "http://evil.example"}))


def test_addresses_with_a_tail_are_no_addresses() -> None:
    assert not HERE.origin("http://[::1].evil.example:8100", "[::1]:8100")


@given(st.text() | st.from_regex(r"[\[\]a-f0-9:.%@/?# -]*"), st.text() | st.none())
def test_nothing_in_a_header_is_a_crash(one: str, other: str | None) -> None:
    HERE.host(one)
    HERE.origin(one, other)
    HERE.site(Headers(raw=[(b"origin", one.encode("utf-8", "replace")), (b"host", b"localhost")]))


@given(
    st.from_regex(r"[a-z0-9.:\[\]-]{0,20}", fullmatch=True), st.sampled_from([".example", ".com"])
)
def test_no_name_of_the_internet_passes_whatever_is_before_it(start: str, end: str) -> None:
    for host in (start + end, start + end + ":8100", start + end + "."):
        assert not HERE.host(host) or host.startswith("speech.example.org")
        assert not HERE.origin(f"http://{host}", "localhost:8100")
