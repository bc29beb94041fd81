"""The native dialect, without I/O: messages in, commands out; events in, messages out.

The wire is described in `docs/protocol.md`. Nothing here waits, knows the time or touches a socket.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any, TypeAlias

from server import languages
from streaming.audio.live import ENCODINGS, Encoding
from streaming.errors import InputError
from streaming.events import (
    Eager,
    Event,
    Failed,
    Final,
    Marker,
    Partial,
    SpeechResumed,
    SpeechStarted,
    SpeechStopped,
)
from streaming.types import RATE, Options, Word

MESSAGE = 4 * 2**20
"""Bytes that one message may have."""
TEXT = 64 * 2**10
"""Characters that one JSON message may have."""
MARKER = 256
"""Characters of a marker."""
COMMITS = 256
"""Commits that may wait for their marker: a decode may hang for minutes, and then all come at once. With a final for
each they fit what may wait for a slow reader (`journal.MESSAGES`)."""

CLOSES = {
    1000: "after `end`: all is said",
    1008: "a mistake, a missing key, or a limit; an `error` message says which",
    1009: "a message was too big",
    1011: "the server or the recogniser failed",
    1012: "the server is stopping; connect again and go on",
    1013: "too much to do, or the model's process keeps dying; try again after `retry_after` seconds",
}
"""Close codes and what they mean."""
ERRORS = {
    "invalid_api_key": "the key is missing or not one of this server's",
    "missing_scope": "the key is not good for transcribing",
    "rate_limit_exceeded": "the key or the address has used up its share; try again after `retry_after` seconds",
    "invalid_json": "a text message is no JSON",
    "invalid_value": "a message or an option is not as expected; `param` names the option",
    "started": "`start` came in a running session; nothing was changed",
    "ended": "something came after `end`",
    "too_many_commits": "as many commits as may wait for their final; this one is not taken, and the session goes on",
    "too_big": "a message is larger than allowed",
    "unknown_session": "there is nothing to resume: the session is over, not yours, or never was; begin a new one",
    "events_gone": "events after `last_event` are no longer kept; begin a new session",
    "replaced": "another connection resumed the session",
    "model_not_found": "the model is not in the catalogue",
    "model_unavailable": "the model cannot be loaded or fetched",
    "not_allowed": "the model may not be downloaded to this server",
    "model_unloaded": "the model was unloaded by force while in use",
    "unsupported_value": "the model cannot do what was asked",
    "invalid_audio": "the audio cannot be decoded",
    "overloaded": "too much to do: no stream is taken, or this one is too far behind; come again later",
    "recognition_failed": "the recogniser failed; with `utterance`: on that one, and the stream goes on",
    "slow_reader": "the server's messages are not read",
    "idle_timeout": "nothing came for too long",
    "session_limit": "the session has lasted as long as it may",
    "stopping": "the server is stopping and takes no new session",
    "internal_error": "the server failed; its log says why",
}
"""Codes of `error` messages and what they mean."""


class ProtocolError(InputError):
    """A message breaks the protocol; the text says what was expected."""

    def __init__(
        self, message: str, *, param: str | None = None, code: str = "invalid_value"
    ) -> None:
        super().__init__(message, param=param)
        self.code = code


@dataclass(frozen=True, slots=True)
class Opening:
    """What a session is to be."""

    options: Options = field(default_factory=Options)
    encoding: Encoding = "pcm_s16le"
    sample_rate: int | None = RATE
    """None where the audio itself says it."""
    channels: int = 1
    timings: bool = False
    """Finals say where their time went."""
    offset: float = 0.0
    """Seconds added to all times: a client goes on in a new session with it."""


@dataclass(frozen=True, slots=True)
class Open:
    """Begin the session."""

    opening: Opening


@dataclass(frozen=True, slots=True)
class Resume:
    """Go on with a session whose connection broke."""

    session: str = field(repr=False)
    last_event: int
    """`seq` of the last message that arrived."""


@dataclass(frozen=True, slots=True)
class Audio:
    """Bytes in the session's encoding, cut anywhere; of `opus` one packet."""

    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Commit:
    """End the utterance here."""

    marker: str | None


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """The client is alive."""


@dataclass(frozen=True, slots=True)
class End:
    """No more audio."""


Command: TypeAlias = Open | Resume | Audio | Commit | KeepAlive | End


class _State(Enum):
    OPENING = "nothing came yet"
    RUNNING = "audio may come"
    ENDED = "no more audio may come"


