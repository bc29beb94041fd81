"""Log lines: one an event, whatever is in it."""

import json
import logging
import sys

import pytest

from server import logs
from server.logs import LONGEST, TRACEBACK, _Json, _Text, request_id, stream_id

HOSTILE = "a\r\nINFO forged\x00 \x1b[31mred\x1b[0m \x9b1m \u2028 \ud800 \u202e" + "x" * 10**6


def record(text: str, *values: object, trace: bool = False) -> logging.LogRecord:
    info = None
    if trace:
        try:
            raise ValueError(text)
        except ValueError:
            info = sys.exc_info()
    return logging.LogRecord("here", logging.INFO, __file__, 1, text, values, info)


@pytest.mark.parametrize("shape", [_Json(), _Text()])
@pytest.mark.parametrize("values", [(), (HOSTILE,)])
def test_an_event_is_one_line_escaped_and_cut(
    shape: logging.Formatter, values: tuple[str, ...]
) -> None:
    text = "the client said %s" if values else HOSTILE
    line = shape.format(record(text, *values))
    assert line.isascii()
    assert line.isprintable()  # no line break, no control character
    assert len(line) < 2 * LONGEST
    assert "characters)" in line


def test_json_carries_ids_and_fields() -> None:
    tokens = request_id.set("req_1"), stream_id.set("s_2")
    try:
        made = record("stream opened")
        made.fields = {"model": "toy"}
        line = json.loads(_Json().format(made))
        text = _Text().format(made)
    finally:
        request_id.reset(tokens[0])
        stream_id.reset(tokens[1])
    assert line["event"] == "stream opened"
    assert (line["request"], line["stream"], line["model"]) == ("req_1", "s_2", "toy")
    assert line["time"].endswith("Z")
    assert text.endswith("stream opened [req_1 s_2]")
    assert "request" not in json.loads(_Json().format(made))


def test_no_line_of_a_traceback_passes_for_an_event() -> None:
    text = _Text().format(record("12:00:00 info    all is well\n12:00:00 info    \x1b", trace=True))
    first, *rest = text.split("\n")
    assert first.startswith(first[:8] + " info")
    assert rest
    assert all(line.startswith("    ") and line.isprintable() for line in rest)
    line = _Json().format(record(HOSTILE, trace=True))
    assert line.isprintable()
    assert len(line) < 6 * (TRACEBACK + LONGEST)


def test_ids_are_those_of_the_task() -> None:
    assert logs.ids() == {}


@pytest.mark.parametrize("shape", [_Json(), _Text()])
@pytest.mark.parametrize(
    "said",
    [
        "< authorization: Bearer {}",
        "< Authorization: {}",
        "< authorization: Basic {}",
        "< x-api-key: {}",
        "< cookie: {}",
        "< sec-websocket-protocol: open-speech, open-speech-key.{}, realtime",
        "< sec-websocket-protocol: openai-insecure-api-key.{}",
        "< GET /v1/realtime?model=a&api_key={}&x=1 HTTP/1.1",
        '"WebSocket /v1/realtime?key={}" [accepted]',
        "(b'authorization', b'Bearer {}')",
        "{{'authorization': 'Bearer {}'}}",
        "Error 111 connecting to redis://:{}@cache:6379/0",
        "redis://user:{}@cache",
        "stray osk_{}0123456789abcdef",
        "stray ek_{}0123456789abcdef",
    ],
)
def test_keys_are_concealed_wherever_a_library_writes_them(
    shape: logging.Formatter, said: str
) -> None:
    for trace in (False, True):
        line = shape.format(record(said.format("s3cr-et_KEY"), trace=trace))
        assert "s3cr" not in line
        assert "et_KEY" not in line


def test_other_text_is_left_alone() -> None:
    for said in ("GET /v1/models/{id} 200 in 3 ms", "http://a:8100/path", "keys_file read again"):
        assert said in _Text().format(record(said))
