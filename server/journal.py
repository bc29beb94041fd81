"""Messages on their way to a client: numbered, bounded, without partials that nobody needs any more. Pure but for the
wait."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import Any

from streaming.errors import OpenSpeechError

MESSAGES = 1024
"""That may wait for a slow reader. Stale partials are replaced, so these are finals and the like."""
BYTES = 4 * 2**20
"""Of text that may wait."""


class Unread(OpenSpeechError):
    """The client does not read what it is sent."""


class Journal:
    """`put` on one side, `take` on the other. `seq` is given when a message leaves, so that it has no gaps."""

    def __init__(self) -> None:
        # (type, utterance, the rest of the text); bounded by MESSAGES and BYTES: beyond, put refuses.
        self._waiting: deque[tuple[str, int | None, str]] = deque()
        self._size = 0
        self._news = asyncio.Event()
        self._closed = False
        self._seq = 0
        self.shed = 0
        """Partials that were replaced before they left."""

    def put(self, message: dict[str, Any]) -> None:
        """Queue. A partial takes the place of an older one of its utterance that has not left, a final of all of them,
        an ack of an older ack. Raises Unread when the reader is hopelessly behind; nothing was queued then."""
        if self._closed:
            return
        kind, utterance = message["type"], message.get("utterance")
        body = json.dumps(
            {name: value for name, value in message.items() if name != "type"},
            ensure_ascii=False,
            separators=(",", ":"),
        )[1:]
        if kind in ("partial", "final"):
            self.shed += self._withdraw("partial", utterance)
        elif kind == "ack":
            self._withdraw("ack", None)
        if len(self._waiting) >= MESSAGES or self._size + len(body) > BYTES:
            raise Unread("the messages are not read; read while sending")
        self._append(kind, utterance, body)

    def close(self, last: dict[str, Any] | None = None) -> None:
        """Nothing more will be put. `last` finds room even where nothing else would."""
        if last is not None and not self._closed:
            fields = {name: value for name, value in last.items() if name != "type"}
            body = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))[1:]
            self._append(last["type"], None, body)
        self._closed = True
        self._news.set()

    async def take(self) -> str | None:
        """The next message with its number, as text; None at the end."""
        while not self._waiting:
            if self._closed:
                return None
            self._news.clear()
            await self._news.wait()
        kind, _, body = self._waiting.popleft()
        self._size -= len(body)
        text = f'{{"type":"{kind}","seq":{self._seq},{body}'
        self._seq += 1
        return text

    def _append(self, kind: str, utterance: int | None, body: str) -> None:
        self._waiting.append((kind, utterance, body))
        self._size += len(body)
        self._news.set()

    def _withdraw(self, kind: str, utterance: int | None) -> int:
        """Take out what waits and is out of date. Answers how many."""
        kept = [each for each in self._waiting if each[:2] != (kind, utterance)]
        gone = len(self._waiting) - len(kept)
        if gone:
            self._waiting = deque(kept)
            self._size = sum(len(body) for _, _, body in kept)
        return gone
