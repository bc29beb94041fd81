"""Live captions from an open-speech server: `connect` for plain code, `async_connect` for asyncio.

Both are thin faces over `protocol`, which does no I/O.
"""

from open_speech_client.aio import AsyncStream, async_captions, async_connect
from open_speech_client.errors import (
    ConnectionLost,
    OpenSpeechError,
    Overloaded,
    ProtocolError,
    Refused,
    ServerFailed,
    StreamClosed,
    Unreachable,
)
from open_speech_client.events import (
    Ack,
    EagerFinal,
    End,
    Error,
    Event,
    Final,
    Marker,
    Partial,
    Ready,
    Reconnecting,
    SpeechResumed,
    SpeechStarted,
    SpeechStopped,
    Word,
)
from open_speech_client.options import Options
from open_speech_client.sync import Stream, captions, connect

__version__ = "0.1.0"
__all__ = [
    "Ack",
    "AsyncStream",
    "ConnectionLost",
    "EagerFinal",
    "End",
    "Error",
    "Event",
    "Final",
    "Marker",
    "OpenSpeechError",
    "Options",
    "Overloaded",
    "Partial",
    "ProtocolError",
    "Ready",
    "Reconnecting",
    "Refused",
    "ServerFailed",
    "SpeechResumed",
    "SpeechStarted",
    "SpeechStopped",
    "Stream",
    "StreamClosed",
    "Unreachable",
    "Word",
    "async_captions",
    "async_connect",
    "captions",
    "connect",
]
