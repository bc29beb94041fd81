"""Takes the pictures of docs/images: `python -m tests.e2e.screenshots`. Needs chromium and the development packages.

The voice is a recording of the tests, the recogniser the tests' small Whisper, which knows about 400 words.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import httpx2
import numpy as np
from playwright.sync_api import Page, expect

from tests.e2e.browser import visiting
from tests.fakes import SPEECH, lines, silence, wav
from tests.serving import running, with_toy

OUT = Path(__file__).parents[2] / "docs" / "images"
WIDE = {"viewport": {"width": 1280, "height": 800}}
NARROW = {"viewport": {"width": 390, "height": 780}, "device_scale_factor": 2.0}


def live(url: str, microphone: Path, name: str, finals: int, **context: object) -> None:
    """Live captions, in the middle of a sentence."""
    with visiting(url, microphone, **context) as visit:
        visit.page.click("#toggle")
        visit.page.wait_for_function(
            "count => document.querySelectorAll('#log .utterance').length >= count"
            " && document.querySelector('#committed').textContent.split(' ').length > 3"
            " && document.querySelector('#tentative').textContent.trim().length > 2",
            arg=finals,
            timeout=90_000,
            polling=20,
        )
        save(visit.page, name)


def file(url: str, name: str, **context: object) -> None:
    """A recording that plays, with the word that is said."""
    with visiting(url + "/#files", **context) as visit:
        page = visit.page
        page.set_input_files("#picker", [SPEECH / "long-0.flac"])
        expect(page.locator(".recording .state")).to_have_text(re.compile("^Done"), timeout=60_000)
        page.locator(".recording .w").nth(23).click()
        page.wait_for_timeout(500)
        page.evaluate("document.querySelector('audio').pause()")
        page.mouse.move(0, 0)
        save(page, name)


def models(url: str, name: str, **context: object) -> None:
    """What is in memory, on disk, and to be had."""
    with visiting(url + "/#models", **context) as visit:
        expect(visit.page.locator(".models li")).not_to_have_count(0)
        save(visit.page, name)


def save(page: Page, name: str) -> None:
    """A PNG that a README can bear."""
    page.evaluate("document.activeElement.blur()")
    target = OUT / f"{name}.png"
    page.screenshot(path=target)
    size = target.stat().st_size
    print(f"{target.name}: {size / 1000:.0f} kB")
    assert size < 300_000


def main() -> None:
    """All of them."""
    OUT.mkdir(parents=True, exist_ok=True)
    chosen = [line for line in lines()[:24] if line.language == "en"]
    parts = [silence(0.3)]
    for line in chosen:
        parts += [line.samples, silence(0.9)]
    with tempfile.TemporaryDirectory() as folder, running(with_toy()) as url:
        microphone = Path(folder) / "speech.wav"
        microphone.write_bytes(wav(np.concatenate(parts)))
        live(url, microphone, "live", 7, color_scheme="light", **WIDE)
        live(url, microphone, "live-dark", 7, color_scheme="dark", **WIDE)
        live(url, microphone, "live-phone", 5, color_scheme="light", **NARROW)
        live(url + "/?view=captions", microphone, "captions", 3, **WIDE)
        file(url, "file", color_scheme="light", **WIDE)
        file(url, "file-phone", color_scheme="dark", **NARROW)
    with running(with_toy(offline=False)) as url:
        httpx2.post(url + "/api/ps/toy", timeout=60)
        models(url, "models", color_scheme="light", **WIDE)


if __name__ == "__main__":
    main()
