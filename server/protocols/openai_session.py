"""The session object of OpenAI's Realtime API: what a client may set, in the GA and the beta shape. Immutable values.

Fields that exist only for a model's spoken answers are kept and echoed; fields that nobody knows are passed over,
because several agent frameworks end a call at the first `error` they see.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from server import languages
from streaming.audio.pcm import Encoding
from streaming.errors import InputError
from streaming.types import Options

log = logging.getLogger(__name__)

LOGPROBS = "item.input_audio_transcription.logprobs"
RATE = 24_000
"""OpenAI's only rate of PCM; here the default."""
LEAST_RATE, MOST_RATE = 8_000, 48_000
EAGERNESS = {"low": 1200, "medium": 700, "auto": 700, "high": 400}
"""Milliseconds of silence that end a turn under semantic_vad: no model judges here whether a sentence is complete."""
SERVER_VAD = {
    "type": "server_vad",
    "threshold": 0.5,
    "prefix_padding_ms": 300,
    "silence_duration_ms": 500,
}
NO_VAD = ("gpt-live-transcribe", "gpt-realtime-whisper")
"""Models that OpenAI serves without turn detection: their clients commit and do not say so. With ours on besides, such
a commit could find nothing left, and its error would end the call."""
_FORMATS: dict[str, Encoding] = {
    "audio/pcm": "pcm_s16le",
    "audio/pcmu": "mulaw",
    "audio/pcma": "alaw",
}
_BETA_FORMATS = {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}
_DELAYS = ("minimal", "low", "medium", "high", "xhigh")
_KEYWORDS = 1000
_PROMPT = 20_000


class Fault(InputError):
    """A client's event is wrong; becomes an `error` event."""

    def __init__(
        self, message: str, *, code: str | None = "invalid_value", param: str | None = None
    ) -> None:
        super().__init__(message, param=param)
        self.code = code


