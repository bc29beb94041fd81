"""OpenAI Realtime without sockets, models or time: whole conversations, compared with recorded ones."""

import os
from pathlib import Path
from typing import Any

import pytest

from server.protocols.openai_realtime import Realtime
from server.protocols.openai_session import Configuration
from streaming.errors import UnknownModel
from streaming.types import Options
from tests.protocol.conversation import names, recorded, replay

HERE = Path(__file__).parent / "realtime"


def check(options: Options) -> None:
    """A catalogue of one model and its alias."""
    if options.model not in ("", "toy", "whisper-1", "gpt-4o-transcribe", "gpt-live-transcribe"):
        raise UnknownModel(f"the model {options.model!r} does not exist; GET /v1/models lists them")


def dialect(**more: Any) -> Realtime:
    return Realtime(Configuration(), check=check, now=1_795_388_400, name=names(), **more)


@pytest.mark.parametrize("path", sorted(HERE.glob("*.txt")), ids=lambda path: path.stem)
def test_recorded_conversations(path: Path) -> None:
    script = recorded(path)
    stem = path.stem
    made = dialect(beta=stem.startswith("beta"), deltas="late" if "late" in stem else "early")
    rate, width = (8000, 1) if "pcmu" in stem else (24_000, 2)
    found = replay(made, script, rate, width)
    if os.environ.get("RECORD"):  # look at the difference before it is committed
        path.write_text("\n".join(found) + "\n", "utf-8")
    assert found == script
