"""One stream: audio, probabilities and results in; events and jobs out. Pure.

Nothing here waits, starts a thread or knows the time. The caller moves what `frames` gives to the detector, what `jobs`
gives to the scheduler, and what comes back in again.

While somebody speaks the open utterance wants a *partial* decode of its window every `interval` of new speech. At the
first 64 ms of silence it wants a *speculative final*; if nobody speaks on, that is the final, which then costs no
time at the endpoint.

A *step* recogniser hears the utterance piece by piece instead, one piece at a time and in order; at the end it is told
that this was all. What it says goes through the same agreement, unless it promises to change nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from streaming import evidence
from streaming.agreement import Agreement
from streaming.backends.base import Capabilities, Decoding, Hypothesis, Step, StepResult, Window
from streaming.errors import BackendError, Hung, OpenSpeechError
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
    Timing,
)
from streaming.listener import Cut, Listener
from streaming.scheduler import Job, Lane
from streaming.segmenter import Boundary, Paused, Resumed, Started, Stopped
from streaming.types import RATE, Checkpoint, Options, Samples, Word

FLOORS = {"auto": 10 * RATE, "short": 5 * RATE, "full": 30 * RATE}
"""Shortest window of a live decode, in samples, by window mode; the reason is in `docs/architecture.md`."""
RETRY = 0.2
"""The one temperature that a doubtful live result is decoded at again."""
INTERVAL = RATE // 5
"""New speech between partial decodes while the device is idle: 200 ms."""
SURE = 0.8
"""Language probability of a detection that counts towards the lock."""
STUMBLES = 1
"""Partial decodes of an utterance that may fail before no more are asked for: what kills a recogniser does it again."""
RARELY = 8
"""What a step that hung counts as, in steps that failed: the next is asked for after a long while."""
BEGINNINGS = 3
"""Times that a step recogniser may begin the last decode of an utterance: its process may die for others' reasons."""
CONTEXT_WORDS = 24
"""Words of scrolled-out text that a decode is told: enough for style, too few to carry a mistake far."""


@dataclass(slots=True, eq=False)
class _Utterance:
    number: int
    start: int
    agreement: Agreement
    begun: int = 0  # where its speech began; the pre-roll lies before it
    end: int | None = None
    asked: int = 0  # edge of the newest partial decode
    told: int = 0  # edge of the newest decode that came back
    partial: Job | None = None  # wanted or running
    final: Job | None = None  # wanted or running: speculative, or the real one
    guess: Final | None = None  # the final, if nobody speaks on
    edge: int = 0  # of the audio that `final` and `guess` cover
    doubted: Hypothesis | None = None  # the first, doubtful result of the job in `final`
    speech: float = 1.0  # mean probability of its speech, once it paused or stopped
    wordy: bool = False  # the recogniser cannot print all its text at once: word times are wanted
    detected: str | None = None  # the language that its final or the guess at it was surely in
    fed: int | None = (
        None  # step recognisers: end of the audio heard; None: to be begun, maybe anew
    )
    beginnings: int = 1  # step recognisers: the last step failed so many times, and once more
    stumbles: int = 0  # partial decodes that failed; of a step recogniser, since the last success
    pause: int | None = (
        None  # step recognisers: where speech may have ended; nothing after it is fed
    )
    eager: bool = False  # an Eager event is out
    cut: bool = False  # the audio ended in it
    revision: int = 0
    shown: tuple[str, str] = ("", "")
    language: str | None = None
    words: tuple[Word, ...] = ()  # of the final, or of the guess at it
    settled: int = 0  # words, of those committed, whose ends were handed out
    outcome: Final | Failed | None = None
    # They follow this utterance's final; bounded by who commits, see `Stream.commit`.
    markers: list[Marker] = field(default_factory=list)

    def forget_jobs(self) -> None:
        """They are not wanted any more: a job would hold its audio in a circle with its utterance."""
        self.partial = self.final = None


