"""Rows D: what is said in a session. No word is lost, doubled or heard in another's."""

import itertools
import json
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from tests.drive import speak
from tests.fakes import pcm
from tests.faults.conftest import SHORT
from tests.faults.process import (
    PATIENCE,
    STREAM,
    Process,
    alive,
    rest,
    serving,
    spelt,
    text,
    until,
    words,
)
from tests.faults.raw import BINARY, CLOSE, TEXT, Socket, frame, reset
from tests.proxy import wire

END = frame(TEXT, b'{"type": "end"}')


def together(count: int, act: Callable[[int], None]) -> None:
    """`act` of each number at the same time; the first fault of them is ours."""
    faults: list[BaseException] = []

    def run(number: int) -> None:
        try:
            act(number)
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    if faults:
        raise faults[0]


def converse(stream: ClientConnection, send: Callable[[], None]) -> list[dict[str, Any]]:
    """Read while `send` sends; all messages."""
    found: list[dict[str, Any]] = []
    reader = threading.Thread(target=lambda: found.extend(rest(stream)))
    reader.start()
    send()
    reader.join(60)
    assert not reader.is_alive()
    return found


def faithful(found: list[dict[str, Any]], said: list[int | float], received: int) -> None:
    """What every session promises."""
    assert text(found) == spelt(said)
    assert [each["seq"] for each in found] == list(range(len(found)))
    finals = [each for each in found if each["type"] == "final"]
    assert [each["utterance"] for each in finals] == list(range(len(finals)))
    for before, after in itertools.pairwise(finals):
        assert before["end"] <= after["start"]
    committed: dict[int, str] = {}
    for each in found:
        if each["type"] == "partial":
            assert each["committed"].startswith(committed.get(each["utterance"], ""))
            committed[each["utterance"]] = each["committed"]
        if each["type"] == "final":
            assert each["text"].startswith(committed.get(each["utterance"], "").strip())
    assert found[-1]["type"] == "end"
    assert found[-1]["received"] == received


def talk(chance: random.Random, count: int, first: int = 0) -> list[int | float]:
    """Words with pauses of all lengths."""
    found: list[int | float] = []
    for word in words(first, count):
        found.append(word)
        if chance.random() < 0.25:
            found.append(chance.choice([0.1, 0.3, 0.6, 0.9]))
    return found


@pytest.mark.fault(
    "D01",
    "40 sessions in pieces from a byte to a second",
    "received is exact to the byte, the text to the word, in each",
)
def test_pieces_of_all_sizes(server: Process) -> None:
    """Binary messages of random sizes, 40 sessions at once as fast as they go"""

    def act(number: int) -> None:
        chance = random.Random(number)
        said = talk(chance, 20, number)
        audio = pcm(speak(said))

        def send() -> None:
            at = 0
            while at < len(audio):
                size = chance.choice([1, 7, 320, 3200, chance.randrange(1, 32_000)])
                stream.send(audio[at : at + size])
                at += size
            stream.send('{"type": "end"}')

        with connect(server.socket_url, open_timeout=PATIENCE) as stream:
            faithful(converse(stream, send), said, len(audio))

    together(40, act)


@pytest.mark.fault(
    "D03", "commits without audio, doubled, 250 in a row", "each marker comes back once, in order"
)
def test_commits_without_end(server: Process) -> None:
    """Three commits before any audio, 250 between two words, two after the last"""
    said = words(1, 4)
    first, second = pcm(speak(said[:2])), pcm(speak(said[2:]))
    markers = [str(number) for number in range(255)]
    commits = [json.dumps({"type": "commit", "marker": marker}) for marker in markers]
    with connect(server.socket_url) as stream:

        def send() -> None:
            for each in [
                *commits[:3],
                first,
                *commits[3:253],
                second,
                *commits[253:],
                '{"type": "end"}',
            ]:
                stream.send(each)

        found = converse(stream, send)
    faithful(found, said, len(first + second))
    assert [each["marker"] for each in found if each["type"] == "marker"] == markers


