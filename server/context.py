"""What a request handler may use, besides the request."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

from starlette.requests import HTTPConnection

from server.room import Room

if TYPE_CHECKING:
    from server.metrics import Metrics
    from server.settings import Settings
    from streaming.engine import Engine
    from streaming.models import Catalogue

PARTING = "open_speech.parting"
"""An extension of a WebSocket's scope: a future of the peer's Parting, there as soon as the connection knows it. The
messages that came before are perhaps not read yet."""
HEARD = "open_speech.heard"
"""Another: a function to call when audio came. On a server that is full, who brings none makes room for others."""


class Parting(Enum):
    """How a WebSocket's peer went."""

    ANSWERED = auto()
    """It answered our close, so all that we said has arrived."""
    GOODBYE = auto()
    """It closed of its own accord; with what code, the last message tells."""
    GONE = auto()
    """The connection broke."""


def _metrics() -> Metrics:
    from server.metrics import Metrics

    return Metrics()


@dataclass(slots=True)
class Context:
    """One server's parts; `app.state.context`."""

    settings: Settings
    engine: Engine
    catalogue: Catalogue
    metrics: Metrics = field(default_factory=_metrics)
    ready: bool = False
    """Preloading is done."""
    draining: bool = False
    """Somebody asked the server to stop: what runs goes on, nothing new is taken."""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set, after `draining`, on the loop: streams end what they hear and say so."""
    working: int = 0
    """Requests and streams at work; draining waits for them."""
    uploads: Room = field(init=False)
    """For request bodies."""
    notice: str | None = None
    """What an operator should know about the start, such as that a model could not be preloaded."""

    def __post_init__(self) -> None:
        # One upload of the size allowed finds room always.
        most = max(self.settings.max_uploads_mb, self.settings.max_upload_mb)
        self.uploads = Room(most * 2**20)


def context(connection: HTTPConnection) -> Context:
    """The context of the server that answers `connection` (a Request or a WebSocket)."""
    found: Context = connection.app.state.context
    return found
