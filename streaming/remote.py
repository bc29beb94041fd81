"""A recogniser in a process of its own, seen from the server: a backend like any other, but one that survives.

The process that dies or hangs is replaced, and what it had at work is decoded again: first as it was, then alone, so
that audio which kills the recogniser is told from audio that happened to be near. What made it hang is known, and not
tried again. A step recogniser's states die with the process; their sessions have the audio and begin anew.
"""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from streaming import errors
from streaming.backends.base import (
    Capabilities,
    Decoding,
    Hypothesis,
    Loader,
    StepResult,
    Window,
)
from streaming.channel import (
    Broken,
    Channel,
    Decode,
    Decoded,
    Done,
    DropState,
    Failure,
    FinishState,
    Garbled,
    Load,
    Loaded,
    Opened,
    OpenState,
    Ping,
    Request,
    Stepped,
    StepStates,
    Watch,
)
from streaming.errors import (
    BackendError,
    Hung,
    ModelGone,
    ModelResting,
    ModelUnavailable,
    OpenSpeechError,
)
from streaming.types import RATE, Device, Samples

log = logging.getLogger(__name__)

T = TypeVar("T", Decoded, Done, Opened, Stepped)

LOADING = 900.0
"""Seconds that loading may take: a large model from a slow disk, or a driver that translates kernels first."""
GLANCE = 0.2
"""Seconds between two looks at whether the model is still wanted while it loads."""
PULSE, SILENCE = 5.0, 20.0
"""Seconds of a decode after which its process is asked for a sign of life, and that it has to give one."""
ATTEMPTS = 3
"""Times that a window is given to the recogniser if its process dies: in company, then twice alone."""
SLACK, LEAST = 20.0, 20.0
"""A decode is taken for hung after so many times what its like took of late, and so many seconds at least."""
KNOWN = 3
"""Decodes of a kind after which what it takes is known."""
DEATHS = 5
"""In a row, without a decode between them, after which the model is given up for `REST` seconds."""
REST = 30.0
PAUSE = 0.125
"""Seconds before a restart, doubled with every death in a row."""
OURS = ("STT_", "OTEL_")
"""Beginnings of names of variables that tell the server something."""
SECRET = re.compile(
    r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|PASS|PWD|CREDENTIAL|AUTH|COOKIE|HEADER|DSN|PAT)S?(_|\d*$)",
    re.IGNORECASE,
)
"""Names of variables that hold secrets."""
CREDENTIALS = re.compile(r"://[^/\s]*@")
"""In a proxy's or database's address."""
LINE = 2**16
"""Bytes of what it prints that are taken for a line at most."""
GOODBYE = 5.0
"""Seconds in which a process may free what it holds; then it is killed."""
HELD = "does not end, though it was killed: a driver or a disk holds it"


class _Endless(Broken):
    """The process was ended since this call came to no end."""


class _Silent(Broken):
    """The process was ended since it gave no sign of life; by which of the calls at work is not known."""


@dataclass(slots=True, eq=False)
class _Life:
    """One process, from its start to its end."""

    process: subprocess.Popen[bytes]
    control: Channel
    idle: list[Channel]
    told: deque[str]
    """Its last lines."""
    listener: threading.Thread
    """Reads them."""
    pulse: threading.Lock = field(default_factory=threading.Lock)
    """One asks for a sign of life at a time."""
    hung: bool = False
    """It was ended because one call came to no end: the others at work are innocent."""
    held: bool = False
    """Not even SIGKILL ended it."""

    @property
    def last_words(self) -> str:
        """Why it died, as far as it can be known."""
        status = self._status()
        if status is None:
            return HELD
        self.listener.join(1)
        try:
            how = f"was ended by {signal.Signals(-status).name}" if status < 0 else ""
        except ValueError:
            how = f"was ended by signal {-status}"
        how = how or f"ended with status {status}"
        line = next((each for each in reversed(self.told) if each.strip()), "")
        return f"{how}: {line}" if line else how

    def end(self) -> None:
        """Ask it to go, and see that it does."""
        self.control.close()
        for each in self.idle:
            each.close()
        if self._status() is None:
            log.error("process %d %s, and with it its memory", self.process.pid, HELD)

    def _status(self) -> int | None:
        """How it ended; killed if it takes its time. None where even that does not end it: nobody waits for a driver
        that holds it."""
        for _ in range(0 if self.held else 2):
            with suppress(subprocess.TimeoutExpired):
                return self.process.wait(GOODBYE)
            self.process.kill()
        self.held = True
        return self.process.poll()


