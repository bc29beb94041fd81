"""Whisper through CTranslate2: windows of many sessions in one call.

`faster_whisper` loads the model, its tokenizer and its feature code; the CTranslate2 model is driven directly, because
its own pipelines batch the windows of one file only. Timestamp tokens are never used: word times come from `align`,
one parallel pass at an eighth of the cost of decoding, and text without timestamps can be batched freely.
"""

from __future__ import annotations

import ctypes
import os
import time
import zlib
from collections.abc import Hashable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaming.backends import whisper_weights
from streaming.backends.base import Capabilities, Decoding, Hypothesis, Window
from streaming.errors import BackendError, ModelUnavailable
from streaming.types import RATE, Device, Token, Word, Work

HOP = 160
"""Samples per mel frame."""
SEEN = 320
"""Samples per encoder position, the grain of word times."""
TAIL = int(2.5 * RATE)
"""Padding after the audio that Whisper needs to see the end (whisper.cpp 1855: 2.56 s of slack loses nothing)."""
BUCKETS = tuple(seconds * RATE for seconds in (5, 6, 8, 10, 12, 15, 20, 25, 30))
"""Lengths that windows are padded to, so that many can share a batch."""
LONGEST_PROMPT = 223
"""Tokens of context before the text, Whisper's limit."""
MAX_LENGTH = 448
TOKENS_PER_SECOND = 25
"""More than any language needs; bounds the time that a looping decode takes."""
AVX512 = {"avx512f", "avx512cd", "avx512vl", "avx512bw", "avx512dq", "avx512_vbmi2"}
"""What CTranslate2 needs of a CPU, and what tells those apart that slow down for it."""
SHORTEST = RATE // 10
"""A window below 0.1 s holds no word."""
BEST_OF = 5
"""Samples drawn at temperatures above zero, Whisper's default."""
BEFORE, AFTER = "\"'“¿([{-", "\"'.。,，!！?？:：”)]}、"
"""Punctuation that belongs to the following or the previous word."""


