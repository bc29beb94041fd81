"""Recorded conversations with a dialect, as text that people can read and compare.

# a remark
> {"type": …}         the client sends text
~ 0.5                 the client appends so many seconds of audio
* Final(0, …)         the engine tells an event, positions in samples of 16 kHz
! Overloaded("…")     the engine gives up
< {"type": …}         the server says this, its event_id left out
= Open …              the engine is told this
"""

from __future__ import annotations

import base64
import itertools
import json
from pathlib import Path
from typing import Any

from server.protocols.dialect import Close, Command, Commit, Dialect, End, Hear, Open, Say
from streaming import errors, events
from streaming.types import Options, Word


def names() -> Any:
    """Ids that are the same in every run."""
    counters: dict[str, Any] = {}
    return lambda prefix: f"{prefix}_{next(counters.setdefault(prefix, itertools.count(1)))}"


def replay(dialect: Dialect, script: list[str], rate: int = 24_000, width: int = 2) -> list[str]:
    """The conversation as it goes when the client and the engine say what `script` has them say."""
    told = _told(dialect.begin())
    for line in script:
        kind, _, rest = line.partition(" ")
        match kind:
            case ">":
                told.append(line)
                told += _told(dialect.receive(dialect.read(rest), 0.0))
            case "~":
                told.append(line)
                audio = base64.b64encode(bytes(round(float(rest) * rate) * width)).decode()
                message = json.dumps({"type": "input_audio_buffer.append", "audio": audio})
                told += _told(dialect.receive(dialect.read(message), 0.0))
            case "*":
                told.append(line)
                told += _told(dialect.encode(_value(rest), 0))
            case "!":
                told.append(line)
                told += _told(dialect.fail(_value(rest)))
            case "#" | "":
                told.append(line)
            case "<" | "=":
                pass
            case _:
                raise ValueError(line)
    return told


def _value(text: str) -> Any:
    return eval(text, {**vars(events), **vars(errors), "Word": Word})


def _told(commands: list[Command]) -> list[str]:
    found = []
    for command in commands:
        match command:
            case Say(text):
                try:
                    body = json.loads(text)
                except ValueError:
                    found.append(f"< {text}")
                    continue
                body.pop("event_id", None)
                found.append(f"< {json.dumps(body, ensure_ascii=False)}")
            case Open(options):
                default = Options()
                changed = {
                    name: getattr(options, name)
                    for name in Options.__slots__
                    if getattr(options, name) != getattr(default, name)
                }
                found.append("= Open " + json.dumps(changed))
            case Hear(samples):
                found.append(f"= Hear {len(samples)}")
            case Commit(marker):
                found.append(f"= Commit {marker}")
            case End():
                found.append("= End")
            case Close(code, reason):
                found.append(f"= Close {code} {reason}".rstrip())
    return found


def recorded(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines()
