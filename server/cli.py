"""The command `open-speech`. Data goes to stdout, everything else to stderr; heavy imports wait for their verb."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from server import __version__
from server.arguments import Parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; answers the exit status: 0, 1 for failure, 2 for wrong usage."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next socket would get its number, and the next log line
            os.open(os.devnull, os.O_RDWR)
    # numpy's own threads would spin for a core's worth while they wait; decodes have their threads already.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        parser = _parser()
        given = vars(parser.parse_args(arguments))
        run = given.pop("run", None)
        if run is None:
            parser.print_help()
            return 2
        status: int = run(given)
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except Exception as error:
        print(f"open-speech: {_sentence(error)}", file=sys.stderr)
        return 2 if type(error).__name__ in ("Misconfigured", "BadKeys") else 1


def _sentence(error: Exception) -> str:
    if _expected(error):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if os.environ.get("STT_LOG_LEVEL", "").lower() == "debug":
        traceback.print_exception(error)
    return (
        f"this should not happen: {type(error).__name__}: {' '.join(str(error).split())};"
        " STT_LOG_LEVEL=debug shows where"
    )


def _expected(error: Exception) -> bool:
    """Faults that carry a sentence for the user."""
    names = {type_.__name__ for type_ in type(error).__mro__}
    return bool(names & {"Misconfigured", "BadKeys", "OpenSpeechError", "NoGpu", "ServerError"})


def _parser() -> argparse.ArgumentParser:
    from server.configuration import add_flags

    parser = Parser(
        prog="open-speech",
        description="Speech to text on your own machine: a server, and the same engine on the command line.",
    )
    parser.add_argument("--version", action="version", version=f"open-speech {__version__}")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND")

    def verb(name: str, help_text: str, run: Any) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=help_text, description=help_text)
        made.set_defaults(run=run)
        return made

    serve = verb("serve", "start the server", _serve)
    serve.add_argument(
        "model_name", nargs="?", metavar="MODEL", help="default model; as --default-model"
    )
    add_flags(serve)

    transcribe = verb("transcribe", "turn recordings into text, without a server", _transcribe)
    transcribe.add_argument("files", nargs="+", metavar="FILE", help="recordings, in any container")
    transcribe.add_argument(
        "-f",
        "--format",
        choices=("txt", "srt", "vtt", "tsv", "json"),
        default="txt",
        help="[default: txt]",
    )
    transcribe.add_argument(
        "-o", "--output", metavar="DIR", help="write a file a recording there; default: stdout"
    )
    transcribe.add_argument(
        "-m", "--model-name", metavar="MODEL", help="model to use; default: the default model"
    )
    transcribe.add_argument(
        "-l", "--language", metavar="CODE", help="language of the speech; default: detected"
    )
    transcribe.add_argument("--task", choices=("transcribe", "translate"), default="transcribe")
    transcribe.add_argument(
        "--prompt", default="", help="text that is supposed to precede the audio"
    )
    transcribe.add_argument(
        "--hotwords", default="", help="words to listen for, separated by commas"
    )
    transcribe.add_argument(
        "--max-line-width", default="42", metavar="N", help="of subtitles [default: 42]"
    )
    transcribe.add_argument(
        "--max-line-count", default="2", metavar="N", help="of subtitles [default: 2]"
    )
    _engine_flags(transcribe)

    listen = verb("listen", "live captions of the microphone, from a running server", _listen)
    listen.add_argument("--device", metavar="NAME", help="number or part of the name of the input")
    listen.add_argument("--list-devices", action="store_true", help="show the audio devices")
    stream = verb("stream", "live captions of a file, from a running server", _stream)
    stream.add_argument("file", metavar="FILE", help="a recording, in any container")
    stream.add_argument(
        "--speed",
        type=_speed,
        default=1.0,
        metavar="X",
        help="times as fast as it plays; 0: as fast as the server is [default: 1]",
    )
    for each in (listen, stream):
        _live_flags(each)

    replay = verb(
        "replay", "run a flight recording again and show what comes out differently", _replay
    )
    replay.add_argument("file", metavar="FILE", help="a recording of STT_FLIGHT_DIR")
    replay.add_argument(
        "--speed",
        type=_speed,
        default=1.0,
        metavar="X",
        help="times as fast as it was; 0: as fast as the engine takes it [default: 1]",
    )
    replay.add_argument("--json", action="store_true", help="one JSON object on stdout")
    replay.add_argument(
        "--show", action="store_true", help="print what the file holds, run nothing"
    )
    replay.add_argument("--wav", metavar="OUT", help="write its audio there, run nothing")
    replay.add_argument(
        "-m", "--model-name", metavar="MODEL", help="another model than the one it was"
    )
    _engine_flags(replay)

    models = verb("models", "list, download and remove models", _models_help)
    actions = models.add_subparsers(title="actions", metavar="ACTION")
    for name, help_text, run in (
        ("list", "models on this machine; --all: those that can be downloaded, too", _models_list),
        ("pull", "download a model", _models_pull),
        ("rm", "remove a downloaded model", _models_rm),
    ):
        action = actions.add_parser(name, help=help_text, description=help_text)
        action.set_defaults(run=run)
        if name == "list":
            action.add_argument(
                "--all", action="store_true", help="also those that are not downloaded"
            )
        else:
            action.add_argument("names", nargs="+", metavar="MODEL")
        add_flags(action, ("models",))

    kept = verb("keys", "make, list and remove API keys", _keys_help)
    actions = kept.add_subparsers(title="actions", metavar="ACTION")
    for name, help_text, run in (
        ("add", "make a key and print it, once", _keys_add),
        ("list", "names, scopes and limits of the keys", _keys_list),
        ("remove", "take keys away, at once", _keys_remove),
    ):
        action = actions.add_parser(name, help=help_text, description=help_text)
        action.set_defaults(run=run)
        action.add_argument(
            "--keys-file", metavar="FILE", help="where the hashes are [env: STT_KEYS_FILE]"
        )
        action.add_argument(
            "--config", metavar="FILE", help="TOML file of settings [env: STT_CONFIG]"
        )
        if name == "add":
            action.add_argument("name", metavar="NAME", help="who or what it is for")
            action.add_argument(
                "--scope",
                action="append",
                choices=("transcribe", "manage", "metrics"),
                help="what it is good for; may be repeated [default: transcribe]",
            )
            for limit, text in _KEY_LIMITS.items():
                action.add_argument(
                    "--" + limit.replace("_", "-"),
                    type=int,
                    metavar="N",
                    help=f"{text}; 0: no limit [default: the server's]",
                )
        elif name == "remove":
            action.add_argument("names", nargs="+", metavar="NAME")

    ps = verb("ps", "models in memory of a running server", _ps)
    doctor = verb("doctor", "check this machine and say what to do", _doctor)
    _engine_flags(doctor)
    health = verb("health", "ask a running server how it is; exit status 0 if it is well", _health)
    for each in (ps, health):
        each.add_argument("url", nargs="?", help="default: http://127.0.0.1:$STT_PORT, or 8100")
        each.add_argument("--key", help="API key [env: OPEN_SPEECH_KEY]")
    return parser


_KEY_LIMITS = {
    "requests_per_minute": "requests it may send a minute",
    "streams": "live streams it may have at once",
    "audio_seconds_per_hour": "seconds of audio it may send an hour",
    "audio_seconds_per_day": "seconds of audio it may send a day",
}
"""The limits of `server.keys`, which is not imported for `--help`."""


def _live_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help="of the server; default: http://localhost:$STT_PORT, or 8100")
    parser.add_argument("--key", help="API key [env: STT_API_KEY]")
    parser.add_argument("-m", "--model-name", metavar="MODEL", help="default: the server's")
    parser.add_argument(
        "-l", "--language", metavar="CODE", help="language of the speech; default: detected"
    )
    parser.add_argument("--task", choices=("transcribe", "translate"), default="transcribe")
    parser.add_argument("--prompt", default="", help="text that is supposed to precede the audio")
    parser.add_argument("--hotwords", default="", help="words to listen for, separated by commas")
    parser.add_argument(
        "--endpointing-ms", type=int, metavar="MS", help="silence that ends an utterance"
    )
    parser.add_argument("--srt", metavar="FILE", help="write subtitles there, too")
    parser.add_argument("--json", action="store_true", help="one JSON object an event on stdout")


def _speed(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError("the speed must be a number from 0 up")
    return value


def _engine_flags(parser: argparse.ArgumentParser) -> None:
    from server.configuration import add_flags

    taken = (
        {"--language"}
        if any("--language" in each.option_strings for each in parser._actions)
        else set()
    )
    inner = argparse.ArgumentParser(add_help=False, conflict_handler="resolve")
    add_flags(inner, ("models", "recognition"))
    for group in inner._action_groups:
        rest = [
            action
            for action in group._group_actions
            if action.option_strings and not taken & set(action.option_strings)
        ]
        target: Any = (
            parser.add_argument_group(group.title)
            if group.title in ("models", "recognition")
            else parser
        )
        for action in rest:
            target._add_action(action)


def _settings(given: dict[str, Any]) -> Any:
    from dataclasses import fields

    from server import configuration
    from server.settings import Settings

    known = {field.name for field in fields(Settings)} | {"config"}
    settings, said = configuration.load(
        {name: value for name, value in given.items() if name in known}, os.environ
    )
    for line in said:
        print(f"open-speech: {line}", file=sys.stderr)
    if settings.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # libraries that would fetch on their own obey it
    return settings


def _serve(given: dict[str, Any]) -> int:
    if given.get("model_name") and given.get("default_model") is None:
        given["default_model"] = given["model_name"]
    settings = _settings(given)
    from server import assembly, configuration, listener, logs
    from server.lan import loopback

    logs.configure(settings.log_level, settings.log_format)
    import logging

    log = logging.getLogger("server")
    log.debug("settings: %s", configuration.redacted(settings))
    where = assembly.device(settings)
    if settings.lan:
        from server import lan

        settings = lan.prepare(settings)
    if not settings.api_keys and settings.keys_file is None:
        if loopback(settings.host):
            log.info(
                "no key is set: listening on %s, where only this machine reaches the server",
                settings.host,
            )
        else:
            log.warning(
                "listening on %s without a key: whoever reaches this address can use the server;"
                " set STT_API_KEYS or STT_KEYS_FILE",
                settings.host,
            )
    app, here = assembly.make_app(settings, where)
    return listener.serve(app, here, settings)


def _transcribe(given: dict[str, Any]) -> int:
    from server.commands import transcribe

    return transcribe.run(_settings({**given, "language": None}), given)


def _replay(given: dict[str, Any]) -> int:
    from server.commands import replay

    return replay.run(_settings(given), given)


def _models_help(given: dict[str, Any]) -> int:
    del given
    print("open-speech models: choose list, pull or rm (--help says more)", file=sys.stderr)
    return 2


def _models_list(given: dict[str, Any]) -> int:
    from server.commands import models

    return models.show(_settings(given), everything=given["all"])


def _models_pull(given: dict[str, Any]) -> int:
    from server.commands import models

    return models.pull(_settings(given), given["names"])


def _models_rm(given: dict[str, Any]) -> int:
    from server.commands import models

    return models.remove(_settings(given), given["names"])


def _keys_help(given: dict[str, Any]) -> int:
    del given
    print("open-speech keys: choose add, list or remove (--help says more)", file=sys.stderr)
    return 2


def _keys_add(given: dict[str, Any]) -> int:
    from server.commands import keys

    limits = {name: given[name] for name in _KEY_LIMITS if given[name] is not None}
    return keys.add(_settings(given), given["name"], given["scope"] or ("transcribe",), limits)


def _keys_list(given: dict[str, Any]) -> int:
    from server.commands import keys

    return keys.show(_settings(given))


def _keys_remove(given: dict[str, Any]) -> int:
    from server.commands import keys

    return keys.remove(_settings(given), given["names"])


def _listen(given: dict[str, Any]) -> int:
    from server.commands import live

    return live.listen(given)


def _stream(given: dict[str, Any]) -> int:
    from server.commands import live

    return live.stream(given)


def _ps(given: dict[str, Any]) -> int:
    from server.commands import remote

    return remote.ps(given["url"], given["key"])


def _health(given: dict[str, Any]) -> int:
    from server.commands import remote

    return remote.health(given["url"], given["key"])


def _doctor(given: dict[str, Any]) -> int:
    from server.commands import doctor

    return doctor.run(_settings(given))


if __name__ == "__main__":
    sys.exit(main())
