"""Faults and attacks, done to a server in its own process. Each test carries its row of the table in
`docs/reliability.md`:

    @pytest.mark.fault("B01", "the fault, in words", "what happens then")

and says in its docstring how the fault is produced. Cases of one test are counted, not listed. After a change run
`python -m tests.faults.table`, which writes the table.

`pytest tests/faults` runs all; the default run takes those marked `quick`, last; `pytest -m slow` takes the others.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.process import Process, alive, serving

SHORT = {
    "server.connections.HEAD": 3.0,
    "server.listener.STALL": 2.0,
    "server.listener.UNREAD": 3.0,
    "server.sockets.STALL": 3.0,
}
"""Deadlines of the shared server: a test waits for them."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a run of everything, only the quick ones here are not slow, and they come last."""
    ours = [item for item in items if "faults" in item.path.parts]
    if not any("faults" in argument for argument in config.args):
        for item in ours:
            if item.get_closest_marker("quick") is None:
                item.add_marker(pytest.mark.slow)
    items[:] = [item for item in items if item not in ours] + ours


@pytest.fixture(scope="session")
def shared() -> Iterator[Process]:
    """One server for all tests that leave it as it was."""
    flags = ("--body-timeout", "3", "--max-upload-mb", "8", "--resume-seconds", "1")
    with serving(*flags, faults=SHORT) as process:
        yield process
        process.signal()
        assert process.wait() == 0, process.log


@pytest.fixture
def server(shared: Process) -> Iterator[Process]:
    """The shared server, which has to be alive afterwards."""
    with alive(shared):
        yield shared
