"""The built-in recogniser works in processes that may die."""

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from streaming.backends import loaders
from streaming.backends.base import Decoding, Window
from streaming.backends.pocketsphinx import LOADER, PocketSphinx
from streaming.events import Event, Failed, Final, Partial
from streaming.local import LocalEngine, Plan
from streaming.models import Catalogue
from streaming.types import Device, Options, Samples
from streaming.vad.silero import Silero
from tests.fakes import lines, silence


@pytest.fixture
def sphinx() -> Iterator[PocketSphinx]:
    backend = LOADER.load(Path(), Device(workers=1))
    yield backend
    backend.close()


def process_of(sphinx: PocketSphinx) -> int:
    child = sphinx._idle.get()
    sphinx._idle.put(child)
    assert child is not None
    pid = child._process.pid
    assert pid is not None
    return pid


def test_it_hears_english_words_in_their_places(sphinx: PocketSphinx) -> None:
    line = lines()[0]
    found = sphinx.decode([Window(line.samples, Decoding(align=True))])[0]
    assert len(found.words) >= 4
    assert "".join(word.text for word in found.words) == found.text
    assert all(0 <= word.probability <= 1 for word in found.words)
    starts = [word.start for word in found.words]
    assert starts == sorted(starts)
    assert found.words[-1].end <= len(line.samples)
    assert found.text == found.text.lower()
    assert not set("<>[]()") & set(found.text)


def test_what_was_said_before_does_not_colour_the_text(sphinx: PocketSphinx) -> None:
    heard = [line.samples for line in lines() if line.language == "en"][:6]
    there = [sphinx.decode([Window(samples)])[0] for samples in heard]
    back = [sphinx.decode([Window(samples)])[0] for samples in reversed(heard)]
    assert there == back[::-1]


def test_a_process_that_is_killed_is_replaced_and_no_word_lost(sphinx: PocketSphinx) -> None:
    window = Window(np.tile(lines()[0].samples, 2))
    expected = sphinx.decode([window])[0].text
    pid = process_of(sphinx)
    threading.Timer(0.2, os.kill, (pid, signal.SIGKILL)).start()
    assert sphinx.decode([window])[0].text == expected
    assert process_of(sphinx) != pid


def test_closing_leaves_no_process(sphinx: PocketSphinx) -> None:
    sphinx.decode([Window(lines()[0].samples)])
    pid = process_of(sphinx)
    sphinx.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def events_of(audio: Samples, *, kill: bool = False) -> list[Event]:
    """A live stream of the built-in recogniser through the engine; its process may be killed in mid-speech."""
    catalogue = Catalogue(loaders(), default="pocketsphinx", offline=True)
    plan = Plan(Device(workers=1))
    engine = LocalEngine(catalogue, loaders(), Silero, plan)
    stream = await engine.open_stream(Options())
    events: list[Event] = []
    shown = asyncio.Event()

    async def read() -> None:
        async for event in stream:
            events.append(event)
            if isinstance(event, Partial):
                shown.set()

    reading = asyncio.create_task(read())
    try:
        half = len(audio) // 2
        await stream.send(audio[:half])
        async with asyncio.timeout(60):
            await shown.wait()  # in mid-speech
        if kill:
            for child in multiprocessing.active_children():
                if child.name == "pocketsphinx" and child.pid is not None:
                    os.kill(child.pid, signal.SIGKILL)
        await stream.send(audio[half:])
        await stream.end()
        await reading
    finally:
        reading.cancel()
        await stream.aclose()
        await engine.aclose()
    return events


@pytest.mark.parametrize("kill", [False, True])
def test_live_it_hears_step_by_step_and_survives_its_process(kill: bool) -> None:
    line = lines()[0]
    events = asyncio.run(events_of(np.concatenate([line.samples, silence(1.0)]), kill=kill))
    partials = [event for event in events if isinstance(event, Partial)]
    finals = [event for event in events if isinstance(event, Final)]
    assert partials, "words are shown before the utterance ends"
    assert not [event for event in events if isinstance(event, Failed)]
    text = "".join(final.text for final in finals)
    assert len(text.split()) >= 4
    for final in finals:
        shown = [each.committed for each in partials if each.utterance == final.utterance]
        assert all(final.text.startswith(committed) for committed in shown)


def test_streams_beyond_the_decoders_are_heard_at_the_end(sphinx: PocketSphinx) -> None:
    sphinx._most = 0  # no process may be started for live streams
    state = sphinx.open(Decoding())
    samples = lines()[0].samples
    assert sphinx.step([state], [samples])[0].words == ()
    assert sphinx.finish(state).text == sphinx.decode([Window(samples)])[0].text
