"""Sans-I/O dialects of the WebSocket: messages in, commands out; events in, messages out."""
