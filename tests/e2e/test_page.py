"""The page in headless Chromium, against a running server with a real Whisper."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("playwright", reason="playwright is not installed")
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from server.keys import digest
from streaming.types import RATE
from tests import toy
from tests.e2e.browser import CHROMIUM, Visit, visiting
from tests.fakes import SPEECH, lines, silence, speech, wav, word_errors
from tests.hub import Hub
from tests.proxy import wire
from tests.serving import running, stoppable, with_toy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed"),
]
SPOKEN = lines()[:3]
PATIENCE = 30_000
"""Milliseconds: what is waited for comes long before, on any machine."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(with_toy()) as url:
        yield url


@pytest.fixture(scope="module")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sentences with pauses."""
    parts = [silence(0.5)]
    for line in SPOKEN:
        parts += [line.samples, silence(1.2)]
    file = tmp_path_factory.mktemp("microphone") / "speech.wav"
    file.write_bytes(wav(np.concatenate(parts)))
    return file


def finished(page: Page, count: int) -> None:
    """Wait until so many sentences are final."""
    page.wait_for_function(
        "count => document.querySelectorAll('#log .utterance').length >= count",
        arg=count,
        timeout=PATIENCE,
    )


def saved(page: Page, button: str, form: str) -> str:
    """The file that a download button gives."""
    page.click(button)
    with page.expect_download() as download:
        page.locator(f"{button} + .choices [data-format={form}]").click()
    path = download.value.path()
    assert download.value.suggested_filename.endswith(f".{form}")
    return Path(path).read_text("utf-8")


def clean(visit: Visit) -> None:
    """Nothing was reported: no breach of the policy, no error."""
    assert visit.violations() == []
    assert visit.complaints == []


WATCHING = """
window.revisions = [];
addEventListener("DOMContentLoaded", () => {
  const look = () => revisions.push([
    document.querySelectorAll("#log .utterance").length,
    document.querySelector("#committed").textContent,
  ]);
  new MutationObserver(look).observe(document.querySelector(".transcript"), {subtree: true, childList: true, characterData: true});
});
"""


def only_grew(page: Page, shown: list[str]) -> None:
    """Committed text was never rewritten on the screen, and the final begins with it. Needs `WATCHING`."""
    revisions: list[tuple[int, str]] = page.evaluate("revisions")
    assert any(committed for _, committed in revisions)
    before = (0, "")
    for utterance, committed in revisions:
        if not committed:
            continue
        assert shown[utterance].startswith(committed)
        if before[0] == utterance:
            assert committed.startswith(before[1])
        before = (utterance, committed)


def test_spoken_words_appear_settle_and_can_be_taken_home(url: str, microphone: Path) -> None:
    with visiting(url, microphone, script=WATCHING) as visit:
        page = visit.page
        expect(page.locator("#status")).to_have_text("Ready")
        page.click("#toggle")
        expect(page.locator("#toggle")).to_have_attribute("aria-pressed", "true")
        expect(page.locator("#interim")).to_be_visible(timeout=PATIENCE)
        finished(page, 3)
        expect(page.locator("#latency")).to_have_text(re.compile(r"\d\.\d\d s"))
        assert page.inner_text("#elapsed") != "0:00"
        page.click("#toggle")
        expect(page.locator("#status")).to_have_text("Ready", timeout=PATIENCE)
        shown = visit.captions()
        assert word_errors(" ".join(line.text for line in SPOKEN), " ".join(shown)) <= 2

        only_grew(page, shown)
        assert saved(page, "#save", "txt") == "\n".join(shown) + "\n"
        data = json.loads(saved(page, "#save", "json"))
        assert [each["text"] for each in data["utterances"]] == shown
        assert data["model"] == "toy"
        assert data["utterances"][0]["words"][0]["probability"] > 0
        srt = saved(page, "#save", "srt")
        assert " ".join(re.sub(r"(?m)^\d+$|^.* --> .*$", "", srt).split()) == " ".join(shown)
        assert saved(page, "#save", "vtt").startswith("WEBVTT\n\n")

        # A reload keeps what was heard, and the next recording goes on in time.
        page.reload()
        expect(page.locator("#status")).to_have_text("Ready")
        assert visit.captions() == shown
        assert json.loads(saved(page, "#save", "json")) == data
        page.click("#clear")
        page.reload()
        assert visit.captions() == []
        expect(page.locator("#empty")).to_be_visible()
        clean(visit)


SURE = """
async () => {
  const { captions } = await import("/assets/page.js");
  const word = (text, probability, start) => ({ text, probability, start, end: start + 0.3 });
  captions.final({ text: "Surely perhaps never.", start: 0, end: 1, language: "en",
    words: [word("Surely", 0.99, 0), word("perhaps", 0.7, 0.3), word("never.", 0.2, 0.6)] });
}
"""
SHOWN = "each => getComputedStyle(each, '::after').content"


def test_confidence_is_shown_on_demand(url: str) -> None:
    with visiting(url) as visit:
        page = visit.page
        page.evaluate(SURE)
        words = page.locator("#log .w")
        assert [word.evaluate(SHOWN) for word in words.all()] == ["none"] * 3
        expect(page.locator("#legend")).to_be_hidden()
        page.click("#confidence")
        expect(page.locator("#confidence")).to_have_attribute("aria-pressed", "true")
        expect(page.locator("#legend")).to_be_visible()
        assert [word.evaluate(SHOWN) for word in words.all()] == ["none", '"70 %"', '"20 %"']
        words.first.hover()
        assert words.first.evaluate(SHOWN) == '"99 %"'
        assert Axe().run(page).violations_count == 0
        page.click("#confidence")
        assert words.nth(1).evaluate(SHOWN) == "none"
        clean(visit)


SAY = """
async ([first, count]) => {
  const { captions } = await import("/assets/page.js");
  for (let at = first; at < first + count; at += 1) {
    captions.started(at);
    captions.partial({ committed: `Sentence ${at} is`, tentative: " long" });
    captions.final({ text: `Sentence ${at} is long enough to need a line or two. `.repeat(3), start: at, end: at + 1, words: [] });
  }
  await new Promise(requestAnimationFrame);
}
"""
PLACE = """
() => {
  const { scrollTop, scrollHeight, clientHeight } = document.querySelector("#transcript");
  return [Math.round(scrollTop), scrollHeight - scrollTop - clientHeight < 2];
}
"""


def test_the_page_scrolls_along_only_for_those_who_read_the_end(url: str) -> None:
    with visiting(url) as visit:
        page = visit.page
        page.evaluate(SAY, [0, 200])
        assert page.evaluate(PLACE)[1]
        expect(page.locator("#jump")).to_be_hidden()
        page.evaluate("() => void (document.querySelector('#transcript').scrollTop -= 1500)")
        expect(page.locator("#jump")).to_be_visible()
        before, _ = page.evaluate(PLACE)
        page.evaluate(SAY, [200, 20])
        assert page.evaluate(PLACE) == [before, False]
        page.click("#jump")
        expect(page.locator("#jump")).to_be_hidden()
        page.evaluate(SAY, [220, 20])
        assert page.evaluate(PLACE)[1]
        clean(visit)


def test_a_second_recording_goes_on_in_time(url: str, microphone: Path) -> None:
    with visiting(url, microphone) as visit:
        page = visit.page
        page.keyboard.press("Alt+KeyS")
        finished(page, 1)
        page.keyboard.press("Alt+KeyS")
        expect(page.locator("#status")).to_have_text("Ready", timeout=PATIENCE)
        count = len(visit.captions())
        page.focus("#toggle")
        page.keyboard.press("Enter")
        finished(page, count + 1)
        page.keyboard.press("Space")
        expect(page.locator("#status")).to_have_text("Ready", timeout=PATIENCE)
        times = page.locator("#log time").evaluate_all("all => all.map(each => each.dateTime)")
        seconds = [float(time[2:-1]) for time in times]
        assert seconds == sorted(seconds)
        assert seconds[count] > 4
        clean(visit)


def test_a_wire_that_is_cut_again_and_again_costs_no_word(url: str, microphone: Path) -> None:
    with wire(url) as proxy, visiting(proxy.url, microphone, script=WATCHING) as visit:
        page = visit.page
        sessions: list[str] = []
        page.on("websocket", lambda socket: socket.on("framereceived", notice))

        def notice(frame: str | bytes) -> None:
            message = json.loads(frame)
            if message["type"] == "ready":
                sessions.append(message["session"])

        page.click("#toggle")
        expect(page.locator("#interim")).to_be_visible(timeout=PATIENCE)  # in the first sentence
        proxy.cut()
        finished(page, 1)
        expect(page.locator("#committed")).not_to_be_empty(timeout=PATIENCE)  # in the second one
        proxy.up = False
        proxy.reset()
        expect(page.locator("#status")).to_contain_text("Reconnecting")
        expect(page.locator("#interim")).to_be_visible()  # what was said stays
        # People go on speaking meanwhile.
        page.wait_for_function("() => parseFloat(document.querySelector('#lag').textContent) > 1")
        assert visit.captions()
        proxy.up = True
        expect(page.locator("#status")).to_have_text("Listening", timeout=PATIENCE)
        finished(page, 2)
        expect(page.locator("#interim")).to_be_visible(timeout=PATIENCE)
        proxy.cut()
        page.click("#toggle")  # stopped while it is away
        expect(page.locator("#status")).to_have_text("Ready", timeout=PATIENCE)
        shown = visit.captions()
        assert len(shown) == 3
        spoken = " ".join(line.text for line in SPOKEN[:2])
        assert word_errors(spoken, " ".join(shown[:2])) <= 1
        third = [word.lower().strip(".,") for word in shown[2].split()][:-1]  # the last was cut
        assert third == SPOKEN[2].text.lower().replace(".", "").split()[: len(third)]
        only_grew(page, shown)
        assert len(sessions) >= 4
        assert len(set(sessions)) == 1
        assert visit.violations() == []


def test_a_cut_wire_costs_no_word_where_sessions_are_not_kept(microphone: Path) -> None:
    with (
        running(with_toy(resume_seconds=0)) as url,
        wire(url) as proxy,
        visiting(proxy.url, microphone) as visit,
    ):
        page = visit.page
        page.click("#toggle")
        finished(page, 1)
        expect(page.locator("#interim")).to_be_visible(timeout=PATIENCE)  # in the second sentence
        proxy.cut()
        finished(page, 3)
        page.click("#toggle")
        expect(page.locator("#status")).to_have_text("Ready", timeout=PATIENCE)
        shown = visit.captions()
        assert len(shown) == 3
        assert word_errors(" ".join(line.text for line in SPOKEN), " ".join(shown)) <= 3
        assert proxy.connections > 1
        assert visit.violations() == []


def test_a_restarted_server_goes_on_where_the_old_one_ended(microphone: Path) -> None:
    """The old one ends the open sentence where it is; the new one hears the rest of it."""
    with (
        running(with_toy()) as second,
        stoppable(with_toy(drain_seconds=0.2)) as (first, stop),
        wire(first) as proxy,
        visiting(proxy.url, microphone) as visit,
    ):
        page = visit.page
        page.click("#toggle")
        finished(page, 1)
        expect(page.locator("#interim")).to_be_visible(timeout=PATIENCE)
        proxy.target = second
        stop()
        # However much of the second sentence the old server heard, the third one comes whole from the new one.
        third = 0.5 + sum(line.samples.size / RATE + 1.2 for line in SPOKEN[:2])
        page.wait_for_function(
            "third => [...document.querySelectorAll('#log time')]"
            ".some(each => parseFloat(each.dateTime.slice(2)) > third - 1)",
            arg=third,
            timeout=PATIENCE,
        )
        page.click("#toggle")
        expect(page.locator("#status")).to_have_text("Ready", timeout=PATIENCE)
        shown = visit.captions()
        assert word_errors(SPOKEN[0].text, shown[0]) <= 1
        assert word_errors(SPOKEN[2].text, shown[-1]) <= 1
        times = page.locator("#log time").evaluate_all("all => all.map(each => each.dateTime)")
        starts = [float(time[2:-1]) for time in times]
        assert starts == sorted(starts)
        assert abs(starts[-1] - third) < 1.0
        assert visit.violations() == []


def test_a_server_that_is_gone_is_explained_and_the_text_kept(microphone: Path) -> None:
    with running(with_toy()) as url, wire(url) as proxy, visiting(proxy.url, microphone) as visit:
        page = visit.page
        page.click("#toggle")
        finished(page, 1)
        proxy.up = False
        proxy.cut()
        expect(page.locator("#status")).to_have_text(
            "Reconnecting … What you say is kept.", timeout=PATIENCE
        )
        expect(page.locator("body")).to_have_class(re.compile("lost"))
        problem = page.locator("#problem")
        expect(problem).to_contain_text("tried again by itself", timeout=PATIENCE)
        assert Axe().run(page).violations_count == 0
        kept = visit.captions()
        assert kept
        page.click("#toggle")
        expect(page.locator("#status")).to_contain_text("Finishing")
        page.click("#toggle")  # enough waited
        expect(page.locator("#status")).to_have_text("Ready")
        expect(page.locator("#problem")).to_contain_text("Stopped at once")
        assert visit.captions() == kept


def test_a_denied_microphone_is_explained(url: str, microphone: Path) -> None:
    flags = ["--deny-permission-prompts"]
    with visiting(url, microphone, allow=False, flags=flags) as visit:
        visit.page.click("#toggle")
        problem = visit.page.locator("#problem")
        expect(problem).to_contain_text("The microphone is not allowed", timeout=PATIENCE)
        expect(problem).to_contain_text("allow the microphone")
        expect(visit.page.locator("#toggle")).to_have_attribute("aria-pressed", "false")
        clean(visit)


ASLEEP = """
navigator.mediaDevices.getUserMedia = () => new Promise((resolve) => (window.answer = resolve));
"""


def test_a_question_that_nobody_answers_can_be_left(url: str, microphone: Path) -> None:
    with visiting(url, microphone, script=ASLEEP) as visit:
        page = visit.page
        page.click("#toggle")
        expect(page.locator("#status")).to_contain_text("answer the browser")
        page.click("#toggle")
        expect(page.locator("#status")).to_have_text("Ready")
        expect(page.locator("#toggle")).to_have_attribute("aria-pressed", "false")
        late = """async () => {
            const context = new AudioContext();
            const { stream } = context.createMediaStreamDestination();
            answer(stream);
            const [track] = stream.getTracks();
            while (track.readyState !== "ended") await new Promise(requestAnimationFrame);
            return track.readyState;
        }"""
        assert page.evaluate(late) == "ended"  # the late answer is given back
        expect(page.locator("#status")).to_have_text("Ready")
        clean(visit)


def test_a_muted_microphone_is_noticed(url: str, tmp_path: Path) -> None:
    file = tmp_path / "nothing.wav"
    file.write_bytes(wav(silence(20.0) * 0))
    with visiting(url, file) as visit:
        visit.page.click("#toggle")
        status = visit.page.locator("#status")
        expect(status).to_contain_text("Is the microphone muted?", timeout=PATIENCE)
        clean(visit)


def test_no_microphone_is_explained(url: str) -> None:
    with visiting(url) as visit:
        visit.page.click("#toggle")
        expect(visit.page.locator("#problem")).to_contain_text("No microphone was found")


def test_an_insecure_address_is_explained() -> None:
    flags = ["--host-resolver-rules=MAP speech.example 127.0.0.1"]
    with (
        running(with_toy(allowed_hosts=("speech.example",))) as url,
        visiting(url.replace("127.0.0.1", "speech.example"), flags=flags) as visit,
    ):
        port = url.rpartition(":")[2]
        problem = visit.page.locator("#problem")
        expect(problem).to_contain_text("serve --lan")
        assert problem.locator("a").get_attribute("href") == f"http://localhost:{port}/"


def test_a_busy_server_is_explained(microphone: Path) -> None:
    with running(with_toy(max_streams=0)) as url, visiting(url, microphone) as visit:
        visit.page.click("#toggle")
        expect(visit.page.locator("#problem")).to_contain_text("The server is busy")


def test_the_key_is_asked_for_once(microphone: Path) -> None:
    with running(with_toy(api_keys=("secret",))) as url, visiting(url, microphone) as visit:
        page = visit.page
        expect(page.locator("#key")).to_be_visible()
        page.fill("#key-input", "secret")
        page.keyboard.press("Enter")
        expect(page.locator("#key")).to_be_hidden()
        page.click("#toggle")
        finished(page, 1)
        page.click("#toggle")
        page.reload()
        expect(page.locator("#status")).to_have_text("Ready")
        expect(page.locator("#model option")).not_to_have_count(1)
        expect(page.locator("#key")).to_be_hidden()
        assert visit.violations() == []


def test_a_key_that_may_not_change_models_offers_no_change(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    rows = [("guest", "transcribe"), ("chief", "manage")]
    file.write_text(
        "\n".join(
            f'[{name}]\nhash = "sha256:{digest(name).hex()}"\nscopes = ["{scope}"]'
            for name, scope in rows
        ),
        "utf-8",
    )
    file.chmod(0o600)
    with (
        running(with_toy(keys_file=file)) as url,
        visiting(url + "/#models") as visit,
    ):
        page = visit.page
        page.fill("#key-input", "guest")
        page.keyboard.press("Enter")
        row = page.locator(".models li", has=page.get_by_role("heading", name="english"))
        row.get_by_role("button", name="Load").click()
        expect(page.locator("#models-locked")).to_be_visible(timeout=PATIENCE)
        expect(page.locator(".models li button")).to_have_count(0)
        page.get_by_role("button", name="Use another key").click()
        page.fill("#key-input", "chief")
        page.keyboard.press("Enter")
        row.get_by_role("button", name="Load").click()
        expect(row.locator(".badge")).to_have_text("in memory", timeout=PATIENCE)
        assert visit.violations() == []


def test_the_example_of_the_client_listens(url: str, microphone: Path) -> None:
    readme = (Path(__file__).parents[2] / "clients" / "js" / "README.md").read_text("utf-8")
    example = readme.split("```html\n")[1].split("```")[0]
    # Chromium cannot tell where a page comes from that the test makes up, and would keep it from this machine.
    flags = ["--disable-features=LocalNetworkAccessChecks"]
    with visiting(url, microphone, flags=flags) as visit:
        page = visit.page
        page.route(
            "**/example.html", lambda route: route.fulfill(body=example, content_type="text/html")
        )
        page.goto(url + "/example.html")
        with page.expect_console_message(
            lambda message: message.type == "log", timeout=PATIENCE
        ) as said:
            page.click("#go")
        assert word_errors(SPOKEN[0].text, said.value.args[1].json_value()) <= 1
        assert page.inner_text("#committed")


def test_other_machines_can_use_the_microphone_over_https(microphone: Path, tmp_path: Path) -> None:
    """`serve --lan`, seen from a host name that is not this machine's: only HTTPS makes it a secure context."""
    command = [sys.executable, "-m", "server.cli", "serve", "--lan", "--host", "localhost"]
    command += ["--port", "0", "--model", f"toy={toy.build()}", "--default-model", "toy"]
    command += ["--offline", "--device", "cpu"]
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stderr is not None
            address = next(
                line.split()[2] for line in process.stderr if line.startswith("open-speech on")
            )
            there = address.replace("localhost", "speech.example")
            flags = ["--host-resolver-rules=MAP speech.example 127.0.0.1"]
            with visiting(there, microphone, flags=flags, ignore_https_errors=True) as visit:
                visit.page.click("#toggle")
                finished(visit.page, 1)
                assert word_errors(SPOKEN[0].text, visit.captions()[0]) <= 1
                clean(visit)
        finally:
            process.terminate()
            process.communicate(timeout=30)


