"""Settings from where they are written: flag > `STT_*` variable > `--config` TOML > default. Says what it did."""

from __future__ import annotations

import argparse
import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from server import languages
from server.arguments import nearest
from server.settings import Settings

FOREIGN = {
    # faster-whisper-server and speaches
    "WHISPER__MODEL": "default_model",
    "WHISPER__INFERENCE_DEVICE": "device",
    "WHISPER__DEVICE_INDEX": "device_index",
    "WHISPER__COMPUTE_TYPE": "compute_type",
    "WHISPER__CPU_THREADS": "threads",
    "WHISPER__NUM_WORKERS": "workers",
    "WHISPER__TTL": "model_keep_alive",
    "STT_MODEL_TTL": "model_keep_alive",
    "PRELOAD_MODELS": "preload",
    "MAX_MODELS": "max_models",
    "DEFAULT_LANGUAGE": "language",
    "DEFAULT_RESPONSE_FORMAT": "response_format",
    "ALLOW_ORIGINS": "allow_origins",
    "API_KEY": "api_keys",
    "UVICORN_HOST": "host",
    "UVICORN_PORT": "port",
    "LOG_LEVEL": "log_level",
    "MODEL_ALIAS_PATH": "alias_file",
    "MAX_NO_DATA_SECONDS": "max_no_data_seconds",
    "MAX_INACTIVITY_SECONDS": "max_inactivity_seconds",
    "INACTIVITY_WINDOW_SECONDS": "inactivity_window_seconds",
    # whisper-asr-webservice
    "ASR_MODEL": "default_model",
    "ASR_DEVICE": "device",
    "ASR_QUANTIZATION": "compute_type",
    "MODEL_IDLE_TIMEOUT": "model_keep_alive",
}
"""Names of the servers this one replaces, read where the own name is not set."""
IGNORED = (
    "ENABLE_UI",
    "ASR_ENGINE",
    "ASR_MODEL_PATH",
    "LOOPBACK_HOST_URL",
    "CHAT_COMPLETION_BASE_URL",
    "CHAT_COMPLETION_API_KEY",
)
"""Their names for what does not exist here; so are all others that begin as `THEIRS`."""
THEIRS = ("WHISPER__", "TTS_")
SERVICE_LINK = re.compile(
    r"(STT|TTS)_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
"""What Kubernetes puts into every container for a service whose name begins with ``stt`` or ``tts``."""
BOUNDS: dict[str, tuple[float, float]] = {
    "port": (0, 65535),
    "flight_mb": (1, 1 << 20),
    "flight_files": (1, 1e6),
    "device_index": (0, 255),
    "workers": (0, 256),
    "threads": (0, 1024),
    "beam": (1, 32),
    "model_keep_alive": (-1, 1e9),
    "max_models": (1, 1000),
    "max_upload_mb": (1, 1 << 20),
    "max_audio_seconds": (1, 1e6),
    "max_requests": (1, 1e6),
    "max_streams": (0, 1e6),
    "max_connections": (8, 1e6),
    "max_stream_seconds": (1, 1e9),
    "stream_idle_seconds": (1, 1e6),
    "body_timeout": (0.1, 1e5),
    "drain_seconds": (0, 1e5),
    "decode_timeout": (1, 1e5),
    "wrong_keys_per_minute": (0, 1e5),
    "client_requests_per_minute": (1, 1e5),
    "client_streams": (1, 1e6),
    "client_audio_seconds_per_hour": (1, 1e8),
    "client_audio_seconds_per_day": (1, 1e8),
}
"""Least and most of numbers; of those not listed 0 and a milliard."""
SECRET = ("api_keys", "limits_storage")
"""Settings whose value is never shown."""
COMPUTE_TYPES = (
    "auto",
    "default",
    "int8",
    "int8_float32",
    "int8_float16",
    "int8_bfloat16",
    "int16",
    "float16",
    "bfloat16",
    "float32",
)
"""CTranslate2's names."""


class Misconfigured(Exception):
    """A setting is wrong; the message names it, what was found and what is expected."""


def load(
    arguments: Mapping[str, Any], environment: Mapping[str, str]
) -> tuple[Settings, list[str]]:
    """The effective settings and the lines to print about them.

    `arguments` are flags that were given, by field name; the key `config` is the TOML file. Raises Misconfigured.
    """
    said: list[str] = []
    given = {name: value for name, value in arguments.items() if value is not None}
    config = given.pop("config", None) or environment.get("STT_CONFIG")
    found: dict[str, _Given] = {}
    if config:
        found |= _from_file(Path(config))
    own = _from_environment(environment, said)
    taken = found.keys() | own.keys() | given.keys()
    values = {name: one.value() for name, one in found.items() if name not in own.keys() | given}
    values |= {name: one.value() for name, one in own.items() if name not in given}
    values |= {name: _Given(name, flag(name), value).value() for name, value in given.items()}
    values |= _from_others(environment, taken, said)
    settings = Settings(**values)
    if settings.api_keys_file is not None:
        keys = tuple(line for line in _lines(settings.api_keys_file) if not line.startswith("#"))
        if not keys:
            raise Misconfigured(
                f"api_keys_file {settings.api_keys_file} has no key in it, which would leave the server open;"
                " write one a line, or leave the setting out"
            )
        settings = replace(settings, api_keys=settings.api_keys + keys)
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise Misconfigured("tls_cert and tls_key go together; give both or neither")
    return settings, said


def add_flags(parser: argparse.ArgumentParser, sections: Sequence[str] | None = None) -> None:
    """One flag a setting, grouped; those of other `sections` are left out."""
    groups: dict[str, Any] = {}
    parser.add_argument("--config", metavar="FILE", help="TOML file of settings [env: STT_CONFIG]")
    for field, section, help_text, kind in described():
        if sections is not None and section not in sections:
            continue
        if section not in groups:
            groups[section] = parser.add_argument_group(section)
        default = "" if field.default in (None, (), False) else f" [default: {field.default}]"
        text = f"{help_text} [env: {variable(field.name)}]{default}".replace("%", "%%")
        name = flag(field.name)
        if kind is bool:
            groups[section].add_argument(
                name, help=text, action=argparse.BooleanOptionalAction, default=None
            )
        elif get_origin(kind) is tuple:
            groups[section].add_argument(name, help=text, action="append", metavar="VALUE")
        else:
            groups[section].add_argument(name, help=text, metavar="VALUE")


def described() -> list[tuple[Field[Any], str, str, Any]]:
    """Every setting as (field, section, sentence, type)."""
    hints = get_type_hints(Settings, include_extras=True)
    rows = []
    for field in fields(Settings):
        kind, section, sentence = get_args(hints[field.name])
        rows.append((field, section, sentence, kind))
    return rows


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return "STT_" + name.upper()


def flag(name: str) -> str:
    """The flag of a setting."""
    return "--" + name.replace("_", "-")


def redacted(settings: Settings) -> dict[str, Any]:
    """For logs: without secrets."""
    shown = asdict(settings)
    shown["api_keys"] = f"{len(settings.api_keys)} keys"
    shown["limits_storage"] = settings.limits_storage.partition("://")[0] + "://…"
    return shown


def table() -> str:
    """`docs/configuration.md`."""
    lines = [
        "# Configuration",
        "",
        "Generated by `python -m server.configuration`. A flag wins over its variable, that over the `--config` file"
        " (TOML, the names below), that over the default. Lists are comma-separated in variables, repeated as flags.",
    ]
    section = None
    for field, group, sentence, kind in described():
        if group != section:
            section = group
            lines += [
                "",
                f"## {group.capitalize()}",
                "",
                "| setting | variable | flag | default | |",
                "|---|---|---|---|---|",
            ]
        default = field.default if field.default is not MISSING else ""
        shown = (
            ""
            if default in (None, ())
            else f"`{str(default).lower() if kind is bool else default}`"
        )
        lines.append(
            f"| `{field.name}` | `{variable(field.name)}` | `{flag(field.name)}` | {shown} | {sentence} |"
        )
    lines += [
        "",
        "## Names of other servers",
        "",
        "Read where the own name is not set, with a line that asks to rename them:",
        "",
        *(f"- `{name}` is `{variable(own)}`" for name, own in FOREIGN.items()),
        "",
        "One of them with a value that means nothing here is ignored, with a line; so are, whatever their value, "
        + ", ".join(f"`{name}`" for name in (*IGNORED, *(f"{start}…" for start in THEIRS)))
        + ". An unknown `STT_…` variable is a line that suggests a known one; the variables that Kubernetes makes for a"
        " service named `stt` are none of ours. An unknown flag or name in the file is an error.",
        "",
    ]
    return "\n".join(lines)


class _Given:
    """A value as somebody wrote it."""

    def __init__(self, name: str, source: str, raw: Any) -> None:
        self.name = name
        self.source = source
        """How the person who wrote it knows it: a flag, a variable, or a name in a file."""
        self._raw = raw

    def value(self) -> Any:
        """As the setting's type. Raises Misconfigured."""
        kind = _KINDS[self.name]
        raw = self._raw
        if get_origin(kind) is tuple and isinstance(raw, str):
            raw = _split(raw)
        choices = _choices(self.name, kind)
        if choices and isinstance(raw, str):
            raw = {"gpu": "cuda"}.get(raw.strip().lower(), raw.strip().lower())
            if raw not in choices:
                raise self._wrong(_either(choices))
            return raw
        if self.name == "language" and isinstance(raw, str):
            if raw.strip().lower() in ("", "auto"):
                return None
            if languages.code(raw) is None:
                raise self._wrong("an ISO-639-1 code such as en, or auto")
        if kind is bool and isinstance(raw, str):
            raw = {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(
                raw.strip().lower(), raw
            )
        if isinstance(raw, str):
            raw = raw.strip()
        try:
            value = msgspec.convert(raw, kind, strict=False, dec_hook=_path)
        except (msgspec.ValidationError, NotImplementedError):
            raise self._wrong(_accepted(self.name, kind)) from None
        if isinstance(value, int | float) and not isinstance(value, bool):
            least, most = BOUNDS.get(self.name, (0, 1e9))
            if not least <= value <= most:
                raise self._wrong(_accepted(self.name, kind))
        return value

    def _wrong(self, accepted: str) -> Misconfigured:
        shown = repr(self._raw) if len(repr(self._raw)) < 80 else repr(self._raw)[:76] + "…"
        if self.name in SECRET:
            shown = "something else"
        return Misconfigured(f"{self.source} is {shown}; it must be {accepted}")


def _accepted(name: str, kind: Any) -> str:
    """What a setting takes, in words."""
    inner = [each for each in get_args(kind) if each is not type(None)]
    bare = kind if get_origin(kind) is tuple or not inner else inner[0]
    least, most = BOUNDS.get(name, (0, 1e9))
    if bare is bool:
        return "true or false"
    if bare in (int, float):
        number = "a whole number" if bare is int else "a number"
        return f"{number} from {least:.15g} to {most:.15g}"
    if get_origin(bare) is tuple:
        return "a list of texts, or texts separated by commas"
    return "a path" if bare is Path else "text"


def _choices(name: str, kind: Any) -> tuple[str, ...]:
    if name == "compute_type":
        return COMPUTE_TYPES
    return get_args(kind) if get_origin(kind) is Literal else ()


def _either(choices: Sequence[str]) -> str:
    return ", ".join(choices[:-1]) + " or " + choices[-1]


def _from_file(path: Path) -> dict[str, _Given]:
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise Misconfigured(f"the file {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise Misconfigured(f"the file {path} is no TOML: {error}") from None
    for name, value in found.items():
        if name not in _KINDS:
            table = "; settings stand at the top, without tables" if isinstance(value, dict) else ""
            raise Misconfigured(
                f"{path}: there is no setting {name!r}{nearest(name, _KINDS) or table}"
            )
    return {name: _Given(name, f"{path}: {name}", value) for name, value in found.items()}


def _from_environment(environment: Mapping[str, str], said: list[str]) -> dict[str, _Given]:
    """Our own variables. What is not ours, or not meant for us, is never an error."""
    values: dict[str, _Given] = {}
    own_names = {variable(name): name for name in _KINDS} | {"STT_CONFIG": ""}
    for name, text in environment.items():
        if not name.startswith("STT_") or name == "STT_CONFIG":
            continue
        link = text.startswith(("tcp://", "udp://", "sctp://"))
        if name in own_names:
            if link:
                said.append(
                    f"{name}={text} is what Kubernetes sets for a service named stt and is ignored; rename the"
                    " service, or set enableServiceLinks: false"
                )
            elif text:
                values[own_names[name]] = _Given(own_names[name], name, text)
        elif name not in FOREIGN and not link and not SERVICE_LINK.fullmatch(name):
            said.append(f"there is no setting {name}{nearest(name, own_names, ignoring='STT_')}")
    return values


def _from_others(
    environment: Mapping[str, str], taken: Iterable[str], said: list[str]
) -> dict[str, Any]:
    """Variables of the servers this one replaces, as far as nobody set our own. Their case never mattered."""
    folded = {name.upper(): text for name, text in environment.items()}
    taken = set(taken)
    values: dict[str, Any] = {}
    for name, own in FOREIGN.items():
        text = folded.get(name)
        if not text or own in taken:
            continue
        if own in values:
            said.append(f"{name} is ignored: another variable already says {variable(own)}")
            continue
        try:
            value = _Given(own, name, text).value()
            if name == "MODEL_IDLE_TIMEOUT" and value == 0:
                value = -1.0  # never, there
        except Misconfigured as error:
            said.append(f"{error}; it is ignored, set {variable(own)}")
            continue
        if own == "alias_file" and not value.is_file():
            said.append(f"{name} is {text!r}, where no file is; it is ignored")
            continue
        values[own] = value
        said.append(f"{name} is read as {variable(own)}; rename it")
    said += [
        f"{name} has no meaning here and is ignored"
        for name in folded
        if name in IGNORED
        or (name.startswith(THEIRS) and name not in FOREIGN and not SERVICE_LINK.fullmatch(name))
    ]
    return values


def _split(text: str) -> list[Any]:
    """Items of a JSON list, or of text with commas."""
    if text.lstrip().startswith("["):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, list):
            return found
    return [part.strip() for part in text.split(",") if part.strip()]


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except OSError as error:
        reason = error.strerror
    except ValueError:
        reason = "it is no text in UTF-8"
    raise Misconfigured(f"api_keys_file {path} cannot be read: {reason}")


def _path(kind: type, value: Any) -> Any:
    """msgspec's hook for what it does not know."""
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    raise NotImplementedError(f"{kind} cannot be a setting")


_KINDS: dict[str, Any] = {field.name: kind for field, _, _, kind in described()}
"""The type of each setting."""


if __name__ == "__main__":
    print(table(), end="")
