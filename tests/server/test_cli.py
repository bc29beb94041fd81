"""The command, as a user types it."""

import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
import urllib.request
from pathlib import Path

import pytest

from server import cli, logs
from tests import toy
from tests.fakes import lines, tone, wav
from tests.serving import Talker, running, speech_file, with_engine


def command(
    *arguments: str, environment: dict[str, str] | None = None, timeout: float = 90
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "STT_OFFLINE": "true", "STT_DEVICE": "cpu", **(environment or {})},
    )


def test_help_lists_the_commands_and_imports_nothing_heavy() -> None:
    done = command("--help")
    assert done.returncode == 0
    for verb in ("serve", "transcribe", "models", "ps", "doctor", "health"):
        assert verb in done.stdout
    script = "import sys; from server import cli; cli._parser(); print([m for m in ('numpy', 'ctranslate2', 'onnxruntime', 'starlette', 'av', 'huggingface_hub') if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )


def test_every_flag_of_serve_names_its_variable() -> None:
    done = command("serve", "--help")
    assert (
        "[env: STT_DEFAULT_MODEL]" in done.stdout.replace("\n", " ").replace("  ", "")
        or "STT_DEFAULT_MODEL" in done.stdout
    )
    assert "--no-offline" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("serve --port many", "--port is 'many'; it must be a whole number from 0 to 65535"),
        ("serve --device tpu", "--device is 'tpu'; it must be auto, cuda or cpu"),
        ("serve --model x", "model is 'x'; it must be name=value; to use a model: serve NAME"),
        ("serve --default-backend x", "it must be one of faster_whisper"),
        ("serve --prot 1", "there is no flag --prot; did you mean --port?"),
        ("serve --config /nowhere", "the file /nowhere cannot be read"),
        ("serv", "there is no command 'serv'; did you mean serve?"),
        ("dance", "choose serve, transcribe"),
        ("models lst", "there is no action 'lst'; did you mean list?"),
        ("models", "choose list, pull or rm"),
        ("transcribe", "required: FILE"),
        ("transcribe -f mp3 x", "--format is 'mp3'; it must be one of txt, srt"),
        ("transcribe -l klingon x", "--language 'klingon' is no language known here"),
        ("transcribe --max-line-width 2 x", "--max-line-width is '2'"),
        ("health a b", "'b' is one argument too many"),
    ],
)
def test_wrong_usage_is_2_and_one_line(
    arguments: str, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STT_OFFLINE", "true")
    monkeypatch.setenv("STT_DEVICE", "cpu")
    # What outlives a command otherwise:
    monkeypatch.setattr(logs, "configure", lambda level, shape: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        status = cli.main(arguments.split())
    except SystemExit as error:
        status = int(str(error.code))
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    assert told in captured.err
    assert captured.err.count("\n") == 1


def test_what_nobody_foresaw_is_one_line_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(given: object) -> int:
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr(cli, "_ps", broken)
    assert cli.main(["ps"]) == 1
    assert (
        capsys.readouterr().err
        == "open-speech: this should not happen: ZeroDivisionError: a b; STT_LOG_LEVEL=debug shows where\n"
    )


def test_recordings_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    recordings = [tmp_path / "a" / "talk.wav", tmp_path / "b" / "talk.wav", tmp_path / "Talk.txt"]
    for recording, name in zip(recordings, ("000-en", "001-en", "002-en"), strict=True):
        recording.write_bytes(speech_file(name + ".flac").read_bytes())
    done = command(
        *("transcribe", "--model", f"toy={toy.build()}", "-m", "toy", "-o", str(tmp_path)),
        *map(str, recordings),
    )
    assert done.returncode == 0, done.stderr
    # The third recording has the name that the first text would have had, where case does not matter.
    for name, line in (("talk-2", 0), ("talk-3", 1), ("Talk-4", 2)):
        assert (tmp_path / f"{name}.txt").read_text() == lines()[line].text + "\n"
    assert recordings[2].read_bytes().startswith(b"fLaC")


def test_a_folder_that_cannot_be_made_is_told_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = command("transcribe", "-o", str(tmp_path / "file" / "out"), "x.wav")
    assert done.returncode == 1
    assert done.stderr == f"open-speech: {tmp_path}/file/out: Not a directory\n"


def test_ctrl_c_is_130_without_a_word() -> None:
    model = f"toy={toy.build()}"
    recordings = [str(speech_file("000-en.flac")), *([str(speech_file("long-0.flac"))] * 50)]
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "server.cli",
            "transcribe",
            "--model",
            model,
            "-m",
            "toy",
            *recordings,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "STT_OFFLINE": "true", "STT_DEVICE": "cpu"},
    ) as process:
        assert process.stdout is not None
        assert "soldier" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told == ""


