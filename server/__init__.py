"""The HTTP and WebSocket face: it translates wire formats and knows no recogniser."""

__version__ = "0.1.0"