class Reader:
    """The client's half of the conversation. `language` is taken where the client names none."""

    def __init__(self, language: str | None = None) -> None:
        self._language = language
        self._state = _State.OPENING
        self._resumed = False

    @property
    def opened(self) -> bool:
        """The session's options are known."""
        return self._state is not _State.OPENING

    def receive_resumed(self) -> None:
        """Another connection carries the conversation on. What the old one said may come again."""
        self._resumed = True

    def receive_query(self, query: Iterable[tuple[str, str]]) -> list[Command]:
        """The query of the handshake. Options in it open the session at once. Raises ProtocolError."""
        found = dict(query)
        if not found:
            return []
        return self._open({name: _from_text(name, value) for name, value in found.items()})

    def receive_bytes(self, data: bytes) -> list[Command]:
        """A binary message: audio. Raises ProtocolError."""
        if len(data) > MESSAGE:
            raise ProtocolError(
                f"the message has {len(data)} bytes; at most {MESSAGE} are taken", code="too_big"
            )
        commands: list[Command] = []
        if self._state is _State.OPENING:
            commands = self._open({})
        if self._state is _State.ENDED:
            raise ProtocolError("audio came after end; open a new session for it", code="ended")
        return [*commands, Audio(data)] if data else commands

    def receive_text(self, text: str) -> list[Command]:
        """A text message: a JSON object with a type. Raises ProtocolError."""
        if len(text) > TEXT:
            raise ProtocolError(
                f"the message has {len(text)} characters; at most {TEXT} are taken", code="too_big"
            )
        message = _json(text)
        kind = message.get("type") if isinstance(message, dict) else None
        match kind:
            case "start":
                if self._state is not _State.OPENING:
                    raise ProtocolError(
                        "start came twice; options are set once, before the audio", code="started"
                    )
                return self._open({key: value for key, value in message.items() if key != "type"})
            case "commit":
                return self._running(Commit(_marker(message.get("marker"))), "commit")
            case "keepalive":
                return [KeepAlive()]
            case "end":
                commands = self._running(End(), "end")
                self._state = _State.ENDED
                return commands
            case "resume":
                if self._state is not _State.OPENING:
                    raise ProtocolError(
                        "resume came in a running session; it must be the first message of a connection",
                        code="started",
                    )
                return [_resume(message)]
            case None:
                raise ProtocolError(
                    'the message has no type; expected is an object such as {"type": "end"}'
                )
            case _:
                raise ProtocolError(
                    f"the type {_shown(kind)} is not known; expected is start, commit, keepalive or end",
                    param="type",
                )

    def _running(self, command: Command, name: str) -> list[Command]:
        if self._state is _State.ENDED:
            if self._resumed:
                return []  # the client cannot know that it arrived
            raise ProtocolError(f"{name} came after end; open a new session", code="ended")
        if self._state is _State.OPENING:
            return [*self._open({}), command]
        return [command]

    def _open(self, given: dict[str, Any]) -> list[Command]:
        opening = parse(given, self._language)
        self._state = _State.RUNNING
        return [Open(opening)]


_NUMBERS = {
    "sample_rate": (8000, 48000, "the lowest supported is 8000", "the highest supported is 48000"),
    "channels": (1, 8, "there must be one", "at most 8 are mixed down"),
    "endpointing_ms": (10, 10_000, "the least is 10", "the most is 10000"),
    "pre_roll_ms": (0, 5000, "the least is 0", "the most is 5000"),
    "vad_threshold": (0, 1, "the least is 0", "the most is 1"),
    "offset": (0, 1e9, "the least is 0", "the most is 1e9"),
}
_WHOLE = ("sample_rate", "channels", "endpointing_ms", "pre_roll_ms")
_BOOLEANS = ("partials", "eager", "words", "timings")
_TEXTS = ("model", "language", "encoding", "endpointing", "prompt", "hotwords", "task")
NAMES = (*_NUMBERS, *_BOOLEANS, *_TEXTS)
"""The options."""


