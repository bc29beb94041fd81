"""Request bodies on disk have a bound all together."""

import pytest

from server.room import Room
from streaming.errors import Overloaded


def test_what_does_not_fit_is_refused_and_what_is_given_back_fits_again() -> None:
    now = 0.0
    room = Room(100, lambda: now)
    with room.share() as one, room.share() as other:
        one.grow(60)
        one.grow(50)  # it is that much already
        other.grow(40)
        with room.share() as third, pytest.raises(Overloaded) as refused:
            third.grow(1)
        assert 1.0 <= refused.value.retry_after <= 600.0
        assert room.used == 100
    assert room.used == 0


def test_the_hint_is_how_often_an_upload_goes() -> None:
    now = 0.0
    room = Room(100, lambda: now)
    for _ in range(40):
        with room.share() as share:
            share.grow(1)
            now += 60.0
    shares = [room.share() for _ in range(4)]
    for share in shares:
        share.grow(25)
    with pytest.raises(Overloaded) as refused, room.share() as another:
        another.grow(1)
    assert refused.value.retry_after == pytest.approx(15.0, rel=0.1)


def test_what_is_only_announced_takes_no_room() -> None:
    room = Room(100)
    with room.share() as one, room.share() as other:
        one.expect(100)
        other.expect(60)
        other.grow(60)
        assert room.used == 60
        with pytest.raises(Overloaded):
            one.expect(41)
    assert room.used == 0
