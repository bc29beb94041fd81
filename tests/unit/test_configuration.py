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
        ({"STT_PORT": "many"}, "port: Expected `int`"),
        ({"STT_PORT": "99999"}, "port is 99999; it must lie between 0 and 65535"),
        ({"STT_DEVICE": "tpu"}, "device: Invalid enum value 'tpu'"),
        ({"STT_WINDOW": "wide"}, "window"),
        ({"STT_TLS_CERT": "a.pem"}, "tls_cert and tls_key go together"),
        ({"STT_API_KEYS_FILE": "/nowhere"}, "api_keys_file"),
        ({"STT_CONFIG": "/nowhere.toml"}, "cannot be read"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_the_setting(
    environment: dict[str, str], expected: str
) -> None:
    with pytest.raises(Misconfigured) as caught:
        load({}, environment)
    assert expected in str(caught.value)


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
            "STT_SERVICE_HOST": "10.0.0.1",
            "STT_MODLE_DIR": "x",
        },
    )
    assert found.port == 8100
    assert said == ["there is no setting STT_MODLE_DIR; did you mean STT_MODEL_DIR?"]


def test_names_of_other_servers_are_read_with_a_line() -> None:
    found, said = load(
        {},
        {
            "WHISPER__MODEL": "Systran/faster-whisper-small",
            "WHISPER__TTL": "60",
            "PRELOAD_MODELS": '["a", "b"]',
            "ALLOW_ORIGINS": '["https://a.example"]',
            "UVICORN_PORT": "8000",
            "API_KEY": "secret",
            "ENABLE_UI": "false",
        },
    )
    assert found.default_model == "Systran/faster-whisper-small"
    assert (found.model_keep_alive, found.preload, found.port) == (60.0, ("a", "b"), 8000)
    assert (found.allow_origins, found.api_keys) == (("https://a.example",), ("secret",))
    assert "WHISPER__MODEL is read as STT_DEFAULT_MODEL; rename it" in said
    assert "ENABLE_UI has no meaning here and is ignored" in said
    assert len(said) == 7


def test_the_own_name_wins_over_a_foreign_one() -> None:
    found, said = load({}, {"WHISPER__MODEL": "a", "STT_DEFAULT_MODEL": "b"})
    assert found.default_model == "b"
    assert said == []
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
