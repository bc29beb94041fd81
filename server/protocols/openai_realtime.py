"""OpenAI's Realtime transcription sessions as a dialect: GA and beta. Nothing here waits or knows a socket.

A *turn* is what OpenAI calls an item: the audio between two commits, the server's or the client's. Under server VAD it
is one utterance; where the client commits it is all utterances up to there. Deltas come from committed text only, so
they never need to be taken back, and joined they are the transcript, byte for byte.
"""

from __future__ import annotations

import base64
import binascii
import logging
import math
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import msgspec

from server.errors import RateLimited, classify, closing
from server.protocols.dialect import Close, Command, Commit, End, Hear, Open, Say
from server.protocols.openai_session import Configuration, Fault
from streaming.audio.pcm import Decoder
from streaming.audio.resample import Resampler
from streaming.errors import ModelResting, OpenSpeechError, Overloaded
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
from streaming.segmenter import SPLIT_AT
from streaming.types import RATE, Options, Samples, Word

log = logging.getLogger(__name__)

APPEND = 15 * 2**20
"""Bytes of audio that one append may carry."""
SHORTEST = RATE // 10
"""Samples that a commit must have: 100 ms."""
TURNS = 1024
"""Turns, ended by the client, that may wait for their text: a decode may hang for minutes, and then all are completed
at once. Their messages fit what may wait for a slow reader (`conversations.UNREAD`)."""
ITEMS = 256
"""Items that can still be retrieved; older ones are forgotten."""
KNOWN = (
    "session.update",
    "transcription_session.update",
    "input_audio_buffer.append",
    "input_audio_buffer.commit",
    "input_audio_buffer.clear",
    "conversation.item.retrieve",
    "conversation.item.delete",
    "session.close",
)
_OF_CONVERSATIONS = (
    "conversation.item.create",
    "conversation.item.truncate",
    "response.create",
    "response.cancel",
    "output_audio_buffer.clear",
)
_TRANSCRIPTION = "conversation.item.input_audio_transcription"

Deltas: TypeAlias = Literal["early", "late"]
"""`early`: while the person speaks. `late`: after the turn is committed."""


@dataclass(frozen=True, slots=True, eq=False)
class _Audio:
    """An append, decoded."""

    samples: Samples


@dataclass(frozen=True, slots=True)
class _Event:
    """Any other event of the client."""

    kind: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Slip:
    """A message that cannot be acted on."""

    fault: Fault
    event_id: str | None = None


@dataclass(slots=True, eq=False)
class _Utterance:
    number: int
    text: str = ""
    """Committed so far; all of it once `final`."""
    words: Sequence[Word] = ()
    final: bool = False


@dataclass(slots=True, eq=False)
class _Turn:
    item: str
    start: int
    transcribed: bool
    """Its text is wanted. While it is not committed, a session.update may still ask for it."""
    manual: bool = False
    """The client is to commit it; any speech meanwhile belongs to it."""
    until: int | None = None
    """Where a commit of the client, or a clear, ended it: it is complete when its marker comes."""
    discarded: bool = False
    committed: bool = False
    end: int = 0
    utterances: deque[_Utterance] = field(default_factory=deque)
    told: str = ""
    """The transcript as far as deltas have carried it."""
    pending: str = ""
    """Of the first utterance in `utterances`: what `told` holds of it already."""
    tokens: list[dict[str, Any]] = field(default_factory=list)
    counted: int = 0
    """Words of the first utterance that are in `tokens`."""
    language: str | None = None
    error: OpenSpeechError | None = None


