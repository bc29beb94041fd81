"""One stream over as many connections as it takes, without I/O: nothing here waits, knows the time or opens a socket.

The caller moves what `messages` gives to the connection, what the connection says to `receive_message` and
`receive_close`, and hands out `events`. Positions are bytes from the start of the stream.

What a server counts as `received` is safe from a broken connection only where sessions can be resumed; where a
session is lost with its server, the stream goes on in a new one from the end of the last final. So audio is kept until
its final is here, or until it is known to be silence.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from open_speech_client.errors import (
    ConnectionLost,
    OpenSpeechError,
    Overloaded,
    ProtocolError,
    Refused,
    ServerFailed,
    StreamClosed,
)
from open_speech_client.events import (
    Ack,
    End,
    Error,
    Event,
    Final,
    Marker,
    Partial,
    Ready,
    Reconnecting,
    Said,
    SpeechStarted,
    decode,
)
from open_speech_client.options import WIDTH, Options, cleaned

MESSAGE = 64 * 1024
"""Bytes of audio in one message at most: two seconds at 16 kHz, so that a keep-alive never waits behind much."""
KEPT = 120.0
"""Seconds of audio that are kept for a new session at most, however late finals are."""
MARGIN = 5.0
"""Seconds of supposed silence that are kept: speech may have begun in them without a word from the server yet."""

UNRESUMABLE = ("unknown_session", "events_gone")
"""Answers to a resume that say: begin a new session."""


class State(Enum):
    """Where the stream stands."""

    APART = "no connection; one is wanted"
    OPENING = "the opening message is out; audio waits for `ready`"
    OPEN = "audio may flow"
    DONE = "everything sent is in finals"
    FAILED = "`error` says why nothing more comes"


@dataclass(frozen=True, slots=True)
class _Audio:
    start: int
    data: bytes

    @property
    def end(self) -> int:
        return self.start + len(self.data)


@dataclass(frozen=True, slots=True)
class _Commit:
    start: int
    marker: str | None

    @property
    def end(self) -> int:
        return self.start


class Conversation:
    """The client's side of a stream. Every method returns at once."""

    def __init__(self, options: Options | None = None) -> None:
        self._options = cleaned(options or {})
        self.state = State.APART
        self.error: OpenSpeechError | None = None
        """Why the stream failed, or why the last connection broke."""
        self.session: Ready | None = None
        """The newest `ready`."""
        self.received = 0
        """Bytes that the server holds."""
        self.settled = 0
        """Bytes before which everything is in finals that are here."""
        self.progress = 0
        """The most bytes that any server held: it grows while connections are of use."""
        self._total = 0
        self._ended = False  # the user said so
        self._end_sent = False  # on this connection
        self._waiting: deque[_Audio | _Commit] = deque()  # see `waiting`
        self._kept: deque[_Audio | _Commit] = deque()  # sent; bounded by KEPT
        self._markers: set[str] = set()  # of commits that are not answered
        self._spoken: list[str] = []  # JSON for the connection: opening messages
        self._events: list[Event] = []
        self._seq = -1  # of the last message of this session
        self._base = 0  # position of this session's first byte
        self._first = 0  # number of this session's first utterance
        self._next = 0  # number of the first utterance that has no final
        self._begun = 0  # utterances that began have numbers below this
        self._fault: Error | None = None  # the last one, for the close that may follow
        self._language: str | None = None  # what the stream has settled on
        self._cut: Final | None = None  # of an utterance that the next session hears again
        self._rate = 0  # bytes a second; 0: not known

    @property
    def waiting(self) -> int:
        """Bytes of audio that no connection took yet. The caller bounds it by making the user wait."""
        return self._total - (self._waiting[0].start if self._waiting else self._total)

    @property
    def resumable(self) -> bool:
        """A broken connection can be taken up again: by the session's name, or in a new session."""
        if self.session is None:
            return False
        return self.session.resumable_seconds > 0 or self._rate > 0

    def send(self, audio: bytes) -> None:
        """Append audio, in the stream's encoding, cut anywhere; an Opus packet is one call. Raises StreamClosed."""
        self._check("audio")
        if self._options.get("encoding") == "opus":
            pieces: Iterable[bytes] = [audio] if audio else []
        else:
            pieces = (audio[at : at + MESSAGE] for at in range(0, len(audio), MESSAGE))
        for piece in pieces:
            self._waiting.append(_Audio(self._total, piece))
            self._total += len(piece)

    def commit(self, marker: str | None = None) -> None:
        """End the utterance here. A Marker follows its final. Raises StreamClosed."""
        self._check("a commit")
        if marker is not None:
            self._markers.add(marker)
        self._waiting.append(_Commit(self._total, marker))

    def end(self) -> None:
        """No more audio. Calling it again changes nothing."""
        self._ended = True

    def receive_open(self) -> None:
        """A connection stands."""
        if self.state is not State.APART:
            raise StreamClosed(f"a connection was opened where {self.state.value}")
        self.state = State.OPENING
        self._end_sent = False
        self._fault = None
        if self.session is not None and self.session.resumable_seconds > 0:
            opening = {
                "type": "resume",
                "session": self.session.session,
                "last_event": self._seq,
            }
        else:
            opening = {"type": "start", **self._options}
            if self.session is not None:
                self._begin_again()
                offset = self._options.get("offset", 0.0) + self._base / self._rate
                opening["offset"] = round(offset, 6)
                if self._language is not None and not self._options.get("language"):
                    opening["language"] = self._language
            self._seq = -1
        self._spoken = [json.dumps(opening, ensure_ascii=False)]

    def receive_message(self, text: str | bytes) -> None:
        """A message of the server. One that makes no sense fails the stream."""
        if self.state not in (State.OPENING, State.OPEN):
            return  # nothing follows the end
        try:
            message = json.loads(text)
            if not isinstance(message, dict):
                raise ProtocolError("the server sent JSON that is no object")
            event = decode(message)
            if event is not None:
                self._take(event)
        except ProtocolError as error:
            self._fail(error)
        except (ValueError, TypeError, RecursionError):
            self._fail(ProtocolError("the server sent a message that is not understood"))

    def receive_close(self, code: int | None, reason: str = "") -> None:
        """The connection is gone; `code` is None where no close frame came."""
        if self.state in (State.DONE, State.FAILED, State.APART):
            return
        opening, fault = self.state is State.OPENING, self._fault
        self.state = State.APART
        said = fault.message if fault is not None else reason
        name = fault.code if fault is not None else None
        if code == 1012 or (opening and name in UNRESUMABLE):
            self._forget_session()
        if opening and name in UNRESUMABLE:
            self._break(ConnectionLost("the server no longer knows the session"))
        elif name == "session_limit" and self._rate:
            self._forget_session()
            self._break(ConnectionLost(said))
        elif code == 1013 or name in ("overloaded", "stopping"):
            error = Overloaded(
                said or "the server takes no more streams now",
                retry_after=fault.retry_after if fault is not None else None,
            )
            self._break(error)
        elif code == 1011:
            self._fail(ServerFailed(said or "the server failed; its log says why", code=name))
        elif code in (None, 1001, 1005, 1006, 1012) or code == 1000:
            what = {1012: "the server restarts", 1001: "the server goes away"}.get(
                code or 0, "the connection broke"
            )
            self._break(ConnectionLost(f"{what}: {said}" if said else what))
        else:
            self._fail(
                Refused(
                    said or f"the server closed the connection with code {code}",
                    code=name,
                    param=fault.param if fault is not None else None,
                )
            )

    def keep_alive(self) -> None:
        """Nothing was sent for a while; the server shall not think that nobody is there."""
        if self.state is State.OPEN and not self._spoken:
            self._spoken.append('{"type": "keepalive"}')

    def give_up(self, error: OpenSpeechError) -> None:
        """No connection can be had."""
        self._fail(error)

    def messages(self) -> list[str | bytes]:
        """What the connection shall carry now: JSON as text, audio as bytes."""
        out: list[str | bytes] = list(self._spoken)
        self._spoken = []
        if self.state is not State.OPEN:
            return out
        while self._waiting:
            piece = self._waiting.popleft()
            self._kept.append(piece)
            if isinstance(piece, _Audio):
                out.append(piece.data)
            elif piece.marker is None:
                out.append('{"type": "commit"}')
            else:
                message = {"type": "commit", "marker": piece.marker}
                out.append(json.dumps(message, ensure_ascii=False))
        if self._ended and not self._end_sent:
            self._end_sent = True
            out.append('{"type": "end"}')
        return out

    def events(self) -> list[Event]:
        """What happened since the last call, in order."""
        taken, self._events = self._events, []
        return taken

    def _check(self, what: str) -> None:
        if self._ended:
            raise StreamClosed(f"{what} came after end; open a new stream for it")
        if self.state is State.FAILED:
            assert self.error is not None
            raise self.error

    def _take(self, event: Said) -> None:
        if isinstance(event, Ready):
            self._take_ready(event)
            return
        if isinstance(event, Error):
            self._fault = event
        elif self.state is not State.OPEN:
            raise ProtocolError("the server spoke before ready")
        if event.seq <= self._seq:
            return  # it came before the connection broke
        self._seq = event.seq
        if isinstance(event, Partial | Final | Ack | End):
            event = replace(event, received=event.received + self._base)
            self.received = max(self.received, event.received)
            self.progress = max(self.progress, self.received)
        if isinstance(event, Marker):
            if event.marker is not None and event.marker not in self._markers:
                return  # it was answered before the connection broke
            self._markers.discard(event.marker or "")
            self._settle(self._position(event.at))
        elif isinstance(event, End):
            if event.reason != "client":
                self._drain()
                return
            self.state = State.DONE
            self._waiting.clear()
            self._kept.clear()
        elif not isinstance(event, Ack) and event.utterance is not None:
            event = replace(event, utterance=event.utterance + self._first)
            number = event.utterance
            assert number is not None
            if isinstance(event, Final) and event.cut and self._rate:
                self._cut = event  # left out, unless nothing comes after it
                return
            if isinstance(event, SpeechStarted):
                self._begun = max(self._begun, number + 1)
            elif isinstance(event, Final | Error):
                self._next = max(self._next, number + 1)
                if isinstance(event, Final):
                    self._language = event.stream_language or self._language
                    self._settle(self._position(event.end))
        if isinstance(event, Partial | Ack):
            self._forget(event.lag)
        self._events.append(event)

    def _take_ready(self, ready: Ready) -> None:
        resumed = self.session is not None and ready.session == self.session.session
        start = self._base + ready.received
        if (
            self.state is not State.OPENING
            or not (ready.received == 0 or resumed)
            or start > self._total
        ):
            raise ProtocolError("the server sent a ready that does not fit")
        self.session = ready
        self.state = State.OPEN
        if not resumed:
            self._seq = ready.seq
            self._cut = None
        width = WIDTH.get(self._options.get("encoding", "pcm_s16le"), 0)
        self._rate = width * self._options.get("channels", 1) * (ready.sample_rate or 0)
        self.received = start
        self._rewind(start)
        self._events.append(replace(ready, received=start, resumed=resumed))

    def _drain(self) -> None:
        """The server ended the session by itself; the stream goes on in another one, unless it was at its end."""
        if self._ended and not self._markers and self.received >= self._total:
            self._keep_cut()
            self.state = State.DONE
            self._waiting.clear()
            self._kept.clear()
            self._events.append(End(self._seq, self.received, "client"))

    def _keep_cut(self) -> None:
        """No session will hear it again."""
        if self._cut is not None:
            self._next = max(self._next, self._cut.utterance + 1)
            self._events.append(self._cut)
            self._cut = None

    def _begin_again(self) -> None:
        """The next session starts where the finals end."""
        kept = self._kept[0].start if self._kept else self._total - self.waiting
        frame = self._frame
        start = -(-max(self.settled, kept) // frame) * frame
        self._base = self.settled = min(start, self._total - self._total % frame)
        self._first = self._begun = self._next

    @property
    def _frame(self) -> int:
        width = WIDTH.get(self._options.get("encoding", "pcm_s16le"), 1)
        return int(width * self._options.get("channels", 1))

    def _position(self, at: float) -> int:
        """The byte at `at` seconds, as this client's clock has them; on a whole sample."""
        if not self._rate:
            return self.settled
        offset: float = self._options.get("offset", 0.0)
        sample = round((at - offset) * self._rate / self._frame)
        return min(sample * self._frame, self.received)

    def _settle(self, position: int) -> None:
        self.settled = max(self.settled, min(position, self.received))
        self._forget(None)

    def _forget(self, lag: float | None) -> None:
        """Let go of what no session will need again."""
        assert self.session is not None
        # Without a rate nothing could be sent to another session anyway.
        limit = self.received - int(KEPT * self._rate) if self._rate else self.received
        floor = max(self.settled, limit)
        if lag is not None and self._next >= self._begun:
            floor = max(floor, self.received - int((lag + MARGIN) * self._rate))
        while self._kept and self._kept[0].end <= floor:
            piece = self._kept[0]
            if isinstance(piece, _Commit) and piece.marker in self._markers and piece.end > limit:
                break
            self._kept.popleft()

    def _rewind(self, position: int) -> None:
        """What lies at `position` and after it is to be sent again."""
        # A commit at `position` may have arrived or not; a second one there ends nothing that the first did not end.
        while self._kept and (
            self._kept[-1].end > position
            or (isinstance(self._kept[-1], _Commit) and self._kept[-1].end == position)
        ):
            self._waiting.appendleft(self._kept.pop())
        if self._waiting and isinstance(piece := self._waiting[0], _Audio):
            cut = position - piece.start
            if cut > 0:
                self._waiting[0] = replace(piece, start=position, data=piece.data[cut:])
                self._kept.append(replace(piece, data=piece.data[:cut]))

    def _forget_session(self) -> None:
        """The server that knew the session is gone."""
        if self.session is not None:
            self.session = replace(self.session, resumable_seconds=0.0)

    def _break(self, error: OpenSpeechError) -> None:
        """The connection is gone; another may go on where this one cannot."""
        self.error = error
        if not self.resumable:
            self._fail(error)
        else:
            self._events.append(Reconnecting(self._seq, error.message))

    def _fail(self, error: OpenSpeechError) -> None:
        self._keep_cut()
        self.error = error
        self.state = State.FAILED
        self._waiting.clear()
        self._kept.clear()


def refusal(status: int, body: bytes, retry_after: str | None) -> OpenSpeechError:
    """What a handshake answered with an HTTP status means."""
    said: Any = None
    with suppress(ValueError, KeyError, TypeError):
        said = json.loads(body)["error"]["message"]
    if status in (429, 503):
        wait = float(retry_after) if retry_after and retry_after.isdecimal() else None
        return Overloaded(said or "the server takes no more streams now", retry_after=wait)
    if status >= 500:
        return ServerFailed(said or f"the server answers with status {status}")
    if status == 401:
        return Refused(said or "a valid API key is needed", code="invalid_api_key")
    if status in (403, 404):  # the server refuses sockets on paths that it does not know with 403
        return Refused(said or "there is no transcription stream at this address; check the URL")
    return Refused(said or f"the server answers with status {status}")