class Session:
    """Promises: see `events`. One owner calls it; every method returns at once."""

    def __init__(
        self,
        options: Options,
        capabilities: Capabilities,
        key: Callable[[Window], Hashable],
        after: Checkpoint | None = None,
    ) -> None:
        self.options = options
        self.interval = INTERVAL
        """Samples of new speech between partial decodes. Under load fewer are decoded: a newer one takes the place of
        one that waits."""
        self.speculate = True
        """Finals are decoded ahead of the endpoint; the shell turns it off under overload."""
        self._capabilities = capabilities
        self._listener = Listener(options, after.sample if after else 0)
        self._key = key
        self._floor = min(FLOORS[options.window or "auto"], capabilities.full)
        self._language = options.language or (after.language if after else None)
        self._detected: str | None = (
            None  # of the last utterance, if that was sure; two that agree lock the language
        )
        self._steps = capabilities.kind == "step"
        self._numbers = after.utterance + 1 if after else 0
        self._open: deque[_Utterance] = (
            deque()
        )  # begun, final not published; bounded by back-pressure
        self._jobs: list[Job] = []
        self._events: list[Event] = []
        self._settled: list[int] = []
        self._ended = self._abandoned = False
        self.finished = False
        """All that was received is in finals, and no more will come."""

    @property
    def received(self) -> int:
        """Samples received."""
        return self._listener.timeline.end

    @property
    def backlog(self) -> int:
        """Samples whose fate could be decided and is not: not judged yet, or waiting for their final."""
        unheard = max(0, self.received - self._listener.heard)
        return unheard + sum(each.end - each.start for each in self._open if each.end is not None)

    @property
    def lag(self) -> int:
        """Samples received after the newest audio of which everything is said that is to be said by now.

        In a pause that is what the detector judged; while somebody speaks, what the newest partial decode heard, where
        partials are wanted; and while a final is due, what was decoded of its utterance.
        """
        said = min(self._listener.heard, self.received)
        for utterance in self._open:
            if utterance.end is not None:
                said = min(said, max(utterance.start, utterance.told))
                break
            if self.options.partials and utterance.guess is None:
                said = min(said, max(utterance.begun, utterance.told))
        return max(0, self.received - said)

    def receive_audio(self, samples: Samples) -> None:
        """Append audio."""
        self._listener.receive_audio(samples)

    def receive_commit(self, marker: str | None = None) -> None:
        """End the open utterance where the audio is now; a Marker follows."""
        self._listener.receive_commit(marker)
        self._decide(self._listener.settle())

    def receive_end(self) -> None:
        """No more audio."""
        self._listener.receive_end()
        self._decide(self._listener.settle())

    def abandon(self) -> None:
        """Nobody wants to know more, of what is on its way neither."""
        self._abandoned = True
        self._jobs.clear()
        while self._open:
            self._open.popleft().forget_jobs()

    def frames(self) -> Samples:
        """Frames for the detector, shape ``(k * 512,)``."""
        return self._listener.frames()

    def receive_probabilities(self, frames: Samples, probabilities: NDArray[np.float32]) -> None:
        """What the detector said of frames handed out before."""
        self._decide(self._listener.receive_probabilities(frames, probabilities))

    def receive_result(self, job: Job) -> None:
        """A job came back with its result or its error."""
        utterance = job.tag
        assert isinstance(utterance, _Utterance)
        # Of two that were decoded side by side the older came last. It must not commit what the guess does not hold.
        stale = utterance.guess is not None or job.edge < utterance.told
        if not isinstance(job.result, Exception):
            utterance.told = max(utterance.told, job.edge)
        if job is utterance.final:
            self._receive_final(utterance, job)
        elif job is utterance.partial:
            utterance.partial = None
            if isinstance(job.result, StepResult):
                self._receive_step(utterance, job, job.result)
            elif self._steps:
                utterance.fed = None  # it failed: begin anew
                utterance.stumbles += RARELY if isinstance(job.result, Hung) else 1
                utterance.asked = job.edge
            elif not isinstance(job.result, Hypothesis):
                utterance.stumbles += 1
            elif utterance.end is None and not stale:
                self._receive_partial(utterance, job, job.result)
            if self._steps and utterance.end is not None:
                self._ask_last(utterance)
        self._want(utterance)
        self._publish()

    def jobs(self) -> list[Job]:
        """New work since the last call. A job below final may be dropped while it waits, for a newer one of this
        session; the result of a job that nothing waits for any more changes no word."""
        taken, self._jobs = self._jobs, []
        return taken

    def events(self) -> list[Event]:
        """New events since the last call, in order."""
        taken, self._events = self._events, []
        return taken

    def settled(self) -> list[int]:
        """Where the words end that were committed since the last call, in a partial or a final; for who measures."""
        taken, self._settled = self._settled, []
        return taken

    # What the listener decides.

    def _decide(self, boundaries: list[Boundary | Cut]) -> None:
        if self._abandoned:
            return
        for boundary in boundaries:
            match boundary:
                case Started(at):
                    self._start(at)
                case Paused(_, end, speech):
                    self._open[-1].speech = speech
                    if self.speculate or self._steps:
                        self._speculate(self._open[-1], end)
                case Resumed():
                    self._resume(self._open[-1])
                case Stopped(_, end, speech_end, split, cut, speech):
                    utterance = self._open[-1]
                    self._events.append(SpeechStopped(utterance.number, speech_end, split))
                    utterance.cut, utterance.speech = cut, speech
                    self._stop(utterance, end)
                case Cut(at, is_end, marker):
                    self._ended = self._ended or is_end
                    if not is_end:
                        self._mark(Marker(marker, at))
        if self._open and self._open[-1].end is None:
            self._want(self._open[-1])
        self._publish()
        self._listener.forget(self._open[0].agreement.trim if self._open else None)

    def _start(self, at: int) -> None:
        # A split falls where the silence is deepest: words after it may be committed already, to the utterance before.
        # What they are in is not heard again.
        heard = at
        if self._open:
            heard = max(at, min(self._open[-1].agreement.settled, self._listener.heard))
        utterance = _Utterance(self._numbers, at, Agreement(heard, self._capabilities))
        utterance.asked = utterance.begun = at + self.options.pre_roll_ms * RATE // 1000
        self._numbers += 1
        self._open.append(utterance)
        self._events.append(SpeechStarted(utterance.number, at))

    def _speculate(self, utterance: _Utterance, end: int) -> None:
        if self._steps:
            utterance.pause = end
            return
        utterance.guess = utterance.doubted = None
        utterance.edge = end
        if utterance.stumbles < STUMBLES:
            utterance.final = self._ask(utterance, Lane.SPECULATIVE, end)

    def _resume(self, utterance: _Utterance) -> None:
        utterance.pause = None
        # What the speculation found is still good as a hypothesis; as a final it is not.
        if utterance.eager:
            self._events.append(SpeechResumed(utterance.number))
            utterance.eager = False
        if utterance.final is not None and (
            utterance.partial is None or utterance.final.started is not None
        ):
            utterance.partial = utterance.final
        utterance.asked = max(utterance.asked, utterance.edge)
        utterance.final = utterance.guess = utterance.doubted = None

    def _stop(self, utterance: _Utterance, end: int) -> None:
        utterance.end = end
        if self._steps:
            self._ask_last(utterance)
        elif utterance.guess is not None and utterance.edge == end:
            self._finish(utterance, utterance.guess)
        elif utterance.agreement.settled >= end:
            # It was split before words that are committed: nothing is left to decode.
            utterance.final, utterance.edge = None, end
            words = utterance.agreement.prefix
            said = Hypothesis("", words, language=utterance.language or self._language)
            self._finish(utterance, self._compose(utterance, said, words, Timing(speculated=True)))
        elif (
            utterance.final is not None
            and utterance.edge == end
            and (utterance.final.started is not None or utterance.final.lane is Lane.FINAL)
        ):
            pass  # it is being decoded already; asking again would only take longer
        elif (
            utterance.final is not None and utterance.edge == end and utterance.doubted is not None
        ):
            utterance.final = self._ask_again(utterance, Lane.FINAL, end)
        else:
            utterance.doubted = None
            utterance.edge = end
            utterance.final = self._ask(utterance, Lane.FINAL, end)

    def _mark(self, marker: Marker) -> None:
        stopped = [each for each in self._open if each.end is not None]
        if stopped:
            stopped[-1].markers.append(marker)
        else:
            self._events.append(marker)

    # What is decoded.

    def _want(self, utterance: _Utterance) -> None:
        """Ask for a partial decode if it is time for one."""
        if utterance.end is not None or not self.options.partials or utterance.final is not None:
            return
        if utterance.guess is not None:
            return
        if utterance.stumbles >= STUMBLES and not self._steps:
            return
        edge = min(self._listener.heard, self.received)
        if self._steps:
            self._want_step(utterance, edge)
            return
        # Until the first words are shown, twice as often: that is the wait that people notice.
        if edge - utterance.asked < (self.interval if utterance.revision else self.interval // 2):
            return
        if utterance.partial is not None and utterance.partial.started is not None:
            return
        utterance.asked = edge
        utterance.agreement.cut(edge)
        utterance.partial = self._ask(utterance, Lane.PARTIAL, edge)

    def _ask(
        self,
        utterance: _Utterance,
        lane: Lane,
        edge: int,
        *,
        temperature: float = 0.0,
        floor: int | None = None,
    ) -> Job:
        agreement, options = utterance.agreement, self.options
        decoding = Decoding(
            task=options.task,
            language=self._language or utterance.language,
            languages=options.languages,
            prompt=options.prompt,
            context=agreement.scrolled[-CONTEXT_WORDS:],
            hotwords=options.hotwords,
            prefix=shifted(agreement.prefix, -agreement.trim),
            beam=options.beam or 1,
            temperature=max(options.temperature, temperature),
            align=lane is Lane.PARTIAL
            or options.partials
            or options.words
            or options.tokens
            or utterance.wordy,
            floor=self._floor if floor is None else floor,
        )
        window = Window(self._listener.timeline.read(agreement.trim, edge), decoding)
        job = Job(self, lane, window, self._key(window), utterance, agreement.trim, edge)
        self._jobs.append(job)
        return job

    def _ask_again(self, utterance: _Utterance, lane: Lane, edge: int) -> Job:
        """What was doubtful, before it may become text: in a full window where it was a short one, else warmer."""
        full = self._capabilities.full
        if (self.options.window or "auto") == "auto" and self._floor < full:
            return self._ask(utterance, lane, edge, floor=full)
        return self._ask(utterance, lane, edge, temperature=RETRY)

    def _want_step(self, utterance: _Utterance, edge: int) -> None:
        if utterance.partial is not None and utterance.partial.started is not None:
            return  # one step at a time: the next one follows it
        at = utterance.agreement.trim if utterance.fed is None else utterance.fed
        resting = utterance.pause is not None and utterance.pause <= edge
        edge = min(edge, utterance.pause or edge)
        if chunk := self._capabilities.chunk:
            edge = at + (edge - at) // chunk * chunk
        if edge - at < (1 if resting else max(1, min(self.interval, chunk or self.interval))):
            return
        # One that fails is asked again at once, then more and more rarely: it hears everything anew each time.
        rest = self.interval << min(utterance.stumbles, RARELY) if utterance.stumbles > 1 else 0
        if edge - utterance.asked < rest:
            return
        if utterance.partial is not None and utterance.partial.edge == edge:
            return
        utterance.partial = self._ask_step(utterance, Lane.PARTIAL, edge)

    def _ask_step(self, utterance: _Utterance, lane: Lane, edge: int, *, last: bool = False) -> Job:
        options = self.options
        at = utterance.agreement.trim if utterance.fed is None else utterance.fed
        decoding = Decoding(
            task=options.task,
            language=self._language or utterance.language,
            languages=options.languages,
            prompt=options.prompt,
            hotwords=options.hotwords,
            align=True,
        )
        samples = self._listener.timeline.read(at, edge)
        step = Step(samples, decoding, utterance.fed is None, last)
        job = Job(self, lane, step, ("step", last), utterance, at, edge)
        self._jobs.append(job)
        return job

    def _ask_last(self, utterance: _Utterance) -> None:
        """The rest of an utterance that has ended, once no step of it is running."""
        if utterance.final is not None or utterance.outcome is not None:
            return
        if utterance.partial is not None and utterance.partial.started is not None:
            return
        assert utterance.end is not None
        utterance.partial = None
        if utterance.fed is not None and utterance.fed > utterance.end:
            utterance.fed = None  # it was split before what was heard
        utterance.edge = utterance.end
        utterance.final = self._ask_step(utterance, Lane.FINAL, utterance.end, last=True)

    def _receive_step(self, utterance: _Utterance, job: Job, result: StepResult) -> None:
        utterance.fed = job.edge
        utterance.stumbles = 0
        if utterance.end is not None and job.edge > utterance.end:
            return
        words = shifted(result.words, utterance.agreement.trim)
        at_end = utterance.pause == job.edge
        changed = utterance.agreement.receive_step(words, result.stable, job.edge, at_end=at_end)
        if changed and utterance.end is None and self.options.partials:
            self._show(utterance)

    def _receive_partial(self, utterance: _Utterance, job: Job, result: Hypothesis) -> None:
        utterance.speech = self._listener.segmenter.speech
        if self._silent(utterance, result) or job.start != utterance.agreement.trim:
            return
        trusted = not evidence.doubtful(result)
        if not trusted:
            result = evidence.unlooped(result, (job.edge - job.start) / RATE)
        words = shifted(result.words, job.start)
        changed = utterance.agreement.receive_hypothesis(words, job.edge, trusted=trusted)
        if trusted and result.capped:
            changed |= utterance.agreement.settle(words)
        if utterance.agreement.committed and utterance.language is None:
            utterance.language = result.language  # the rest of the utterance is decoded in it
        if changed:
            self._show(utterance)

    def _receive_final(self, utterance: _Utterance, job: Job) -> None:
        utterance.final = None
        result = job.result
        if not isinstance(result, Hypothesis):
            again = utterance.beginnings < BEGINNINGS and not isinstance(result, Hung)
            if self._steps and again:
                # Its state is lost with it; the audio is not.
                utterance.beginnings, utterance.fed = utterance.beginnings + 1, None
                self._ask_last(utterance)
                return
            error = result if isinstance(result, OpenSpeechError) else BackendError(str(result))
            if utterance.end is not None:
                utterance.outcome = Failed(utterance.number, error)
            return
        lane = Lane.FINAL if utterance.end is not None else Lane.SPECULATIVE
        if (
            not self._steps
            and evidence.doubtful(result)
            and utterance.doubted is None
            and result.temperature < RETRY
        ):
            utterance.doubted = result
            utterance.final = self._ask_again(utterance, lane, job.edge)
            return
        work = result.work
        if not self._steps and evidence.doubtful(result):
            if utterance.doubted is not None:
                result = evidence.better(utterance.doubted, result)
            result = evidence.unlooped(result, (job.edge - job.start) / RATE)
        elif result.capped and self._goes_on(utterance, job, result):
            utterance.doubted = None
            utterance.final = self._ask(utterance, lane, job.edge)
            return
        started = job.added if job.started is None else job.started
        queued, decoding = started - job.added, job.finished - started
        timing = Timing(queued, decoding, utterance.end is None, work=work)
        origin = utterance.agreement.trim if self._steps else job.start
        final = self._compose(utterance, result, shifted(result.words, origin), timing)
        if utterance.end is not None:
            self._finish(utterance, final)
            return
        utterance.guess = final
        if not self._silent(utterance, result):
            words = shifted(result.words, job.start)
            trusted = not evidence.doubtful(result)
            changed = utterance.agreement.receive_hypothesis(
                words, job.edge, at_end=True, trusted=trusted
            )
            if changed and self.options.partials:
                self._show(utterance)
        if self.options.eager:
            utterance.eager = True
            self._events.append(Eager(utterance.number, final.text))

    def _goes_on(self, utterance: _Utterance, job: Job, result: Hypothesis) -> bool:
        """The text is longer than the recogniser can print: commit what it could, so that the rest can be asked for."""
        if not result.words:
            again = not utterance.wordy
            utterance.wordy = True  # where the words lie tells where to go on
            return again
        words = shifted(result.words, job.start)
        if job.start != utterance.agreement.trim or not utterance.agreement.settle(words):
            return False
        if self.options.partials:
            self._show(utterance)
        return True

    def _silent(self, utterance: _Utterance, result: Hypothesis) -> bool:
        """Neither the recogniser nor the detector holds it for speech."""
        unsure = evidence.unsure(utterance.speech, self.options.vad_threshold)
        return evidence.silent(result, unsure=unsure)

    def _learn_language(self, utterance: _Utterance) -> None:
        """Two utterances in a row that were surely in one language lock the stream's."""
        if self._language is None:
            if utterance.detected is not None and utterance.detected == self._detected:
                self._language = utterance.detected
            self._detected = utterance.detected

    # What the client hears.

    def _show(self, utterance: _Utterance) -> None:
        committed = "".join(word.text for word in utterance.agreement.committed)
        tentative = "".join(word.text for word in utterance.agreement.tentative)
        if (committed, tentative) == utterance.shown or not (committed or tentative):
            return
        utterance.shown = committed, tentative
        utterance.revision += 1
        self._settle(utterance, utterance.agreement.committed)
        words = utterance.agreement.committed + utterance.agreement.tentative
        self._events.append(
            Partial(
                utterance.number,
                utterance.revision,
                committed,
                tentative,
                words if self.options.words else (),
            )
        )

    def _compose(
        self, utterance: _Utterance, result: Hypothesis, words: tuple[Word, ...], timing: Timing
    ) -> Final:
        """The final of an utterance that ends at `utterance.edge`: the committed words, then the rest of `words`."""
        agreement = utterance.agreement
        silent = self._silent(utterance, result)
        sure = (result.language_probability or 0.0) > SURE and not evidence.doubtful(result)
        utterance.detected = result.language if sure and not silent else None
        if silent:
            words = agreement.committed
        elif result.words:
            words = agreement.finish(words)
        # Where nothing was aligned nothing was committed either, and the text stands as it is.
        aligned = bool(result.words or agreement.committed)
        text = "".join(word.text for word in words) if aligned else result.text
        utterance.words = words
        return Final(
            utterance.number,
            "" if silent and not aligned else text,
            words if self.options.words else (),
            utterance.start,
            utterance.edge,
            result.language,
            timing,
            Checkpoint(
                utterance.edge, utterance.number, language=self._language or utterance.language
            ),
        )

    def _finish(self, utterance: _Utterance, final: Final) -> None:
        utterance.outcome = replace(final, cut=utterance.cut)

    def _settle(self, utterance: _Utterance, words: tuple[Word, ...]) -> None:
        self._settled += [word.end for word in words[utterance.settled :]]
        utterance.settled = max(utterance.settled, len(words))

    def _publish(self) -> None:
        """Finals leave in order, each followed by the markers that wait for it."""
        while self._open and self._open[0].outcome is not None:
            utterance = self._open.popleft()
            assert utterance.outcome is not None
            outcome = utterance.outcome
            if isinstance(outcome, Final):
                self._settle(utterance, utterance.words)
                if outcome.text:
                    self._learn_language(utterance)
                outcome = replace(outcome, stream_language=self._language)
            self._events.append(outcome)
            self._events.extend(utterance.markers)
            utterance.forget_jobs()
        if self._ended and not self._open:
            self.finished = True


def shifted(words: tuple[Word, ...], by: int) -> tuple[Word, ...]:
    """`words` with their positions moved by `by` samples."""
    if by == 0:
        return words
    return tuple(replace(word, start=word.start + by, end=word.end + by) for word in words)
