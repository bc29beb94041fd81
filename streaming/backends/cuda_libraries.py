"""Makes the CUDA library that CTranslate2 opens by name loadable from where pip put it."""

from __future__ import annotations

import ctypes
import logging
from importlib.util import find_spec
from pathlib import Path

log = logging.getLogger(__name__)

NAMES = ("libcublasLt.so.12", "libcublas.so.12")
"""CTranslate2 4.8 opens the second, which needs the first; no cuDNN."""


def preload() -> list[str]:
    """Load the libraries of the `nvidia-cublas-cu12` wheel, if it is installed, so that `LD_LIBRARY_PATH` is not
    needed. Answers with the names that are now loadable."""
    found: list[str] = []
    folders = _folders()
    for name in NAMES:
        for place in [*(str(folder / name) for folder in folders), name]:
            try:
                ctypes.CDLL(place, mode=ctypes.RTLD_GLOBAL)
            except OSError:
                continue
            found.append(name)
            break
        else:
            log.debug("%s is not on this machine", name)
    return found


def _folders() -> list[Path]:
    try:
        spec = find_spec("nvidia.cublas")
    except ModuleNotFoundError:
        return []
    if spec is None or spec.submodule_search_locations is None:
        return []
    return [Path(each) / "lib" for each in spec.submodule_search_locations]
