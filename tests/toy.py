"""The toy Whisper as a model directory: built once for each layout and shape, outside the repository."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent / "data" / "toy"


@cache
def build(shape: str = "native", layout: str = "v3", quantization: str = "int8") -> Path:
    """A CTranslate2 directory; see `tests/data/toy/build_model.py`. Kept in the temporary folder between runs."""
    source = HERE / "build_model.py"
    stamp = hashlib.sha256(
        source.read_bytes() + (HERE / "toy-whisper.npz").read_bytes()
    ).hexdigest()
    folder = Path(tempfile.gettempdir()) / f"open-speech-toys-{stamp[:12]}"
    out = folder / f"toy-{shape}-{layout}-{quantization}"
    if not (out / "preprocessor_config.json").is_file():
        spec = importlib.util.spec_from_file_location("build_model", source)
        assert spec is not None
        assert spec.loader is not None
        builder = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(builder)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            builder.build(Path(fresh) / "model", shape, quantization, layout)
            if not out.exists():
                os.replace(Path(fresh) / "model", out)
    return out