def test_shared_sound_is_captioned(url: str, microphone: Path) -> None:
    """Chromium's fake device stands in for a tab: what it plays comes by `getDisplayMedia`."""
    with visiting(url, microphone) as visit:
        page = visit.page
        page.check("input[value=tab]")
        expect(page.locator("#device")).to_be_disabled()
        page.click("#toggle")
        finished(page, 1)
        assert word_errors(SPOKEN[0].text, visit.captions()[0]) <= 1
        clean(visit)


def test_a_call_in_another_tab_is_captioned(url: str, tmp_path: Path) -> None:
    """A tab of its own plays a recording; the browser is told which one a person would choose."""
    audio = wav(np.concatenate([silence(0.5), SPOKEN[0].samples, silence(2.0)]))
    (tmp_path / "call.wav").write_bytes(audio)
    (tmp_path / "call.html").write_text(
        "<title>A call</title><audio src='call.wav' preload='auto'></audio>", "utf-8"
    )
    flags = ["--auto-select-tab-capture-source-by-title=A call"]
    with visiting(url, allow=False, muted=False, flags=flags) as visit:
        page = visit.page
        call = page.context.new_page()
        call.goto((tmp_path / "call.html").as_uri())
        page.bring_to_front()
        page.check("input[value=tab]")
        page.click("#toggle")
        expect(page.locator("#status")).to_have_text("Listening", timeout=PATIENCE)
        call.evaluate("document.querySelector('audio').play()")
        finished(page, 1)
        assert word_errors(SPOKEN[0].text, visit.captions()[0]) <= 1
        call.close()  # the call is over
        expect(page.locator("#problem")).to_contain_text("The source ended", timeout=PATIENCE)
        expect(page.locator("#status")).to_have_text("Ready", timeout=PATIENCE)
        clean(visit)


