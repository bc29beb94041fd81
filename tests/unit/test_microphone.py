"""A microphone whose pieces nobody takes: what is dropped is counted, told, and leaves the times right."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, Self

import pytest

from open_speech_client import End, Event, Final, microphone
from open_speech_client.microphone import BLOCK, Microphone
from server.commands import live

RATE = 16_000
PIECE = int(BLOCK * RATE)


class Device:
    """PortAudio's stream, as far as it is used."""

    begin: Callable[[Microphone], None] = staticmethod(lambda microphone: None)
    """What is heard as soon as it is started."""

    def __init__(self, *, callback: Any, **given: Any) -> None:
        self.microphone: Microphone = callback.__self__

    def start(self) -> None:
        Device.begin(self.microphone)

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass


def hear(microphone: Microphone, *numbers: int) -> None:
    """Pieces, each with its number in all of its samples."""
    for number in numbers:
        microphone._receive(number.to_bytes(2, "little") * PIECE, PIECE, None, None)


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    library = SimpleNamespace(
        PortAudioError=RuntimeError,
        RawInputStream=Device,
        query_devices=lambda *given: {"default_samplerate": float(RATE)},
    )
    monkeypatch.setitem(sys.modules, "sounddevice", library)
    monkeypatch.setattr(microphone, "HELD", 5 * BLOCK)


def test_the_oldest_pieces_go_and_what_is_missing_is_known_before_each() -> None:
    with Microphone() as microphone:
        found = []
        pieces = iter(microphone)

        def take(count: int) -> None:
            for _ in range(count):
                piece = next(pieces)
                found.append((piece[0], round(microphone.missing / BLOCK, 6)))

        hear(microphone, 0, 1, 2)
        take(2)
        hear(microphone, *range(3, 10))
        assert microphone.dropped == 3
        take(5)
        hear(microphone, 10)
        take(1)
        assert found == [(0, 0), (1, 0), (5, 3), (6, 3), (7, 3), (8, 3), (9, 3), (10, 3)]
        microphone.close()
        assert list(pieces) == []
        assert microphone.dropped == 3


def test_the_end_is_heard_though_nobody_takes_anything() -> None:
    with Microphone() as microphone:
        hear(microphone, *range(8))
        microphone.close()
        assert [piece[0] for piece in microphone] == [4, 5, 6, 7]
        assert microphone.dropped == 4
        assert microphone.missing == pytest.approx(4 * BLOCK)


class Slow:
    """A stream of the client that says, when all is sent, that all of it was one utterance."""

    def __init__(self, url: str, **options: Any) -> None:
        self.sent = 0
        self.ended = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *fault: object) -> None:
        pass

    async def send(self, piece: bytes) -> None:
        self.sent += len(piece)

    async def end(self) -> None:
        self.ended.set()

    async def aclose(self) -> None:
        pass

    async def __aiter__(self) -> AsyncIterator[Event]:
        await self.ended.wait()
        yield Final(1, 0, "words", 0.0, self.sent / (2 * RATE), self.sent)
        yield End(2, self.sent)


@pytest.mark.parametrize("as_json", [True, False])
def test_listen_says_what_was_dropped_and_keeps_the_times(
    as_json: bool,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def begin(microphone: Microphone) -> None:
        hear(microphone, *range(100))
        microphone.close()

    monkeypatch.setattr(Device, "begin", staticmethod(begin))
    monkeypatch.setattr(live, "async_connect", Slow)
    srt = tmp_path / "out.srt"
    names = "device model_name language task prompt hotwords endpointing_ms key"
    given = dict.fromkeys(names.split()) | {"list_devices": False, "url": "http://localhost:1"}
    assert live.listen(given | {"srt": str(srt), "json": as_json}) == 0
    said = capsys.readouterr()
    assert "the oldest of what it has not heard is dropped" in said.err
    assert "3.8 s of audio were dropped" in said.err
    assert srt.read_text().startswith("1\n00:00:03,840 --> 00:00:0"), "96 pieces before"
    assert ('"start": 3.84' in said.out) is as_json
