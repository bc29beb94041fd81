"""The built-in recogniser works in processes that may die."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from streaming.backends.base import Decoding, Window
from streaming.backends.pocketsphinx import LOADER, PocketSphinx
from streaming.types import Device
from tests.fakes import lines


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
