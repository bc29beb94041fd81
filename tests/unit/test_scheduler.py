"""The scheduler runs the right work first, together, and starves nobody."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.backends.base import Window
from streaming.scheduler import Batch, Job, Lane, Scheduler

SILENCE = Window(np.zeros(1, np.float32))


def job(owner: object, lane: Lane, *, key: str = "10 s", deadline: float = 0.0) -> Job:
    return Job(owner, lane, SILENCE, key, deadline=deadline)


def taken(batch: Batch | None) -> list[object]:
    return [each.owner for each in batch.jobs] if batch else []


def learned(workers: int = 1, max_batch: int = 8, seconds: float = 0.01) -> Scheduler:
    """A scheduler that knows what batches of its two keys cost."""
    scheduler = Scheduler(workers, max_batch)
    for key in ("10 s", "30 s"):
        for size in (1, 2):
            for number in range(size):
                scheduler.add(job(("teacher", number), Lane.FINAL, key=key), 0)
            if size == 1 or scheduler._costs.get(key):
                batch = scheduler.take(0)
                assert batch is not None
                scheduler.done(batch, seconds * len(batch.jobs), 0)
                while (rest := scheduler.take(0)) is not None:
                    scheduler.done(rest, seconds * len(rest.jobs), 0)
    return scheduler


def test_finals_go_before_speculation_before_partials_before_recordings() -> None:
    scheduler = Scheduler(1, 1)
    for lane in (Lane.BULK, Lane.PARTIAL, Lane.SPECULATIVE, Lane.FINAL):
        scheduler.add(job(lane.name, lane), 0)
    order = []
    while (batch := scheduler.take(0)) is not None:
        order += taken(batch)
        scheduler.done(batch, 0.01, 0)
    assert order == ["FINAL", "SPECULATIVE", "PARTIAL", "BULK"]


def test_the_earliest_deadline_goes_first() -> None:
    scheduler = Scheduler(1, 1)
    for owner, deadline in (("b", 2.0), ("c", 3.0), ("a", 1.0)):
        scheduler.add(job(owner, Lane.PARTIAL, deadline=deadline), 0)
    assert taken(scheduler.take(0)) == ["a"]


def test_a_newer_partial_replaces_the_older_one_of_its_owner() -> None:
    scheduler = Scheduler(1, 1)
    old, other = job("a", Lane.PARTIAL), job("b", Lane.PARTIAL)
    scheduler.add(old, 0)
    scheduler.add(other, 0)
    assert scheduler.add(job("a", Lane.SPECULATIVE), 0) is old
    assert scheduler.waiting() == 2


def test_a_final_leaves_the_next_utterance_its_place() -> None:
    scheduler = Scheduler(1, 1)
    partial, final = job("a", Lane.PARTIAL), job("a", Lane.FINAL)
    partial.tag, final.tag = "second", "first"
    scheduler.add(partial, 0)
    assert scheduler.add(final, 0) is None
    assert scheduler.waiting() == 2


def test_finals_of_one_owner_are_all_kept() -> None:
    scheduler = Scheduler(1, 1)
    assert scheduler.add(job("a", Lane.FINAL), 0) is None
    assert scheduler.add(job("a", Lane.FINAL), 0) is None
    assert scheduler.waiting(Lane.FINAL) == 2


def test_many_sessions_share_a_batch_if_their_windows_are_alike() -> None:
    scheduler = learned()
    for owner in "abc":
        scheduler.add(job(owner, Lane.PARTIAL), 0)
    scheduler.add(job("long", Lane.PARTIAL, key="30 s"), 0)
    scheduler.add(job("d", Lane.FINAL), 0)
    assert taken(scheduler.take(0)) == ["d", "a", "b", "c"]


def test_a_batch_keeps_to_its_budget() -> None:
    scheduler = learned(seconds=0.05)
    for owner in range(8):
        scheduler.add(job(owner, Lane.PARTIAL), 0)
    assert len(taken(scheduler.take(0))) == 2


def test_work_of_unknown_cost_runs_alone_first() -> None:
    scheduler = Scheduler(1, 8)
    for owner in "ab":
        scheduler.add(job(owner, Lane.PARTIAL), 0)
    assert taken(scheduler.take(0)) == ["a"]


def test_recordings_leave_a_worker_to_streams_while_there_are_any() -> None:
    scheduler = Scheduler(2, 1)
    for owner in "ab":
        scheduler.add(job(owner, Lane.BULK), 0)
    scheduler.live_streams = 1
    assert taken(scheduler.take(0)) == ["a"]
    assert scheduler.take(0) is None
    scheduler.live_streams = 0
    assert taken(scheduler.take(0)) == ["b"]


@pytest.mark.parametrize("seconds", [0.1, 0.002])
def test_recordings_get_a_tenth_even_under_a_flood_of_finals(seconds: float) -> None:
    scheduler, bulk, total = Scheduler(1, 1), 0, 400
    scheduler.live_streams = 1
    for number in range(total):
        scheduler.add(job(number, Lane.FINAL), number)
        scheduler.add(job("file", Lane.BULK), number)
        batch = scheduler.take(number)
        assert batch is not None
        bulk += batch.lane is Lane.BULK
        scheduler.done(batch, seconds, number)
    assert 0.07 * total < bulk < 0.15 * total


def test_recordings_take_turns() -> None:
    scheduler, order = Scheduler(1, 1), ""
    for owner in "aaaabb":
        scheduler.add(job(owner, Lane.BULK), 0)
    while (batch := scheduler.take(0)) is not None:
        order += "".join(str(each) for each in taken(batch))
        scheduler.done(batch, 1.0, 0)
        if order == "aba":
            scheduler.add(job("short", Lane.BULK), 0)
    assert order == "abab" + "short" + "aa"


def test_a_client_that_leaves_leaves_nothing_behind() -> None:
    scheduler = Scheduler(1, 1)
    for lane in Lane:
        scheduler.add(job("gone", lane), 0)
    scheduler.add(job("here", Lane.BULK), 0)
    scheduler.cancel("gone")
    assert scheduler.waiting() == 1
    assert taken(scheduler.take(0)) == ["here"]


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(list(Lane)), st.sampled_from(["5 s", "30 s"])),
        max_size=60,
    ),
    st.integers(1, 4),
    st.integers(1, 8),
)
def test_every_job_runs_once_or_was_replaced(
    asked: list[tuple[int, Lane, str]], workers: int, most: int
) -> None:
    scheduler, added, gone, ran = Scheduler(workers, most), [], [], []
    running: list[Batch] = []
    for turn, (owner, lane, key) in enumerate(asked):
        added.append(job(owner, lane, key=key))
        gone.append(scheduler.add(added[-1], turn))
        if batch := scheduler.take(turn):
            running.append(batch)
        if len(running) > 1:
            scheduler.done(running[0], 0.1, turn)
            ran += running.pop(0).jobs
    while running or scheduler.waiting():
        while batch := scheduler.take(0):
            assert len(batch.jobs) <= most
            assert len({each.key for each in batch.jobs}) == 1
            running.append(batch)
        assert 0 < len(running) <= workers
        scheduler.done(running[0], 0.1, 0)
        ran += running.pop(0).jobs
    dropped = [each for each in gone if each]
    assert all(each.lane in (Lane.PARTIAL, Lane.SPECULATIVE) for each in dropped)
    assert len(ran) + len(dropped) == len(added)
    assert {id(each) for each in ran} | {id(each) for each in dropped} == {id(a) for a in added}


def test_under_load_it_says_so_and_takes_it_back() -> None:
    scheduler = Scheduler(1, 1)
    scheduler.live_streams = 3
    now = 0.0
    for turn in range(200):  # each partial waits 3 s for its turn
        scheduler.add(Job(turn, Lane.PARTIAL, SILENCE, 0), now)
        scheduler.add(Job("next", Lane.PARTIAL, SILENCE, 0), now + 3)
        batch = scheduler.take(now + 3)
        assert batch is not None
        now += 3
        scheduler.done(batch, 0.1, now)
    assert scheduler.crowded
    hint = scheduler.admit(now)
    assert hint is not None
    assert hint == min(2 * scheduler.wait(now), 30.0) > 2 * Scheduler.FULL
    assert scheduler.waiting(Lane.PARTIAL)
    while (batch := scheduler.take(now)) is not None:
        scheduler.done(batch, 0.1, now)
    for turn in range(30):
        scheduler.add(Job(turn, Lane.PARTIAL, SILENCE, 0), now)
        batch = scheduler.take(now)
        assert batch is not None
        scheduler.done(batch, 0.1, now)
    assert not scheduler.crowded
    assert scheduler.admit(now) is None


def test_a_partial_that_is_replaced_keeps_its_place() -> None:
    scheduler = Scheduler(1, 1)
    scheduler.add(Job("a", Lane.PARTIAL, SILENCE, 0, deadline=1.0), 1.0)
    scheduler.add(Job("b", Lane.PARTIAL, SILENCE, 0, deadline=2.0), 2.0)
    scheduler.add(Job("a", Lane.PARTIAL, SILENCE, 0, deadline=3.0), 3.0)
    batch = scheduler.take(4.0)
    assert batch is not None
    assert [job.owner for job in batch.jobs] == ["a"]
    assert batch.jobs[0].deadline == 1.0


def test_windows_are_decoded_one_by_one_where_a_batch_costs_as_much() -> None:
    def sizes(shared: float) -> list[int]:
        """Of 200 batches, while twenty streams want partials; a further window costs `shared` of the first."""
        scheduler = Scheduler(1, 8)
        taken = []
        for turn in range(200):
            for owner in range(20):
                scheduler.add(job(owner, Lane.PARTIAL), turn)
            batch = scheduler.take(turn)
            assert batch is not None
            taken.append(len(batch.jobs))
            scheduler.done(batch, 0.02 * (1 + shared * (len(batch.jobs) - 1)), turn)
        return taken

    alike, cheaper = sizes(1.0), sizes(0.1)
    assert sum(size > 1 for size in alike[100:]) <= 2  # tried now and then
    assert any(size > 1 for size in alike[100:])
    assert min(cheaper[100:]) > 4


def test_recordings_do_not_begin_beside_a_live_decode_unless_they_starve() -> None:
    scheduler = Scheduler(2, 8)
    scheduler.live_streams = 1
    scheduler.add(job("stream", Lane.PARTIAL), 0)
    scheduler.add(job("file", Lane.BULK, key="30 s"), 0)
    live = scheduler.take(0)
    assert taken(live) == ["stream"]
    assert scheduler.take(0) is None
    assert live is not None
    scheduler.done(live, 5.0, 0)
    scheduler.add(job("stream", Lane.PARTIAL), 0)
    assert taken(scheduler.take(0)) == ["file"]  # they had less than a tenth
    assert taken(scheduler.take(0)) == ["stream"]


def test_recordings_get_their_tenth_and_no_more_while_partials_wait() -> None:
    scheduler = Scheduler(2, 1)
    scheduler.live_streams = 2
    now, bulk, total = 0.0, 0.0, 0.0
    for turn in range(300):
        scheduler.add(job("file", Lane.BULK, key="30 s"), now)
        for owner in ("a", "b"):
            scheduler.add(job(owner, Lane.PARTIAL), now - 0.4)
        while (batch := scheduler.take(now)) is not None:
            if turn > 100:
                bulk += 0.2 if batch.lane is Lane.BULK else 0.0
                total += 0.2
            scheduler.add(job("c", Lane.PARTIAL), now - 0.4)  # somebody always waits
            scheduler.done(batch, 0.2, now)
            if batch.lane is Lane.BULK or taken(batch) == ["c"]:
                break
        now += 0.4
    assert 0.05 < bulk / total < 0.15


def test_recordings_rest_the_longer_the_more_the_streams_have_to_do() -> None:
    def files(every: float, streams: int = 1) -> int:
        """Windows of recordings of 0.3 s in a minute in which live decodes of 0.05 s come `every` so many seconds."""
        scheduler = Scheduler(2, 1)
        scheduler.live_streams = streams
        now, due, found, running = 0.0, 0.0, 0, list[tuple[float, Batch, float]]()
        while now < 60:
            if now >= due:
                scheduler.add(job("stream", Lane.PARTIAL), now)
                due += every
            if not scheduler.waiting(Lane.BULK):
                scheduler.add(job("file", Lane.BULK, key="30 s"), now)
            for each in [each for each in running if each[0] <= now]:
                running.remove(each)
                scheduler.done(each[1], each[2], now)
            while (batch := scheduler.take(now)) is not None:
                took = 0.3 if batch.lane is Lane.BULK else 0.05
                found += batch.lane is Lane.BULK
                running.append((now + took, batch, took))
            now += 0.01
        return found

    alone, quiet, busy = files(every=1e9), files(every=1.0), files(every=0.1)
    assert alone > 180
    assert 0.75 * alone < quiet < 0.95 * alone
    assert 0.25 * alone < busy < 0.5 * alone
    assert files(every=0.1, streams=0) > 180


def test_somebody_has_to_come_back_for_recordings_that_rest() -> None:
    scheduler = Scheduler(2, 1)
    scheduler.live_streams = 1
    for lane in (Lane.PARTIAL, Lane.BULK):
        scheduler.add(job(lane, lane), 0)
        batch = scheduler.take(0)
        assert batch is not None
        assert scheduler.rest(0) is None
        scheduler.done(batch, 2.0, 2.0)
    scheduler.add(job("file", Lane.BULK), 2.0)
    rest = scheduler.rest(2.0)
    assert rest is not None
    assert rest > 0
    assert scheduler.take(2.0 + 0.9 * rest) is None
    assert taken(scheduler.take(2.0 + 1.01 * rest)) == ["file"]


def test_recordings_go_on_once_the_streams_that_made_them_wait_say_nothing() -> None:
    scheduler, now = Scheduler(2, 1), 0.0
    scheduler.live_streams = 1
    for turn in range(100):  # each partial waits 3 s for its turn
        scheduler.add(job(turn, Lane.PARTIAL), now)
        now += 3
        batch = scheduler.take(now)
        assert batch is not None
        scheduler.add(job("next", Lane.PARTIAL), now)
        scheduler.done(batch, 0.1, now)
    scheduler.add(job("file", Lane.BULK), now)
    while (batch := scheduler.take(now)) is not None:  # the recording gets its tenth
        scheduler.done(batch, 2.0 if batch.lane is Lane.BULK else 0.1, now)
    scheduler.add(job("file", Lane.BULK), now)
    assert scheduler.take(now) is None
    rest = scheduler.rest(now)
    assert rest is not None
    assert rest < 6
    assert taken(scheduler.take(now + 1.01 * rest)) == ["file"]


def test_recordings_use_what_many_workers_leave_idle() -> None:
    scheduler = Scheduler(8, 1)
    scheduler.live_streams = 1
    for number in range(10):
        scheduler.add(job(number, Lane.BULK, key="30 s"), 0)
    for number in range(3):
        scheduler.add(job(f"live {number}", Lane.PARTIAL), 0)
    begun = []
    while (batch := scheduler.take(0)) is not None:
        begun.append(batch.lane)
    assert begun.count(Lane.PARTIAL) == 3
    assert begun.count(Lane.BULK) == 4  # one is left for what comes


def test_recordings_are_decoded_a_window_at_a_time_beside_streams() -> None:
    scheduler = learned(workers=2, seconds=0.2)
    for _ in range(6):
        scheduler.add(job("file", Lane.BULK, key="30 s"), 0)
    alone = scheduler.take(0)
    assert alone is not None
    scheduler.done(alone, 0.2 * len(alone.jobs), 0)
    scheduler.live_streams = 1
    beside = scheduler.take(1)
    assert beside is not None
    assert len(alone.jobs) > len(beside.jobs) == 1


def test_late_finals_keep_new_streams_out_too() -> None:
    scheduler = Scheduler(1, 1)
    assert scheduler.admit(0) is None
    scheduler.live_streams = 1
    for owner in range(3):
        scheduler.add(job(owner, Lane.FINAL), 0)
    assert scheduler.admit(0.5) is None
    assert scheduler.admit(1.5) is not None


def test_streams_that_came_at_once_are_followed_one_by_one_where_windows_cost_too_much() -> None:
    scheduler = learned(workers=2, seconds=0.1)
    for _ in range(20):
        scheduler.add(job("stream", Lane.PARTIAL), 0)
        batch = scheduler.take(0)
        assert batch is not None
        scheduler.done(batch, 0.1, 0)
    scheduler.live_streams = 10
    assert all(scheduler.admit(0) is None for _ in range(5))  # there is enough for all
    scheduler.live_streams = 128
    assert scheduler.admit(1) is None
    hint = scheduler.admit(1)
    assert hint is not None
    assert 1.0 < hint < 2.0
    assert scheduler.admit(1 + 16 / 128) is None


def test_a_model_whose_windows_take_long_still_takes_a_second_stream() -> None:
    scheduler = Scheduler(2, 8)
    scheduler.live_streams = 1
    now = 0.0
    for _ in range(100):  # each final waits for the partial before it
        scheduler.add(job("a", Lane.PARTIAL), now)
        batch = scheduler.take(now)
        assert batch is not None
        now += 2.0
        scheduler.done(batch, 2.0, now)
    scheduler.add(job("a", Lane.FINAL), now)
    assert scheduler.admit(now + 2.0) is None
    assert scheduler.admit(now + 20.0) == 30.0
