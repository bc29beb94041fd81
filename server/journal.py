"""Messages on their way to a client: numbered, bounded, without partials that nobody needs any more, and kept for a
while after they left, in case they did not arrive. Pure but for the wait."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from streaming.backlog import Common
from streaming.errors import OpenSpeechError

MESSAGES = 1024
"""That may wait for a slow reader. Stale partials are replaced, so these are finals and the like."""
BYTES = 4 * 2**20
"""Of text that may wait."""
KEPT_MESSAGES = 8192
"""That have left and are kept to be repeated; beyond, the oldest go."""
KEPT_BYTES = 4 * 2**20
"""Of text that are kept to be repeated: with the times of all words in every partial, minutes."""
ALL_BYTES = 256 * 2**20
"""Of text that all journals of a server hold; beyond, those that hold most repeat less, and then take no more."""


class Unread(OpenSpeechError):
    """The client does not read what it is sent."""


class Journal:
    """`put` on one side, `take` on the other. `seq` is given when a message leaves, so that it has no gaps.

    What has left is kept `keep` seconds and can be taken again with its number: see `rewind`.
    """

    def __init__(
        self,
        keep: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        common: Common | None = None,
    ) -> None:
        """`common`: of all journals, in characters."""
        self._keep = keep
        self._clock = clock
        self._common = common or Common(ALL_BYTES)
        self._over = False
        # (type, utterance, the rest of the text); bounded by MESSAGES and BYTES: beyond, put refuses.
        self._waiting: deque[tuple[str, int | None, str]] = deque()
        # (when, text), the newest has the number _seq - 1; bounded by time, KEPT_MESSAGES and KEPT_BYTES.
        self._left: deque[tuple[float, str]] = deque()
        self._waiting_size = self._left_size = 0
        self._news = asyncio.Event()
        self._closed = False
        self._seq = 0  # of the next message that leaves for the first time
        self._next = 0  # of the next message to take; below _seq after a rewind
        self.shed = 0
        """Partials that were replaced before they left."""

    @property
    def last(self) -> int:
        """The number of the newest message that has left; -1 before the first."""
        return self._seq - 1

    @property
    def first(self) -> int:
        """The number of the oldest message that can be taken again."""
        return self._seq - len(self._left)

    @property
    def size(self) -> int:
        """Characters that are held."""
        return self._waiting_size + self._left_size

    @property
    def closed(self) -> bool:
        """Nothing more will be put."""
        return self._closed

    def put(self, message: dict[str, Any]) -> None:
        """Queue. A partial takes the place of an older one of its utterance that has not left, a final of all of them,
        an ack of an older ack. Raises Unread when the reader is hopelessly behind; nothing was queued then."""
        if self._closed:
            return
        kind, utterance = message["type"], message.get("utterance")
        body = _body(message)
        if kind in ("partial", "final"):
            self.shed += self._withdraw("partial", utterance)
        elif kind == "ack":
            self._withdraw("ack", None)
        if self._common.excess(self):
            self._trim()  # what is kept goes before what waits
        if self._common.excess(self):
            raise Unread(
                f"{len(self._waiting)} messages wait unread, and those of all streams fill the memory that they may;"
                " read while sending"
            )
        if len(self._waiting) >= MESSAGES or self._waiting_size + len(body) > BYTES:
            raise Unread(
                f"{len(self._waiting)} messages wait unread, and no more than {MESSAGES} or {BYTES >> 20} MiB may;"
                " read while sending"
            )
        self._append(kind, utterance, body)

    def close(self, last: dict[str, Any] | None = None) -> None:
        """Nothing more will be put. `last` finds room even where nothing else would."""
        if last is not None and not self._closed:
            self._append(last["type"], None, _body(last))
        self._closed = True
        self._news.set()

    async def take(self) -> str | None:
        """The next message with its number, as text; None at the end. One taker at a time."""
        while self._next == self._seq and not self._waiting:
            if self._closed:
                return None
            self._news.clear()
            await self._news.wait()
        if self._next < self._seq:
            text = self._left[self._next - self.first][1]
            self._next += 1
            return text
        kind, _, body = self._waiting.popleft()
        self._waiting_size -= len(body)
        text = f'{{"type":"{kind}","seq":{self._seq},{body}'
        self._seq += 1
        self._next += 1
        if self._keep > 0:
            self._left.append((self._clock(), text))
            self._left_size += len(text)
        self._count()
        if self._left:
            self._trim()
        return text

    def rewind(self, last: int) -> None:
        """The client has everything up to number `last`, between `first` - 1 and `self.last`: what follows is taken
        again, what it has is let go."""
        assert self.first - 1 <= last <= self.last
        while self.first <= last:
            self._forget()
        self._next = last + 1

    def forget(self) -> None:
        """Its session is over: it counts no more."""
        self._over = True
        self._common.forget(self)

    def _count(self) -> None:
        if not self._over:
            self._common.put(self, self.size)

    def _trim(self) -> None:
        too_old = self._clock() - self._keep
        while len(self._left) > 1 and (
            self._left[0][0] < too_old
            or len(self._left) > KEPT_MESSAGES
            or self._left_size > KEPT_BYTES
            or self._common.excess(self)
        ):
            if self.first >= self._next:
                return  # it is about to be repeated
            self._forget()

    def _forget(self) -> None:
        self._left_size -= len(self._left.popleft()[1])
        self._count()

    def _append(self, kind: str, utterance: int | None, body: str) -> None:
        self._waiting.append((kind, utterance, body))
        self._waiting_size += len(body)
        self._count()
        self._news.set()

    def _withdraw(self, kind: str, utterance: int | None) -> int:
        """Take out what waits and is out of date. Answers how many."""
        kept = [each for each in self._waiting if each[:2] != (kind, utterance)]
        gone = len(self._waiting) - len(kept)
        if gone:
            self._waiting = deque(kept)
            self._waiting_size = sum(len(body) for _, _, body in kept)
            self._count()
        return gone


def unnumbered(message: dict[str, Any]) -> str:
    """A message that belongs to no journal, such as a refusal; its number is 0 and says nothing."""
    return f'{{"type":"{message["type"]}","seq":0,{_body(message)}'


def _body(message: dict[str, Any]) -> str:
    fields = {name: value for name, value in message.items() if name != "type"}
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))[1:]
