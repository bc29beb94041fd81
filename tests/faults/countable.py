"""`open-speech serve` as its command starts it, but that speech is what is loud: so the scripted recogniser's words can
be counted. `FAULTS` may hold a JSON object of module attributes to set before the start, such as shorter deadlines;
with `DEADLY` some words harm the recogniser, see `tests.deadly`. `GET /counters` tells what is at work."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Loudness:
    """A Detector: speech is what is not silent."""

    def open(self) -> None:
        return None

    def detect(self, states: Sequence[None], frames: Sequence[Any]) -> list[NDArray[np.float32]]:
        del states
        return [
            np.where(
                np.sqrt(np.mean(np.square(each.reshape(-1, 512)), axis=1)) > 0.005, 0.99, 0.01
            ).astype(np.float32)
            for each in frames
        ]


def main() -> int:
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    from server import assembly, cli
    from streaming import backends
    from streaming.vad import silero
    from tests import deadly

    for name, value in json.loads(os.environ.get("FAULTS", "{}")).items():
        module, _, attribute = name.rpartition(".")
        loaded = importlib.import_module(module)
        assert hasattr(loaded, attribute), name
        setattr(loaded, attribute, value)
    if os.environ.get("DEADLY"):
        installed = backends.loaders()
        backends.loaders = lambda: installed | {"scripted": deadly.LOADER}
    silero.Silero = Loudness  # type: ignore[assignment, misc]
    make = assembly.make_app

    def make_app(*given: Any) -> Any:
        app, here = make(*given)

        async def counters(request: Request) -> JSONResponse:
            del request
            return JSONResponse({"working": here.working, "tasks": len(asyncio.all_tasks())})

        app.routes.insert(0, Route("/counters", counters))
        return app, here

    assembly.make_app = make_app
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
