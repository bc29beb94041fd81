"""Settings from where they are written: flag > `STT_*` variable > `--config` TOML > default. Says what it did."""

from __future__ import annotations

import argparse
import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, asdict, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import msgspec

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
    # whisper-asr-webservice
    "ASR_MODEL": "default_model",
    "ASR_DEVICE": "device",
    "ASR_QUANTIZATION": "compute_type",
    "MODEL_IDLE_TIMEOUT": "model_keep_alive",
}
"""Names of the servers this one replaces, read where the own name is not set."""
IGNORED = (
    "TTS_MODEL_TTL",
    "ENABLE_UI",
    "ASR_ENGINE",
    "LOOPBACK_HOST_URL",
    "CHAT_COMPLETION_BASE_URL",
)
"""Their names for what does not exist here."""


class Misconfigured(Exception):
    """A setting is wrong; the message names it, what was found and what is expected."""


def load(
    arguments: Mapping[str, Any], environment: Mapping[str, str]
) -> tuple[Settings, list[str]]:
    """The effective settings and the lines to print about them.

    `arguments` are flags that were given, by field name; the key `config` is the TOML file. Raises Misconfigured.
    """
    said: list[str] = []
    values: dict[str, Any] = {}
    given = dict(arguments)
    config = given.pop("config", None) or environment.get("STT_CONFIG")
    if config:
        values |= _from_file(Path(config))
    values |= _from_environment(environment, said)
    values |= {name: value for name, value in given.items() if value is not None}
    settings = _checked(values)
    if settings.api_keys_file is not None:
        try:
            lines = settings.api_keys_file.read_text("utf-8").splitlines()
        except OSError as error:
            raise Misconfigured(
                f"api_keys_file {settings.api_keys_file}: {error.strerror}"
            ) from None
        keys = tuple(line.strip() for line in lines if line.strip() and line[0] != "#")
        settings = _checked(values | {"api_keys": settings.api_keys + keys})
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
        flag = "--" + field.name.replace("_", "-")
        if kind is bool:
            groups[section].add_argument(
                flag, help=text, action=argparse.BooleanOptionalAction, default=None
            )
        elif get_origin(kind) is tuple:
            groups[section].add_argument(flag, help=text, action="append", metavar="VALUE")
        else:
            groups[section].add_argument(flag, help=text, metavar="VALUE")


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


def redacted(settings: Settings) -> dict[str, Any]:
    """For logs: without secrets."""
    shown = asdict(settings)
    shown["api_keys"] = f"{len(settings.api_keys)} keys"
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
        flag = "--" + field.name.replace("_", "-")
        lines.append(
            f"| `{field.name}` | `{variable(field.name)}` | `{flag}` | {shown} | {sentence} |"
        )
    lines += [
        "",
        "## Names of other servers",
        "",
        "Read where the own name is not set, with a line that asks to rename them:",
        "",
        *(f"- `{name}` is `{variable(own)}`" for name, own in FOREIGN.items()),
        "",
        "Ignored, with a line: " + ", ".join(f"`{name}`" for name in IGNORED) + ".",
        "",
    ]
    return "\n".join(lines)


def _from_file(path: Path) -> dict[str, Any]:
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise Misconfigured(f"the file {path} cannot be read: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise Misconfigured(f"the file {path} is no TOML: {error}") from None
    known = {field.name for field in fields(Settings)}
    for name in found:
        if name not in known:
            raise Misconfigured(f"{path}: there is no setting {name!r}{_nearest(name, known)}")
    return found


def _from_environment(environment: Mapping[str, str], said: list[str]) -> dict[str, Any]:
    kinds = {field.name: kind for field, _, _, kind in described()}
    values: dict[str, Any] = {}
    for name, kind in kinds.items():
        text = environment.get(variable(name))
        if text is None or (text == "" and name != "language"):
            continue
        if text.startswith(("tcp://", "udp://")):
            continue  # Kubernetes' link to a service called "stt"
        values[name] = _parsed(text, kind)
    for name, own in FOREIGN.items():
        text = environment.get(name)
        if not text:
            continue
        if own in values and variable(own) in environment:
            continue
        values.setdefault(own, _parsed(text, kinds[own]))
        said.append(f"{name} is read as {variable(own)}; rename it")
    said += [
        f"{name} has no meaning here and is ignored" for name in IGNORED if name in environment
    ]
    own_names = {variable(name) for name in kinds} | {"STT_CONFIG"}
    for name, text in environment.items():
        if not name.startswith("STT_") or name in own_names or name in FOREIGN:
            continue
        if text.startswith(("tcp://", "udp://")) or name.startswith(("STT_PORT_", "STT_SERVICE_")):
            continue
        said.append(f"there is no setting {name}{_nearest(name, own_names)}")
    return values


def _parsed(text: str, kind: Any) -> Any:
    if get_origin(kind) is tuple:
        if text.lstrip().startswith("["):
            try:
                return json.loads(text)
            except ValueError:
                pass
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _checked(values: Mapping[str, Any]) -> Settings:
    values = dict(values)
    if isinstance(values.get("log_level"), str):
        values["log_level"] = values["log_level"].lower()
    if isinstance(values.get("device"), str):
        values["device"] = {"gpu": "cuda"}.get(values["device"].lower(), values["device"].lower())
    try:
        settings = msgspec.convert(values, Settings, strict=False, dec_hook=_path)
    except msgspec.ValidationError as error:
        text = str(error)
        name = text.rpartition("$.")[2].rstrip("`").split("[")[0] if "$." in text else ""
        found = f" (found {values[name]!r})" if name in values else ""
        raise Misconfigured(
            f"{name or 'settings'}: {text.split(' - at', maxsplit=1)[0]}{found}"
        ) from None
    for name, least, most in (
        ("port", 0, 65535),
        ("beam", 1, 32),
        ("max_upload_mb", 1, 1 << 20),
        ("max_audio_seconds", 1, 1e6),
        ("max_stream_seconds", 1, 1e9),
        ("stream_idle_seconds", 1, 1e6),
    ):
        value = getattr(settings, name)
        if not least <= value <= most:
            raise Misconfigured(f"{name} is {value}; it must lie between {least} and {most:g}")
    return settings


def _path(kind: type, value: Any) -> Any:
    """msgspec's hook for what it does not know."""
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    raise NotImplementedError(f"{kind} cannot be a setting")


def _nearest(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, known, 1, 0.6)
    return f"; did you mean {close[0]}?" if close else ""


if __name__ == "__main__":
    print(table(), end="")
