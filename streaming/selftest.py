"""Does a loaded model really recognise speech? Some GPU libraries fail at the first decode only, or give empty text.

CTranslate2's wheels carry no machine code for Hopper and newer GPUs: the driver translates it at the first use, and one
that is too old answers with an error or, without one, with nothing.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import numpy as np

from streaming.audio import files
from streaming.backends.base import Decoding, Hypothesis, Window, WindowBackend
from streaming.errors import BackendError, ModelUnavailable
from streaming.types import Samples

CLIP = Path(__file__).with_name("selftest.ogg")
"""Three seconds of a synthetic voice: "The price is seven dollars and two cents.\""""
WORST = -2.5
"""Mean log probability of a token below which text is noise: Whisper gives up on a window at -1."""
REPEATED = 4.0
"""Compression ratio of a text that repeats itself; plain sentences of this length have about 1."""
REMEDY = (
    "check with nvidia-smi that the driver is of version 570 or later, install the CUDA 12 library with"
    " `pip install 'open-speech-server[cuda]'`, try STT_COMPUTE_TYPE=float32, or set STT_DEVICE=cpu"
)


def check(backend: WindowBackend, model: str) -> None:
    """Decode the clip; raises ModelUnavailable, with the remedy, where that gives no plausible text. Blocks."""
    languages = backend.capabilities.languages
    language = "en" if "en" in languages else None
    decoding = Decoding(language=language, align=backend.capabilities.word_times)
    try:
        hypothesis = backend.decode([Window(clip(), decoding)])[0]
    except BackendError as error:
        raise ModelUnavailable(
            f"model {model} loads but fails its self-test: {error.message}; {REMEDY}"
        ) from error
    wrong = fault(hypothesis)
    if wrong is not None:
        raise ModelUnavailable(f"model {model} loads but fails its self-test: {wrong}; {REMEDY}")


def fault(hypothesis: Hypothesis) -> str | None:
    """What is implausible about the text of a clear sentence; None if nothing. Which words it holds is not asked:
    small models know few."""
    numbers = (
        hypothesis.log_probability,
        hypothesis.no_speech,
        *(token.log_probability for token in hypothesis.tokens),
        *(word.probability for word in hypothesis.words),
    )
    if any(number is not None and not math.isfinite(number) for number in numbers):
        return "its probabilities are no numbers"
    text = hypothesis.text.strip()
    if not any(letter.isalpha() for letter in text):
        return (
            f"it heard {text[:20]!r} in a clear sentence"
            if text
            else "it heard nothing in a clear sentence"
        )
    if hypothesis.log_probability is not None and hypothesis.log_probability < WORST:
        return "it is unsure of every word of a clear sentence"
    unheard = hypothesis.no_speech is not None and hypothesis.no_speech > 0.6
    if unheard and (hypothesis.log_probability or 0.0) < -1:  # Whisper's rule for silence
        return "it takes a clear sentence for silence"
    if hypothesis.compression_ratio is not None and hypothesis.compression_ratio > REPEATED:
        return "it repeats itself"
    return None


@cache
def clip() -> Samples:
    """The sentence."""
    samples: Samples = np.concatenate(list(files.decode(CLIP)))
    return samples