@pytest.mark.quick
@pytest.mark.fault(
    "D04", "`end` right behind the last byte, in one segment", "all finals, then `end`, then 1000"
)
@pytest.mark.parametrize("cut", [1, 2, 3, 50, 100_000])
def test_the_end_in_one_segment(server: Process, cut: int) -> None:
    """Handshake apart, the whole session is one write; the audio in `cut` messages"""
    said = words(7, 6)
    audio = pcm(speak(said))
    size = max(1, len(audio) // cut)
    with Socket(server.url) as stream:
        stream.send(
            *[frame(BINARY, audio[at : at + size]) for at in range(0, len(audio), size)], END
        )
        messages, code, _ = stream.rest()
    faithful(messages, said, len(audio))
    assert code == 1000


@pytest.mark.fault(
    "D05", "goodbye or FIN right behind `end`", "nothing is left over; what arrives is in order"
)
@pytest.mark.parametrize("how", ["close", "fin", "rst"])
def test_a_goodbye_behind_the_end(server: Process, how: str) -> None:
    """Words, `end`, and at once a close frame, FIN or RST"""
    said = words(2, 4)
    stream = Socket(server.url)
    stream.send(frame(BINARY, pcm(speak(said))), END)
    if how == "close":
        stream.send(frame(CLOSE, b"\x03\xe8"))
        messages, _, _ = stream.rest()
        assert spelt(said).startswith(text(messages))
        stream.connection.close()
    elif how == "rst":
        reset(stream.connection)
    else:
        stream.connection.close()


@pytest.mark.fault(
    "D07",
    "ten minutes of speech as fast as the socket takes them",
    "held back, never dropped; memory stays",
)
def test_a_recording_dumped_into_the_socket(server: Process) -> None:
    """Ten minutes in messages of 64 kB, four times at once"""
    before = server.memory()

    def act(number: int) -> None:
        said: list[int | float] = []
        for turn in range(160):
            said += [*words(number + turn, 12), 0.75]
        audio = pcm(speak(said))
        with connect(server.socket_url + "?partials=false", open_timeout=PATIENCE) as stream:

            def send() -> None:
                for at in range(0, len(audio), 65536):
                    stream.send(audio[at : at + 65536])
                stream.send('{"type": "end"}')

            faithful(converse(stream, send), said, len(audio))

    together(4, act)
    assert server.memory() < before + 150 * 2**20


@pytest.mark.fault("D08", "a wire that is slow, uneven and jerky", "the same words; no idle close")
@pytest.mark.parametrize(("piece", "delay"), [(200, 0.003), (65536, 0.2), (1448, 0.01)])
def test_a_wire_that_is_slow(server: Process, piece: int, delay: float) -> None:
    """A proxy that passes 200 bytes at a time, or holds each piece back for 200 ms"""
    said = talk(random.Random(8), 8)
    audio = pcm(speak(said))
    with wire(server.url) as link:
        link.piece, link.delay = piece, delay
        with connect(link.url.replace("http", "ws") + STREAM, open_timeout=PATIENCE) as stream:

            def send() -> None:
                for at in range(0, len(audio), 16_000):
                    stream.send(audio[at : at + 16_000])
                stream.send('{"type": "end"}')

            faithful(converse(stream, send), said, len(audio))


@pytest.mark.fault(
    "D12",
    "a session and a silence beyond their limits",
    "an error that says so, the finals, `end`, 1008",
)
@pytest.mark.parametrize(
    ("flag", "reason"), [("--max-stream-seconds", "limit"), ("--stream-idle-seconds", "idle")]
)
def test_beyond_the_limits(flag: str, reason: str) -> None:
    """Ten sessions that speak and then wait, on a server whose limit is 2 s"""
    with serving(flag, "2", faults=SHORT) as server:

        def act(number: int) -> None:
            said = words(number, 3)
            with connect(server.socket_url) as stream:
                stream.send(pcm(speak(said)))
                found = rest(stream)
                assert stream.close_code == 1008
            faithful(found, [*said], len(pcm(speak(said))))
            assert found[-1]["reason"] == reason
            assert [each["code"] for each in found if each["type"] == "error"] in (
                ["session_limit"],
                ["idle_timeout"],
            )

        together(10, act)
        until(lambda: server.working() == 0)
        assert "Traceback" not in server.log


ODD = [
    "null",
    "true",
    "-1",
    "0",
    "1e999",
    "-1e999",
    "NaN",
    "1.5",
    "9" * 5000,
    '"16000"',
    '""',
    '"x"',
    "[]",
    "{}",
    "[[]]",
    '{"a": {}}',
    '"\\u0000"',
    '"\\ud800"',
    '"' + "x" * 30_000 + '"',
]
OPTIONS = [
    "sample_rate", "channels", "endpointing_ms", "pre_roll_ms", "vad_threshold", "offset", "partials", "eager", "words", "model", "language", "encoding", "endpointing",
    "prompt", "hotwords", "task", "nonsense", "type",
]  # fmt: skip


@pytest.mark.fault(
    "D14",
    "every option with every odd value",
    "an error that names the option, 1008; or a session that hears",
)
@pytest.mark.parametrize("option", OPTIONS)
def test_options_with_odd_values(server: Process, option: str) -> None:
    """`start` with nineteen values for each of eighteen options: null, NaN, 1e999, 5000 digits, lists, half characters"""
    for value in ODD:
        with Socket(server.url) as stream:
            stream.send(frame(TEXT, f'{{"type": "start", "{option}": {value}}}'.encode()))
            stream.send(frame(BINARY, bytes(3200)), END)
            messages, code, _ = stream.rest()
        assert code in (1000, 1008), (value, messages)
        assert messages[-1]["type"] == ("end" if code == 1000 else "error"), (value, messages)
        assert len(json.dumps(messages)) < 5000, value


@pytest.mark.fault(
    "D15",
    "ten minutes of silence between two words",
    "both are heard, at their time to the millisecond",
)
def test_silence_between_two_words(server: Process) -> None:
    """A word, 600 s of zeros, a word"""
    said: list[int | float] = [5, 600.0, 9]
    audio = pcm(speak(said))
    with connect(server.socket_url) as stream:

        def send() -> None:
            for at in range(0, len(audio), 1 << 20):
                stream.send(audio[at : at + (1 << 20)])
            stream.send('{"type": "end"}')

        found = converse(stream, send)
    faithful(found, said, len(audio))
    last = [each for each in found if each["type"] == "final"][-1]
    assert abs(last["start"] - 600.25) < 0.4
    assert last["end"] >= 600.4


@pytest.mark.fault(
    "D17", "twenty sessions with words of their own", "no word of one is heard in another"
)
def test_no_crosstalk(server: Process) -> None:
    """Twenty sessions at once, each of three words that no other has, with prompts of the others' words"""

    def act(number: int) -> None:
        own = [number * 3, number * 3 + 1, number * 3 + 2]
        said: list[int | float] = [word for _ in range(8) for word in [*own, 0.6]]
        audio = pcm(speak(said))
        prompt = "+".join(f"w{(own[0] + 30) % 60}" for _ in range(5))
        with connect(
            f"{server.socket_url}?prompt={prompt}&hotwords={prompt}", open_timeout=PATIENCE
        ) as stream:

            def send() -> None:
                for at in range(0, len(audio), 6400):
                    stream.send(audio[at : at + 6400])
                stream.send('{"type": "end"}')

            faithful(converse(stream, send), said, len(audio))

    together(20, act)


@pytest.mark.fault(
    "D18", "200 clients that leave in mid-word", "nothing at work afterwards, nothing left over"
)
def test_clients_that_leave(server: Process) -> None:
    """Half a word, then FIN, RST, or a goodbye with a code of its own"""
    audio = pcm(speak(words(0, 3)))
    for number in range(200):
        stream = Socket(server.url)
        stream.send(frame(BINARY, audio[: 5000 + 100 * number]))
        if number % 3 == 0:
            reset(stream.connection)
        elif number % 3 == 1:
            stream.connection.close()
        else:
            stream.send(frame(CLOSE, b"\x0f\xa1bye"))
            stream.connection.close()
    until(lambda: server.working() == 1)


@pytest.mark.fault("D19", "a session that keeps alive and never speaks", "no words; a clean end")
def test_keepalive_only(server: Process) -> None:
    """500 keepalives, then `end`"""
    with connect(server.socket_url) as stream:
        for _ in range(500):
            stream.send('{"type": "keepalive"}')
        stream.send('{"type": "end"}')
        found = rest(stream)
    assert [each["type"] for each in found] == ["ready", "end"]


@pytest.mark.quick
@pytest.mark.fault("D20", "slips of every kind between words", "an error each, and every word")
def test_slips_between_words(server: Process) -> None:
    """Broken JSON, unknown types, a second `start`, markers that are none, between each two words"""
    said = words(11, 8)
    slips = [
        "{",
        "[]",
        "1",
        '"x"',
        '{"type": 5}',
        '{"type": "dance"}',
        '{"type": "start"}',
        '{"type": "commit", "marker": []}',
    ]
    with connect(server.socket_url) as stream:
        size = 0
        for word, slip in zip(said, slips, strict=True):
            audio = pcm(speak([word]))
            size += len(audio)
            stream.send(audio)
            stream.send(slip)
        stream.send('{"type": "end"}')
        found = rest(stream)
    faithful(found, said, size)
    assert len([each for each in found if each["type"] == "error"]) == len(slips)


@pytest.mark.fault(
    "D21",
    "samples that are no number, infinite, beyond full scale",
    "an error or silence, never a traceback; the words before are heard",
)
@pytest.mark.parametrize(
    "value",
    [
        b"\x00\x00\xc0\x7f",
        b"\x00\x00\x80\x7f",
        b"\x00\x00\x80\xff",
        b"\xff\xff\x7f\x7f",
        b"\x01\x00\x00\x00",
    ],
)
def test_samples_that_are_no_sound(server: Process, value: bytes) -> None:
    """Floats of NaN, ±infinity, 3e38, the smallest denormal, behind two words"""
    said = words(3, 2)
    with connect(server.socket_url + "?encoding=pcm_f32le") as stream:
        stream.send(speak([*said, 0.7]).astype("<f4").tobytes())
        stream.send(value * 1600)
        stream.send('{"type": "end"}')
        found = rest(stream)
    assert text(found).startswith(spelt(said))
    assert found[-1]["type"] == "end"


@pytest.mark.fault(
    "D22", "all encodings and rates at once", "the same words from each, and bytes counted as sent"
)
@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2, 8])
def test_rates_and_channels(server: Process, rate: int, channels: int) -> None:
    """16-bit audio at four rates with one, two and eight channels, in messages that cut samples in two"""
    import numpy as np

    said = words(6, 4)
    heard = speak(said)
    at = np.arange(0, len(heard), 16000 / rate)
    samples = heard[np.minimum(at.astype(int), len(heard) - 1)]
    audio = pcm(np.repeat(samples, channels).astype(np.float32))
    with connect(f"{server.socket_url}?sample_rate={rate}&channels={channels}") as stream:
        for start in range(0, len(audio), 3001):
            stream.send(audio[start : start + 3001])
        stream.send('{"type": "end"}')
        faithful(rest(stream), said, len(audio))


@pytest.mark.fault(
    "D23",
    "more streams than are taken",
    "`overloaded` with `retry_after` and 1013; those inside do not notice; then there is room again",
)
def test_more_streams_than_are_taken() -> None:
    """30 streams on a server that takes 10 beside the honest one"""
    with serving("--max-streams", "11", faults=SHORT) as server, alive(server):
        said = words(4, 4)
        inside = [connect(server.socket_url + "?language=en") for _ in range(10)]
        for each in inside:
            assert json.loads(each.recv(timeout=PATIENCE))["type"] == "ready"
        for _ in range(20):
            with connect(server.socket_url + "?language=en") as outside:
                found = rest(outside)
                assert [each["code"] for each in found] == ["overloaded"]
                assert found[0]["retry_after"] > 0
                assert outside.close_code == 1013
        for each in inside:
            with each:
                each.send(pcm(speak(said)))
                each.send('{"type": "end"}')
                assert text(rest(each)) == spelt(said)
        with connect(server.socket_url + "?language=en") as again:
            assert json.loads(again.recv(timeout=PATIENCE))["type"] == "ready"
            again.send('{"type": "end"}')
            rest(again)
