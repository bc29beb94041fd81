"""Who makes room on a full server."""

from types import SimpleNamespace
from typing import Any

import pytest

from server.connections import MUTE, Room


class Socket:
    """As much of a WebSocket as the room knows."""

    read_paused = False

    def __init__(self, room: Any, clock: list[float]) -> None:
        self._room = room
        self.loop = SimpleNamespace(time=lambda: clock[0])
        room.sockets += 1
        room.mute[self] = clock[0]

    def speak(self) -> None:
        self._room.mute.pop(self, None)
        self._room.speaking.pop(self, None)
        self._room.speaking[self] = self.loop.time()

    def leave(self) -> None:
        self._room.sockets -= 1
        self._room.mute.pop(self, None)
        self._room.speaking.pop(self, None)


@pytest.fixture
def clock() -> list[float]:
    return [0.0]


@pytest.fixture
def room() -> Any:
    return Room(8, idle=60.0)


def filled(room: Any, clock: list[float]) -> list[Socket]:
    found = []
    while not room.sockets_full:
        found.append(Socket(room, clock))
    return found


def test_sockets_that_never_spoke_go_first_the_oldest_of_them_first(
    room: Any, clock: list[float]
) -> None:
    first, second, *others = filled(room, clock)
    for each in others:
        each.speak()
    assert not room.make_for_socket()
    clock[0] = MUTE
    assert room.make_for_socket()
    assert [*room.mute] == [second]
    assert first not in room.speaking
    Socket(room, clock)
    assert room.make_for_socket()
    assert second not in room.mute


def test_who_spoke_stays_until_it_was_silent_for_the_idle_time(
    room: Any, clock: list[float]
) -> None:
    everyone = filled(room, clock)
    for each in everyone:
        each.speak()
    clock[0] = 59.0
    everyone[0].speak()
    assert not room.make_for_socket()
    clock[0] = 60.0
    assert room.make_for_socket()
    assert [*room.speaking] == [*everyone[2:], everyone[0]]


def test_whose_audio_waits_for_the_server_is_not_silent(room: Any, clock: list[float]) -> None:
    everyone = filled(room, clock)
    clock[0] = 1000.0
    for each in everyone:
        each.read_paused = True
    assert not room.make_for_socket()
    assert [*room.speaking] == everyone
    clock[0] = 2000.0
    everyone[3].read_paused = False
    assert room.make_for_socket()
    assert everyone[3] not in room.speaking
    assert room.sockets == len(everyone) - 1