def parse(given: dict[str, Any], language: str | None = None) -> Opening:
    """Options of a query or a `start`, checked; `language` where none is given. Raises ProtocolError that names the
    option."""
    for name in given:
        if name not in NAMES:
            close = difflib.get_close_matches(name[:40], NAMES, 1, 0.6)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(NAMES)}"
            raise ProtocolError(f"there is no option {_shown(name)}; {hint}", param=name[:40])
    number = {name: _number(name, given[name]) for name in _NUMBERS if name in given}
    truth = {name: _truth(name, given[name]) for name in _BOOLEANS if name in given}
    default = Options()
    encoding = _choice(given, "encoding", ENCODINGS, "pcm_s16le")
    code = _language(given) if given.get("language") else language
    hotwords = given.get("hotwords", [])
    if isinstance(hotwords, str):
        hotwords = hotwords.split(",")
    if not isinstance(hotwords, list) or not all(isinstance(each, str) for each in hotwords):
        raise ProtocolError("hotwords must be a list of words", param="hotwords")
    if sum(map(len, hotwords)) > 1000:
        raise ProtocolError("hotwords have more than 1000 characters", param="hotwords")
    options = Options(
        model=_text(given, "model", 200),
        task=_choice(given, "task", ("transcribe", "translate"), "transcribe"),  # type: ignore[arg-type]
        language=code,
        prompt=_text(given, "prompt", 20_000),
        hotwords=tuple(each.strip() for each in hotwords if each.strip()),
        words=truth.get("words", False),
        endpointing=_choice(given, "endpointing", ("silence", "client"), "silence"),  # type: ignore[arg-type]
        endpointing_ms=int(number.get("endpointing_ms", default.endpointing_ms)),
        vad_threshold=number.get("vad_threshold", default.vad_threshold),
        pre_roll_ms=int(number.get("pre_roll_ms", default.pre_roll_ms)),
        partials=truth.get("partials", True),
        eager=truth.get("eager", False),
    )
    rate: int | None = int(
        number.get("sample_rate", 8000 if encoding in ("mulaw", "alaw") else RATE)
    )
    if encoding in ("opus", "container"):
        rate = 48_000 if encoding == "opus" else None
    return Opening(
        options,
        encoding,  # type: ignore[arg-type]
        rate,
        int(number.get("channels", 1)),
        truth.get("timings", False),
        number.get("offset", 0.0),
    )


class Writer:
    """The server's half: events to messages. `seq` is given by the journal, see `sockets`."""

    def __init__(self, session: str, opening: Opening) -> None:
        self._session = session
        self._opening = opening

    def ready(self, model: str, received: int, resumable: float) -> dict[str, Any]:
        """The answer to every opening; `resumable` in seconds."""
        return {
            "type": "ready",
            "session": self._session,
            "model": model,
            "sample_rate": self._opening.sample_rate,
            "received": received,
            "resumable_seconds": resumable,
        }

    def event(
        self, event: Event, received: int, lag: float, *, parting: bool = False
    ) -> dict[str, Any]:
        """One event; `received` in bytes, `lag` in seconds. `parting`: it is not the client that ends the session."""
        words = self._opening.options.words
        match event:
            case SpeechStarted(utterance, at):
                return {"type": "speech_started", "utterance": utterance, "at": self._time(at)}
            case Partial():
                found: dict[str, Any] = {
                    "type": "partial",
                    "utterance": event.utterance,
                    "revision": event.revision,
                    "committed": event.committed.lstrip(),
                    "tentative": event.tentative if event.committed else event.tentative.lstrip(),
                }
                if words:
                    found["words"] = [self._word(word) for word in event.words]
                return found | {"received": received, "lag": round(lag, 3)}
            case SpeechStopped(utterance, at):
                return {"type": "speech_stopped", "utterance": utterance, "at": self._time(at)}
            case Eager(utterance, text):
                return {"type": "eager_final", "utterance": utterance, "text": text.strip()}
            case SpeechResumed(utterance):
                return {"type": "speech_resumed", "utterance": utterance}
            case Final():
                found = {
                    "type": "final",
                    "utterance": event.utterance,
                    "text": event.text.strip(),
                    "start": self._time(event.start),
                    "end": self._time(event.end),
                    "received": received,
                    "language": event.language,
                }
                if self._opening.timings:
                    found["timing"] = {
                        "delay": _rounded(event.timing.delay),
                        "queue": _rounded(event.timing.queued),
                        "recognition": _rounded(event.timing.decoding),
                        "speculated": event.timing.speculated,
                    }
                    if (work := event.timing.work) is not None:
                        found["timing"] |= {
                            stage: _rounded(seconds) for stage, seconds in asdict(work).items()
                        }
                if self._opening.options.language is None and event.stream_language is not None:
                    found["stream_language"] = event.stream_language
                if event.cut and parting:
                    found["cut"] = True
                if words:
                    found["words"] = [self._word(word) for word in event.words]
                return found
            case Marker(marker, at):
                return {"type": "marker", "marker": marker, "at": self._time(at)}
            case Failed(utterance, error):
                return {
                    "type": "error",
                    "code": "recognition_failed",
                    "message": error.message,
                    "utterance": utterance,
                }

    def ack(self, received: int, lag: float) -> dict[str, Any]:
        """How much of the audio is safe."""
        return {"type": "ack", "received": received, "lag": round(lag, 3)}

    def end(self, received: int, reason: str) -> dict[str, Any]:
        """The last message of a session that ended well."""
        return {"type": "end", "received": received, "reason": reason}

    def _time(self, sample: int) -> float:
        return round(sample / RATE + self._opening.offset, 3)

    def _word(self, word: Word) -> dict[str, Any]:
        return {
            "text": word.text.strip(),
            "start": self._time(word.start),
            "end": self._time(word.end),
            "probability": round(word.probability, 4),
        }