def load(
    loader: Loader,
    model: str,
    path: Path,
    device: Device,
    patience: float = 300.0,
    stop: threading.Event | None = None,
) -> RemoteBackend:
    """What `loader` loads, in a process of its own; on a GPU it has passed its self-test. Blocks, until `stop` is set.

    A decode that takes longer than `patience` seconds, or far longer than its like, is taken for hung. Raises
    ModelUnavailable.
    """
    request = Load(type(loader).__module__, model, str(path), device)
    life, loaded = _begin(request, stop or threading.Event())
    kind = RemoteSteps if loaded.steps else RemoteBackend
    return kind(loader, request, life, loaded, patience)


def _begin(request: Load, stop: threading.Event) -> tuple[_Life, Loaded]:
    """A process with the model in memory. Raises ModelUnavailable, and ModelGone once `stop` is set."""
    life = _born(request)
    until = time.monotonic() + LOADING

    def watch(ready: Callable[[float], bool]) -> None:
        while True:
            if stop.is_set():
                raise ModelGone(f"model {request.model} was unloaded while it was being loaded")
            if time.monotonic() > until:
                raise ModelUnavailable(
                    f"model {request.model} was not loaded after {LOADING:g} s; see the server's log"
                )
            if ready(GLANCE):
                return

    try:
        life.control.send(request, watch=watch)
        reply = life.control.reply(watch)
        if isinstance(reply, Failure):
            raise _error(reply)
    except (Broken, Garbled) as error:
        life.process.kill()
        why = life.last_words
        if isinstance(error, Garbled):
            why = f"cannot be understood: {error}"
        life.end()
        raise ModelUnavailable(
            f"model {request.model} cannot be loaded: its process {why}; see the server's log"
        ) from None
    except BaseException:
        life.process.kill()
        life.end()
        raise
    assert isinstance(reply, Loaded)
    return life, reply


