"""Speech with its text: FLEURS from the hub, or a folder of one's own. Plain files, no data-set library."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FLEURS = {"en": "en_us", "fr": "fr_fr", "de": "de_de", "es": "es_419", "it": "it_it", "pt": "pt_br"}
"""Languages and their folders in `google/fleurs` (CC-BY-4.0): read sentences, a speaker each, 10 s on average."""


@dataclass(frozen=True)
class Utterance:
    """A recording with what is said in it."""

    path: Path
    language: str
    text: str


def from_folder(folder: Path, languages: Sequence[str], count: int) -> list[Utterance]:
    """Of `speech.jsonl` in `folder`: lines with `file`, `language` and `text`; at most `count` a language."""
    rows = [json.loads(line) for line in (folder / "speech.jsonl").read_text("utf-8").splitlines()]
    found: list[Utterance] = []
    for language in languages:
        of = [row for row in rows if row["language"] == language][:count]
        found += [Utterance(folder / row["file"], language, row["text"]) for row in of]
    return found


def from_hub(cache: Path, languages: Sequence[str], count: int) -> list[Utterance]:
    """FLEURS' development sets, unpacked below `cache`; a few hundred MB a language, downloaded once."""
    from huggingface_hub import hf_hub_download

    found: list[Utterance] = []
    for language in languages:
        name = FLEURS[language]

        def get(file: str) -> str:
            return str(hf_hub_download("google/fleurs", file, repo_type="dataset"))

        folder = cache / name
        folder.mkdir(parents=True, exist_ok=True)
        wanted: dict[str, str] = {}
        # Columns: id, file, sentence as written, sentence in lower case without punctuation, letters, samples, gender.
        text = Path(get(f"data/{name}/dev.tsv")).read_text("utf-8")
        for row in csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE):
            if len(wanted) < count:
                wanted.setdefault(row[1], row[2])
        missing = {file for file in wanted if not (folder / file).is_file()}
        if missing:
            with tarfile.open(get(f"data/{name}/audio/dev.tar.gz")) as archive:
                for member in archive:
                    file = Path(member.name).name
                    content = archive.extractfile(member) if file in missing else None
                    if content is not None:
                        (folder / file).write_bytes(content.read())
        found += [Utterance(folder / file, language, said) for file, said in wanted.items()]
    return found
