"""Sessions of the native WebSocket apart from their connections: what a client may come back to, and who may."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from server import logs
from server.context import Context
from server.errors import RateLimited, Refused, classify, closing
from server.gate import Meter
from server.journal import ALL_BYTES, Journal, Unread
from server.limits import Caller
from server.protocols import native
from server.protocols.native import Audio, Commit, End, ProtocolError
from streaming.audio.live import Source
from streaming.backlog import Common
from streaming.engine import Stream
from streaming.errors import AudioError, InputError, ModelResting, OpenSpeechError, Overloaded
from streaming.events import Marker
from streaming.types import Samples

log = logging.getLogger(__name__)

ACK = 1.0
"""Seconds between acknowledgements while audio comes."""
NOTICED = 60.0
"""Seconds in which a dead connection is noticed at the latest: two pings go unanswered, or a message does not leave.
What left before that has arrived."""
APART = 128
"""Sessions without a connection that are kept; one more, and the one that waits longest goes."""
APART_BYTES = 64 * 2**20
"""Characters of messages that such sessions hold together; beyond, the same."""

Reason: TypeAlias = Literal["client", "restart", "idle", "limit", "error"]
"""Why a session ended, as `end` tells it."""

_MEDIA = ThreadPoolExecutor(32, thread_name_prefix="live media")
# Threads that wait for the processes in which containers are decoded: only for what one message completes, so that few
# serve many streams, and enough that some that hang hold nobody up.


@dataclass(frozen=True, slots=True)
class Part:
    """A command of ours: the session ends though the client did not say so."""

    reason: Reason
    code: int
    told: dict[str, Any] | None = None


class Connection(Protocol):
    """What a session knows of the socket that serves it."""

    async def replace(self) -> None:
        """Another connection takes over: say nothing more of the session. Returns when that holds."""
        ...


class Session:
    """One stream of a client, over as many connections as it takes.

    What a connection wants done and may have to wait for is done by the session's own task, piece by piece, so that a
    connection may vanish at any moment and the count of bytes is right. It is over when its last message has arrived,
    when its client leaves, or when nobody resumes it in time; then nothing of it is left.
    """

    def __init__(
        self,
        register: Sessions,
        stream: Stream,
        source: Source,
        opening: native.Opening,
        reader: native.Reader,
        owner: bytes,
        meter: Meter,
    ) -> None:
        here = register.here
        self.id = "s_" + secrets.token_urlsafe(24)
        self.name = self.id[:10]
        """For the log: who knows the whole id may resume."""
        self.owner = owner
        self.reader = reader
        self._patience = here.settings.resume_seconds
        self.journal = Journal(
            self._patience + NOTICED if self._patience > 0 else 0.0, common=register.journals
        )
        self.until = time.monotonic() + here.settings.max_stream_seconds
        self.stop_at: float | None = None
        """Until when audio is still taken, once the server stops."""
        self.reason: Reason = "client"
        self.code = 1000
        self.why = ""
        """The code of the error that ended it, for the close frame."""
        self.ended = False
        """No more audio is taken."""
        self.gone = False
        """It is over."""
        self.received = 0
        """Bytes held for good."""
        self._register = register
        self._here = here
        self._stream = stream
        self._source = source
        self.meter = meter
        self._writer = native.Writer(self.id, opening)
        self._connection: Connection | None = None
        self._handover = asyncio.Lock()  # one connection at a time becomes the newest
        # One command at a time, since who puts one waits until it is done.
        self._inbox: asyncio.Queue[tuple[native.Command | Part, Connection]] = asyncio.Queue(1)
        self._released = False
        self._commits = 0  # that wait for their marker; bounded by native.COMMITS
        self._told = 0  # of `received`, by an ack
        self._told_at = 0.0
        self._ack_timer: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._apart_since = 0.0
        self._started = time.monotonic()
        self._counted = ExitStack()
        self._ending = self._counted.enter_context(here.metrics.session("native"))
        self._task: asyncio.Task[None] | None = None
        self._carrying: asyncio.Task[None] | None = None

    @property
    def model(self) -> str:
        """Id of the model in use."""
        return self._stream.model

    def begin(self, connection: Connection) -> None:
        """Live, with its first connection."""
        self._connection = connection
        self.journal.put(self._ready())
        self._task = asyncio.create_task(self._live(), name=f"session {self.name}")
        log.info("stream %s opened, model %s", self.name, self.model)

    async def resume(self, connection: Connection, last_event: int) -> dict[str, Any]:
        """Give the session to `connection`, whoever has it. Answers `ready`; the journal then gives what was missed.

        Raises ProtocolError where that cannot be; whoever has the session then keeps it.
        """
        async with self._handover:
            if self.gone:
                raise unknown()
            self._check(last_event)  # here, since whoever came before has let go of what it has
            apart = self._expiry is not None
            if self._expiry is not None:
                self._expiry.cancel()
                self._expiry = None
                self._register.attached(self)  # from now on nobody takes its place
            before, self._connection = self._connection, connection
            try:
                if before is not None:
                    await before.replace()
                await self._inbox.join()  # a piece that is under way is finished, and counts
                if self.gone:
                    raise unknown()
                self.reader.receive_resumed()
                self.journal.rewind(last_event)
            except BaseException:
                self.detach(connection, over=False)
                raise
            if apart:
                log.info(
                    "stream %s resumed after %.1f s",
                    self.name,
                    time.monotonic() - self._apart_since,
                )
            else:
                log.info("stream %s was taken over by a new connection", self.name)
            return self._ready()

    async def do(self, command: native.Command | Part, connection: Connection) -> None:
        """Have something done for `connection`. Returns when it is done, or never will be: another took over, or the
        session is over."""
        if self.gone:
            return
        if isinstance(command, Audio) and self._prompt(command.data):
            await self._attempt(command, connection)  # which waits for nothing before it is done
            return
        await self._inbox.put((command, connection))
        await self._inbox.join()

    def tell(self, message: dict[str, Any]) -> None:
        """Say something that does not come from the engine."""
        try:
            self.journal.put(message)
        except Unread as fault:
            self._fail(*explained(fault))

    def lose(self, connection: Connection) -> None:
        """`connection` broke, and `detach` follows once all that came over it was heard: it counts, so the client need
        not send it again. Does nothing if another took over."""
        if self._connection is connection and not self.gone:
            self._wait_for_client()

    def detach(self, connection: Connection, *, over: bool) -> None:
        """`connection` is done; `over` where the client has all it wants. Does nothing if another took over."""
        if self._connection is not connection or self.gone:
            return
        self._connection = None
        if over:
            self.close()
        elif self._expiry is None:
            self._wait_for_client()

    def _wait_for_client(self) -> None:
        if self._patience <= 0 or self._here.stopping.is_set():
            self.close()
            return
        self._apart_since = time.monotonic()
        loop = asyncio.get_running_loop()
        self._expiry = loop.call_later(self._patience, self._expire)
        log.info("stream %s lost its connection; kept for %g s", self.name, self._patience)
        self._register.apart(self)

    def close(self) -> None:
        """It is over; its task lets go of everything."""
        if self.gone:
            return
        self.gone = True
        self._connection = None  # which may still be reading, and knows us
        self._register.forget(self)
        for timer in (self._expiry, self._ack_timer):
            if timer is not None:
                timer.cancel()
        if self._task is not None:
            self._task.cancel()
        self.journal.forget()
        self._ending.code(self.code if self.journal.closed else 1006)
        self._here.metrics.of(self.model).unread.inc(self.journal.shed)
        self._counted.close()
        log.info(
            "stream %s closed with %d after %.1f s, %d bytes of audio, %d partials shed",
            self.name,
            self.code,
            time.monotonic() - self._started,
            self.received,
            self.journal.shed,
        )

    async def wait_closed(self) -> None:
        """Until nothing of it is left. Call it after `close`."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    def _expire(self) -> None:
        log.info("stream %s was not resumed within %g s", self.name, self._patience)
        self.code = 1006
        self.close()

    def _check(self, last_event: int) -> None:
        if last_event > self.journal.last:
            raise ProtocolError(
                f"last_event is {last_event}; the last message sent was {self.journal.last}",
                param="last_event",
            )
        if last_event < self.journal.first - 1:
            raise ProtocolError(
                f"messages before {self.journal.first} are no longer kept, and the last that arrived"
                f" was {last_event}; begin a new session with offset",
                code="events_gone",
                param="last_event",
            )

    def _ready(self) -> dict[str, Any]:
        return self._writer.ready(self.model, self.received, self._patience)

    # What the session's own tasks do.

    async def _live(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                self._carrying = tasks.create_task(self._carry())
                tasks.create_task(self._work())
        except Exception:  # of letting go; there is nothing left to tell the client
            log.exception("stream %s failed", self.name)
        finally:
            while not self._inbox.empty():  # nobody does it any more, and nobody shall wait for it
                self._inbox.get_nowait()
                self._inbox.task_done()
            await self._release()
            # Circles that would hold the stream's audio until the rare collection of old objects: a cancelled task
            # remembers the frame in which it was cancelled, and a TaskGroup this one.
            self._carrying = None
            del self

    async def _carry(self) -> None:
        """Events of the engine into the journal, and the end after the last."""
        try:
            async for event in self._stream:
                self._commits -= isinstance(event, Marker)
                parting = self.reason != "client"
                self.journal.put(
                    self._writer.event(event, self.received, self._stream.lag, parting=parting)
                )
            self.journal.close(self._writer.end(self.received, self.reason))
        except OpenSpeechError as fault:
            self._fail(*explained(fault))
        except Exception:
            log.exception("stream %s failed", self.name)
            self._fail(failed(), 1011)
        finally:
            self.ended = True
            await self._release()

    async def _work(self) -> None:
        """Do what connections want, one after another."""
        while True:
            command, connection = await self._inbox.get()
            try:
                await self._attempt(command, connection)
            finally:
                self._inbox.task_done()

    async def _attempt(self, command: native.Command | Part, connection: Connection) -> None:
        """Do it; a fault ends the session."""
        try:
            if not (self.ended or self._idle(connection)):
                await self._do(command, connection)
        except (InputError, Overloaded, RateLimited) as fault:
            # What came before the fault is good: the session says what is wrong, and then what it heard.
            told, self.code = explained(fault)
            self.reason, self.why, self.ended = "error", told["code"], True
            with suppress(Unread):
                self.journal.put(told)
            await self._stream.end()
        except OpenSpeechError as fault:
            self._fail(*explained(fault))
        except Exception:
            log.exception("stream %s failed", self.name)
            self._fail(failed(), 1011)

    def _prompt(self, data: bytes) -> bool:
        """A message of the usual kind: hearing it has to wait for nothing, so it needs no task that outlives the
        connection, and no two switches of tasks a message."""
        source = self._source
        short = source.piece is None or len(data) <= source.piece
        return short and not source.blocking and self.meter.ready and self._stream.ready

    def _idle(self, connection: Connection) -> bool:
        """Nothing is to be done for this connection."""
        return self._released or connection is not self._connection

    async def _do(self, command: native.Command | Part, connection: Connection) -> None:
        match command:
            case Audio(data):
                await self._hear(data, connection)
            case Commit(marker):
                if self._commits >= native.COMMITS:
                    self.tell(explained(crowded(self._commits, marker))[0])
                    return
                self._commits += 1
                await self._stream.commit(marker)
            case Part(reason, code, told):
                self.reason, self.code = reason, code
                self.why = told["code"] if told is not None else reason
                if told is not None:
                    self.journal.put(told)
                await self._finish()
            case End():
                await self._finish()
            case _:
                pass

    async def _hear(self, data: bytes, connection: Connection) -> None:
        """Audio, in pieces that hold the loop only briefly; each counts as received once the engine has it."""
        size = self._source.piece or len(data)
        for at in range(0, len(data), size):
            if self._idle(connection):
                return  # the client knows by `received` where to go on
            if self.stop_at is not None and time.monotonic() >= self.stop_at:
                return
            piece = data[at : at + size]
            await self._pour(self._source.decode(piece))
            self.received += len(piece)
            self._acknowledge()
            await asyncio.sleep(0)

    async def _pour(self, samples: Iterator[Samples]) -> None:
        """Into the engine, which lets us wait when it is behind."""
        loop = asyncio.get_running_loop()
        while not self._released:
            if self._source.blocking:
                found = await loop.run_in_executor(_MEDIA, next, samples, None)
            else:
                found = next(samples, None)
            if found is None:
                return
            if len(found):
                # Asked first: what is refused must be in no final, since the client sends it again. Counted last: what
                # the engine did not take was not heard.
                await self.meter.ask()
                await self._stream.send(found)
                self.meter.hear(len(found))

    async def _finish(self) -> None:
        """No more audio."""
        self.ended = True
        await self._pour(self._source.flush())
        await self._stream.end()

    def _fail(self, last: dict[str, Any], code: int) -> None:
        """The stream cannot go on."""
        self.code, self.why, self.ended = code, last["code"], True
        self.journal.close(last)
        if self._carrying is not None and asyncio.current_task() is not self._carrying:
            self._carrying.cancel()

    async def _release(self) -> None:
        """Let go of the engine's stream; the journal stays."""
        if self._released:
            return
        self._released = True
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        self._source.close()
        try:
            await self._stream.aclose()
        finally:
            await self.meter.close()

    def _acknowledge(self) -> None:
        """Once a second while audio comes, and once after it."""
        wait = self._told_at + ACK - time.monotonic()
        if wait <= 0:
            self._ack()
        elif self._ack_timer is None:
            self._ack_timer = asyncio.get_running_loop().call_later(wait, self._ack)

    def _ack(self) -> None:
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        if self._told < self.received:
            self._told, self._told_at = self.received, time.monotonic()
            with suppress(Unread):  # the next message that is put ends the session
                self.journal.put(self._writer.ack(self.received, self._stream.lag))


class Sessions:
    """All sessions of a server, by their ids."""

    def __init__(self, here: Context) -> None:
        self.here = here
        self._known: dict[
            str, Session
        ] = {}  # bounded by the streams that the engine takes, and APART
        self._apart: OrderedDict[str, Session] = OrderedDict()  # without a connection, oldest first
        self._closing: set[Session] = set()
        self.journals = Common(ALL_BYTES)
        """What the journals of all sessions hold."""

    def __len__(self) -> int:
        return len(self._known)

    def add(self, session: Session) -> None:
        """From now on it can be found."""
        self._known[session.id] = session

    def find(self, name: str, owner: bytes) -> Session:
        """The session that `owner` calls by `name`. Raises ProtocolError, the same for every reason."""
        session = self._known.get(name)
        if session is None or not hmac.compare_digest(session.owner, owner):
            raise unknown()
        return session

    def apart(self, session: Session) -> None:
        """It has no connection now."""
        self._apart[session.id] = session
        while len(self._apart) > 1 and (
            len(self._apart) > APART
            or sum(each.journal.size for each in self._apart.values()) > APART_BYTES
        ):
            oldest = next(iter(self._apart.values()))
            log.warning("too many streams wait to be resumed; %s goes", oldest.name)
            oldest.close()

    async def yield_one(self, caller: Caller | None = None) -> bool:
        """End the session that waits longest for its client, of `caller`'s if one is given. False if there is none."""
        for session in self._apart.values():
            if caller is None or session.meter.caller.id == caller.id:
                log.info("stream %s goes: its place is needed", session.name)
                session.close()
                await session.wait_closed()
                return True
        return False

    def attached(self, session: Session) -> None:
        """It has a connection again."""
        self._apart.pop(session.id, None)

    def forget(self, session: Session) -> None:
        """It is over."""
        self._known.pop(session.id, None)
        self._apart.pop(session.id, None)
        self._closing.add(session)
        if session._task is None:
            self._closing.discard(session)
        else:
            session._task.add_done_callback(lambda _: self._closing.discard(session))

    async def aclose(self) -> None:
        """End all: the server is about to be gone."""
        for session in list(self._known.values()):
            session.close()
        for session in list(self._closing):
            await session.wait_closed()


def owner(key: str | None) -> bytes:
    """What a session remembers of the key that opened it."""
    return hashlib.sha256((key or "").encode("utf-8", "surrogatepass")).digest()


def unknown() -> ProtocolError:
    """The one answer to every name that opens nothing: it tells nobody whether there is such a session."""
    return ProtocolError(
        "no session can be resumed by this name; begin a new one with offset",
        code="unknown_session",
    )


def crowded(waiting: int, marker: str | None) -> ProtocolError:
    """The answer to a commit where `waiting` of them are as many as may."""
    which = "this one" if marker is None else f"that of marker {marker[:60]!r}"
    return ProtocolError(
        f"{waiting} commits wait for their final, the most that may; {which} was not taken: wait for the next"
        " marker, then commit again",
        code="too_many_commits",
    )


def complaint(
    message: str, *, code: str, param: str | None = None, retry_after: float | None = None
) -> dict[str, Any]:
    """An `error` message with the id under which the log knows the request."""
    request = logs.request_id.get()
    return native.error(message, code=code, param=param, retry_after=retry_after, request=request)


def failed() -> dict[str, Any]:
    """A fault of ours."""
    return complaint("the server failed; its log says why", code="internal_error")


def explained(fault: OpenSpeechError) -> tuple[dict[str, Any], int]:
    """The message about a fault, and the close code if it ends the session."""
    match fault:
        case ProtocolError():
            told = complaint(fault.message, code=fault.code, param=fault.param)
            return told, 1009 if fault.code == "too_big" else 1008
        case Unread():
            return complaint(fault.message, code="slow_reader"), 1008
        case Overloaded() | ModelResting():
            code = classify(fault)[1] or "overloaded"
            told = complaint(fault.message, code=code, retry_after=fault.retry_after)
            return told, closing(fault)
        case Refused():
            code = classify(fault)[1] or "invalid_api_key"
            return complaint(fault.message, code=code), 1008
        case _:
            param = None if isinstance(fault, AudioError) else fault.param
            told = complaint(fault.message, code=classify(fault)[1] or "failed", param=param)
            return told, 1008 if isinstance(fault, InputError) else 1011
