"""Form fields of the transcription routes to `Options`, checked. Pure.

Encodings are those the SDKs use: ``name[]`` parts for lists, ``name[key]`` parts or JSON for objects, an empty string
for what is not set. Unknown fields are ignored, as OpenAI does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, cast

from server import formats, languages
from server.errors import BadRequest
from server.settings import Settings
from streaming.errors import Unsupported
from streaming.types import Options, Task

Format = Literal["json", "text", "srt", "vtt", "verbose_json"]
FORMATS = ("json", "text", "srt", "vtt", "verbose_json")
HOTWORDS = 1000
"""Characters of hotwords in all; Whisper takes about 110 tokens of them."""
PROMPT = 20_000
"""Characters of a prompt; the recogniser reads the last 223 tokens."""


@dataclass(frozen=True, slots=True)
class Output:
    """What the answer looks like."""

    format: Format
    stream: bool = False
    words: bool = False
    segments: bool = True
    logprobs: bool = False
    timings: bool = False
    width: int = formats.WIDTH
    lines: int = formats.LINES


class Form:
    """Fields by name, whatever their encoding."""

    def __init__(self, fields: Iterable[tuple[str, str]]) -> None:
        self._values: dict[str, list[str]] = {}
        self._items: set[str] = set()
        for name, value in fields:
            bare = name.removesuffix("[]")
            self._values.setdefault(bare, []).append(value)
            if bare != name:
                self._items.add(bare)

    def text(self, name: str) -> str | None:
        """The last value that is not empty."""
        found = [value for value in self._values.get(name, []) if value.strip()]
        return found[-1] if found else None

    def many(self, name: str) -> tuple[str, ...]:
        """All values that are not empty; one under the bare name that is a JSON list counts as its items."""
        found: list[str] = []
        for value in self._values.get(name, []):
            listed = _listed(value) if name not in self._items else None
            if listed is None:
                found += [value] if value.strip() else []
                continue
            for each in listed:
                if not isinstance(each, str | int | float) or isinstance(each, bool):
                    raise BadRequest(
                        f"{name} has an entry that is no string; it takes a list of strings",
                        param=name,
                    )
                found.append(str(each))
        # The JS SDK's documented way of passing unknown fields arrives like this.
        if not found and not name.startswith("extra_body"):
            found = list(self.many(f"extra_body[{name}]"))
        return tuple(found)

    def number(self, name: str, least: float, most: float) -> float | None:
        """A number within bounds."""
        text = self.text(name)
        if text is None:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise BadRequest(
                f"{name} is {text[:40]!r}; it must be a number from {least:g} to {most:g}",
                param=name,
            )
        return value

    def whole(self, name: str, least: int, most: int) -> int | None:
        """A whole number within bounds."""
        value = self.number(name, least, most)
        if value is not None and not value.is_integer():
            raise BadRequest(
                f"{name} is {value:g}; it must be a whole number from {least} to {most}", param=name
            )
        return None if value is None else int(value)

    def truth(self, name: str) -> bool | None:
        """A boolean."""
        text = self.text(name)
        if text is None:
            return None
        if text.lower() in ("true", "1", "yes", "on"):
            return True
        if text.lower() in ("false", "0", "no", "off"):
            return False
        raise BadRequest(f"{name} is {text[:40]!r}; it must be true or false", param=name)

    def mapping(self, name: str) -> dict[str, str] | str | None:
        """An object, by bracketed parts or JSON; or a plain word."""
        inner = {
            key[len(name) + 1 : -1]: values[-1]
            for key, values in self._values.items()
            if key.startswith(name + "[") and key.endswith("]")
        }
        if inner:
            return inner
        text = self.text(name)
        if text is not None and text.lstrip().startswith("{"):
            try:
                found = json.loads(text)
            except (ValueError, RecursionError):
                raise BadRequest(f"{name} is no valid JSON; send one object", param=name) from None
            return {str(key): str(value) for key, value in found.items() if value is not None}
        return text

    def has(self, name: str) -> bool:
        """The field was sent, in any encoding."""
        return bool(self.many(name)) or self.mapping(name) is not None


def _listed(text: str) -> list[Any] | None:
    """The items of a JSON list; None for any other text, which may be a phrase that begins with a bracket."""
    if not text.lstrip().startswith("["):
        return None
    try:
        found: list[Any] = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found


def parse(form: Form, settings: Settings, *, task: Task) -> tuple[Options, Output]:
    """The request as values. Raises BadRequest that names the field."""
    output = _output(form, settings)
    if form.has("known_speaker_names") or form.has("known_speaker_references"):
        raise Unsupported(
            "known_speaker_names needs a model that tells speakers apart; this server has none yet, leave it out",
            param="known_speaker_names",
        )
    model = form.text("model") or ""
    if "diarize" in model:
        raise Unsupported(
            f"the model {model[:60]!r} tells speakers apart, which this server cannot do yet; choose another",
            param="model",
        )
    threshold, pre_roll, silence = _chunking(form)
    defaults = Options()
    options = Options(
        model=model,
        task=task,
        language=_language(form, settings),
        languages=tuple(dict.fromkeys(_code(each, "languages") for each in form.many("languages"))),
        prompt=_prompt(form),
        hotwords=_hotwords(form),
        temperature=form.number("temperature", 0, 1) or 0.0,
        beam=form.whole("beam_size", 1, 20),
        words=output.format in ("srt", "vtt", "verbose_json") or output.stream,
        tokens=output.logprobs,
        endpointing_ms=defaults.endpointing_ms if silence is None else silence,
        vad_threshold=defaults.vad_threshold if threshold is None else threshold,
        pre_roll_ms=defaults.pre_roll_ms if pre_roll is None else pre_roll,
    )
    form.truth("vad_filter")
    if len(options.languages) == 1 and options.language is None:
        options = _with_language(options, options.languages[0])
    return options, output


def _with_language(options: Options, language: str) -> Options:
    from dataclasses import replace

    return replace(options, language=language, languages=())


def _output(form: Form, settings: Settings) -> Output:
    wanted = form.text("response_format") or settings.response_format
    if wanted == "diarized_json":
        raise Unsupported(
            "response_format 'diarized_json' needs a model that tells speakers apart, which this server does not have"
            f" yet; use one of {', '.join(FORMATS)}",
            param="response_format",
        )
    if wanted not in FORMATS:
        raise BadRequest(
            f"response_format is {wanted[:40]!r}; it must be one of {', '.join(FORMATS)}",
            param="response_format",
        )
    grains = form.many("timestamp_granularities")
    for grain in grains:
        if grain not in ("word", "segment"):
            raise BadRequest(
                f"timestamp_granularities has {grain[:40]!r}; it takes word and segment",
                param="timestamp_granularities",
            )
    include = form.many("include")
    for each in include:
        if each != "logprobs":
            raise BadRequest(f"include has {each[:40]!r}; it takes logprobs", param="include")
    if include and wanted != "json":
        raise BadRequest(
            f"include logprobs goes with response_format json, not {wanted}", param="include"
        )
    return Output(
        cast(Format, wanted),
        bool(form.truth("stream")),
        words="word" in grains,
        segments="segment" in grains or not grains,
        logprobs=bool(include),
        timings=bool(form.truth("timings")),
        width=form.whole("max_line_width", 8, 1000) or formats.WIDTH,
        lines=form.whole("max_line_count", 1, 20) or formats.LINES,
    )


def _language(form: Form, settings: Settings) -> str | None:
    text = form.text("language") or settings.language
    if text is None or text.strip().lower() == "auto":
        return None
    return _code(text, "language")


def _code(text: str, field: str) -> str:
    found = languages.code(text)
    if found is None:
        raise BadRequest(
            f"{field} {text[:40]!r} is no language known here; give an ISO-639-1 code such as en",
            param=field,
        )
    return found


def _prompt(form: Form) -> str:
    return _printable(form.text("prompt") or "")[-PROMPT:]


def _printable(text: str) -> str:
    """Without control characters and halves of characters, which no tokenizer takes."""
    return "".join(letter for letter in text if letter.isprintable() or letter in "\n ")


def _hotwords(form: Form) -> tuple[str, ...]:
    words = [word.strip() for word in form.many("keywords")]
    for text in form.many("hotwords"):
        words += [word.strip() for word in text.split(",")]
    words = [word for word in map(_printable, words) if word]
    if sum(len(word) for word in words) > HOTWORDS:
        raise BadRequest(
            f"keywords have {sum(len(word) for word in words)} characters; at most {HOTWORDS} are taken",
            param="keywords",
        )
    return tuple(words)


def _chunking(form: Form) -> tuple[float | None, int | None, int | None]:
    """Threshold, pre-roll and silence of `chunking_strategy`; None where the engine's own applies."""
    found = form.mapping("chunking_strategy")
    if found is None or found == "auto":
        return None, None, None
    if isinstance(found, str) or found.get("type") != "server_vad":
        raise BadRequest(
            'chunking_strategy must be "auto" or an object of type server_vad',
            param="chunking_strategy",
        )

    inner = Form(found.items())
    try:
        return (
            inner.number("threshold", 0, 1),
            inner.whole("prefix_padding_ms", 0, 5000),
            inner.whole("silence_duration_ms", 10, 10_000),
        )
    except BadRequest as error:
        raise BadRequest(f"chunking_strategy: {error.message}", param="chunking_strategy") from None
