"""The engine: audio in, events out. It knows no wire format, reads no environment and opens no socket."""