class FasterWhisper:
    """A WindowBackend."""

    def __init__(self, model: Any, layout: whisper_weights.Layout, path: Path) -> None:
        self.capabilities: Capabilities = whisper_weights.capabilities(layout)
        self.compute_type: str = model.model.compute_type
        self.memory: int | None = (path / "model.bin").stat().st_size
        """Size of the weights on disk: what CTranslate2 holds is within a few per cent of it."""
        self._model: Any = model.model
        self._features: Any = model.feature_extractor
        self._text = _Text(model.hf_tokenizer, layout)
        self._cuda = model.model.device == "cuda"

    def key(self, window: Window) -> Hashable:
        """See `key`."""
        return key(window)

    def decode(self, windows: Sequence[Window]) -> list[Hypothesis]:
        """See `WindowBackend.decode`."""
        model = self._model
        if model is None:
            raise BackendError("the model was unloaded; ask again to load it")
        found: list[Hypothesis | None] = [
            Hypothesis("", no_speech=1.0) if len(window.samples) < SHORTEST else None
            for window in windows
        ]
        rows = [at for at, each in enumerate(found) if each is None]
        try:
            for at, hypothesis in zip(
                rows, self._decode(model, [windows[at] for at in rows]), strict=True
            ):
                found[at] = hypothesis
        except (RuntimeError, ValueError) as error:
            raise BackendError(_explained(error)) from error
        return [each for each in found if each is not None]

    def close(self) -> None:
        """Free the weights."""
        model, self._model = self._model, None
        if model is not None:
            model.unload_model()
            del model
            _trim()

    def _decode(self, model: Any, windows: list[Window]) -> list[Hypothesis]:
        if not windows:
            return []
        began = time.monotonic()
        encoded = model.encode(_storage(self._mel(windows)), to_cpu=False)
        encoding = time.monotonic() - began
        languages, detected = self._languages(model, encoded, windows)
        decodings = [window.decoding for window in windows]
        if decodings[0].task == "detect":
            work = _shared(began, encoding, time.monotonic(), len(windows))
            return [
                Hypothesis("", (), (), language, *_ranked(probabilities), work=work)
                for language, probabilities in zip(languages, detected, strict=True)
            ]
        text = self._text
        starts = [
            text.start(language, decoding.task)
            for language, decoding in zip(languages, decodings, strict=True)
        ]
        prefixes = [text.prefix(decoding.prefix) for decoding in decodings]
        prompts = [
            [
                *text.before(decoding),
                *start,
                *([] if decoding.anchored else [text.no_timestamps]),
            ]
            for decoding, start in zip(decodings, starts, strict=True)
        ]
        longest = max(len(prompt) for prompt in prompts)
        seconds = max(len(window.samples) for window in windows) / RATE
        room = int(seconds * TOKENS_PER_SECOND) + 16 + max(len(prefix) for prefix in prefixes)
        room = min(room, MAX_LENGTH // 2, MAX_LENGTH - longest)
        length = min(MAX_LENGTH, max(2 * room, room + longest))
        temperature = decodings[0].temperature
        if temperature > 0:
            search = {
                "beam_size": 1,
                "num_hypotheses": BEST_OF,
                "sampling_topk": 0,
                "sampling_temperature": temperature,
            }
        else:
            search = {"beam_size": decodings[0].beam}
        results = model.generate(
            encoded,
            [prompt + prefix for prompt, prefix in zip(prompts, prefixes, strict=True)],
            max_length=length,
            return_scores=True,
            return_no_speech_prob=True,
            suppress_blank=True,
            suppress_tokens=text.suppressed,
            **search,
        )
        printed = [len(result.sequences_ids[0]) for result in results]
        tokens = [
            [token for token in result.sequences_ids[0] if token < text.end] for result in results
        ]
        generated = time.monotonic()
        aligned = self._align(model, encoded, windows, starts, tokens, prefixes, languages)
        work = _shared(began, encoding, generated, len(windows))
        hypotheses = []
        for at, (window, result) in enumerate(zip(windows, results, strict=True)):
            words, marked = aligned.get(at, ((), ()))
            plain = "".join(word.text for word in words) if words else text.decode(tokens[at])
            probability, ranked = _ranked(detected[at])
            hypotheses.append(
                Hypothesis(
                    plain,
                    words,
                    marked,
                    languages[at],
                    probability,
                    ranked,
                    log_probability=result.scores[0] * printed[at] / (printed[at] + 1),
                    no_speech=result.no_speech_prob,
                    compression_ratio=_compression(plain.strip()),
                    temperature=window.decoding.temperature,
                    capped=printed[at] >= room,
                    work=work,
                )
            )
        return hypotheses

    def _mel(self, windows: list[Window]) -> NDArray[np.float32]:
        """Log-mel of the windows, shape ``(batch, bins, frames)``.

        Padded with zeros after the mel, as Whisper's own `transcribe` does: padding the audio instead costs 2 % of the
        words, relative (faster-whisper pull requests 1084 and 1101).
        """
        length = max(_padded(len(each.samples), each.decoding.floor) for each in windows)
        rows: NDArray[np.float32] | None = None
        for at, window in enumerate(windows):
            mel = self._features(window.samples)[..., :-1]
            if rows is None:
                rows = np.zeros((len(windows), mel.shape[0], length // HOP), np.float32)
            frames = min(mel.shape[1], rows.shape[2])
            rows[at, :, :frames] = mel[:, :frames]
        assert rows is not None
        return rows

    def _languages(
        self, model: Any, encoded: Any, windows: list[Window]
    ) -> tuple[list[str], list[dict[str, float]]]:
        """The language of each window, asked for or detected, and what detection found."""
        nothing: list[dict[str, float]] = [{} for _ in windows]
        if not self.capabilities.detects_language:
            return ["en"] * len(windows), nothing
        decodings = [window.decoding for window in windows]
        if all(each.language is not None and each.task != "detect" for each in decodings):
            return [each.language or "en" for each in decodings], nothing
        languages = []
        for at, row in enumerate(model.detect_language(encoded)):
            decoding = decodings[at]
            if decoding.language is not None and decoding.task != "detect":
                languages.append(decoding.language)
                continue
            probabilities = {token[2:-2]: float(probability) for token, probability in row}
            if decoding.languages:
                allowed = {each: probabilities.get(each, 0.0) for each in decoding.languages}
                total = sum(allowed.values()) or 1.0
                probabilities = {each: value / total for each, value in allowed.items()}
            nothing[at] = probabilities
            languages.append(max(probabilities, key=probabilities.__getitem__))
        return languages, nothing

    def _align(
        self,
        model: Any,
        encoded: Any,
        windows: list[Window],
        starts: list[list[int]],
        tokens: list[list[int]],
        prefixes: list[list[int]],
        languages: list[str],
    ) -> dict[int, tuple[tuple[Word, ...], tuple[Token, ...]]]:
        """Words and tokens of the windows that want them, by row."""
        wanted = [at for at, window in enumerate(windows) if window.decoding.align and tokens[at]]
        found: dict[int, tuple[tuple[Word, ...], tuple[Token, ...]]] = {}
        for start in {tuple(starts[at]) for at in wanted}:
            rows = [at for at in wanted if tuple(starts[at]) == start]
            every = len(rows) == len(windows)
            if every or self._cuda:
                # On a GPU aligning a row too many is cheaper than moving the encoder's output to slice it.
                view, asked = encoded, list(range(len(windows)))
            else:
                view, asked = _storage(np.asarray(encoded)[rows]), rows
            results = model.align(
                view,
                list(start),
                [tokens[at] for at in asked],
                [max(2, -(-len(windows[at].samples) // HOP)) for at in asked],
            )
            for at, result in zip(asked, results, strict=True):
                if at in rows:
                    decoding = windows[at].decoding
                    found[at] = self._text.words(
                        tokens[at],
                        len(prefixes[at]),
                        decoding.prefix,
                        result,
                        languages[at],
                        len(windows[at].samples),
                    )
        return found


def key(window: Window) -> Hashable:
    """Padded length, beam, temperature, and what makes the place of `<|startoftranscript|>`: one prompt, and context of
    one length."""
    decoding = window.decoding
    if decoding.task == "detect":
        return _padded(len(window.samples), decoding.floor), "detect"
    return (
        _padded(len(window.samples), decoding.floor),
        decoding.beam,
        decoding.temperature,
        decoding.anchored,
        decoding.prompt.strip(),
        decoding.hotwords,
        sum(len(word.tokens) for word in decoding.context),
    )


class _Text:
    """Tokens to text and back, for one model."""

    def __init__(self, tokenizer: Any, layout: whisper_weights.Layout) -> None:
        from faster_whisper.tokenizer import Tokenizer
        from faster_whisper.transcribe import get_suppressed_tokens

        self._tokenizer = tokenizer
        self._multilingual = layout.multilingual

        def of(language: str) -> Any:
            return Tokenizer(tokenizer, layout.multilingual, "transcribe", language)

        self._by_language = lru_cache(maxsize=128)(of)
        plain = of("en")
        self._plain = plain
        self.no_timestamps: int = plain.no_timestamps
        self.end: int = plain.eot
        """The first token that is not text."""
        self.suppressed = [each for each in get_suppressed_tokens(plain, [-1]) if each is not None]
        self._bytes = _byte_decoder()
        self._told = lru_cache(maxsize=1024)(self._encoded)

    def start(self, language: str, task: str) -> list[int]:
        """`<|startoftranscript|>`, then language and task if the model knows any."""
        if not self._multilingual:
            return [self._plain.sot]
        found = self._tokenizer.token_to_id(f"<|{language}|>")
        if found is None:
            raise ValueError(f"the model does not know the language {language!r}")
        return [self._plain.sot, found, getattr(self._plain, task)]

    def prefix(self, words: tuple[Word, ...]) -> list[int]:
        """The tokens of words that the text must begin with."""
        tokens: list[int] = []
        for word in words:
            tokens += word.tokens or self._plain.encode(word.text)
        return tokens

    def decode(self, tokens: list[int]) -> str:
        """Text of tokens, special ones left out."""
        text: str = self._plain.decode(tokens)
        return text

    def words(
        self,
        tokens: list[int],
        forced: int,
        prefix: tuple[Word, ...],
        result: Any,
        language: str,
        length: int,
    ) -> tuple[tuple[Word, ...], tuple[Token, ...]]:
        """The words of an aligned text: the prefix's as they were, the rest with times from `align`."""
        probabilities = result.text_token_probs
        marked = tuple(
            Token(self._piece(token), float(np.log(max(probability, 1e-10))), token)
            for token, probability in zip(tokens, probabilities, strict=False)
        )
        pairs = np.array(result.alignments, np.int64).reshape(-1, 2)
        # The encoder position at which each token begins; one more for the end.
        first = np.pad(np.diff(pairs[:, 0]), (1, 0), constant_values=1).astype(bool)
        jumps = pairs[:, 1][first]
        rest = tokens[forced:]
        if not rest or len(jumps) <= forced:
            return prefix, marked
        texts, groups = self._by_language(language).split_to_word_tokens([*rest, self._plain.eot])
        merged = _merged(list(zip(texts[:-1], groups[:-1], strict=True)))
        spans: list[tuple[str, tuple[int, ...], int, int]] = []
        at = forced
        for text, group in merged:
            start = int(jumps[min(at, len(jumps) - 1)])
            end = int(jumps[min(at + len(group), len(jumps) - 1)])
            spans.append((text, tuple(group), start, max(start, end)))
            at += len(group)
        spans = _shortened(spans)
        found = list(prefix)
        edge = prefix[-1].end if prefix else 0
        at = forced
        for text, pieces, start, end in spans:
            begin = min(max(start * SEEN, edge), length)
            finish = min(max(end * SEEN, begin), length)
            mean = float(np.mean(probabilities[at : at + len(pieces)] or [0.0]))
            found.append(Word(text, begin, finish, min(max(mean, 0.0), 1.0), pieces))
            edge, at = finish, at + len(pieces)
        return tuple(found), marked

    def before(self, decoding: Decoding) -> tuple[int, ...]:
        """`<|startofprev|>`, hotwords, prompt, context; empty if there is none of them."""
        hotwords, prompt = self._told(decoding.prompt.strip(), decoding.hotwords)
        said = tuple(token for word in decoding.context for token in word.tokens)
        room = LONGEST_PROMPT - len(hotwords)
        tokens = hotwords + (prompt + said)[-room:]
        return (self._plain.sot_prev, *tokens) if tokens else ()

    def _encoded(
        self, prompt: str, hotwords: tuple[str, ...]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        listed = self._plain.encode(" " + ", ".join(hotwords)) if hotwords else []
        told = self._plain.encode(" " + prompt) if prompt else []
        return tuple(listed[: LONGEST_PROMPT // 2]), tuple(told)

    def _piece(self, token: int) -> bytes:
        """The bytes of one token."""
        piece = self._tokenizer.id_to_token(token) or ""
        try:
            return bytes(self._bytes[letter] for letter in piece)
        except KeyError:
            return piece.encode()


class _Loader:
    name = "faster_whisper"

    def inspect(self, path: Path) -> Capabilities | None:
        """See `Loader.inspect`."""
        layout = whisper_weights.layout(path)
        return None if layout is None else whisper_weights.capabilities(layout)

    def key(self, window: Window) -> Hashable:
        """See `Loader.key`."""
        return key(window)

    def load(self, path: Path, device: Device) -> FasterWhisper:
        """See `Loader.load`."""
        # Workers share the cores: a thread that spins while it waits takes them from the others.
        os.environ.setdefault("KMP_BLOCKTIME", "0")
        if _wide():
            os.environ.setdefault("CT2_FORCE_CPU_ISA", "AVX512")
        if device.kind == "cuda":
            from streaming.backends import cuda_libraries

            cuda_libraries.preload()
        from faster_whisper import WhisperModel

        layout = whisper_weights.layout(path)
        if layout is None:
            raise ModelUnavailable(
                f"{path.name} is no CTranslate2 Whisper (model.bin, vocabulary.json, config.json) or is incomplete;"
                " remove it and download it again"
            )
        if not (path / "tokenizer.json").is_file():
            # faster_whisper would take another model's, from the hub.
            raise ModelUnavailable(
                f"{path.name} lacks tokenizer.json; copy it, and preprocessor_config.json, from the model it was"
                " converted from"
            )
        compute = device.compute_type or ("float16" if device.kind == "cuda" else "int8")
        try:
            model = WhisperModel(
                str(path),
                device=device.kind,
                device_index=device.index,
                compute_type=compute,
                cpu_threads=device.threads,
                num_workers=device.workers,
                local_files_only=True,
            )
        except Exception as error:
            raise ModelUnavailable(_explained(error)) from error
        return FasterWhisper(model, layout, path)


LOADER = _Loader()


def _wide(processor: Path = Path("/proc/cpuinfo")) -> bool:
    """The CPU has an AVX-512 that does not slow its clock (Intel's since Ice Lake, AMD's since Zen 4). CTranslate2 uses
    it only if told, and decodes a sixth more windows with it."""
    with suppress(OSError):
        for line in processor.read_text().splitlines():
            if line.startswith("flags"):
                return set(line.split()) >= AVX512
    return False


def _trim() -> None:
    """Give what was freed back to the system: glibc keeps it, hundreds of megabytes once a few models came and went."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _padded(length: int, floor: int) -> int:
    """Samples of the window that holds `length` samples of audio."""
    need = max(length + TAIL, floor)
    return next((bucket for bucket in BUCKETS if bucket >= need), BUCKETS[-1])


def _shared(began: float, encoding: float, generated: float, windows: int) -> Work:
    """The share of each window of a batch that is done now."""
    generating = generated - began - encoding
    return Work(encoding / windows, generating / windows, (time.monotonic() - generated) / windows)


def _storage(array: NDArray[Any]) -> Any:
    import ctranslate2

    return ctranslate2.StorageView.from_array(np.ascontiguousarray(array))


def _ranked(
    probabilities: dict[str, float],
) -> tuple[float | None, tuple[tuple[str, float], ...]]:
    ranked = tuple(sorted(probabilities.items(), key=lambda each: -each[1]))
    return (ranked[0][1] if ranked else None), ranked


def _compression(text: str) -> float:
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 1.0


def _merged(words: list[tuple[str, list[int]]]) -> list[tuple[str, list[int]]]:
    """Punctuation joined to the word it belongs to, as Whisper's `merge_punctuations`."""
    forward: list[tuple[str, list[int]]] = []
    for text, tokens in words:
        if forward and text in AFTER and not forward[-1][0].endswith(" "):
            forward[-1] = forward[-1][0] + text, forward[-1][1] + tokens
        else:
            forward.append((text, tokens))
    merged: list[tuple[str, list[int]]] = []
    for text, tokens in reversed(forward):
        if merged and text.startswith(" ") and text.strip() and text.strip() in BEFORE:
            merged[-1] = text + merged[-1][0], tokens + merged[-1][1]
        else:
            merged.append((text, tokens))
    return merged[::-1]


def _shortened(
    spans: list[tuple[str, tuple[int, ...], int, int]],
) -> list[tuple[str, tuple[int, ...], int, int]]:
    """Words that the alignment stretched over a pause, cut to twice the median length (Whisper's rule)."""
    lengths = [end - start for _, _, start, end in spans if end > start]
    if not lengths:
        return spans
    most = max(1, round(2 * min(35.0, float(np.median(lengths)))))
    shortened = []
    for at, (text, tokens, start, end) in enumerate(spans):
        first = at == 0 or spans[at - 1][0].rstrip().endswith((".", "!", "?", "。", "！", "？"))
        if end - start > most and first:
            shortened.append((text, tokens, end - most, end))
        elif end - start > most and text.rstrip().endswith((".", "!", "?", "。", "！", "？")):
            shortened.append((text, tokens, start, start + most))
        else:
            shortened.append((text, tokens, start, end))
    return shortened


def _byte_decoder() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes, reversed."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    decoder = {chr(byte): byte for byte in printable}
    for offset, byte in enumerate(sorted(set(range(256)) - set(printable))):
        decoder[chr(256 + offset)] = byte
    return decoder


def _explained(error: Exception) -> str:
    """CTranslate2's words, with the remedy."""
    text = str(error).strip().rstrip(".").replace("\n", " ")
    lower = text.lower()
    if "libcublas" in lower or "libcudnn" in lower:
        return (
            f"{text}; install the CUDA 12 library with `pip install open-speech-server[cuda]`,"
            " or set STT_DEVICE=cpu"
        )
    if "out of memory" in lower:
        return (
            "the device has too little free memory for this model or batch; unload other models, choose a smaller"
            " one, or set STT_COMPUTE_TYPE=int8"
        )
    if "no cuda" in lower or "cuda driver" in lower or "cuda failed" in lower:
        return f"{text}; install an NVIDIA driver of version 570 or later, or set STT_DEVICE=cpu"
    if "compute type" in lower:
        return f"{text}; choose another STT_COMPUTE_TYPE, such as int8 or float32"
    if "no model replica" in lower:
        return "the model was unloaded; ask again to load it"
    if "unsupported model binary" in lower or "incomplete" in lower or "unable to open" in lower:
        return f"{text}; the files are damaged: remove the model and download it again"
    return text or type(error).__name__
