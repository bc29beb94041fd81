"""Settings come from flags, variables, a file and defaults, in that order; mistakes are explained."""

from pathlib import Path

import pytest

from server import configuration
from server.configuration import FOREIGN, Misconfigured, load
from server.settings import Settings


def settings(environment: dict[str, str] | None = None, **flags: object) -> Settings:
    return load(flags, environment or {})[0]


def test_nothing_given_means_the_defaults() -> None:
    assert settings() == Settings()
    assert (Settings().host, Settings().port) == ("127.0.0.1", 8100)


def test_flag_beats_variable_beats_file_beats_default(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('port = 1\nbeam = 2\nhost = "file"\npreload = ["a", "b"]\n')
    found = settings({"STT_PORT": "3", "STT_BEAM": "4"}, config=str(file), port="5")
    assert (found.port, found.beam, found.host, found.preload) == (5, 4, "file", ("a", "b"))


def test_text_becomes_the_right_type() -> None:
    found = settings(
        {
            "STT_OFFLINE": "true",
            "STT_MODEL_KEEP_ALIVE": "-1",
            "STT_API_KEYS": "a, b",
            "STT_MODEL_DIR": "/models",
            "STT_LOG_LEVEL": "DEBUG",
        }
    )
    assert (found.offline, found.model_keep_alive, found.api_keys) == (True, -1.0, ("a", "b"))
    assert (found.model_dir, found.log_level) == (Path("/models"), "debug")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"STT_PORT": "many"}, "STT_PORT is 'many'; it must be a whole number from 0 to 65535"),
        ({"STT_PORT": "99999"}, "STT_PORT is '99999'; it must be a whole number from 0 to 65535"),
        ({"STT_BEAM": "2.5"}, "STT_BEAM is '2.5'; it must be a whole number from 1 to 32"),
        ({"STT_DEVICE": "tpu"}, "STT_DEVICE is 'tpu'; it must be auto, cuda or cpu"),
        ({"STT_WINDOW": "wide"}, "STT_WINDOW is 'wide'; it must be auto, short or full"),
        ({"STT_OFFLINE": "maybe"}, "STT_OFFLINE is 'maybe'; it must be true or false"),
        (
            {"STT_BODY_TIMEOUT": "nan"},
            "STT_BODY_TIMEOUT is 'nan'; it must be a number from 0.1 to 100000",
        ),
        (
            {"STT_MAX_MODELS": "0"},
            "STT_MAX_MODELS is '0'; it must be a whole number from 1 to 1000",
        ),
        (
            {"STT_LANGUAGE": "klingon"},
            "STT_LANGUAGE is 'klingon'; it must be an ISO-639-1 code such as en, or auto",
        ),
        ({"STT_COMPUTE_TYPE": "int9"}, "int16, float16, bfloat16 or float32"),
        ({"STT_TLS_CERT": "a.pem"}, "tls_cert and tls_key go together"),
        ({"STT_API_KEYS_FILE": "/nowhere"}, "api_keys_file /nowhere cannot be read: No such file"),
        ({"STT_CONFIG": "/nowhere.toml"}, "cannot be read"),
        ({"STT_CONFIG": "/dev/zero/x"}, "cannot be read"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_the_setting(
    environment: dict[str, str], expected: str
) -> None:
    with pytest.raises(Misconfigured) as caught:
        load({}, environment)
    assert expected in str(caught.value)


def test_a_wrong_value_is_named_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('port = "many"\n')
    with pytest.raises(Misconfigured, match=r"config.toml: port is 'many'"):
        settings(config=str(file))
    with pytest.raises(Misconfigured, match=r"--max-models is 'x'"):
        settings(max_models="x")
    assert settings({"STT_PORT": "many"}, port="1").port == 1


def test_a_file_that_is_no_text_is_said_to_be_none(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(Misconfigured, match="is no TOML"):
        settings(config=str(file))
    with pytest.raises(Misconfigured, match="no text in UTF-8"):
        settings(api_keys_file=str(file))
    file.write_text("# the keys come here\n\n")
    with pytest.raises(Misconfigured, match="no key in it, which would leave the server open"):
        settings(api_keys_file=str(file))
    file.write_text("[server]\nport = 1\n")
    with pytest.raises(Misconfigured, match="without tables"):
        settings(config=str(file))


def test_an_unknown_name_in_the_file_is_an_error_with_a_suggestion(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("prot = 1\n")
    with pytest.raises(Misconfigured, match="did you mean port"):
        settings(config=str(file))


def test_an_unknown_variable_is_only_a_line_and_kubernetes_is_ignored() -> None:
    found, said = load(
        {},
        {
            "STT_PORT": "tcp://10.0.0.1:80",
            "STT_PORT_80_TCP": "tcp://10.0.0.1:80",
            "STT_PORT_80_TCP_PROTO": "tcp",
            "STT_SERVICE_HOST": "10.0.0.1",
            "STT_GPU_SERVICE_PORT_HTTP": "80",
            "TTS_SERVICE_HOST": "10.0.0.2",
            "STT_MODLE_DIR": "x",
            "STT_XYZ": "x",
        },
    )
    assert found.port == 8100
    assert "Kubernetes" in said[0]
    assert said[1:] == [
        "there is no setting STT_MODLE_DIR; did you mean STT_MODEL_DIR?",
        "there is no setting STT_XYZ",
    ]


REFERENCE = {
    "WHISPER__MODEL": ("Systran/faster-whisper-small", "default_model"),
    "WHISPER__INFERENCE_DEVICE": ("cpu", "device"),
    "WHISPER__DEVICE_INDEX": ("1", "device_index"),
    "WHISPER__COMPUTE_TYPE": ("default", "compute_type"),
    "WHISPER__CPU_THREADS": ("4", "threads"),
    "WHISPER__NUM_WORKERS": ("2", "workers"),
    "WHISPER__TTL": ("-1", "model_keep_alive"),
    "STT_MODEL_TTL": ("60", "model_keep_alive"),
    "PRELOAD_MODELS": ('["a", "b"]', "preload"),
    "MAX_MODELS": ("2", "max_models"),
    "DEFAULT_LANGUAGE": ("en", "language"),
    "DEFAULT_RESPONSE_FORMAT": ("verbose_json", "response_format"),
    "ALLOW_ORIGINS": ('["https://a.example"]', "allow_origins"),
    "API_KEY": ("secret", "api_keys"),
    "UVICORN_HOST": ("0.0.0.0", "host"),
    "UVICORN_PORT": ("8000", "port"),
    "LOG_LEVEL": ("DEBUG", "log_level"),
}


def test_never_unloading_is_0_in_another_server() -> None:
    assert settings({"MODEL_IDLE_TIMEOUT": "0"}).model_keep_alive == -1
    assert settings({"WHISPER__TTL": "0"}).model_keep_alive == 0


@pytest.mark.parametrize("name", REFERENCE)
def test_a_name_of_another_server_is_read_with_a_line(name: str) -> None:
    text, own = REFERENCE[name]
    for written in (name, name.lower()):
        if written == name.lower() and name.startswith("STT_"):
            continue
        found, said = load({}, {written: text})
        assert said == [f"{name} is read as {configuration.variable(own)}; rename it"]
        assert getattr(found, own) == getattr(settings(**{own: text}), own)
        assert getattr(found, own) != getattr(Settings(), own)
    # What they meant is no error here, whatever it is.
    for wrong in ("[1, 2]", "tpu", ""):
        load({}, {name: wrong})


def test_an_alias_file_of_another_server_is_read_where_there_is_one(tmp_path: Path) -> None:
    file = tmp_path / "model_aliases.json"
    assert load({}, {"MODEL_ALIAS_PATH": str(file)})[0].alias_file is None
    file.write_text("{}")
    assert load({}, {"MODEL_ALIAS_PATH": str(file)})[0].alias_file == file


def test_names_that_mean_nothing_here_are_ignored_with_a_line() -> None:
    for name in ("TTS_MODEL_TTL", "ENABLE_UI", "WHISPER__USE_BATCHED_MODE"):
        assert load({}, {name: "1"})[1] == [f"{name} has no meaning here and is ignored"]
    found, said = load({}, {"WHISPER__INFERENCE_DEVICE": "tpu"})
    assert found.device == "auto"
    assert said == [
        "WHISPER__INFERENCE_DEVICE is 'tpu'; it must be auto, cuda or cpu; it is ignored, set STT_DEVICE"
    ]


def test_the_own_name_wins_over_a_foreign_one_wherever_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('default_model = "b"\n')
    for environment, flags in (
        ({"STT_DEFAULT_MODEL": "b"}, {}),
        ({"STT_CONFIG": str(file)}, {}),
        ({}, {"default_model": "b"}),
    ):
        found, said = load(flags, environment | {"WHISPER__MODEL": "a"})
        assert found.default_model == "b"
        assert said == []
    found, said = load({}, {"WHISPER__TTL": "1", "STT_MODEL_TTL": "2"})
    assert found.model_keep_alive == 1
    assert "STT_MODEL_TTL is ignored" in said[1]
    assert set(FOREIGN.values()) <= {name.name for name, *_ in configuration.described()}


def test_keys_may_lie_in_a_file_and_are_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("one\n# a comment\n\ntwo\n")
    found = settings({"STT_API_KEYS": "zero"}, api_keys_file=str(file))
    assert found.api_keys == ("zero", "one", "two")
    assert "zero" not in str(configuration.redacted(found))


def test_the_documentation_is_up_to_date() -> None:
    written = Path(__file__).parents[2] / "docs" / "configuration.md"
    assert written.read_text("utf-8") == configuration.table(), (
        "python -m server.configuration > docs/configuration.md"
    )
