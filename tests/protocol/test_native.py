"""The native dialect without any I/O: what it makes of messages, and what it never does."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.protocols import native
from server.protocols.native import Audio, Command, End, Open, ProtocolError, Reader
from streaming.types import Options

GOLDEN = Path(__file__).parents[1] / "data" / "native"


def reader(state: str) -> Reader:
    made = Reader()
    if state != "start":
        made.receive_text('{"type": "start"}')
    if state == "ended":
        made.receive_text('{"type": "end"}')
    return made


def shown(command: Command) -> str:
    """A command in a line; of options only what differs from the defaults."""
    if not isinstance(command, Open):
        return str(command)
    opening, default = command.opening, native.Opening()
    differ = {
        name: getattr(one, name)
        for one, other in ((opening, default), (opening.options, Options()))
        for name in one.__slots__
        if name != "options" and getattr(one, name) != getattr(other, name)
    }
    return f"Open({', '.join(f'{name}={value!r}' for name, value in differ.items())})"


def answer(line: str) -> str:
    """What the dialect makes of a line of a golden file."""
    _, state, message = line.split(" ", 2)
    try:
        if state == "query":
            commands = Reader().receive_query(parse_qsl(message, keep_blank_values=True))
        elif message == "binary":
            commands = reader(state).receive_bytes(b"12")
        else:
            commands = reader(state).receive_text(message)
    except ProtocolError as fault:
        return f"! {fault.code}{f' ({fault.param})' if fault.param else ''}: {fault.message}"
    return "= " + (", ".join(map(shown, commands)) or "nothing")


def replayed(name: str) -> str:
    """A golden file with the answers of now."""
    lines = (GOLDEN / name).read_text("utf-8").splitlines()
    return "".join(f"{line}\n{answer(line)}\n" for line in lines if line.startswith("> "))


@pytest.mark.parametrize("name", ["mistakes.txt", "openings.txt"])
def test_every_message_gets_the_recorded_answer(name: str) -> None:
    assert replayed(name) == (GOLDEN / name).read_text("utf-8")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None, exclude_categories=()), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
TYPES = st.sampled_from(["start", "commit", "keepalive", "end", "resume", "other"]) | JSON
FIELDS = st.dictionaries(st.sampled_from([*native.NAMES, "marker", "odd"]), JSON, max_size=3)
TEXTS = (
    st.builds(lambda kind, more: json.dumps({"type": kind, **more}), TYPES, FIELDS)
    | JSON.map(json.dumps)
    | st.text(max_size=20)
)
MESSAGES = st.lists(TEXTS | st.binary(max_size=50), max_size=12)


@given(
    MESSAGES, st.lists(st.tuples(st.sampled_from(native.NAMES), st.text(max_size=9)), max_size=3)
)
def test_no_messages_break_the_dialect(
    messages: list[str | bytes], query: list[tuple[str, str]]
) -> None:
    reader, opened, ended = Reader(), 0, 0
    faults: list[ProtocolError] = []

    def receive(give: Any, message: Any) -> list[Command]:
        try:
            commands: list[Command] = give(message)
        except ProtocolError as fault:
            faults.append(fault)
            return []
        return commands

    done = receive(reader.receive_query, query)
    for message in messages:
        give = reader.receive_bytes if isinstance(message, bytes) else reader.receive_text
        done += receive(give, message)
    for number, command in enumerate(done):
        opened += isinstance(command, Open)
        if isinstance(command, Audio | End | native.Commit):
            assert opened == 1, "audio, commits and the end come after the opening"
            assert not ended, f"nothing comes after the end: {done[number]}"
        ended += isinstance(command, End)
    assert opened <= 1
    for fault in faults:
        told = native.error(fault.message, code=fault.code, param=fault.param)
        assert len(json.dumps(told, ensure_ascii=False).encode()) < 1000
        assert fault.code in native.ERRORS


@given(st.lists(st.binary(max_size=400), max_size=10))
def test_every_byte_is_handed_on_once(chunks: list[bytes]) -> None:
    made = Reader()
    commands = [command for chunk in chunks for command in made.receive_bytes(chunk)]
    heard = b"".join(command.data for command in commands if isinstance(command, Audio))
    assert heard == b"".join(chunks)


if __name__ == "__main__":  # accepts the answers of now
    for path in GOLDEN.glob("*.txt"):
        path.write_text(replayed(path.name), "utf-8")