def test_a_terminal_sees_how_far_a_recording_is() -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    recording = str(speech_file("long-0.flac"))
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "server.cli", "transcribe"),
            *("--model", f"toy={toy.build()}", "-m", "toy", recording),
        ],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "STT_OFFLINE": "true", "STT_DEVICE": "cpu"},
    ) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # Linux: the other end is closed
                break
            if not data:
                break
            seen += data
        text, _ = process.communicate(timeout=60)
        assert process.returncode == 0
    os.close(ours)
    drawn = seen.decode()
    assert "long-0.flac:" in drawn
    assert "0/82 s of audio" in drawn
    assert "left" in drawn
    assert "soldier" not in drawn
    assert text.count(b"\n") == 1


def test_unknown_models_are_told_in_the_words_of_the_command_line() -> None:
    done = command("transcribe", "-m", "nosuch", str(speech_file("000-en.flac")))
    assert done.returncode == 1
    assert "models list --all lists them, and --model NAME=FOLDER names a folder" in done.stderr
    assert "GET" not in done.stderr


def test_files_are_transcribed_in_every_format(tmp_path: Path) -> None:
    model = f"toy={toy.build()}"
    recording = str(speech_file("000-en.flac"))
    done = command("transcribe", "--model", model, "-m", "toy", recording)
    assert (done.returncode, done.stdout) == (0, lines()[0].text + "\n")
    bad = tmp_path / "bad.mp3"
    bad.write_bytes(b"no recording")
    silent = tmp_path / "silent.wav"
    silent.write_bytes(wav(tone(1.0) * 0))
    done = command(
        "transcribe",
        "--model",
        model,
        "-m",
        "toy",
        "-f",
        "srt",
        "-o",
        str(tmp_path / "out"),
        str(bad),
        str(tmp_path / "nothing"),
        recording,
        str(silent),
    )
    assert done.returncode == 1
    assert "bad.mp3: the file is not audio" in done.stderr
    assert "nothing: No such file" in done.stderr
    assert "Traceback" not in done.stderr
    assert "soldier" in (tmp_path / "out" / "000-en.srt").read_text()
    assert (tmp_path / "out" / "silent.srt").read_text() == ""
    done = command(
        "transcribe",
        "--model",
        model,
        "-m",
        "toy",
        "-f",
        "json",
        "-l",
        "fr",
        "--task",
        "translate",
        str(speech_file("003-fr.flac")),
    )
    found = json.loads(done.stdout)
    assert found["text"] == lines()[3].translation
    assert found["words"][0]["word"] == "The"


def test_models_are_listed_and_problems_told(tmp_path: Path) -> None:
    done = command("models", "list", "--model", f"toy={toy.build()}")
    assert done.returncode == 0
    assert "toy" in done.stdout
    assert "pocketsphinx" in done.stdout
    assert "not downloaded" not in done.stdout
    assert "large-v3-turbo" in command("models", "list", "--all").stdout
    done = command("models", "pull", "small", environment={"STT_MODEL_DIR": str(tmp_path)})
    assert (done.returncode, "offline" in done.stderr) == (1, True)
    assert (
        command("models", "rm", "small", environment={"STT_MODEL_DIR": str(tmp_path)}).returncode
        == 1
    )
    assert command("models", "rm", "../x").returncode == 1


def test_doctor_decodes_and_reports() -> None:
    done = command("doctor", "--model", f"toy={toy.build()}", "--default-model", "toy")
    assert done.returncode == 0, done.stdout
    assert "toy loads in" in done.stdout
    assert "FAIL" not in done.stdout
    done = command("doctor", environment={"STT_DEFAULT_MODEL": "nothing"})
    assert done.returncode == 1