def test_sharing_nothing_is_explained(url: str) -> None:
    with visiting(url) as visit:
        visit.page.check("input[value=tab]")
        visit.page.click("#toggle")
        problem = visit.page.locator("#problem")
        expect(problem).to_contain_text("Nothing was shared", timeout=PATIENCE)
        expect(visit.page.locator("#toggle")).to_have_attribute("aria-pressed", "false")


DROP = """
async ([name, data]) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, {type: "audio/flac"}));
  for (const type of ["dragover", "drop"]) {
    document.body.dispatchEvent(new DragEvent(type, {dataTransfer: transfer, bubbles: true, cancelable: true}));
  }
}
"""


def test_a_dropped_file_becomes_a_transcript_with_a_player(url: str) -> None:
    import base64

    import httpx2

    recording = SPEECH / "long-0.flac"
    with visiting(url) as visit:
        page = visit.page
        page.evaluate(DROP, [recording.name, base64.b64encode(recording.read_bytes()).decode()])
        state = page.locator(".recording .state")
        expect(state).to_have_text(re.compile("^Done: 1:2"), timeout=PATIENCE)
        with recording.open("rb") as file:
            form: dict[str, Any] = {
                "response_format": "verbose_json",
                "timestamp_granularities[]": ["segment", "word"],
            }
            wanted = httpx2.post(
                url + "/v1/audio/transcriptions", files={"file": file}, data=form, timeout=60
            ).json()
        texts = [segment["text"].strip() for segment in wanted["segments"]]
        assert page.locator(".recording .words").all_inner_texts() == texts
        assert saved(page, ".recording .menu > button", "txt") == "\n".join(texts) + "\n"

        word = page.locator(".recording .w").nth(20)
        word.click()
        page.wait_for_function(
            "start => document.querySelector('audio').currentTime >= start",
            arg=float(word.get_attribute("data-start") or "nan"),
        )
        page.wait_for_function("() => document.querySelector('.w.now') !== null")
        page.evaluate("document.querySelector('audio').pause()")
        now = page.evaluate("document.querySelector('audio').currentTime")
        lit = page.locator(".w.now")
        assert float(lit.get_attribute("data-start") or "nan") <= now + 0.1
        clean(visit)


