"""Half a minute in which everything around live streams breaks: a short run of `tests/perf/chaos.py`."""

import pytest

from tests.perf.chaos import Plan, run


@pytest.mark.slow
@pytest.mark.parametrize("scripted", [True, False], ids=["scripted", "toy"])
def test_no_word_is_lost_or_doubled_in_chaos(scripted: bool) -> None:
    plan = Plan(
        minutes=0.5 if scripted else 0.25,
        streams=8 if scripted else 4,
        calls=2,
        files=2,
        scripted=scripted,
        kill_every=3.0,
        break_every=1.0,
    )
    report = run(plan)
    assert report.faults == []
    assert all(report.done[kind] for kind in ("runner killed", "connection reset"))
    assert sum(outcome.connections for outcome in report.outcomes) > plan.streams + plan.calls
    assert all(len(outcome.heard) for outcome in report.outcomes)
