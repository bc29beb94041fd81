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

from tests.faults.process import Control, Process, serving, until

SHORT = {
    "server.connections.HEAD": 3.0,
    "server.listener.STALL": 2.0,
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
    with serving("--body-timeout", "3", "--max-upload-mb", "8", faults=SHORT) as process:
        yield process
        process.signal()
        assert process.wait() == 0, process.log


@pytest.fixture
def server(shared: Process) -> Iterator[Process]:
    """The shared server, which has to be alive afterwards."""
    with alive(shared):
        yield shared


class alive:
    """While the block runs an honest session speaks beside it; afterwards nothing of what the block did is left."""

    def __init__(self, server: Process, *, errors: bool = False) -> None:
        self._server = server
        self._errors = errors  # may be told in the log

    def __enter__(self) -> Control:
        self._lines = len(self._server.said)
        self._open = self._server.descriptors()
        self._control = Control(self._server)
        return self._control

    def __exit__(self, *fault: object) -> None:
        self._control.finish()
        if fault[0] is not None:
            return
        server = self._server
        assert server.process.poll() is None, server.log
        said = "".join(server.said[self._lines :])
        assert self._errors or "Traceback" not in said, said
        assert self._errors or " error " not in said, said
        until(lambda: server.working() == 0)
        # Connections that a probe keeps alive, and a model's files, come and go: a leak is more than a few.
        until(lambda: server.descriptors() <= self._open + 4)
