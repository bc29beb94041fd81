"""The Whisper backend on a real, small Whisper, in every published layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streaming import evidence
from streaming.backends import faster_whisper
from streaming.backends.base import Decoding, Window
from streaming.backends.faster_whisper import LOADER, FasterWhisper
from streaming.backends.whisper_weights import Layout
from streaming.errors import BackendError, ModelUnavailable
from streaming.types import RATE, Device, Word
from tests import toy
from tests.fakes import Line, lines, noise, silence, word_count, word_errors


@pytest.fixture(scope="module", params=["v3", "v2", "en"])
def layout(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def model(layout: str) -> FasterWhisper:
    return LOADER.load(toy.build(layout=layout), Device())


@pytest.fixture(scope="module")
def large() -> FasterWhisper:
    return LOADER.load(toy.build(), Device())


def known(layout: str) -> list[Line]:
    return [line for line in lines()[:24] if layout != "en" or line.language == "en"]


def test_each_layout_says_what_it_can_do(layout: str) -> None:
    found = LOADER.inspect(toy.build(layout=layout))
    assert found is not None
    assert len(found.languages) == {"v3": 100, "v2": 99, "en": 1}[layout]
    assert ("translate" in found.tasks) == (layout != "en")
    assert found.detects_language == (layout != "en")


def test_a_decoder_cut_to_few_layers_is_not_trusted_to_translate() -> None:
    assert not Layout(True, ("en",), 32, 4).translates
    assert not Layout(True, ("en",), 24, 2).translates
    assert Layout(True, ("en",), 32, 32).translates
    assert Layout(True, ("en",), 4, 4).translates


def test_every_layout_transcribes(model: FasterWhisper, layout: str) -> None:
    spoken = known(layout)
    errors = sum(
        word_errors(
            line.text,
            model.decode([Window(line.samples, Decoding(language=line.language))])[0].text,
        )
        for line in spoken
    )
    assert errors <= 0.03 * sum(word_count(line.text) for line in spoken)


def test_languages_are_detected_and_translated(model: FasterWhisper, layout: str) -> None:
    if layout == "en":
        assert model.decode([Window(lines()[0].samples)])[0].language == "en"
        return
    foreign = [line for line in known(layout) if line.language != "en"]
    found = [model.decode([Window(line.samples, Decoding(task="detect"))])[0] for line in foreign]
    wrong = [
        h.language for h, line in zip(found, foreign, strict=True) if h.language != line.language
    ]
    assert len(wrong) <= 1
    errors = sum(
        word_errors(
            line.translation,
            model.decode(
                [Window(line.samples, Decoding(task="translate", language=line.language))]
            )[0].text,
        )
        for line in foreign
    )
    assert errors <= 0.06 * sum(word_count(line.translation) for line in foreign)


def test_detection_keeps_to_the_languages_allowed(large: FasterWhisper) -> None:
    french = next(line for line in lines() if line.language == "fr")
    found = large.decode([Window(french.samples, Decoding(languages=("de", "es")))])[0]
    assert found.language in ("de", "es")
    assert {code for code, _ in found.language_probabilities} == {"de", "es"}
    assert sum(p for _, p in found.language_probabilities) == pytest.approx(1)


def test_words_lie_where_they_are_spoken(large: FasterWhisper) -> None:
    off = []
    for line in lines()[:24]:
        found = large.decode([Window(line.samples, Decoding(language=line.language, align=True))])[
            0
        ]
        assert "".join(word.text for word in found.words) == found.text
        edge = 0
        for word in found.words:
            assert edge <= word.start <= word.end <= len(line.samples)
            assert 0 <= word.probability <= 1
            edge = word.start
        if len(found.words) == len(line.words):
            off += [
                abs(w.start / RATE - truth[1])
                for w, truth in zip(found.words, line.words, strict=True)
            ]
    assert len(off) > 150
    assert np.median(off) < 0.15


def test_a_batch_of_mixed_tasks_and_languages_equals_single_decodes(large: FasterWhisper) -> None:
    chosen = lines()[:8]
    windows = [
        Window(
            line.samples,
            Decoding(
                task="translate" if at % 2 and line.language != "en" else "transcribe",
                language=line.language if at % 3 else None,
                align=at % 2 == 0,
                floor=10 * RATE,
            ),
        )
        for at, line in enumerate(chosen)
    ]
    assert len({large.key(window) for window in windows}) == 1
    together = large.decode(windows)
    for window, found in zip(windows, together, strict=True):
        assert found.text == large.decode([window])[0].text
        assert bool(found.words) == window.decoding.align


def test_a_prefix_comes_back_word_for_word(large: FasterWhisper) -> None:
    line = lines()[0]
    free = large.decode([Window(line.samples, Decoding(language="en", align=True))])[0]
    forced = free.words[:4]
    found = large.decode(
        [Window(line.samples, Decoding(language="en", align=True, prefix=forced))]
    )[0]
    assert found.words[:4] == forced
    assert found.text == free.text
    wrong = (Word(" Bananas", 0, RATE, 1.0),)
    held = large.decode([Window(line.samples, Decoding(language="en", align=True, prefix=wrong))])[
        0
    ]
    assert held.text.startswith(" Bananas")


def test_prompts_hotwords_and_context_are_taken_and_batch_by_length(model: FasterWhisper) -> None:
    line = lines()[0]

    def told(**how: Any) -> Window:
        return Window(line.samples, Decoding(language="en", **how))

    def places(window: Window) -> int:
        return len(model._text.before(window.decoding))

    prompted = told(prompt="It was a large night.")
    assert model.key(told()) != model.key(prompted)
    assert word_errors(line.text, model.decode([prompted])[0].text) <= 2
    warned = told(hotwords=("soldier", "window"), prompt="x" * 5000)
    assert places(warned) == 224
    model.decode([warned])

    said = model.decode([told(align=True)])[0].words
    one, other = told(context=said[:1]), told(context=said[1:2])
    assert len(said[0].tokens) == len(said[1].tokens)
    assert model.key(one) == model.key(other)
    assert places(one) == places(other) == 1 + len(said[0].tokens)
    assert word_errors(line.text, model.decode([one, other])[0].text) <= 2
    assert places(told(prompt="y" * 5000, context=said)) == 224


def test_silence_and_noise_are_known_for_what_they_are(large: FasterWhisper) -> None:
    for quiet in (silence(3), noise(3, 0.002)):
        found = large.decode([Window(quiet, Decoding(language="en"))])[0]
        assert evidence.silent(found) or (found.no_speech or 0) > 0.3
    assert large.decode([Window(silence(0.05))])[0].text == ""


@pytest.mark.parametrize("floor", [0, 5 * RATE, 10 * RATE, 30 * RATE])
def test_windows_of_every_length_give_the_sentence(large: FasterWhisper, floor: int) -> None:
    line = lines()[0]
    found = large.decode([Window(line.samples, Decoding(language="en", floor=floor))])[0]
    assert word_errors(line.text, found.text) <= 1


def test_a_full_window_has_the_features_of_faster_whisper_itself(
    model: FasterWhisper, layout: str
) -> None:
    audio = lines()[24].samples[: 30 * RATE]
    ours = model._mel([Window(audio, Decoding(floor=30 * RATE))])[0]
    theirs = model._features(audio)[..., :-1]
    assert ours.shape == ({"v3": 128, "v2": 80, "en": 80}[layout], 3000)
    assert np.allclose(ours[:, : theirs.shape[1]], theirs, atol=1e-6)


def test_higher_temperatures_sample(large: FasterWhisper) -> None:
    found = large.decode([Window(lines()[0].samples, Decoding(language="en", temperature=1.0))])[0]
    assert found.temperature == 1.0
    assert found.log_probability is not None


@pytest.mark.parametrize(
    ("flags", "wide"),
    [
        ("fpu avx2 avx512f avx512dq avx512cd avx512bw avx512vl avx512_vbmi2 avx512_vnni", True),
        ("fpu avx2 avx512f avx512dq avx512cd avx512bw avx512vl avx512_vnni", False),
        ("fpu avx2", False),
    ],
)
def test_wide_registers_are_used_where_they_do_not_slow_the_clock(
    tmp_path: Path, flags: str, wide: bool
) -> None:
    found = tmp_path / "cpuinfo"
    found.write_text(f"processor\t: 0\nmodel name\t: x\nflags\t\t: {flags}\n")
    assert faster_whisper._wide(found) is wide
    assert not faster_whisper._wide(tmp_path / "another system")


def test_after_closing_there_is_a_sentence() -> None:
    model = LOADER.load(toy.build(), Device())
    model.close()
    model.close()
    with pytest.raises(BackendError, match="unloaded"):
        model.decode([Window(lines()[0].samples)])


def test_broken_weights_are_told_with_a_remedy(tmp_path: Path) -> None:
    source = toy.build()
    assert LOADER.inspect(tmp_path) is None
    for file in source.iterdir():
        data = file.read_bytes()
        (tmp_path / file.name).write_bytes(
            data[: len(data) // 3] if file.name == "model.bin" else data
        )
    with pytest.raises(ModelUnavailable, match="download it again"):
        LOADER.load(tmp_path, Device())
    with pytest.raises(ModelUnavailable, match="STT_COMPUTE_TYPE"):
        LOADER.load(source, Device(compute_type="float7"))
