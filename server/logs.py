"""Log lines: an event with fields, for people or as JSON. Never audio, transcripts or keys.

One event is one line, whatever clients put into it: control characters are escaped, long texts are cut.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from contextvars import ContextVar

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Of the request or the WebSocket that the current task serves."""
stream_id: ContextVar[str | None] = ContextVar("stream_id", default=None)
"""Of the live session that the current task serves."""

trace_id: ContextVar[str | None] = ContextVar("trace_id", default=None)
"""Of the trace that the current task is part of, where OpenTelemetry is on."""

LONGEST = 4000
"""Characters of an event; what is longer is cut."""
TRACEBACK = 20_000
"""Characters of a traceback, of which the end says most."""


_SECRET = re.compile(
    r"""(
        (?:authorization|x-api-key|cookie)["']?\s*[:=,]\s*(?:b?["'])?(?:(?:bearer|basic)\s+)?
        | \bbearer\s+
        | \b(?:open-speech-key|openai-insecure-api-key)\.
        | [?&](?:api_)?key=
        | ://[^/\s:@]*:(?=[^/\s@]+@)
        | \b(?:osk|ek)_(?=[\w-]{16})
    )[^\s,;&"'<>()@\]]+""",
    re.IGNORECASE | re.VERBOSE,
)
"""Where keys are in what libraries log of requests, addresses and headers, and in tracebacks."""


def concealed(text: str) -> str:
    """`text` without the keys in it. The last line of defence: nothing of ours writes one."""
    return _SECRET.sub(r"\1…", text)


def ids() -> dict[str, str]:
    """What the current task serves: `request`, `stream` and `trace`, where there are any."""
    found = {"request": request_id.get(), "stream": stream_id.get(), "trace": trace_id.get()}
    return {name: value for name, value in found.items() if value}


def _event(record: logging.LogRecord) -> str:
    text = concealed(record.getMessage())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text)} characters)"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """One JSON object a line, in ASCII: no terminal and no parser takes anything in it for its own."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": _event(record),
        }
        line |= ids()
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = concealed(self.formatException(record.exc_info))[-TRACEBACK:]
        return json.dumps(line)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """`12:00:00 info    event [req_1 s_2]`. The lines of a traceback follow, indented and escaped like the event:
        none can pass for an event of its own."""
        line = f"{self.formatTime(record, '%H:%M:%S')} {record.levelname.lower():<7} {_escaped(_event(record))}"
        if found := ids():
            line += f" [{' '.join(found.values())}]"
        if record.exc_info:
            trace = concealed(self.formatException(record.exc_info))[-TRACEBACK:]
            line += "".join(f"\n    {_escaped(each)}" for each in trace.split("\n"))
        return line


def _escaped(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii")


def configure(level: str, shape: str) -> None:
    """Everything to stderr, in one shape."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if shape == "json" else _Text())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in (
        "httpx",
        "httpx2",
        "httpcore",
        "httpcore2",
        "huggingface_hub",
        "faster_whisper",
        "uvicorn.access",
    ):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of clients' mistakes
    logging.getLogger("uvicorn.error").setLevel(
        logging.DEBUG if level == "debug" else logging.WARNING
    )
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
