"""faster-whisper-server's WebSocket at `/v1/audio/transcriptions` as a dialect. Nothing here waits or knows a socket.

The client sends 16-bit PCM at 16 kHz and nothing else. After each change it gets the whole confirmed transcript so far.
It has no way to say that it is done: a second without audio, or a long pause in it, ends the conversation. Unlike
there, what was sent before is always finished first.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from server import languages
from server.errors import classify, closing
from server.protocols.dialect import Close, Command, End, Hear, Open, Say
from streaming.audio.pcm import Decoder
from streaming.errors import InputError, ModelResting, OpenSpeechError, Overloaded
from streaming.events import Event, Failed, Final, Partial, SpeechStarted, SpeechStopped
from streaming.types import RATE, Options, Samples, Word

log = logging.getLogger(__name__)

FORMATS = ("json", "text", "verbose_json")


@dataclass(frozen=True, slots=True)
class Endings:
    """When a conversation is over, in seconds."""

    no_data: float = 1.0
    """Without a message."""
    inactivity: float = 2.5
    """Without speech at the end of the audio, ..."""
    window: float = 5.0
    """... once so much audio has come."""


@dataclass(slots=True, eq=False)
class _Utterance:
    text: str = ""
    words: Sequence[Word] = ()
    final: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """What the query asks for."""

    options: Options = field(default_factory=Options)
    format: str = "json"


def parse(
    query: Mapping[str, str], *, language: str | None = None, format: str = "json"
) -> Request:
    """The query of the handshake, with the server's defaults. Unknown names are passed over, as there. Raises
    InputError."""
    asked = query.get("response_format") or (format if format in FORMATS else "json")
    if asked not in FORMATS:
        raise InputError(
            f"response_format is {asked[:40]!r}; it must be one of {', '.join(FORMATS)}",
            param="response_format",
        )
    if given := query.get("language"):
        language = languages.code(given)
        if language is None:
            raise InputError(
                f"language {given[:40]!r} is not known here; give an ISO-639-1 code such as en",
                param="language",
            )
    text = query.get("temperature") or "0"
    try:
        temperature = float(text)
    except ValueError:
        temperature = math.nan
    if not 0 <= temperature <= 1:
        raise InputError(
            f"temperature is {text[:40]!r}; it must be a number from 0 to 1", param="temperature"
        )
    options = Options(
        model=query.get("model") or "",
        language=language,
        temperature=temperature,
        words=asked == "verbose_json",
    )
    return Request(options, asked)


class Transcript:
    """A Dialect; see there."""

    limit: float | None = None

    def __init__(self, request: Request, endings: Endings) -> None:
        self._request = request
        self._endings = endings
        self._decoder = Decoder("pcm_s16le")
        self._heard = 0  # samples given to the engine
        self._quiet_since: int | None = 0  # end of the last speech; None while somebody speaks
        self._text = ""  # of finals
        self._words: list[Word] = []
        self._open: dict[int, _Utterance] = {}  # in order
        self._language: str | None = request.options.language
        self._shown = ""
        self._ended = False
        self._code = 1000

    @property
    def patience(self) -> float | None:
        """See `Dialect.patience`."""
        return None if self._ended else self._endings.no_data

    def begin(self) -> list[Command]:
        """Nothing is said before there is text."""
        return [Open(self._request.options)]

    def read(self, data: str | bytes) -> Samples:
        """Audio; a text message holds none."""
        return self._decoder.decode(data if isinstance(data, bytes) else b"")

    def receive(self, message: Samples, lag: float) -> list[Command]:
        """Take the audio; end where the pause in it has become too long."""
        if self._ended:
            return []
        decided = self._heard - round(lag * RATE)
        self._heard += len(message)
        commands: list[Command] = [Hear(message)]
        if (
            self._quiet_since is not None
            and decided >= self._endings.window * RATE
            and decided - self._quiet_since >= self._endings.inactivity * RATE
        ):
            commands += self.receive_nothing()
        return commands

    def receive_nothing(self) -> list[Command]:
        """The client has fallen silent: finish."""
        self._ended = True
        return [End()]

    def receive_limit(self) -> list[Command]:
        """There is none."""
        return []

    def receive_stop(self) -> list[Command]:
        """Finish; the close code says that there was more to hear."""
        if self._ended:
            return []
        self._code = 1012
        return self.receive_nothing()

    def receive_end(self) -> list[Command]:
        """All is told."""
        return [Close(self._code)]

    def encode(self, event: Event, base: int) -> list[Command]:
        """The transcript, if it grew."""
        match event:
            case SpeechStarted(utterance, _):
                self._quiet_since = None
                self._open[utterance] = _Utterance()
                return []
            case SpeechStopped(utterance, at):
                if utterance == max(self._open):
                    self._quiet_since = base + at
                return []
            case Partial():
                found = self._open[event.utterance]
                committed = [*event.words]
                while committed and sum(len(word.text) for word in committed) > len(
                    event.committed
                ):
                    committed.pop()
                found.text, found.words = event.committed, committed
            case Final():
                found = self._open[event.utterance]
                found.text, found.words, found.final = event.text, event.words, True
                self._language = event.language or self._language
            case Failed(utterance, error):
                log.info("an utterance is missing from a transcript: %s", error.message)
                self._open[utterance].final = True
            case _:
                return []
        return self._tell()

    def _tell(self) -> list[Command]:
        for number, utterance in list(self._open.items()):
            if not utterance.final:
                break
            self._text += utterance.text
            self._words += utterance.words
            del self._open[number]
        text, words = self._text, list(self._words)
        for utterance in self._open.values():
            text += utterance.text
            words += utterance.words
            if not utterance.final:
                break
        text = text.strip()
        if not text or text == self._shown:
            return []
        self._shown = text
        return [Say(self._formatted(text, words))]

    def _formatted(self, text: str, words: list[Word]) -> str:
        match self._request.format:
            case "text":
                return text
            case "json":
                return msgspec.json.encode({"text": text}).decode()
        return msgspec.json.encode(
            {
                "task": "transcribe",
                "language": languages.name(self._language),
                "language_code": self._language,
                "duration": round(self._heard / RATE, 3),
                "text": text,
                "words": [
                    {
                        "word": word.text,
                        "start": round(word.start / RATE, 3),
                        "end": round(word.end / RATE, 3),
                        "probability": round(word.probability, 4),
                    }
                    for word in words
                ],
                "segments": [],
            }
        ).decode()

    def fail(self, error: OpenSpeechError | None) -> list[Command]:
        """Its clients read no errors: the reason of the close says what is wrong."""
        if error is None:
            return [Close(1011, "the server failed; its log says why")]
        status, _ = classify(error)
        code = 1008 if status < 500 else 1011
        if isinstance(error, Overloaded | ModelResting):
            code = closing(error)
        return [Close(code, error.message)]