STATES = """
window.states = [];
addEventListener("DOMContentLoaded", () => {
  new MutationObserver(() => states.push(document.querySelector(".recording .state")?.textContent ?? ""))
    .observe(document.querySelector("#queue"), {subtree: true, childList: true, characterData: true});
});
"""


def test_progress_is_told_while_a_recording_goes_up_and_becomes_text(
    url: str, tmp_path: Path
) -> None:
    with wire(url) as proxy, visiting(proxy.url + "/#files", script=STATES) as visit:
        page = visit.page
        expect(page.locator("#status")).to_have_text("Ready")
        proxy.delay = 0.01  # a slow network, and more bytes than fit into the buffers on the way
        junk = 16 * 2**20
        (tmp_path / "long.wav").write_bytes(
            wav(speech("long-0.flac")) + b"JUNK" + junk.to_bytes(4, "little") + bytes(junk)
        )
        page.set_input_files("#picker", [tmp_path / "long.wav"])
        state = page.locator(".recording .state")
        expect(state).to_have_text(re.compile("^Done"), timeout=PATIENCE)
        states: list[str] = page.evaluate("states")
        sent = [
            int(found[1]) for each in states if (found := re.match(r"Uploading, (\d+) %", each))
        ]
        assert sent
        assert sent == sorted(sent)
        heard = [each for each in states if re.match(r"Transcribing, \d:\d\d of 1:2\d$", each)]
        assert len(set(heard)) >= 2
        assert heard == sorted(heard)
        clean(visit)


