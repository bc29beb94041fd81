"""Rows B: what comes over HTTP."""

import json

import pytest

from tests.faults.process import FILES, Process
from tests.faults.raw import ask, dial, until_closed


def envelope(answer: bytes, *statuses: int) -> dict[str, object]:
    """The error in an answer that is one of `statuses`."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert int(head.split()[1]) in statuses, answer
    found: dict[str, object] = json.loads(body)["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


@pytest.mark.quick
@pytest.mark.fault(
    "B05", "a Content-Length that cannot be", "400 in the envelope, connection closed"
)
@pytest.mark.parametrize(
    "length", ["-5", "10000000000000000000000", "5, 6", "0x10", "five", "5\r\nContent-Length: 6"]
)
def test_a_length_that_cannot_be(server: Process, length: str) -> None:
    """POST with a Content-Length that is negative, too long, doubled or no number"""
    said = f"POST {FILES} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\nhello"
    envelope(ask(server.url, said.encode()), 400)


@pytest.mark.fault(
    "B01", "500 heads that never end", "each closed at the deadline; others are served"
)
def test_heads_that_never_end(server: Process) -> None:
    """500 connections send a line of a head and then nothing"""
    waiting = [dial(server.url) for _ in range(500)]
    for each in waiting:
        each.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n")
    for each in waiting:
        assert until_closed(each) == b""
        each.close()
