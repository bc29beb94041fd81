"""The page in headless Firefox: its own sound system, and a microphone that hears a recording."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.firefox import FIREFOX, PULSEAUDIO, firefox, room
from tests.fakes import SPEECH, lines, silence, wav, word_errors
from tests.serving import running, with_toy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(FIREFOX is None, reason="no firefox is installed"),
]
STATUS = "document.querySelector('#status').textContent"
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => violations.push(event.violatedDirective));
"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(with_toy()) as url:
        yield url


def test_firefox_transcribes_a_file_and_shows_the_word_that_plays(url: str) -> None:
    with firefox() as browser:
        browser.visit(url + "/#files", WATCH)
        browser.until(f"{STATUS} === 'Ready'")
        browser.choose("#picker", SPEECH / "000-en.flac")
        browser.until("document.querySelector('.recording')?.dataset.state === 'done'")
        text = browser.evaluate("document.querySelector('.recording .words').textContent")
        assert word_errors(lines()[0].text, text) <= 1
        assert browser.evaluate("violations") == []
        assert browser.complaints == []


@pytest.mark.skipif(
    PULSEAUDIO is None, reason="no pulseaudio is installed; Firefox needs a sound device"
)
def test_firefox_captions_a_microphone(url: str, tmp_path: Path) -> None:
    spoken = lines()[:2]
    file = tmp_path / "speech.wav"
    parts = [part for line in spoken for part in (silence(1.0), line.samples)]
    file.write_bytes(wav(np.concatenate([*parts, silence(1.5)])))
    with room() as here, firefox(here) as browser:
        browser.visit(url, WATCH)
        browser.until(f"{STATUS} === 'Ready'")
        browser.click("#toggle")
        browser.until(f"{STATUS} === 'Listening'")
        with here.play(file):
            browser.until("!document.querySelector('#interim').hidden")
            browser.until("document.querySelectorAll('#log .utterance').length >= 2")
        browser.click("#toggle")
        browser.until(f"{STATUS} === 'Ready'")
        shown = browser.evaluate(
            "[...document.querySelectorAll('#log .words')].map(each => each.textContent)"
        )
        assert word_errors(" ".join(line.text for line in spoken), " ".join(shown)) <= 2
        assert browser.evaluate("violations") == []
        assert browser.complaints == []


def test_firefox_without_a_sound_device_is_explained(url: str) -> None:
    with firefox() as browser:
        browser.visit(url)
        browser.until(f"{STATUS} === 'Ready'")
        browser.evaluate(
            "void (navigator.mediaDevices.getUserMedia ="
            " async () => new MediaStream([new AudioContext().createMediaStreamDestination().stream.getTracks()[0]]))"
        )
        browser.click("#toggle")
        browser.until(
            "document.querySelector('#problem').textContent.includes('audio does not start')"
        )
        assert browser.evaluate("document.querySelector('#toggle').ariaPressed") == "false"
