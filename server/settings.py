"""Every setting, declared once: flag > `STT_*` variable > `--config` TOML > default.

`--help` and `docs/configuration.md` are generated from this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

# Annotated[type, "section", "one sentence"]; the flag is the field's name with dashes, the variable STT_ + upper case.


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Effective settings of one server."""

    host: Annotated[str, "server", "address to listen on"] = "127.0.0.1"
    port: Annotated[int, "server", "port to listen on; 0 picks a free one"] = 8100
    tls_cert: Annotated[
        Path | None, "server", "certificate file (PEM); with --tls-key serves HTTPS"
    ] = None
    tls_key: Annotated[Path | None, "server", "private key file (PEM)"] = None
    lan: Annotated[
        bool,
        "server",
        "HTTPS for the local network, so that phones may use the page; makes a certificate",
    ] = False
    allow_origins: Annotated[
        tuple[str, ...], "server", "origins that browsers may call from; none by default"
    ] = ()
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], "server", "least important log line"
    ] = "info"
    log_format: Annotated[Literal["text", "json"], "server", "shape of the log lines"] = "text"
    flight_dir: Annotated[
        Path | None,
        "server",
        "folder for recordings of live streams, audio and text, that `open-speech replay` reads; none by default",
    ] = None
    flight_mb: Annotated[int, "server", "MiB that these may have in all; the oldest go"] = 1024
    flight_files: Annotated[int, "server", "how many of them are kept"] = 1000
    api_keys: Annotated[
        tuple[str, ...], "access", "keys, any of which is accepted as bearer; none: open"
    ] = ()
    api_keys_file: Annotated[
        Path | None, "access", "file with one key a line, for Docker secrets"
    ] = None
    keys_file: Annotated[
        Path | None,
        "access",
        "TOML file of hashed keys with scopes and limits, made by open-speech keys add; read again when it changes",
    ] = None

    allowed_hosts: Annotated[
        tuple[str, ...],
        "access",
        "names under which browsers may reach a server without keys, besides addresses, localhost and the machine's"
        " own; *.example.org for all below, * for any",
    ] = ()
    trusted_proxies: Annotated[
        tuple[str, ...],
        "access",
        "addresses or networks of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed",
    ] = ()
    wrong_keys_per_minute: Annotated[
        int, "access", "wrong keys an address may send a minute; 429 beyond, 0 for no limit"
    ] = 20
    client_requests_per_minute: Annotated[
        int | None,
        "access",
        "requests a key, or an address where there are no keys, may send a minute; 429 beyond",
    ] = None
    client_streams: Annotated[
        int | None, "access", "live streams it may have at once; refused beyond"
    ] = None
    client_audio_seconds_per_hour: Annotated[
        int | None, "access", "seconds of audio it may send an hour; 429 beyond"
    ] = None
    client_audio_seconds_per_day: Annotated[
        int | None, "access", "seconds of audio it may send a day; 429 beyond"
    ] = None
    limits_storage: Annotated[
        str,
        "access",
        "where requests and audio are counted: memory://, or redis://… for several servers",
    ] = "memory://"

    default_model: Annotated[
        str | None, "models", "model used where a request names none, or an OpenAI name"
    ] = None
    default_backend: Annotated[str, "models", "recogniser for weights that several can read"] = (
        "faster_whisper"
    )
    translation_model: Annotated[
        str | None, "models", "model for translations the default cannot make"
    ] = None
    model: Annotated[
        tuple[str, ...], "models", "name=path of a model directory; may be repeated"
    ] = ()
    alias: Annotated[tuple[str, ...], "models", "name=model; may be repeated"] = ()
    alias_file: Annotated[Path | None, "models", "JSON file of aliases, {name: model}"] = None
    model_dir: Annotated[
        Path | None, "models", "folder of models and downloads; default: the Hugging Face cache"
    ] = None
    preload: Annotated[tuple[str, ...], "models", "models loaded at start"] = ()
    model_keep_alive: Annotated[
        float, "models", "seconds without use after which a model is unloaded; -1 never"
    ] = 300.0
    max_models: Annotated[
        int | None, "models", "models in memory at most; the least recently used idle one goes"
    ] = None
    allow_downloads: Annotated[
        Literal["known", "any", "never"],
        "models",
        "what a request may have downloaded: models of the catalogue and these settings, any of the hub, or none;"
        " POST /api/pull may always",
    ] = "known"
    allow_repositories: Annotated[
        tuple[str, ...],
        "models",
        "repositories that may be downloaded at all, by whomever, such as Systran/*; none: any",
    ] = ()
    hub_hosts: Annotated[
        tuple[str, ...],
        "models",
        "hosts beside the hub's own that it may send downloads on to, such as a mirror's storage",
    ] = ()
    allow_code: Annotated[
        bool,
        "models",
        "load models whose files run code of their authors (pickles, .nemo, auto_map); never for unknown ones",
    ] = False
    offline: Annotated[bool, "models", "never touch the network"] = False

    device: Annotated[Literal["auto", "cuda", "cpu"], "recognition", "where models run"] = "auto"
    device_index: Annotated[int, "recognition", "which GPU"] = 0
    compute_type: Annotated[
        str | None,
        "recognition",
        "arithmetic: int8, float16, …; default float16 on a GPU, int8 on a CPU",
    ] = None
    workers: Annotated[int | None, "recognition", "decodes at the same time; default by cores"] = (
        None
    )
    threads: Annotated[int | None, "recognition", "CPU threads a decode; default by cores"] = None
    runners: Annotated[
        bool,
        "recognition",
        "every model in a process of its own, which is replaced if it dies or hangs",
    ] = True
    decode_timeout: Annotated[
        float,
        "recognition",
        "seconds a decode may take before its process is taken for hung; less, to 20, where its like took far less",
    ] = 300.0
    window: Annotated[
        Literal["auto", "short", "full"], "recognition", "length of Whisper's windows"
    ] = "auto"
    beam: Annotated[int, "recognition", "hypotheses kept for recordings"] = 5
    language: Annotated[
        str | None, "recognition", "language where a request names none; default: detect"
    ] = None
    response_format: Annotated[
        Literal["json", "text", "srt", "vtt", "verbose_json"],
        "recognition",
        "where a request names none",
    ] = "json"
    realtime_deltas: Annotated[
        Literal["early", "late"],
        "recognition",
        "when a Realtime session sends deltas: early while the person speaks, late after the turn is committed",
    ] = "early"

    max_upload_mb: Annotated[int, "limits", "largest request body in MiB; 413 beyond"] = 1024
    max_audio_seconds: Annotated[float, "limits", "longest recording; 413 beyond"] = 4 * 3600.0
    max_wait_seconds: Annotated[
        float,
        "limits",
        "seconds a recording may have to wait for others, as predicted; 503 beyond",
    ] = 600.0
    max_backlog_mb: Annotated[
        int,
        "limits",
        "live audio that may wait for its text, of all streams, in MiB; beyond, those that are most behind end",
    ] = 512
    max_uploads_mb: Annotated[
        int, "limits", "request bodies on disk, all together, in MiB; 503 beyond"
    ] = 4096
    max_requests: Annotated[int, "limits", "recordings at work or waiting; 503 beyond"] = 64
    max_streams: Annotated[int, "limits", "live streams; refused beyond"] = 256
    realtime_minutes: Annotated[float, "limits", "longest OpenAI Realtime session"] = 60.0
    max_connections: Annotated[
        int, "limits", "connections at a time; one that says nothing makes room, else 503"
    ] = 4096
    max_stream_seconds: Annotated[
        float, "limits", "seconds a live stream may last by the clock; closed with 1008 beyond"
    ] = 24 * 3600.0
    stream_idle_seconds: Annotated[
        float,
        "limits",
        "seconds a live stream may send nothing, ten times as many in Realtime; closed beyond",
    ] = 60.0
    resume_seconds: Annotated[
        float,
        "limits",
        "seconds a live stream is kept after its connection broke, for the client to go on; 0: not at all",
    ] = 30.0
    max_no_data_seconds: Annotated[
        float, "limits", "faster-whisper-server's socket: seconds without a message that end it"
    ] = 1.0
    max_inactivity_seconds: Annotated[
        float, "limits", "faster-whisper-server's socket: seconds without speech that end it"
    ] = 2.5
    inactivity_window_seconds: Annotated[
        float, "limits", "faster-whisper-server's socket: seconds of audio before that may happen"
    ] = 5.0
    body_timeout: Annotated[
        float, "limits", "seconds to wait for the next piece of a request body; 408 beyond"
    ] = 30.0
    drain_seconds: Annotated[float, "limits", "seconds that running work gets after SIGTERM"] = 10.0
