"""Everything this client raises on purpose.

OpenSpeechError
├── Refused          the server said no: key, option, model or limit; asking again changes nothing
├── Overloaded       the server is full or stopping; ask again after `retry_after`
├── ServerFailed     the server met a fault of its own; its log says more
├── ConnectionLost   the connection broke and could not be taken up again in time
│   └── Unreachable  nothing that speaks this protocol answers at the address
├── ProtocolError    the server said something that this client does not understand
└── StreamClosed     audio after `end`, or a stream that was left
"""

from __future__ import annotations


class OpenSpeechError(Exception):
    """The root of the tree."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Refused(OpenSpeechError):
    """The server said no. `code` is for programs; `param` names the option that is wrong, if one is."""

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


class Overloaded(OpenSpeechError):
    """The server takes no more streams now."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds after which another try is welcome; None where the server did not say."""


class ServerFailed(OpenSpeechError):
    """A fault of the server."""

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


class ConnectionLost(OpenSpeechError):
    """The connection broke, and with it the rest of the stream."""


class Unreachable(ConnectionLost):
    """Nothing that speaks this protocol answers."""


class ProtocolError(OpenSpeechError):
    """The server is too old, too new, or not an open-speech server."""


class StreamClosed(OpenSpeechError):
    """The stream takes nothing more."""