def film(path: Path) -> None:
    """Ten seconds of a grey picture with a sentence."""
    import av

    samples = np.concatenate([SPOKEN[0].samples, silence(2.0)])
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libvpx", rate=5)
        picture.width, picture.height, picture.pix_fmt = 320, 180, "yuv420p"
        sound = container.add_stream("libopus", rate=48_000)
        for number in range(int(len(samples) / RATE * 5)):
            frame = av.VideoFrame.from_ndarray(np.full((180, 320, 3), number % 200, np.uint8))
            frame.pts = number
            container.mux(picture.encode(frame))
        whole = np.repeat((samples * 32767).astype(np.int16), 3)[None, :]
        heard = av.AudioFrame.from_ndarray(whole, format="s16", layout="mono")
        heard.sample_rate, heard.pts = 48_000, 0
        container.mux(sound.encode(heard))
        for stream in (picture, sound):
            container.mux(stream.encode(None))


def test_a_film_is_shown_beside_its_words(url: str, tmp_path: Path) -> None:
    film(tmp_path / "film.webm")
    with visiting(url + "/#files") as visit:
        page = visit.page
        page.set_input_files("#picker", [tmp_path / "film.webm"])
        expect(page.locator(".recording .state")).to_have_text(
            re.compile("^Done"), timeout=PATIENCE
        )
        text = page.text_content(".recording .words") or ""
        assert word_errors(SPOKEN[0].text, text) <= 1
        last = page.locator(".recording .w").last
        last.click()
        page.wait_for_function(
            "start => document.querySelector('video').currentTime >= start",
            arg=float(last.get_attribute("data-start") or "nan"),
        )
        assert page.evaluate("document.querySelector('video').videoWidth") == 320
        clean(visit)


