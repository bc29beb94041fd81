"""Where the time went, for whoever asks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import httpx2
import pytest

from streaming.meter import Stages
from streaming.types import Spent, Work
from tests.fakes import lines, wav
from tests.server.test_metrics import speak
from tests.serving import running, with_scripted, with_toy

WORK = {"encode", "generate", "align"}
STAGES = {"upload", "load", "container", "detection", "queue", "recognition", "total"} | WORK


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(with_toy()) as url:
        yield url


def ask(url: str, query: str = "", **fields: str) -> httpx2.Response:
    return httpx2.post(
        f"{url}/v1/audio/transcriptions{query}",
        files={"file": wav(lines()[0].samples)},
        data={"language": "en", **fields},
        timeout=60,
    )


@pytest.mark.parametrize("format_", ["json", "verbose_json"])
def test_timings_say_where_the_time_went(url: str, format_: str) -> None:
    answer = ask(url, "?timings=1", response_format=format_)
    told = answer.json()["timings"]
    assert set(told) == STAGES
    assert all(0 <= told[stage] <= told["total"] for stage in STAGES)
    assert told["recognition"] > 0
    assert told["container"] > 0
    assert told["encode"] > 0
    assert told["generate"] > 0
    # One window, so its work lies within; to the rounding of four numbers.
    assert sum(told[stage] for stage in WORK) <= told["recognition"] + 0.0003
    shown = dict(each.split(";dur=") for each in answer.headers["server-timing"].split(", "))
    assert {name: float(value) for name, value in shown.items()} == pytest.approx(
        {name: value * 1000 for name, value in told.items()}, abs=0.06
    )


@pytest.mark.parametrize("runners", [False, True])
def test_the_alignment_of_words_has_a_stage_of_its_own(runners: bool) -> None:
    with running(with_toy(runners=runners)) as url:
        wanted = {"response_format": "verbose_json", "timestamp_granularities[]": "word"}
        assert ask(url, "?timings=1", **wanted).json()["timings"]["align"] > 0


def test_a_recogniser_that_does_not_tell_what_it_did_has_no_such_stages() -> None:
    with running(with_scripted()) as url:
        assert set(ask(url, "?timings=1").json()["timings"]) == STAGES - WORK
        finals = [each for each in asyncio.run(speak(url, "&timings=1")) if each["type"] == "final"]
        assert finals
        assert all(not WORK & set(each["timing"]) for each in finals)


def test_timings_come_in_the_last_event_and_in_a_header_of_other_formats(url: str) -> None:
    events = ask(url, timings="true", stream="true").text.strip().split("\n\n")
    done = json.loads(events[-1].removeprefix("data: "))
    assert set(done["timings"]) == STAGES
    answer = ask(url, "?timings=1", response_format="srt")
    assert answer.text.startswith("1\n")
    assert "recognition;dur=" in answer.headers["server-timing"]


def test_nobody_who_does_not_ask_is_told(url: str) -> None:
    answer = ask(url)
    assert "timings" not in answer.json()
    assert "server-timing" not in answer.headers
    assert ask(url, "?timings=perhaps").status_code == 400
    assert all("timing" not in each for each in asyncio.run(speak(url)))


def test_finals_of_a_stream_say_where_their_time_went(url: str) -> None:
    said = asyncio.run(speak(url, "&timings=1"))
    finals = [each for each in said if each["type"] == "final"]
    assert finals
    for final in finals:
        timing = final["timing"]
        assert isinstance(timing, dict)
        assert set(timing) == {"delay", "queue", "recognition", "speculated"} | WORK
        assert timing["recognition"] > 0
        assert timing["align"] > 0
        assert timing["delay"] >= 0


def test_stages_that_overlap_are_counted_once() -> None:
    stages = Stages(10.0)
    stages.begin(11.0)
    stages.receive_job(12.0, 13.0, 15.0)  # waited from 12 on, at work from 13 to 15
    stages.receive_job(12.0, 14.0, 16.0)
    stages.receive_job(20.0, 21.5, 22.0)
    stages.receive_job(30.0, None, 31.0)  # never began
    stages.container += 0.5
    assert stages.spent() == Spent(1.0, 0.5, 0.0, 1.0 + 1.5, 3.0 + 0.5)


def test_the_work_for_windows_adds_up() -> None:
    stages = Stages(0.0)
    stages.begin(0.0)
    stages.receive_job(0.0, 0.0, 3.0, Work(1.0, 2.0))
    assert stages.spent().work == Work(1.0, 2.0)
    stages.receive_job(0.0, 0.0, 3.5, Work(1.0, 2.0, 0.5))
    assert stages.spent() == Spent(0.0, 0.0, 0.0, 0.0, 3.5, Work(2.0, 4.0, 0.5))
