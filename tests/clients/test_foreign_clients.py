"""Clients that other people wrote for OpenAI, installed from their package index, against a running server."""

import os
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2
import numpy as np
import pytest
import soxr
import trustme
import websockets.sync.client

from tests import toy
from tests.fakes import lines, pcm, silence, speech, wav, word_errors
from tests.serving import running, with_toy

SCRIPTS = Path(__file__).parent / "scripts"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(with_toy()) as url:
        yield url


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first sentence at 24 kHz, with a pause after it; beside it the sentence as WAV."""
    path = tmp_path_factory.mktemp("audio") / "speech.pcm"
    samples = np.concatenate([speech("000-en.flac"), silence(1.5)])
    path.write_bytes(pcm(soxr.resample(samples, 16000, 24000)))
    Path(f"{path}.wav").write_bytes(wav(samples))
    return path


def environment(folder: Path, *packages: str) -> Path:
    """The Python of a fresh environment with `packages`; skips where they cannot be had."""
    import venv

    venv.create(folder, with_pip=shutil.which("uv") is None)
    python = folder / "bin" / "python"
    pip = ["uv", "pip", "install", "-q", "--python", str(python)]
    if shutil.which("uv") is None:
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    done = subprocess.run([*pip, *packages], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{' '.join(packages)} cannot be installed: {done.stderr[-300:]}")
    return python


def output(command: Sequence[str | Path], **environ: str) -> list[str]:
    done = subprocess.run(
        [str(each) for each in command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | environ,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def expect(texts: list[str], count: int) -> None:
    assert len(texts) == count
    for text in texts:
        assert word_errors(lines()[0].text, text) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.70.0", "1.109.1", "2.8.0"])
def test_older_openai_packages(url: str, audio: Path, tmp_path: Path, version: str) -> None:
    python = environment(tmp_path / "venv", f"openai[realtime]=={version}")
    texts = output([python, SCRIPTS / "openai_1x.py", url, audio])
    expect(texts, 2 if version == "1.70.0" else 3)


@pytest.mark.slow
def test_livekit_hears_under_server_vad_and_with_its_own(
    url: str, audio: Path, tmp_path: Path
) -> None:
    python = environment(tmp_path / "venv", "livekit-plugins-openai>=1.8,<2")
    command = [python, SCRIPTS / "livekit_stt.py", url, audio]
    for model in (
        "gpt-4o-mini-transcribe",
        "gpt-live-transcribe",
    ):  # it commits itself for the second
        expect(output([*command, model]), 1)


@pytest.mark.slow
def test_pipecat_hears_under_server_vad_and_with_its_own(
    url: str, audio: Path, tmp_path: Path
) -> None:
    python = environment(tmp_path / "venv", "pipecat-ai[openai]>=1.14,<2")
    command = [python, SCRIPTS / "pipecat_stt.py", url, audio]
    for model in ("gpt-4o-transcribe", "gpt-realtime-whisper"):  # it commits itself for the second
        expect(output([*command, model]), 1)


@pytest.mark.slow
def test_the_agents_sdk_hears_by_its_default_and_server_vad(
    url: str, audio: Path, tmp_path: Path
) -> None:
    python = environment(tmp_path / "venv", "openai-agents[voice]>=0.24,<1")
    command = [python, SCRIPTS / "agents_stt.py", url, audio]
    for turn_detection in ("default", "server_vad"):
        expect(output([*command, turn_detection]), 1)


@contextmanager
def serving_tls(folder: Path) -> Iterator[tuple[str, Path]]:
    """The command with a certificate of a new authority: its URL, and the authority's certificate."""
    authority = trustme.CA()
    made = authority.issue_cert("localhost", "127.0.0.1")
    root, chain, key = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
    authority.cert_pem.write_to_path(str(root))
    chain.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    made.private_key_pem.write_to_path(str(key))
    command = [sys.executable, "-m", "server.cli", "serve", "toy", "--model", f"toy={toy.build()}"]
    command += ["--port", "0", "--device", "cpu", "--offline"]
    command += ["--tls-cert", str(chain), "--tls-key", str(key)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            for line in server.stderr:
                if found := re.search(r"open-speech on https://\S+:(\d+)", line):
                    yield f"https://localhost:{found[1]}", root
                    break
            else:
                raise AssertionError("the server did not start")
        finally:
            server.terminate()
            server.stderr.close()
            server.wait(30)


def test_https_and_wss_work_with_a_certificate(tmp_path: Path) -> None:
    with serving_tls(tmp_path) as (url, root):
        trust = ssl.create_default_context(cafile=str(root))
        address = url.replace("https", "wss") + "/v1/realtime?intent=transcription"
        with websockets.sync.client.connect(address, ssl=trust) as socket:
            assert '"session.created"' in str(socket.recv())
        with pytest.raises(ssl.SSLError), websockets.sync.client.connect(address):
            pass
        answer = httpx2.get(url + "/v1/models", verify=trust)
        assert "toy" in [model["id"] for model in answer.json()["data"]]


@pytest.mark.slow
def test_node_speaks_rest_and_realtime_over_tls(audio: Path, tmp_path: Path) -> None:
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("Node is not installed")
    install = [npm, "install", "--silent", "--prefix", str(tmp_path), "openai@7", "ws@8"]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"openai for Node cannot be installed: {done.stderr[-300:]}")
    script = tmp_path / "client.mjs"
    script.write_bytes((SCRIPTS / "node_openai.mjs").read_bytes())
    with serving_tls(tmp_path) as (url, root):
        texts = output([node, script, url, audio, f"{audio}.wav"], NODE_EXTRA_CA_CERTS=str(root))
    expect(texts, 3)
