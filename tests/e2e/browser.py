"""Headless Chromium with a recording as its microphone, and what it says about the page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""


@dataclass
class Visit:
    """A page, and everything it complained about."""

    page: Page
    complaints: list[str] = field(default_factory=list)

    def violations(self) -> list[str]:
        """Reports of the content security policy."""
        found: list[str] = self.page.evaluate("window.violations")
        return found

    def captions(self) -> list[str]:
        """Finished sentences on the screen."""
        return self.page.locator("#log .words").all_inner_texts()


@contextmanager
def visiting(
    url: str,
    microphone: Path | None = None,
    *,
    allow: bool = True,
    muted: bool = True,
    flags: Sequence[str] = (),
    script: str = "",
    **context: Any,
) -> Iterator[Visit]:
    """The page at `url` in a fresh browser. `microphone` is played once, from when the page opens the device.
    Unless `muted` pages make sounds, which nobody hears but who captures them."""
    arguments = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required", *flags]
    if microphone is not None:
        arguments += [
            "--use-fake-device-for-media-stream",
            f"--use-file-for-fake-audio-capture={microphone}%noloop",
        ]
    if allow:
        arguments.append("--use-fake-ui-for-media-stream")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=arguments,
            ignore_default_args=[] if muted else ["--mute-audio"],
        )
        here = browser.new_context(**context)
        if allow:
            here.grant_permissions(["microphone"])
        here.add_init_script(WATCH + script)
        visit = Visit(here.new_page())
        visit.page.on("pageerror", lambda error: visit.complaints.append(str(error)))
        visit.page.on(
            "console",
            lambda message: (
                visit.complaints.append(message.text) if message.type == "error" else None
            ),
        )
        visit.page.goto(url)
        try:
            yield visit
        finally:
            browser.close()