class Realtime:
    """A Dialect; see there."""

    def __init__(
        self,
        configuration: Configuration,
        *,
        check: Callable[[Options], object],
        language: str | None = None,
        deltas: Deltas = "early",
        beta: bool = False,
        limit: float = 3600.0,
        idle: float | None = None,
        now: float | None = None,
        name: Callable[[str], str] | None = None,
    ) -> None:
        """`check` raises where no model can do what the options ask; `language` is taken where the
        client names none; `idle`: seconds without a message that end the session; `name` makes an id from a prefix."""
        self.limit: float | None = limit
        self._idle = idle
        self._configuration = configuration
        self._check = check
        self._language = language
        self._early = deltas == "early"
        self._beta = beta
        self._name = name or (lambda prefix: f"{prefix}_{secrets.token_urlsafe(16)}")
        self.id = self._name("sess")
        self._expires = int((time.time() if now is None else now) + limit)
        self._decoder = Decoder(configuration.encoding)
        self._resampler = Resampler(configuration.rate)
        self._opened: Options | None = None
        self._closing = False
        self._code = 1000
        self._why: Fault | None = None  # it ends though nobody asked for it
        self._heard = 0  # samples at 16 kHz given to the engine since the session began
        self._claimed = 0  # before this sample everything is committed or cleared
        # Not complete, in order of time; bounded by TURNS, and those that the server ends by their audio.
        self._turns: list[_Turn] = []
        self._by_utterance: dict[int, _Turn] = {}  # of the stream whose events come now
        self._previous: str | None = None
        self._items: OrderedDict[str, dict[str, Any]] = OrderedDict()

    # The client's half.

    @property
    def patience(self) -> float | None:
        """See `Dialect.patience`."""
        return None if self._closing else self._idle

    def begin(self) -> list[Command]:
        """`session.created`, unprompted."""
        kind = "transcription_session.created" if self._beta else "session.created"
        return [self._say(kind, session=self._session(flat=self._beta))]

    def read(self, data: str | bytes) -> _Audio | _Event | _Slip:
        """See `Dialect.read`."""
        if isinstance(data, bytes):
            return _Slip(
                Fault(
                    "Expected a text WebSocket message; binary frames are not supported."
                    " Send audio as input_audio_buffer.append with base64.",
                    code="invalid_event",
                )
            )
        try:
            body = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            return _Slip(
                Fault(
                    f"Invalid event: failed to parse JSON value. {str(error)[:120]}",
                    code="invalid_json",
                )
            )
        if not isinstance(body, dict) or not isinstance(body.get("type"), str):
            return _Slip(
                Fault(
                    "Invalid event: expected a JSON object with a 'type'.",
                    code="invalid_event",
                    param="type",
                ),
                _event_id(body),
            )
        # Translation sessions call it by the longer name.
        kind = body["type"].removeprefix("session.")
        if kind != "input_audio_buffer.append":
            return _Event(body["type"], body)
        try:
            return _Audio(self._decode(body.get("audio")))
        except Fault as fault:
            return _Slip(fault, _event_id(body))

    def _decode(self, audio: Any) -> Samples:
        if not isinstance(audio, str):
            raise Fault("audio must be base64 text", code="invalid_type", param="audio")
        try:
            data = base64.b64decode(audio, validate=True)
        except (binascii.Error, ValueError):
            raise Fault(
                "Invalid 'audio'. Expected base64-encoded audio bytes, which could not be decoded.",
                param="audio",
            ) from None
        if len(data) > APPEND:
            raise Fault(
                f"the audio has {len(data)} bytes; at most {APPEND} are taken, append it in several events",
                param="audio",
            )
        return self._resampler.decode(self._decoder.decode(data))

    def receive(self, message: _Audio | _Event | _Slip, lag: float) -> list[Command]:
        """See `Dialect.receive`. Never raises for what a client sends."""
        del lag
        if self._closing:
            return []
        match message:
            case _Audio(samples):
                return self._hear(samples)
            case _Slip(fault, event_id):
                return [self._error(fault, event_id)]
            case _Event(kind, body):
                try:
                    return self._act(kind, body)
                except OpenSpeechError as fault:
                    return [self._error(fault, _event_id(body))]

    def _act(self, kind: str, body: dict[str, Any]) -> list[Command]:
        match kind:
            case "session.update":
                given = body.get("session")
                # The beta's conversations were configured by this event, in the flat shape.
                flat = self._beta and isinstance(given, dict) and "audio" not in given
                return self._update(given, flat=flat, kind="session.updated")
            case "transcription_session.update":
                self._beta = True
                return self._update(
                    body.get("session"), flat=True, kind="transcription_session.updated"
                )
            case "input_audio_buffer.commit":
                self._make_sure_of_room()
                return self._commit(_event_id(body))
            case "input_audio_buffer.clear":
                self._make_sure_of_room()
                return self._clear()
            case "conversation.item.retrieve":
                item = self._items.get(str(body.get("item_id")))
                if item is None:
                    raise _no_item(body)
                return [self._say("conversation.item.retrieved", item=item)]
            case "conversation.item.delete":
                if self._items.pop(str(body.get("item_id")), None) is None:
                    raise _no_item(body)
                return [self._say("conversation.item.deleted", item_id=body["item_id"])]
            case "session.close":
                return self._close()
        if kind in _OF_CONVERSATIONS:
            raise Fault(
                f"'{kind}' has no meaning in a transcription session; nothing speaks here.",
                code="invalid_request_error",
                param="type",
            )
        supported = ", ".join(f"'{each}'" for each in KNOWN)
        raise Fault(
            f"Invalid value: '{kind[:60]}'. Supported values are: {supported}.", param="type"
        )

    def _update(self, given: Any, *, flat: bool, kind: str) -> list[Command]:
        before = self._configuration
        after = before.updated_flat(given) if flat else before.updated(given)
        self._check(after.options(partials=True))
        if kind == "session.updated" and not flat:
            self._beta = False
        commands: list[Command] = []
        if before.manual and not after.manual and self._heard - self._claimed >= SHORTEST:
            # What waits for a commit that the client has just handed to us.
            commands += self._commit()
        self._configuration = after
        for turn in self._turns:
            if not turn.committed:
                turn.transcribed = after.transcription is not None
        if after.manual and not before.manual:
            self._take_over()
        elif before.manual and not after.manual:
            self._turns = [each for each in self._turns if not each.manual or each.until]
        options = self._options()
        renewed = self._opened is not None and self._opened != options
        if renewed or (after.encoding, after.rate) != (before.encoding, before.rate):
            commands += self._flush()
            self._decoder = Decoder(after.encoding)
        commands.append(self._say(kind, session=self._session(flat=flat)))
        if renewed or after.transcription is not None:
            commands += self._opening()
        return commands

    def _hear(self, samples: Samples) -> list[Command]:
        if self._configuration.manual and not any(
            turn.manual and turn.until is None for turn in self._turns
        ):
            self._begin_turn(self._claimed, manual=True)
        self._heard += len(samples)
        return [*self._opening(), Hear(samples)]

    def _commit(self, event_id: str | None = None) -> list[Command]:
        commands = self._flush()
        size = self._heard - self._claimed
        if size < SHORTEST:
            fault = Fault(
                "Error committing input audio buffer: buffer too small. Expected at least 100ms of audio,"
                f" but buffer only has {size * 1000 / RATE:.2f}ms of audio.",
                code="input_audio_buffer_commit_empty",
            )
            return [*commands, self._error(fault, event_id)]
        turn = self._open_turn() or self._begin_turn(self._claimed)
        turn.until = turn.end = self._claimed = self._heard
        return [*commands, *self._opening(), *self._committed(turn), Commit(turn.item)]

    def _make_sure_of_room(self) -> None:
        """Raises Fault where as many turns wait as may."""
        waiting = sum(turn.until is not None for turn in self._turns)
        if waiting >= TURNS:
            raise Fault(
                f"{waiting} turns wait for their transcription, the most that may;"
                " wait until one is completed, then send this again",
                code="too_many_turns",
            )

    def _clear(self) -> list[Command]:
        commands = self._flush()
        if self._heard > self._claimed:
            turn = self._open_turn() or self._begin_turn(self._claimed)
            turn.until = self._claimed = self._heard
            turn.discarded = True
            commands.append(Commit(turn.item))
        return [*commands, self._say("input_audio_buffer.cleared")]

    def _close(self) -> list[Command]:
        commands: list[Command] = []
        if self._configuration.manual and self._heard - self._claimed >= SHORTEST:
            commands = self._commit()
        commands += self._flush()
        self._closing = True
        return [*commands, End()]

    def _flush(self) -> list[Command]:
        """What the resampler still holds belongs to the audio before this moment."""
        tail = self._resampler.flush()
        self._resampler = Resampler(self._configuration.rate)
        self._heard += len(tail)
        return [Hear(tail)] if len(tail) else []

    def _opening(self) -> list[Command]:
        options = self._options()
        if options == self._opened:
            return []
        self._opened = options
        return [Open(options)]

    def _options(self) -> Options:
        options = self._configuration.options(
            partials=self._early and not self._configuration.whole
        )
        if options.language is None and not options.languages:
            options = replace(options, language=self._language)
        return options

    # Turns.

    def _begin_turn(self, start: int, *, manual: bool = False) -> _Turn:
        transcribed = self._configuration.transcription is not None
        turn = _Turn(self._name("item"), start, transcribed, manual)
        self._turns.append(turn)
        return turn

    def _open_turn(self) -> _Turn | None:
        """The turn that a commit or a clear now would end."""
        last = self._turns[-1] if self._turns else None
        return last if last is not None and last.until is None and not last.committed else None

    def _take_over(self) -> None:
        """From now on the client commits: what the server had begun becomes the client's."""
        turn = self._open_turn()
        if turn is not None:
            turn.manual = True
        elif self._heard > self._claimed:
            self._begin_turn(self._claimed, manual=True)

    def _turn_at(self, at: int) -> _Turn | None:
        """The turn that speech from sample `at` on belongs to, if a client's commit made one or will."""
        for turn in self._turns:
            if turn.until is None:
                if turn.manual:
                    return turn
            elif at < turn.until:
                return turn
        return None

    # The server's half.

    def encode(self, event: Event, base: int) -> list[Command]:
        """See `Dialect.encode`."""
        match event:
            case SpeechStarted(number, at):
                return self._started(number, base + at)
            case Partial():
                turn = self._by_utterance[event.utterance]
                self._note(turn, event.utterance, event.committed, event.words)
                return self._flow(turn) if self._early else []
            case SpeechStopped(number, at, split):
                return self._stopped(self._by_utterance[number], base + at, split=split)
            case Final():
                turn = self._by_utterance.pop(event.utterance)
                turn.language = event.language or turn.language
                self._note(turn, event.utterance, event.text, event.words, final=True)
                said = self._flow(turn)
                if turn.until is None and not turn.manual:
                    turn.end = base + event.end
                    said += self._complete(turn)
                return said
            case Failed(number, error):
                turn = self._by_utterance.pop(number)
                turn.error = error
                self._note(turn, number, "", (), final=True)
                return self._complete(turn) if turn.until is None and not turn.manual else []
            case Marker(marker, _):
                return [
                    command
                    for turn in self._turns
                    if turn.item == marker
                    for command in self._complete(turn)
                ]
            case Eager() | SpeechResumed():
                return []

    def _started(self, number: int, at: int) -> list[Command]:
        turn = self._turn_at(at)
        said: list[Command] = []
        if turn is None:
            turn = self._begin_turn(at)
            said.append(
                self._say(
                    "input_audio_buffer.speech_started",
                    audio_start_ms=at * 1000 // RATE,
                    item_id=turn.item,
                )
            )
        self._by_utterance[number] = turn
        turn.utterances.append(_Utterance(number))
        return said

    def _stopped(self, turn: _Turn, at: int, *, split: bool) -> list[Command]:
        if turn.manual or turn.until is not None:
            return []
        # The silence that ended the turn belongs to it; one that was cut for its length ends where the next begins.
        silence = 0 if split else (self._opened or Options()).endpointing_ms * RATE // 1000
        end = min(at + silence, turn.start + SPLIT_AT, self._heard)
        self._claimed = max(self._claimed, end)
        stopped = self._say(
            "input_audio_buffer.speech_stopped",
            audio_end_ms=end * 1000 // RATE,
            item_id=turn.item,
        )
        return [stopped, *self._committed(turn)]

    def _committed(self, turn: _Turn) -> list[Command]:
        turn.committed = True
        item = {
            "id": turn.item,
            "object": "realtime.item",
            "type": "message",
            "status": "completed",
            "role": "user",
            "content": [{"type": "input_audio", "transcript": None}],
        }
        self._items[turn.item] = item
        if len(self._items) > ITEMS:
            self._items.popitem(last=False)
        before, self._previous = self._previous, turn.item
        kinds = ("created",) if self._beta else ("added", "done")
        return [
            self._say("input_audio_buffer.committed", item_id=turn.item, previous_item_id=before),
            *(
                self._say(f"conversation.item.{kind}", previous_item_id=before, item=item)
                for kind in kinds
            ),
        ]

    def _note(
        self, turn: _Turn, number: int, text: str, words: Sequence[Word], *, final: bool = False
    ) -> None:
        for utterance in turn.utterances:
            if utterance.number == number and not utterance.final:
                utterance.text, utterance.words = text.rstrip(), words
                utterance.final = final
                return

    def _flow(self, turn: _Turn) -> list[Command]:
        """Deltas for what is committed and not told yet. An utterance waits for the final of the one before it."""
        said: list[Command] = []
        if not (turn.transcribed or turn.committed):
            return said
        while turn.utterances:
            utterance = turn.utterances[0]
            news = utterance.text[len(turn.pending) :]
            tokens = self._tokens(turn, utterance)
            turn.pending += news
            if not turn.told:
                news = news.lstrip()
            if news and turn.transcribed and not turn.discarded:
                turn.told += news
                if self._early:
                    said.append(self._delta(turn, news, tokens))
            if not utterance.final:
                break
            turn.utterances.popleft()
            turn.pending, turn.counted = "", 0
        return said

    def _tokens(self, turn: _Turn, utterance: _Utterance) -> list[dict[str, Any]]:
        """Words that became part of the transcript, each with the logarithm of its probability."""
        length = sum(len(word.text) for word in utterance.words[: turn.counted])
        found: list[dict[str, Any]] = []
        for word in utterance.words[turn.counted :]:
            length += len(word.text)
            if length > len(utterance.text):
                break
            turn.counted += 1
            text = word.text if turn.tokens else word.text.lstrip()
            token = {
                "token": text,
                "bytes": list(text.encode()),
                "logprob": round(math.log(min(max(word.probability, 1e-9), 1.0)), 6),
            }
            turn.tokens.append(token)
            found.append(token)
        return found

    def _delta(self, turn: _Turn, text: str, tokens: list[dict[str, Any]]) -> Say:
        fields: dict[str, Any] = {"item_id": turn.item, "content_index": 0, "delta": text}
        if tokens and self._configuration.logprobs:
            fields["logprobs"] = tokens
        return self._say(f"{_TRANSCRIPTION}.delta", **fields)

    def _complete(self, turn: _Turn) -> list[Command]:
        self._turns = [each for each in self._turns if each is not turn]
        if turn.discarded or not turn.transcribed:
            return []
        if turn.error is not None:
            return [
                self._say(
                    f"{_TRANSCRIPTION}.failed",
                    item_id=turn.item,
                    content_index=0,
                    error=self._described(turn.error),
                )
            ]
        said: list[Command] = []
        if turn.told and not self._early:
            said.append(self._delta(turn, turn.told, turn.tokens))
        fields: dict[str, Any] = {
            "item_id": turn.item,
            "content_index": 0,
            "transcript": turn.told,
            "usage": {
                "type": "duration",
                "seconds": round(max(0, turn.end - turn.start) / RATE, 3),
            },
        }
        if turn.language is not None and self._options().language is None:
            fields["languages"] = [{"code": turn.language}]
        if turn.tokens and self._configuration.logprobs:
            fields["logprobs"] = turn.tokens
        if turn.item in self._items:
            self._items[turn.item]["content"][0]["transcript"] = turn.told
        return [*said, self._say(f"{_TRANSCRIPTION}.completed", **fields)]

    def receive_nothing(self) -> list[Command]:
        """The client has left without a word, or as good as: what was heard becomes text first."""
        fault = Fault(f"Nothing came for {self._idle or 0:g} seconds.", code="idle_timeout")
        return self._expire(fault)

    def receive_limit(self) -> list[Command]:
        """The session is too old: what was heard becomes text first."""
        minutes = (self.limit or 0) / 60
        fault = Fault(
            f"Your session hit the maximum duration of {minutes:g} minutes.",
            code="session_expired",
        )
        return self._expire(fault)

    def _expire(self, why: Fault) -> list[Command]:
        if self._closing:
            return []
        self._why = why
        return self._close()

    def receive_stop(self) -> list[Command]:
        """What was heard becomes text; the close code has OpenAI's clients connect again."""
        if self._closing:
            return []
        self._code = 1012
        return self._close()

    def receive_end(self) -> list[Command]:
        """Everything is said."""
        if self._why is None:
            return [Close(self._code)]
        return [self._error(self._why), Close(1001, f"invalid_request_error.{self._why.code}")]

    def fail(self, error: OpenSpeechError | None) -> list[Command]:
        """The session ends; the close code says whether coming again may help."""
        if error is None:
            error = OpenSpeechError("the server failed; its log says why")
        said = self._described(error)
        status, _ = classify(error)
        code = 4000 if status < 500 else 1011
        if isinstance(error, Overloaded | ModelResting):
            code = closing(error)
        reason = f"{said['type']}.{said['code']}" if said["code"] else said["type"]
        return [self._say("error", error={**said, "event_id": None}), Close(code, reason)]

    def _session(self, *, flat: bool) -> dict[str, Any]:
        shown = self._configuration.shown_flat() if flat else self._configuration.shown()
        return {
            **({} if flat else {"type": "transcription"}),
            "object": "realtime.transcription_session",
            "id": self.id,
            "expires_at": self._expires,
            **shown,
        }

    def _error(self, fault: OpenSpeechError, event_id: str | None = None) -> Say:
        return self._say("error", error={**self._described(fault), "event_id": event_id})

    def _described(self, fault: OpenSpeechError) -> dict[str, Any]:
        status, code = classify(fault)
        described: dict[str, Any] = {
            "type": "server_error" if status >= 500 else "invalid_request_error",
            "code": fault.code if isinstance(fault, Fault) else code,
            "message": fault.message,
            "param": _param(fault),
        }
        if isinstance(fault, Overloaded | ModelResting):
            described["retry_after"] = fault.retry_after
        if isinstance(fault, RateLimited):
            described["type"] = fault.kind
        return described

    def _say(self, kind: str, **fields: Any) -> Say:
        return Say(said(kind, self._name("event"), **fields))


def said(kind: str, event_id: str, **fields: Any) -> str:
    """An event of the server as text."""
    return msgspec.json.encode({"type": kind, "event_id": event_id, **fields}).decode()


def _param(fault: OpenSpeechError) -> str | None:
    """The engine names a field as REST does; here it lies within the session."""
    if isinstance(fault, Fault) or fault.param not in ("model", "language"):
        return fault.param
    return f"session.audio.input.transcription.{fault.param}"


def _event_id(body: Any) -> str | None:
    found = body.get("event_id") if isinstance(body, dict) else None
    return found if isinstance(found, str) else None


def _no_item(body: dict[str, Any]) -> Fault:
    return Fault(
        f"there is no item {str(body.get('item_id'))[:60]!r}; the last {ITEMS} committed ones are kept",
        code="item_not_found",
        param="item_id",
    )
