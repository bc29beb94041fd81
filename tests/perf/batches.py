"""What a batch of windows costs on a device, by the number of windows and their length.

    python tests/perf/batches.py [--device auto] [--shape large-v3-turbo] [--sizes 1 2 4 8 16 32 64] [--frames 500 800 1000 3000]

The toy in the shape of a Whisper costs what that Whisper costs. Prints milliseconds for `encode` and for `generate` of text
of the length that is spoken in such a window, each the median of five calls, and what a window costs in the batch as a share
of what it costs alone: the scheduler makes batches where that is below 0.9.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import ctranslate2
import numpy as np

from tests import toy

TOKENS_A_SECOND = 4
"""Of speech."""
ROUNDS = 5


def median(work: Callable[[], Any]) -> float:
    """Milliseconds."""
    work()
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def main() -> None:
    """Measure, a row for each size and length."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--shape", default="large-v3-turbo")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--frames", type=int, nargs="+", default=[500, 800, 1000, 3000])
    given = parser.parse_args()
    device = given.device
    if device == "auto":
        device = "cuda" if ctranslate2.get_cuda_device_count() else "cpu"
    compute = "float16" if device == "cuda" else "int8"
    path = toy.build(given.shape, quantization="int8" if device == "cpu" else "float16")
    model = ctranslate2.models.Whisper(str(path), device=device, compute_type=compute)
    print(f"toy of shape {given.shape}, {compute}, {device}\n")
    print("| frames | windows | encode | generate | a window, of one alone |")
    print("|--:|--:|--:|--:|--:|")
    for frames in given.frames:
        alone = 0.0
        for size in given.sizes:
            mel = np.zeros((size, model.n_mels, frames), np.float32)
            features = ctranslate2.StorageView.from_array(mel)
            tokens = frames * TOKENS_A_SECOND // 100
            prompt = [[_start(path)]] * size

            def encode(features: Any = features) -> Any:
                encoded = model.encode(features, to_cpu=False)
                # Copying one number waits for the device.
                return encoded if device == "cpu" else encoded.to_device(ctranslate2.Device.cpu)

            encoded = model.encode(features, to_cpu=False)

            def generate(encoded: Any = encoded, prompt: Any = prompt, tokens: int = tokens) -> Any:
                # As much as is spoken, whatever silence says: the end is not allowed before.
                return model.generate(
                    encoded,
                    prompt,
                    beam_size=1,
                    max_length=2 * tokens,
                    suppress_tokens=[_end(path)],
                )

            encoding, generating = median(encode), median(generate)
            cost = (encoding + generating) / size
            alone = alone or cost
            print(
                f"| {frames} | {size} | {encoding:.1f} ms | {generating:.1f} ms | {cost / alone:.2f} |",
                flush=True,
            )


def _token(path: Path, text: str) -> int:
    from tokenizers import Tokenizer

    found = Tokenizer.from_file(str(path / "tokenizer.json")).token_to_id(text)
    assert found is not None
    return int(found)


def _start(path: Path) -> int:
    return _token(path, "<|startoftranscript|>")


def _end(path: Path) -> int:
    return _token(path, "<|endoftext|>")


if __name__ == "__main__":
    main()
