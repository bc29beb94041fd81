"""The CUDA library is found where pip put it, without `LD_LIBRARY_PATH`."""

import ctypes
import shutil
from pathlib import Path

import pytest

from streaming.backends import cuda_libraries


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `nvidia-cublas-cu12` installs, with any library under its names."""
    folder = tmp_path / "nvidia" / "cublas" / "lib"
    folder.mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    return folder


def some_library() -> str:
    """A shared library that this process has loaded already."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return next(line.split()[-1] for line in lines if "libm.so" in line or "libc.so" in line)


def test_the_libraries_of_the_wheel_are_loaded_by_their_place(
    wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    original = ctypes.CDLL

    def watch(name: str, mode: int = ctypes.DEFAULT_MODE) -> ctypes.CDLL:
        opened.append(name)
        assert mode == ctypes.RTLD_GLOBAL, "CTranslate2 must find what we opened"
        return original(name, mode)

    monkeypatch.setattr(ctypes, "CDLL", watch)
    for name in cuda_libraries.NAMES:
        shutil.copy(some_library(), wheel / name)
    assert cuda_libraries.preload() == list(cuda_libraries.NAMES)
    assert opened == [str(wheel / name) for name in cuda_libraries.NAMES], "the dependency first"


def test_a_broken_or_missing_library_is_no_crash(wheel: Path) -> None:
    (wheel / "libcublas.so.12").write_bytes(b"not a library")
    installed = [name for name in cuda_libraries.NAMES if _loadable(name)]
    assert cuda_libraries.preload() == installed


def _loadable(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