@dataclass(frozen=True, slots=True)
class Configuration:
    """The effective configuration."""

    format: Mapping[str, Any] = field(default_factory=lambda: {"type": "audio/pcm", "rate": RATE})
    transcription: Mapping[str, Any] | None = None
    """None: turns are cut but not transcribed."""
    noise_reduction: Mapping[str, Any] | None = None
    turn_detection: Mapping[str, Any] | None = field(default_factory=lambda: dict(SERVER_VAD))
    """None: the client commits."""
    include: tuple[str, ...] | None = None

    @property
    def encoding(self) -> Encoding:
        """How the audio comes."""
        return _FORMATS[self.format["type"]]

    @property
    def rate(self) -> int:
        """Samples per second of the client's audio."""
        return int(self.format.get("rate", 8000))

    @property
    def manual(self) -> bool:
        """The client ends the turns."""
        return self.turn_detection is None

    @property
    def whole(self) -> bool:
        """Turns are transcribed as a whole, once they are over: slower, and a little surer of every word."""
        return (self.transcription or {}).get("delay") == "xhigh"

    @property
    def logprobs(self) -> bool:
        """Probabilities are asked for."""
        return LOGPROBS in (self.include or ())

    def updated(self, session: Any) -> Configuration:
        """With the fields that `session` names, in the GA shape. Raises Fault; nothing is half done."""
        session = _object(session, "session")
        if session.get("type", "transcription") != "transcription":
            kind = session["type"]
            if kind == "realtime":
                raise Fault(
                    "Passing a realtime session update to a transcription session is not allowed.",
                    param="session.type",
                )
            raise Fault(
                f"session.type is {_shown(kind)}; it must be 'transcription'", param="session.type"
            )
        _unknown(session, ("type", "audio", "include", "object", "id", "expires_at"), "session")
        audio = _object(session.get("audio") or {}, "session.audio")
        given = _object(audio.get("input") or {}, "session.audio.input")
        known = ("format", "transcription", "noise_reduction", "turn_detection")
        _unknown(given, known, "session.audio.input")
        found = self
        if given.get("format") is not None:
            found = replace(found, format=_format(given["format"], "session.audio.input.format"))
        return found._with(
            {name: given[name] for name in known[1:] if name in given}
            | ({"include": session["include"]} if "include" in session else {}),
            {name: f"session.audio.input.{name}" for name in known[1:]},
        )

    def updated_flat(self, session: Any) -> Configuration:
        """The same in the beta's shape. Raises Fault."""
        session = _object(session, "session")
        found = self
        kind = session.get("input_audio_format")
        if kind is not None:
            if not isinstance(kind, str) or kind not in _BETA_FORMATS:
                raise Fault(
                    f"session.input_audio_format is {_shown(kind)};"
                    f" it must be one of {', '.join(_BETA_FORMATS)}",
                    param="session.input_audio_format",
                )
            path = "session.input_audio_format"
            found = replace(found, format=_format({"type": _BETA_FORMATS[kind]}, path))
        names = {
            "input_audio_transcription": "transcription",
            "input_audio_noise_reduction": "noise_reduction",
            "turn_detection": "turn_detection",
            "include": "include",
        }
        return found._with(
            {ours: session[theirs] for theirs, ours in names.items() if theirs in session},
            {ours: f"session.{theirs}" for theirs, ours in names.items()},
        )

    def _with(self, given: Mapping[str, Any], paths: Mapping[str, str]) -> Configuration:
        found = self
        if "transcription" in given:
            path = paths["transcription"]
            made = _transcription(given["transcription"], self.transcription, path)
            found = replace(found, transcription=made)
            unsaid = "turn_detection" not in given and self.turn_detection == SERVER_VAD
            if unsaid and made is not None and str(made.get("model")).startswith(NO_VAD):
                found = replace(found, turn_detection=None)
        if "noise_reduction" in given:
            path = paths["noise_reduction"]
            reduced = _noise_reduction(given["noise_reduction"], self.noise_reduction, path)
            found = replace(found, noise_reduction=reduced)
        if "turn_detection" in given:
            path = paths["turn_detection"]
            turns = _turn_detection(given["turn_detection"], self.turn_detection, path)
            found = replace(found, turn_detection=turns)
        if "include" in given:
            found = replace(found, include=_texts(given["include"], "session.include"))
        return found

    def shown(self) -> dict[str, Any]:
        """As the GA events show it, without `id` and `expires_at`."""
        return {
            "audio": {
                "input": {
                    "format": dict(self.format),
                    "transcription": _copy(self.transcription),
                    "noise_reduction": _copy(self.noise_reduction),
                    "turn_detection": _copy(self.turn_detection),
                }
            },
            "include": None if self.include is None else list(self.include),
        }

    def shown_flat(self) -> dict[str, Any]:
        """As the beta's events show it."""
        kinds = {ours: theirs for theirs, ours in _BETA_FORMATS.items()}
        return {
            "modalities": ["text"],
            "input_audio_format": kinds[self.format["type"]],
            "input_audio_transcription": _copy(self.transcription),
            "input_audio_noise_reduction": _copy(self.noise_reduction),
            "turn_detection": _copy(self.turn_detection),
            "include": None if self.include is None else list(self.include),
        }

    def options(self, *, partials: bool) -> Options:
        """What the engine is asked for. Raises Fault."""
        asked = self.transcription or {}
        among = tuple(asked.get("languages") or ())
        language = _language(asked.get("language") or None)
        if language is None and len(among) == 1:
            language = _language(among[0])
        turns = self.turn_detection or {}
        silence = turns.get("silence_duration_ms", SERVER_VAD["silence_duration_ms"])
        if turns.get("type") == "semantic_vad":
            silence = EAGERNESS[turns.get("eagerness", "auto")]
        return Options(
            model=asked.get("model") or "",
            language=language,
            languages=tuple(code for each in among if (code := _language(each)) is not None),
            prompt=asked.get("prompt") or "",
            hotwords=tuple(each.strip() for each in asked.get("keywords") or () if each.strip()),
            words=self.logprobs and self.transcription is not None,
            endpointing="client" if self.manual else "silence",
            endpointing_ms=min(max(int(silence), 10), 10_000),
            vad_threshold=float(turns.get("threshold", 0.5)),
            pre_roll_ms=min(int(turns.get("prefix_padding_ms", 300)), 5000),
            partials=partials and self.transcription is not None,
        )


def _format(given: Any, path: str) -> dict[str, Any]:
    given = _object(given, path)
    kind = given.get("type", "audio/pcm")
    if not isinstance(kind, str) or kind not in _FORMATS:
        raise Fault(
            f"{path}.type is {_shown(kind)}; it must be one of {', '.join(_FORMATS)}",
            param=f"{path}.type",
        )
    if kind != "audio/pcm":
        return {"type": kind}
    rate = given.get("rate", RATE)
    if isinstance(rate, bool) or not isinstance(rate, int):
        raise Fault(
            f"{path}.rate is {_shown(rate)}; it must be an integer",
            code="invalid_type",
            param=f"{path}.rate",
        )
    if rate < LEAST_RATE:
        raise Fault(
            f"Invalid '{path}.rate': integer below minimum value."
            f" Expected a value >= {LEAST_RATE}, but got {rate} instead.",
            code="integer_below_min_value",
            param=f"{path}.rate",
        )
    if rate > MOST_RATE:
        raise Fault(
            f"Invalid '{path}.rate': integer above maximum value."
            f" Expected a value <= {MOST_RATE}, but got {rate} instead.",
            code="integer_above_max_value",
            param=f"{path}.rate",
        )
    return {"type": kind, "rate": rate}