def test_a_gpu_that_is_not_there_is_told_with_its_remedy() -> None:
    done = command("serve", environment={"STT_DEVICE": "cuda", "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 1
    assert "--gpus all" in done.stderr
    assert "STT_DEVICE=cpu" in done.stderr


def test_health_and_ps_ask_a_running_server() -> None:
    with running(with_engine(Talker())) as url:
        done = command("health", url)
        assert (done.returncode, done.stdout) == (0, "ok: toy (faster_whisper)\n")
        assert command("ps", url).returncode == 0
    for address in ("http://127.0.0.1:9", "127.0.0.1:9", "http://127.0.0.1:x"):
        done = command("health", address)
        assert done.returncode == 1
        assert "open-speech serve" in done.stderr
        assert done.stderr.count("\n") == 1
    assert "is no address" in command("ps", "ftp://here").stderr


def test_a_certificate_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.pem").write_text("no certificate")
    both = ("--tls-cert", str(tmp_path / "a.pem"), "--tls-key", str(tmp_path / "a.pem"))
    done = command("serve", "--port", "0", *both)
    assert done.returncode == 1
    assert "cannot serve HTTPS" in done.stderr
    assert "Traceback" not in done.stderr


def test_serve_answers_until_it_is_told_to_stop() -> None:
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "server.cli",
            "serve",
            "--port",
            "0",
            "--default-model",
            "toy",
            "--model",
            f"toy={toy.build()}",
            "--preload",
            "toy",
        ],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "STT_DEVICE": "cpu", "STT_OFFLINE": "1", "STT_HOST": "127.0.0.1"},
    ) as process:
        assert process.stderr is not None
        url = ""
        for line in process.stderr:
            if "open-speech on " in line:
                url = line.split()[2]
                break
        assert url.startswith("http://localhost:")
        until = time.monotonic() + 30
        while time.monotonic() < until:
            with urllib.request.urlopen(url + "/health") as answer:
                if json.load(answer)["loaded"] == ["toy"]:
                    break
        with urllib.request.urlopen(url + "/readyz") as answer:
            assert json.load(answer)["ready"]
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(15) == 0, rest
        assert "Traceback" not in rest


def test_a_port_in_use_is_one_line() -> None:
    with running(with_engine(Talker())) as url:
        done = command("serve", "--port", url.rpartition(":")[2])
    assert done.returncode == 1
    assert "cannot listen" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--host", "0.0.0.0"), "listening on 0.0.0.0 without a key"),
        ((), "no key is set: listening on 127.0.0.1, where only this machine"),
        (("--host", "127.0.0.2"), "no key is set: listening on 127.0.0.2"),
        (("--host", "0.0.0.0", "--api-keys", "secret"), None),
    ],
)
def test_the_first_line_says_who_can_use_a_server_without_keys(
    flags: tuple[str, ...], told: str | None
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "server.cli", "serve", "--port", "0", *flags],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "STT_DEVICE": "cpu", "STT_OFFLINE": "1"},
    ) as process:
        assert process.stderr is not None
        said = [process.stderr.readline()]
        while "open-speech on" not in said[-1]:
            said.append(process.stderr.readline())
        process.terminate()
        process.stderr.read()
    if told is None:
        assert "key" not in "".join(said)
    else:
        assert told in said[0]
        if "0.0.0.0" in flags:
            assert " warning " in said[0]
            assert "set STT_API_KEYS or STT_KEYS_FILE" in said[0]


def test_keys_are_made_listed_and_removed(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    there = {"STT_KEYS_FILE": str(file)}
    limits = ("--streams", "4", "--audio-seconds-per-day", "0")
    made = command("keys", "add", "captions", *limits, environment=there)
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    assert key not in made.stderr
    assert key not in file.read_text("utf-8")
    scopes = ("--scope", "metrics", "--scope", "manage")
    assert command("keys", "add", "ops", *scopes, environment=there).returncode == 0
    rows = [line.split() for line in command("keys", "list", environment=there).stdout.splitlines()]
    assert rows[0] == ["NAME", "SCOPES", "CREATED", "LIMITS"]
    assert rows[1][:2] == ["captions", "transcribe"]
    assert rows[1][3:] == ["streams=4", "audio_seconds_per_day=none"]
    assert rows[2][:2] == ["ops", "manage,metrics"]
    assert command("keys", "remove", "captions", environment=there).returncode == 0
    assert "captions" not in command("keys", "list", environment=there).stdout


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("list",), 2, "keys_file is not set"),
        (("add", "a b", "--keys-file", "{}"), 2, "letters, digits"),
        (("add", "a", "--streams", "-1", "--keys-file", "{}"), 2, "streams is -1"),
        (
            ("add", "a", "--scope", "all", "--keys-file", "{}"),
            2,
            "it must be one of transcribe, manage, metrics",
        ),
        (("remove", "a", "--keys-file", "{}"), 2, "cannot be read"),
        ((), 2, "choose add, list or remove"),
    ],
)
def test_mistakes_with_keys_are_one_line(
    arguments: tuple[str, ...], status: int, told: str, tmp_path: Path
) -> None:
    file = str(tmp_path / "keys.toml")
    done = command("keys", *(each.replace("{}", file) for each in arguments))
    assert (done.returncode, done.stdout) == (status, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_does_not_start_with_a_keys_file_it_cannot_read(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    for text, told in ((None, "cannot be read"), ("osk_secret", "is no TOML")):
        if text is not None:
            file.write_text(text)
        done = command("serve", "--port", "0", "--keys-file", str(file))
        assert done.returncode == 2
        assert told in done.stderr
        assert "osk_secret" not in done.stderr
        assert "Traceback" not in done.stderr
