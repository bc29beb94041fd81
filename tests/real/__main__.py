"""Real weights on real speech, wherever there is a hub:

    uv run python -m tests.real

Downloads the models and some FLEURS (CC-BY-4.0, read sentences), sends them through REST and the socket of a server that it
starts, and through `faster_whisper` itself with the same weights, and writes a table. Takes about a quarter of an hour on
a GPU and some hours on a CPU; `--count 10 --languages en --models base` takes minutes. Gigabytes are kept in the hub's
cache, or in `--model-dir`.

Word errors are counted on lower-case text without punctuation; numbers and abbreviations are not unified, so compare the
columns, not papers.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from streaming.backends import loaders
from streaming.models import Catalogue
from tests.installed import serving
from tests.real import comparison, recordings

MODELS = "large-v3-turbo,small,base,distil-large-v3,base.en"


def main(arguments: list[str] | None = None) -> int:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.real",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", default=MODELS, help=f"names, comma-separated [{MODELS}]")
    parser.add_argument("--languages", default="en,fr,de,es", help="[en,fr,de,es]")
    parser.add_argument("--count", type=int, default=50, help="recordings a language [50]")
    parser.add_argument("--paced", type=int, default=10, help="recordings sent in real time [10]")
    parser.add_argument("--speech", type=Path, help="folder with speech.jsonl instead of FLEURS")
    parser.add_argument("--model-dir", type=Path, help="where models lie [the hub's cache]")
    parser.add_argument("--offline", action="store_true", help="never ask the hub")
    parser.add_argument("--device", default="auto", help="auto, cuda or cpu [auto]")
    parser.add_argument("--out", type=Path, default=Path("real.md"), help="[real.md]")
    given = parser.parse_args(arguments)

    languages = given.languages.split(",")
    if given.speech is not None:
        speech = recordings.from_folder(given.speech, languages, given.count)
    else:
        cache = Path.home() / ".cache" / "open-speech-real"
        speech = recordings.from_hub(cache, languages, given.count)
    variables = {
        "STT_DEVICE": given.device,
        "STT_LOG_LEVEL": "warning",
        "STT_ALLOW_DOWNLOADS": "any",
    }
    if given.model_dir is not None:
        variables["STT_MODEL_DIR"] = str(given.model_dir.resolve())
    if given.offline:
        variables["STT_OFFLINE"] = "true"
    rows: list[comparison.Row] = []
    command = Path(sys.executable).with_name("open-speech")
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(command, Path(folder), **variables) as server,
    ):
        for name in given.models.split(","):
            rows.append(_one(server.url, name, speech, given))
            print(f"{name} done", file=sys.stderr)
    text = comparison.table(rows)
    heading = (
        f"{len(speech)} recordings, {', '.join(languages)} (English-only models: English),"
        f" {time.strftime('%Y-%m-%d')}; `uv run python -m tests.real`\n\n"
    )
    given.out.write_text(heading + text, "utf-8")
    print(text)
    return 0


def _one(
    url: str, name: str, speech: list[recordings.Utterance], given: argparse.Namespace
) -> comparison.Row:
    import ctranslate2
    from faster_whisper import WhisperModel

    catalogue = Catalogue(
        loaders(), directory=given.model_dir, offline=given.offline, downloads="any"
    )
    entry = catalogue.entry(name)
    weights = catalogue.ensure(entry)
    can = catalogue.entry(name).capabilities.languages
    cuda = given.device != "cpu" and ctranslate2.get_cuda_device_count() > 0
    # As the server does.
    device, kind = ("cuda", "float16") if cuda else ("cpu", "int8")
    bare = WhisperModel(str(weights), device=device, compute_type=kind)
    able = [utterance for utterance in speech if utterance.language in can]
    return comparison.compare(url, entry.id, able, given.paced, bare)


if __name__ == "__main__":
    sys.exit(main())