def _transcription(
    given: Any, before: Mapping[str, Any] | None, path: str
) -> dict[str, Any] | None:
    if given is None:
        return None
    given = _object(given, path)
    _unknown(given, ("model", "language", "languages", "keywords", "prompt", "delay"), path)
    found = dict(before or {})
    for name, most in (("model", 200), ("language", 40), ("prompt", _PROMPT)):
        if name in given:
            found[name] = _text(given[name], most, f"{path}.{name}")
    for name in ("languages", "keywords"):
        if name in given:
            texts = _texts(given[name], f"{path}.{name}")
            found[name] = None if texts is None else list(texts)
    if "delay" in given:
        found["delay"] = _choice(given["delay"], _DELAYS, f"{path}.delay")
    for name, codes in (
        ("language", [found.get("language")]),
        ("languages", found.get("languages") or []),
    ):
        for code in codes:
            if code and _language(code) is None and code.strip().lower() != "auto":
                raise Fault(
                    f"{path}.{name} {_shown(code)} is not known here;"
                    " give an ISO-639-1 code such as en",
                    param=f"{path}.{name}",
                )
    if sum(map(len, found.get("keywords") or ())) > _KEYWORDS:
        raise Fault(
            f"{path}.keywords have more than {_KEYWORDS} characters", param=f"{path}.keywords"
        )
    found.setdefault("language", None)
    found.setdefault("prompt", None)
    return {name: found[name] for name in sorted(found, key=_ORDER.index)}


_ORDER = ["model", "language", "languages", "keywords", "prompt", "delay"]


def _noise_reduction(
    given: Any, before: Mapping[str, Any] | None, path: str
) -> dict[str, Any] | None:
    if given is None:
        return None
    given = _object(given, path)
    found = dict(before or {})
    if "type" in given:
        found["type"] = _choice(given["type"], ("near_field", "far_field"), f"{path}.type")
    if given.get("strength") is not None:
        found["strength"] = _number(given["strength"], f"{path}.strength", 0, math.inf)
    return found


def _turn_detection(
    given: Any, before: Mapping[str, Any] | None, path: str
) -> dict[str, Any] | None:
    if given is None:
        return None
    given = _object(given, path)
    kinds = ("server_vad", "semantic_vad")
    kind = given.get("type") or (before or SERVER_VAD)["type"]
    _choice(kind, kinds, f"{path}.type")
    found = dict(before) if before is not None and before["type"] == kind else {}
    if not found:
        found = dict(SERVER_VAD) if kind == "server_vad" else {"type": kind, "eagerness": "auto"}
    for name in ("create_response", "interrupt_response"):
        if name in given:
            found[name] = given[name]
    if kind == "semantic_vad":
        if given.get("eagerness") is not None:
            found["eagerness"] = _choice(given["eagerness"], tuple(EAGERNESS), f"{path}.eagerness")
        return found
    if given.get("threshold") is not None:
        found["threshold"] = _number(given["threshold"], f"{path}.threshold", 0, 1)
    for name in ("prefix_padding_ms", "silence_duration_ms"):
        if given.get(name) is not None:
            found[name] = int(_number(given[name], f"{path}.{name}", 0, math.inf))
    if "idle_timeout_ms" in given:
        found["idle_timeout_ms"] = given["idle_timeout_ms"]
    return found


def _object(given: Any, path: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise Fault(
            f"Invalid type for '{path}': expected an object, but got {_shown(given)} instead.",
            code="invalid_type",
            param=path,
        )
    return given


def _unknown(given: Mapping[str, Any], known: tuple[str, ...], path: str) -> None:
    for name in given:
        if name not in known:
            log.info("realtime: %s.%s is not known and passed over", path, str(name)[:40])


def _text(given: Any, most: int, path: str) -> str | None:
    if given is None:
        return None
    if not isinstance(given, str):
        raise Fault(
            f"Invalid type for '{path}': expected a string, but got {_shown(given)} instead.",
            code="invalid_type",
            param=path,
        )
    if len(given) > most:
        raise Fault(f"{path} has {len(given)} characters; at most {most} are taken", param=path)
    return given


def _texts(given: Any, path: str) -> tuple[str, ...] | None:
    if given is None:
        return None
    if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
        raise Fault(
            f"Invalid type for '{path}': expected an array of strings.",
            code="invalid_type",
            param=path,
        )
    return tuple(given)


def _choice(given: Any, choices: tuple[str, ...], path: str) -> str:
    if given not in choices:
        wanted = ", ".join(f"'{each}'" for each in choices)
        raise Fault(f"Invalid value: {_shown(given)}. Supported values are: {wanted}.", param=path)
    return str(given)


def _number(given: Any, path: str, least: float, most: float) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        raise Fault(
            f"Invalid type for '{path}': expected a number, but got {_shown(given)} instead.",
            code="invalid_type",
            param=path,
        )
    if given < least:
        raise Fault(
            f"Invalid '{path}': expected a value >= {least:g}, but got {given:g} instead.",
            code="decimal_below_min_value"
            if isinstance(given, float)
            else "integer_below_min_value",
            param=path,
        )
    if given > most:
        raise Fault(
            f"Invalid '{path}': expected a value <= {most:g}, but got {given:g} instead.",
            code="decimal_above_max_value"
            if isinstance(given, float)
            else "integer_above_max_value",
            param=path,
        )
    return given


def _language(given: str | None) -> str | None:
    if given is None or given.strip().lower() in ("", "auto"):
        return None
    return languages.code(given)


def _copy(value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if value is None else dict(value)


def _shown(value: Any) -> str:
    return repr(value)[:60]
