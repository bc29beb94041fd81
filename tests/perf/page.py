"""From a word's end to its being visible in the browser, beside the same recording through the bare socket.

    python -m tests.perf.page [--shape native] [--sentences 24]

Headless Chromium has the recording as its microphone; a tone at its start tells when the page's audio began, by the
arrival of the frame that holds it, so the browser's capture buffer (about 10 ms) is left out. "Visible" is the first
animation frame after the words are in the page. The socket hears the same samples, 20 ms a message, paced.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
from websockets.sync.client import connect

from tests import toy
from tests.e2e.browser import visiting
from tests.fakes import lines, pcm, silence, tone, wav
from tests.serving import running, with_toy

RATE = 16000
TONE = 1.0
"""Seconds into the recording at which the tone begins."""

WATCH = """
localStorage.setItem("open-speech-settings", JSON.stringify({language: "en"}));
window.seen = [];
window.began = null;
const Node = AudioWorkletNode;
window.AudioWorkletNode = class extends Node {
  constructor(context, ...rest) {
    super(context, ...rest);
    this.port.addEventListener("message", ({data}) => {
      if (began !== null || data.level < 0.2) return;
      const frame = new Int16Array(data.frame);
      const at = frame.findIndex((sample) => Math.abs(sample) > 0.1 * 32767);
      began = performance.now() - ((frame.length - at) / context.sampleRate) * 1000;
    });
  }
};
addEventListener("DOMContentLoaded", () => {
  let waiting = false;
  const look = () => {
    waiting = false;
    seen.push([
      performance.now(),
      document.querySelectorAll("#log .utterance").length,
      document.querySelector("#log .utterance:last-child .words")?.innerText ?? "",
      document.querySelector("#committed").textContent,
      document.querySelector("#tentative").textContent,
    ]);
  };
  new MutationObserver(() => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(look);
  }).observe(document.querySelector(".transcript"), {subtree: true, childList: true, characterData: true});
});
"""
# What was seen: (seconds from the start of the recording, utterance, committed, all of it).
Sights = list[tuple[float, int, str, str]]
Truth = list[list[tuple[str, float]]]


def recording(count: int) -> tuple[np.ndarray, Truth]:
    """English sentences with pauses, after a tone; and the true end of every word."""
    english = [line for line in lines()[:24] if line.language == "en"]
    parts = [silence(TONE), tone(0.06, 700, 0.7), silence(1.2)]
    truth: Truth = []
    at = sum(len(part) for part in parts) / RATE
    for number in range(count):
        line = english[number % len(english)]
        truth.append([(plain(word), at + end) for word, _, end in line.words])
        parts += [line.samples, silence(1.3)]
        at += len(line.samples) / RATE + 1.3
    return np.concatenate(parts), truth


def plain(word: str) -> str:
    """A word without case and marks."""
    return re.sub(r"[^\w]", "", word.lower())


def in_browser(url: str, samples: np.ndarray, count: int) -> Sights:
    """What was visible when."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "speech.wav"
        file.write_bytes(wav(samples))
        with visiting(url, file, script=WATCH) as visit:
            visit.page.click("#toggle")
            visit.page.wait_for_function(
                "count => document.querySelectorAll('#log .utterance').length >= count",
                arg=count,
                timeout=len(samples) / RATE * 1000 + 30_000,
            )
            visit.page.wait_for_timeout(200)
            began: float = visit.page.evaluate("began")
            seen: list[tuple[float, int, str, str, str]] = visit.page.evaluate("seen")
    sights: Sights = []
    finals = 0
    for now, logged, last, committed, tentative in seen:
        at = (now - began) / 1000 + TONE
        if logged > finals:
            sights.append((at, logged - 1, last, last))
            finals = logged
        if committed or tentative:
            sights.append((at, logged, committed, committed + tentative))
    return sights


def in_socket(url: str, samples: np.ndarray) -> Sights:
    """What arrived when."""
    address = url.replace("http", "ws") + "/v1/audio/transcriptions/stream?language=en&words=true"
    sights: Sights = []
    data = pcm(samples)
    with connect(address, compression=None, max_size=None) as socket:
        json.loads(socket.recv())
        began = time.perf_counter()

        def feed() -> None:
            for at in range(0, len(data), 640):
                due = began + (at + 640) / 2 / RATE
                time.sleep(max(0.0, due - time.perf_counter()))
                socket.send(data[at : at + 640])
            socket.send('{"type": "end"}')

        feeding = threading.Thread(target=feed)
        feeding.start()
        for text in socket:
            now = time.perf_counter() - began
            message = json.loads(text)
            if message["type"] == "partial":
                whole = message["committed"] + message["tentative"]
                sights.append((now, message["utterance"], message["committed"], whole))
            elif message["type"] == "final":
                sights.append((now, message["utterance"], message["text"], message["text"]))
        feeding.join()
    return sights


def delays(sights: Sights, truth: Truth) -> tuple[list[float], list[float], int]:
    """Seconds from each word's end to its first sight in its place, and to its being committed; words never seen."""
    shown: dict[tuple[int, int], float] = {}
    settled: dict[tuple[int, int], float] = {}
    for at, utterance, committed, whole in sights:
        if utterance >= len(truth):
            continue
        for found, text in ((shown, whole), (settled, committed)):
            for place, word in enumerate(text.split()):
                if place < len(truth[utterance]) and plain(word) == truth[utterance][place][0]:
                    found.setdefault((utterance, place), at - truth[utterance][place][1])
    missed = sum(map(len, truth)) - len(shown)
    return list(shown.values()), list(settled.values()), missed


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shape", default="native")
    parser.add_argument("--sentences", type=int, default=24)
    given = parser.parse_args()
    samples, truth = recording(given.sentences)
    with running(with_toy(model=(f"toy={toy.build(given.shape)}",), preload=("toy",))) as url:
        in_socket(url, samples[: 8 * RATE])  # the first decode is slower
        rows = {
            "browser, visible": in_browser(url, samples, given.sentences),
            "socket, received": in_socket(url, samples),
        }
    print(
        f"| toy {given.shape}, {len(samples) / RATE:.0f} s, {sum(map(len, truth))} words | word P50 | word P95 | commit P50 | commit P95 | never right |"
    )
    print("|---|--:|--:|--:|--:|--:|")
    for name, sights in rows.items():
        shown, settled, missed = delays(sights, truth)
        figures = [np.percentile(each, at) for each in (shown, settled) for at in (50, 95)]
        print(
            f"| {name} | " + " | ".join(f"{figure:.2f} s" for figure in figures) + f" | {missed} |"
        )


if __name__ == "__main__":
    main()