def _born(request: Load) -> _Life:
    pairs: list[tuple[socket.socket, socket.socket]] = []
    try:
        for _ in range(1 + request.device.workers):
            pairs.append(socket.socketpair())
        numbers = [theirs.fileno() for _, theirs in pairs]
        process = subprocess.Popen(
            # -P: nothing of the folder that the server happens to run in.
            [sys.executable, "-P", "-m", "streaming.runner", *map(str, numbers)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=numbers,
            env=_environment(request.device),
            start_new_session=True,  # a Ctrl-C in the terminal is for the server alone
        )
    except OSError as error:
        for ours, _ in pairs:
            ours.close()
        raise ModelUnavailable(
            f"model {request.model} cannot be loaded: the system gives it no process"
            f" ({error.strerror}); free memory, or allow more processes and open files"
        ) from error
    finally:
        for _, theirs in pairs:
            theirs.close()
    told: deque[str] = deque(maxlen=20)
    listener = threading.Thread(
        target=_listen, args=(process, request.model, told), name="runner log", daemon=True
    )
    listener.start()
    control, *others = (Channel(ours) for ours, _ in pairs)
    return _Life(process, control, others, told, listener)


def _environment(device: Device) -> dict[str, str]:
    """What the process sees: keys and tokens are none of its business, as far as names and addresses tell them.

    Windows of every length through eight heaps a core, which is glibc's choice, leave holes in all of them: the process
    of a busy model grew by 20 MiB an hour (`tests/perf/soak.py`). A heap for each worker is enough, and no slower.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not (name.startswith(OURS) or SECRET.search(name) or CREDENTIALS.search(value))
    }
    path = os.pathsep.join(each for each in sys.path if each)
    ours = {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": str(max(2, device.workers))}
    return ours | kept | {"PYTHONPATH": path}


def _listen(process: subprocess.Popen[bytes], model: str, told: deque[str]) -> None:
    """What the process and its libraries print, into the log."""
    assert process.stdout is not None
    with process.stdout as lines:
        while line := lines.readline(LINE):
            text = line.decode("utf-8", "replace").rstrip()[:1000]
            told.append(text)
            level = logging.ERROR if text.startswith(("ERROR", "CRITICAL")) else logging.INFO
            log.log(level, "runner of %s: %s", model, text)


def _within(seconds: float) -> Watch:
    """Waits so long in all, then raises TimeoutError."""
    until = time.monotonic() + seconds

    def watch(ready: Callable[[float], bool]) -> None:
        if not ready(max(0.0, until - time.monotonic())):
            raise TimeoutError

    return watch


def _error(failure: Failure) -> OpenSpeechError:
    kind = getattr(errors, failure.kind, BackendError)
    if not (isinstance(kind, type) and issubclass(kind, OpenSpeechError)):
        kind = BackendError
    return kind(failure.message, param=failure.param) if failure.param else kind(failure.message)


class Patience:
    """How long decodes may take: by what their like took of late, where that is known."""

    def __init__(self, most: float) -> None:
        self.most = most
        """Seconds, whatever is known."""
        # By key: how many decodes there were, and the most that they took of late for a window and for a second of
        # audio. Whisper pads its windows; what steps through them takes as long as they are.
        self._of: dict[Hashable, tuple[int, float, float]] = {}

    def of(self, key: Hashable, windows: int, seconds: float) -> float:
        """Seconds for so many windows of `key` with `seconds` of audio in all."""
        count, window, second = self._of.get(key, (0, 0.0, 0.0))
        if count < KNOWN:
            return self.most
        return min(self.most, max(LEAST, SLACK * max(window * windows, second * seconds)))

    def learn(self, key: Hashable, windows: int, seconds: float, took: float) -> None:
        """They took so long."""
        if seconds < windows:
            return  # so short that it says nothing of others
        if len(self._of) > 256:
            self._of.clear()  # prompts of every length make keys
        count, window, second = self._of.get(key, (0, 0.0, 0.0))
        self._of[key] = (
            count + 1,
            max(0.9 * window, took / windows),
            max(0.9 * second, took / seconds),
        )


class RemoteBackend:
    """A WindowBackend. Threads may share it: at most `Device.workers` calls at once."""

    def __init__(
        self, loader: Loader, load: Load, life: _Life, loaded: Loaded, patience: float
    ) -> None:
        self._loader = loader
        self._patience = Patience(patience)
        self._load = load
        self._life: _Life | None = life
        self._stop = threading.Event()
        self._deaths = 0  # since the last answer
        self._resting = 0.0  # until when the model is given up
        self._excuse = ""
        self.restarts = 0
        """Processes that took the place of one that died."""
        self.restarted: Callable[[], None] = lambda: None
        """Called on every such occasion, from any thread."""
        self._birth = threading.Lock()
        self._turn = threading.Condition()
        self._calls = 0
        self._alone = False
        self._loners = 0  # that wait for their turn
        self.capabilities: Capabilities = loaded.capabilities
        self.compute_type: str = loaded.compute_type
        self.memory: int | None = loaded.memory
        self._mind(life)

    @property
    def pid(self) -> int | None:
        """Of the process now; None while there is none."""
        life = self._life
        return None if life is None else life.process.pid

    def key(self, window: Window) -> Hashable:
        """See `WindowBackend.key`."""
        return self._loader.key(window)

    def decode(self, windows: Sequence[Window]) -> list[Hypothesis]:
        """See `WindowBackend.decode`. Survives the death of the process."""
        question = Decode(
            [each.decoding for each in windows], [len(each.samples) for each in windows]
        )
        audio = [each.samples for each in windows]
        size, seconds = len(windows), sum(map(len, audio)) / RATE
        key = self.key(windows[0]) if windows else None
        attempt = spared = 0
        while attempt < ATTEMPTS:
            with self._turns(alone=attempt > 0):
                life = self._live()
                patience = self._patience.of(key, size, seconds)
                began = time.monotonic()
                try:
                    found = self._ask(life, question, audio, Decoded, patience).hypotheses
                except Broken as how:
                    self._mourn(life, blamed=attempt == 0)
                    if isinstance(how, _Endless):
                        raise Hung(
                            f"the recogniser came to no end on this audio in {patience:g} s; see the server's log"
                        ) from None
                    if isinstance(how, _Silent) and attempt:
                        break  # nobody else was there
                else:
                    self._patience.learn(key, size, seconds, time.monotonic() - began)
                    return found
            if life.hung and spared < ATTEMPTS:
                spared += 1  # it was not this: in company again
            elif size > 1:
                break  # it may be the fault of one of them: whoever asked tries each
            else:
                attempt += 1
        raise BackendError(
            "the recogniser's process died each time it heard this audio; see the server's log"
        )

    def interrupt(self) -> None:
        """End the process now; what it has at work fails with ModelGone."""
        self._stop.set()
        life = self._life
        if life is not None:
            life.process.kill()

    def close(self) -> None:
        """End the process: all its memory is free on return, unless a driver holds it."""
        self._stop.set()
        with self._birth:
            life, self._life = self._life, None
        if life is not None:
            life.end()

    def _ask(
        self,
        life: _Life,
        question: Request,
        audio: Sequence[Samples],
        kind: type[T],
        patience: float | None = None,
    ) -> T:
        """Raises Broken if the process is gone or hangs, and what the recogniser raised."""
        channel = life.idle.pop()  # as many as calls at once
        watch = self._watch(life, patience or self._patience.most)
        try:
            channel.send(question, audio, watch)
            reply = channel.reply(watch)
        except Exception as error:
            channel.close()
            if isinstance(error, Broken):
                raise
            log.exception("the process of model %s cannot be understood", self._load.model)
            life.process.kill()
            raise Broken from error
        life.idle.append(channel)
        if isinstance(reply, Failure):
            if reply.fatal:
                log.error("the process of %s cannot go on: %s", self._load.model, reply.message)
                raise Broken
            raise _error(reply)
        if kind in (Decoded, Stepped):
            self._deaths = 0
        assert isinstance(reply, kind)
        return reply

    def _watch(self, life: _Life, patience: float) -> Watch:
        """Waits for the other end of one call, from its first byte sent to the last received. Kills a process that
        takes too long in all or gives no sign of life."""
        left = patience

        def watch(ready: Callable[[float], bool]) -> None:
            nonlocal left
            while True:
                # Counted is what was waited here, and no time in which all this or the process was frozen.
                pause, began = min(PULSE, left), time.monotonic()
                if ready(pause):
                    left -= min(pause, time.monotonic() - began)
                    return
                left -= pause
                if not self._breathes(life, ready):
                    self._cut(life, f"gave no sign of life for {SILENCE:g} s")
                    raise _Silent
                if left <= 0 and not ready(0):
                    life.hung = True
                    self._cut(life, f"took longer than {patience:g} s for a decode")
                    raise _Endless

        return watch

    def _breathes(self, life: _Life, ready: Callable[[float], bool]) -> bool:
        """The process gives a sign of life, or `ready` what it was waited for."""
        with life.pulse:
            if ready(0):
                return True
            watch = _within(SILENCE)
            try:
                life.control.send(Ping(), watch=watch)
                life.control.reply(watch)
            except Broken:
                # It is dead, which the call's own channel tells, unless a driver holds it.
                return ready(GOODBYE)
            except TimeoutError:
                return False
            return True

    def _cut(self, life: _Life, why: str) -> None:
        log.error("the process of %s %s; it is replaced", self._load.model, why)
        life.process.kill()

    @contextmanager
    def _turns(self, *, alone: bool) -> Generator[None]:
        """Calls run side by side; one that may be deadly runs alone."""
        with self._turn:
            self._loners += alone
            self._turn.wait_for(
                lambda: not self._alone and not (self._calls if alone else self._loners)
            )
            self._loners -= alone
            self._calls += 1
            self._alone = alone
        try:
            yield
        finally:
            with self._turn:
                self._calls -= 1
                self._alone = False
                self._turn.notify_all()

    def _live(self) -> _Life:
        """The process, started if there is none. Raises ModelGone, ModelResting."""
        with self._birth:
            if self._stop.is_set():
                raise ModelGone(f"model {self._load.model} was unloaded; ask again to load it")
            if self._life is not None:
                return self._life
            self._life = self._reborn()
            self._mind(self._life)
            self.restarts += 1
            self.restarted()
            log.warning("model %s is back in a new process", self._load.model)
            return self._life

    def _mind(self, life: _Life) -> None:
        threading.Thread(
            target=self._minded, args=(life,), name="runner watch", daemon=True
        ).start()

    def _minded(self, life: _Life) -> None:
        """Have another process once `life` is over: of an idle one nobody else would know until somebody speaks, who
        would have to wait for a whole load."""
        life.control.until_gone()
        # What went wrong is logged. After a crash loop it is left to whoever needs the model.
        with suppress(ModelUnavailable), self._turns(alone=False):
            self._mourn(life)
            self._live()

    def _reborn(self) -> _Life:
        """A new process, after a pause that grows with the deaths in a row. Raises ModelGone, ModelResting."""
        while True:
            wait = self._resting - time.monotonic()
            if wait > 0:
                raise ModelResting(
                    f"{self._excuse}; it is tried again in {math.ceil(wait)} s", retry_after=wait
                )
            if self._deaths > 1:
                self._stop.wait(PAUSE * 2**self._deaths)
            try:
                return _begin(self._load, self._stop)[0]
            except ModelGone:
                raise
            except ModelUnavailable as error:
                self._died(error.message)

    def _mourn(self, life: _Life, *, blamed: bool = True) -> None:
        """`life` is over. Not `blamed` for it is the process that a suspect was alone with."""
        with self._birth:
            if self._life is not life:
                return  # another call noticed first
            self._life = None
            with suppress(subprocess.TimeoutExpired):
                life.process.wait(1)  # it tells by its status why it went
            life.process.kill()
            why = life.last_words
            life.end()
            if self._stop.is_set():
                raise ModelGone(
                    f"model {self._load.model} was unloaded while in use; ask again to load it"
                )
            self._died(
                f"the process of model {self._load.model} {why}", blamed=blamed and not life.hung
            )

    def _died(self, how: str, *, blamed: bool = True) -> None:
        log.error(how)
        self._deaths += blamed
        if self._deaths >= DEATHS:
            self._deaths = DEATHS - 1  # one more chance after the rest
            self._excuse = f"{how}; these were {DEATHS} deaths in a row"
            self._resting = time.monotonic() + REST


@dataclass(frozen=True, slots=True)
class _State:
    """A state of a step recogniser that lives as long as its process."""

    life: _Life
    number: int


class RemoteSteps(RemoteBackend):
    """A StepBackend, too."""

    def open(self, decoding: Decoding) -> _State:
        """See `StepBackend.open`."""
        for _ in range(ATTEMPTS):
            with self._turns(alone=False):
                life = self._live()
                try:
                    return _State(life, self._ask(life, OpenState(decoding), (), Opened).state)
                except Broken:
                    self._mourn(life)
        raise BackendError("the recogniser's process dies again and again; see the server's log")

    def step(self, states: Sequence[_State], chunks: Sequence[Samples]) -> list[StepResult]:
        """See `StepBackend.step`."""
        life = self._life_of(states)
        question = StepStates([each.number for each in states], [len(each) for each in chunks])
        with self._turns(alone=False), self._mourning(life):
            return self._ask(life, question, chunks, Stepped).results

    def finish(self, state: _State) -> Hypothesis:
        """See `StepBackend.finish`."""
        life = self._life_of([state])
        with self._turns(alone=False), self._mourning(life):
            return self._ask(life, FinishState(state.number), (), Decoded).hypotheses[0]

    def drop(self, state: _State) -> None:
        """See `StepBackend.drop`."""
        if state.life is self._life:
            with self._turns(alone=False), suppress(BackendError), self._mourning(state.life):
                self._ask(state.life, DropState(state.number), (), Done)

    def _life_of(self, states: Sequence[_State]) -> _Life:
        life = states[0].life
        if life is not self._life or any(each.life is not life for each in states):
            raise BackendError("what was heard died with the recogniser's process")
        return life

    @contextmanager
    def _mourning(self, life: _Life) -> Generator[None]:
        try:
            yield
        except Broken as how:
            self._mourn(life)
            if isinstance(how, _Endless):
                raise Hung(
                    "the recogniser came to no end on this audio; see the server's log"
                ) from None
            raise BackendError("what was heard died with the recogniser's process") from None