def error(
    message: str,
    *,
    code: str,
    param: str | None = None,
    retry_after: float | None = None,
    request: str | None = None,
) -> dict[str, Any]:
    """Something is wrong, and what would be right. `request` names it in the server's log."""
    found: dict[str, Any] = {"type": "error", "code": code, "message": message}
    if request is not None:
        found["request"] = request
    if param is not None:
        found["param"] = param
    if retry_after is not None:
        found["retry_after"] = retry_after
    return found


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)


def _from_text(name: str, value: str) -> Any:
    """A query's value as JSON would have it."""
    if name in _BOOLEANS:
        return {"true": True, "1": True, "false": False, "0": False}.get(value.lower(), value)
    if name in _NUMBERS:
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _number(name: str, value: Any) -> float:
    least, most, low, high = _NUMBERS[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ProtocolError(f"{name} is {_shown(value)}; it must be a number", param=name)
    if isinstance(value, int) and abs(value) > 2**53:  # too large to become a float, perhaps
        raise ProtocolError(
            f"{name} has {len(str(value))} digits; {high if value > 0 else low}", param=name
        )
    if not math.isfinite(value):
        raise ProtocolError(f"{name} must be a finite number", param=name)
    if value < least:
        raise ProtocolError(f"{name} is {value:g}; {low}", param=name)
    if value > most:
        raise ProtocolError(f"{name} is {value:g}; {high}", param=name)
    if name in _WHOLE and value != int(value):
        raise ProtocolError(f"{name} is {value}; it must be a whole number", param=name)
    return float(value)


def _truth(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ProtocolError(f"{name} is {_shown(value)}; it must be true or false", param=name)
    return value


def _text(given: dict[str, Any], name: str, most: int) -> str:
    value = given.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ProtocolError(f"{name} is {_shown(value)}; it must be text", param=name)
    if len(value) > most:
        raise ProtocolError(
            f"{name} has {len(value)} characters; at most {most} are taken", param=name
        )
    return value


def _choice(given: dict[str, Any], name: str, choices: tuple[str, ...], default: str) -> str:
    value = given.get(name)
    if value is None or value == "":
        return default
    if value not in choices:
        raise ProtocolError(
            f"{name} is {_shown(value)}; it must be one of {', '.join(choices)}", param=name
        )
    return str(value)


def _language(given: dict[str, Any]) -> str | None:
    text = _text(given, "language", 40)
    if text in ("", "auto"):
        return None
    code = languages.code(text)
    if code is None:
        raise ProtocolError(
            f"language {text!r} is not known here; give an ISO-639-1 code such as en",
            param="language",
        )
    return code


def _resume(message: dict[str, Any]) -> Resume:
    session, last = message.get("session"), message.get("last_event")
    if not isinstance(session, str) or not session:
        raise ProtocolError(
            f"session is {_shown(session)}; it must be the session that ready named",
            param="session",
        )
    if isinstance(last, bool) or not isinstance(last, int) or not 0 <= last <= 2**53:
        raise ProtocolError(
            f"last_event is {_shown(last)}; it must be the seq of the last message that arrived",
            param="last_event",
        )
    return Resume(session, last)


def _marker(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > MARKER:
        raise ProtocolError(
            f"marker is {_shown(value)}; it must be text of at most {MARKER} characters",
            param="marker",
        )
    return value


def _json(text: str) -> Any:
    """What `text` says. Raises ProtocolError also where Python would take what no JSON can carry on."""
    try:
        message = json.loads(text)
        if (
            "\\u" in text
        ):  # an escape may make half a character, which can be neither sent nor recognised
            json.dumps(message, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ProtocolError(
            "the message holds half a character (a lone surrogate); send whole ones",
            code="invalid_json",
        ) from None
    except (ValueError, RecursionError):
        raise ProtocolError(
            'the message is no JSON; send audio as binary messages, and text such as {"type": "end"}',
            code="invalid_json",
        ) from None
    return message


def _shown(value: Any) -> str:
    """A client's value in a message: short, and without walking into it."""
    match value:
        case str():
            return repr(value[:40])
        case bool():
            return "true" if value else "false"
        case None:
            return "null"
        case list():
            return "a list"
        case dict():
            return "an object"
        case int() if abs(value) > 2**53:
            return "a huge number"
        case _:
            return str(value)[:40]
