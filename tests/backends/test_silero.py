"""Silero tells speech from silence, the same for one stream or many."""

import numpy as np

from streaming.segmenter import FRAME
from streaming.vad.silero import Silero, State
from tests.fakes import noise, silence, speech


def whole(samples: np.ndarray) -> np.ndarray:
    return samples[: len(samples) // FRAME * FRAME]


def test_speech_is_found_and_silence_and_noise_are_not() -> None:
    detector = Silero()
    talk = detector.detect([detector.open()], [whole(speech("000-en.flac"))])[0]
    assert talk.max() > 0.95
    assert (talk > 0.5).mean() > 0.5
    for quiet in (silence(5), noise(5, 0.003), noise(5, 0.05)):
        assert detector.detect([detector.open()], [whole(quiet)])[0].max() < 0.5


def test_many_streams_in_one_call_are_judged_as_if_alone() -> None:
    detector, chance = Silero(), np.random.default_rng(0)
    audio = [whole(speech(name)) for name in ("000-en.flac", "003-fr.flac", "004-de.flac")]
    audio.append(whole(np.concatenate([silence(1), speech("001-en.flac"), silence(1)])))
    alone = [detector.detect([detector.open()], [each])[0] for each in audio]
    states = [detector.open() for _ in audio]
    at = [0] * len(audio)
    together: list[list[np.ndarray]] = [[] for _ in audio]
    while any(position < len(each) for position, each in zip(at, audio, strict=True)):
        take = [int(chance.integers(0, 6)) * FRAME for _ in audio]
        pieces = [each[p : p + t] for each, p, t in zip(audio, at, take, strict=True)]
        for row, found in enumerate(detector.detect(states, pieces)):
            together[row].append(found)
        at = [p + t for p, t in zip(at, take, strict=True)]
    for expected, found in zip(alone, together, strict=True):
        assert np.array_equal(np.concatenate(found), expected)


def test_a_state_survives_being_written_down() -> None:
    detector = Silero()
    audio = whole(speech("000-en.flac"))
    half = len(audio) // 2 // FRAME * FRAME
    state = detector.open()
    detector.detect([state], [audio[:half]])
    again = State.from_bytes(bytes(state))
    rest = detector.detect([state], [audio[half:]])[0]
    assert np.array_equal(detector.detect([again], [audio[half:]])[0], rest)
