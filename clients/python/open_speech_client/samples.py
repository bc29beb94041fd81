"""Audio as users hold it, as the bytes that a stream takes. numpy is used where it is there, and never needed."""

from __future__ import annotations

import array
import sys
from typing import Any, TypeAlias

Audio: TypeAlias = Any
"""bytes in the stream's encoding; or samples, int16 or float in [-1, 1], as an ndarray or anything with a buffer.
More than one channel is interleaved: shape ``(n, channels)``."""


def encoded(audio: Audio, encoding: str) -> bytes:
    """`audio` in `encoding`: bytes as they are, samples converted. Raises TypeError for what is neither."""
    if isinstance(audio, bytes):
        return audio
    if isinstance(audio, bytearray):
        return bytes(audio)
    try:
        view = memoryview(audio)
    except TypeError:
        raise TypeError(
            f"audio is {type(audio).__name__}; expected are bytes, or samples as int16 or floats"
        ) from None
    kind = view.format.lstrip("<=@")
    if kind in ("B", "b", "c"):
        return view.tobytes()
    if encoding not in ("pcm_s16le", "pcm_f32le"):
        raise TypeError(f"samples cannot be sent as {encoding}; send bytes in that encoding")
    if kind == "h":
        if encoding == "pcm_f32le":
            return _floats(value / 32768 for value in _flat(view, "h"))
        return _little("h", view.tobytes())
    if kind in ("f", "d"):
        if encoding == "pcm_f32le":
            return _little("f", view.tobytes()) if kind == "f" else _floats(_flat(view, kind))
        return _whole(audio, view, kind)
    raise TypeError(
        f"samples have the buffer format {view.format!r}; expected are int16, or floats in [-1, 1]"
    )


def _whole(audio: Any, view: memoryview, kind: str) -> bytes:
    """Floats as int16, clipped."""
    if hasattr(audio, "astype"):
        scaled = (audio * 32768.0).round().clip(-32768, 32767).astype("<i2")
        data: bytes = scaled.tobytes()
        return data
    values = array.array(
        "h", (max(-32768, min(32767, round(value * 32768))) for value in _flat(view, kind))
    )
    return _little("h", values.tobytes())


def _flat(view: memoryview, kind: str) -> array.array[Any]:
    values: array.array[Any] = array.array(kind)
    values.frombytes(view.tobytes())
    return values


def _floats(values: Any) -> bytes:
    return _little("f", array.array("f", values).tobytes())


def _little(kind: str, data: bytes) -> bytes:
    """`data` of this machine in the wire's order of bytes."""
    if sys.byteorder == "little":
        return data
    values: array.array[Any] = array.array(kind)
    values.frombytes(data)
    values.byteswap()
    return values.tobytes()