def test_files_queue_and_a_broken_one_stops_nobody(url: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp3"
    broken.write_bytes(b"this is no sound" * 100)
    with visiting(url + "/#files") as visit:
        page = visit.page
        page.set_input_files("#picker", [SPEECH / "000-en.flac", broken, SPEECH / "003-fr.flac"])
        rows = page.locator(".recording")
        expect(rows).to_have_count(3)
        expect(rows.nth(0).locator(".state")).to_have_text(re.compile("^Done"), timeout=PATIENCE)
        expect(rows.nth(2).locator(".state")).to_have_text(re.compile("^Done"))
        expect(rows.nth(1)).to_have_attribute("data-state", "failed")
        expect(rows.nth(1).get_by_role("button", name="Try again")).to_be_visible()
        assert visit.violations() == []


def test_models_are_loaded_and_unloaded(url: str) -> None:
    with visiting(url + "/#models") as visit:
        page = visit.page
        row = page.locator(".models li", has=page.get_by_role("heading", name="english"))
        row.get_by_role("button", name="Load").click()
        expect(row.locator(".badge")).to_have_text("in memory", timeout=PATIENCE)
        row.get_by_role("button", name="Unload").click()
        expect(row.locator(".badge")).to_have_text("on disk", timeout=PATIENCE)
        # This server is offline: nothing that it would refuse is offered, and what was given by path stays.
        expect(page.locator("#models-offline")).to_be_visible()
        expect(page.get_by_role("button", name="Download")).to_have_count(0)
        expect(page.get_by_role("button", name="Remove")).to_have_count(0)
        clean(visit)


def test_a_model_is_pulled_used_and_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        go.wait(60)

    with Hub(before_file=hold) as hub:
        hub.add("acme/toy-whisper", toy.build())
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        server = with_toy(offline=False, model_dir=tmp_path)
        with running(server) as url, visiting(url + "/#models") as visit:
            page = visit.page
            expect(page.locator(".models li", has_text="not here")).not_to_have_count(0)
            page.fill("#pull input", "acme/toy-whisper")
            page.keyboard.press("Enter")
            row = page.locator(".models li", has_text="acme/toy-whisper")
            bar = row.get_by_role("progressbar")
            expect(row.get_by_role("status")).to_have_text(
                re.compile(r"^\d+ [kM]B of \d+ MB$"), timeout=PATIENCE
            )
            assert held.wait(30)
            before = float(bar.get_attribute("value") or "nan")
            assert 0 <= before < 0.9  # the weights are still to come
            go.set()
            expect(row.locator(".badge")).to_have_text("on disk", timeout=PATIENCE)
            expect(bar).to_have_count(0)
            row.get_by_role("button", name="Load").click()
            expect(row.locator(".badge")).to_have_text("in memory", timeout=PATIENCE)
            expect(page.locator("#file-model option", has_text="acme/toy-whisper")).to_have_count(1)
            expect(row.get_by_role("button", name="Remove")).to_have_count(0)  # not while in use
            page.click("nav a[href='#files']")
            page.select_option("#file-model", "acme/toy-whisper")
            page.set_input_files("#picker", [SPEECH / "000-en.flac"])
            state = page.locator(".recording .state")
            expect(state).to_have_text(re.compile("^Done"), timeout=PATIENCE)
            page.click("nav a[href='#models']")
            row.get_by_role("button", name="Unload").click()
            expect(row.locator(".badge")).to_have_text("on disk", timeout=PATIENCE)
            row.get_by_role("button", name="Remove").click()
            expect(page.locator("#remove")).to_contain_text("Remove acme/toy-whisper?")
            assert Axe().run(page).violations_count == 0
            page.locator("#remove").get_by_role("button", name="Cancel").click()
            expect(row.locator(".badge")).to_have_text("on disk")
            row.get_by_role("button", name="Remove").click()
            page.locator("#remove").get_by_role("button", name="Remove").click()
            expect(row).to_have_count(0, timeout=PATIENCE)
            clean(visit)


def test_a_model_that_must_be_downloaded_first_is_told_with_its_progress(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, microphone: Path
) -> None:
    go = threading.Event()
    with Hub(before_file=lambda: void(go.wait(60))) as hub:
        hub.add("acme/toy-whisper", toy.build())
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        server = with_toy(offline=False, model_dir=tmp_path, default_model="acme/toy-whisper")
        with running(server) as url, visiting(url, microphone) as visit:
            page = visit.page
            expect(page.locator("#status")).to_have_text("Ready")
            told = re.compile(r"^Downloading the model: \d+ [kM]B of \d+ MB$")
            page.click("#toggle")
            expect(page.locator("#status")).to_have_text(told, timeout=PATIENCE)
            page.click("#toggle")  # no time now
            expect(page.locator("#status")).to_have_text("Ready")
            page.click("nav a[href='#files']")
            page.set_input_files("#picker", [SPEECH / "000-en.flac"])
            expect(page.locator(".recording .state")).to_have_text(told, timeout=PATIENCE)
            page.click("nav a[href='#live']")
            page.click("#toggle")
            expect(page.locator("#status")).to_have_text(told, timeout=PATIENCE)
            go.set()
            finished(page, 1)
            assert word_errors(SPOKEN[0].text, visit.captions()[0]) <= 1
            expect(page.locator(".recording .state")).to_have_text(
                re.compile("^Done"), timeout=PATIENCE
            )
            clean(visit)


def void(_: object) -> None:
    pass


def test_a_pull_that_fails_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        server = with_toy(offline=False, model_dir=tmp_path)
        with running(server) as url, visiting(url + "/#models") as visit:
            page = visit.page
            expect(page.locator(".models li")).not_to_have_count(0)
            page.fill("#pull input", "acme/nothing")
            page.keyboard.press("Enter")
            row = page.locator(".models li", has_text="acme/nothing")
            expect(row.locator(".error")).to_be_visible(timeout=PATIENCE)
            row.get_by_role("button", name="Dismiss").click()
            expect(row).to_have_count(0)
            assert visit.violations() == []


def test_the_list_of_languages_is_the_models_own(url: str) -> None:
    with visiting(url, locale="en-GB") as visit:
        page = visit.page
        expect(page.locator("#language option", has_text="German")).to_have_count(1)
        page.select_option("#model", "english")
        expect(page.locator("#language option")).to_have_count(2)
        expect(page.locator("#task option").nth(1)).to_be_disabled()
        page.reload()
        expect(page.locator("#model")).to_have_value("english")


def test_large_captions_mirror_the_page(url: str, microphone: Path) -> None:
    with visiting(url, microphone) as visit:
        second = visit.page.context.new_page()
        second.goto(url + "/?view=captions")
        expect(second.locator("nav")).to_be_hidden()
        visit.page.bring_to_front()
        visit.page.click("#toggle")
        finished(second, 1)
        assert second.locator("#log .words").all_inner_texts()[0] == visit.captions()[0]
        expect(second.locator("#status")).to_have_text("The other window listens")
        late = visit.page.context.new_page()
        late.goto(url + "/?view=captions")
        finished(late, 1)  # what was said before it was opened
        assert late.locator("#log .words").all_inner_texts()[0] == visit.captions()[0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing(url: str, microphone: Path, scheme: str, width: int) -> None:
    options = {"color_scheme": scheme, "viewport": {"width": width, "height": 800}}
    with visiting(url, microphone, **options) as visit:
        page = visit.page
        found = {}
        found["start"] = Axe().run(page)
        page.click("#toggle")
        finished(page, 1)
        expect(page.locator("#interim")).to_be_visible(timeout=PATIENCE)
        page.click("#confidence")
        found["listening"] = Axe().run(page)
        page.click("#toggle")
        page.goto(url + "/#files")
        page.set_input_files("#picker", [SPEECH / "000-en.flac"])
        expect(page.locator(".recording .state")).to_have_text(
            re.compile("^Done"), timeout=PATIENCE
        )
        found["files"] = Axe().run(page)
        page.goto(url + "/#models")
        expect(page.locator(".models li")).not_to_have_count(0)
        found["models"] = Axe().run(page)
        page.goto(url + "/?view=captions")
        found["captions"] = Axe().run(page)
        reports = {
            name: result.generate_report()
            for name, result in found.items()
            if result.violations_count
        }
        assert reports == {}
        assert page.evaluate("document.documentElement.scrollWidth") <= width
