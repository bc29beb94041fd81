"""`serve --lan`: the certificate and what is told about it."""

import io
import ssl
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from server import lan
from tests import toy

NAMES, ADDRESSES = ("localhost", "speech"), ("127.0.0.1", "192.168.7.7")


def test_a_certificate_is_made_once_and_kept(tmp_path: Path) -> None:
    first = lan.certificate(tmp_path / "state", NAMES, ADDRESSES)
    kept = first.certificate.read_bytes()
    assert first.key.stat().st_mode & 0o777 == 0o600
    assert lan.certificate(tmp_path / "state", NAMES, ADDRESSES[:1]) == first
    assert first.certificate.read_bytes() == kept


def test_another_address_needs_another_certificate(tmp_path: Path) -> None:
    first = lan.certificate(tmp_path, NAMES, ADDRESSES).certificate.read_bytes()
    assert (
        lan.certificate(tmp_path, NAMES, (*ADDRESSES, "10.0.0.9")).certificate.read_bytes() != first
    )


@pytest.mark.parametrize("broken", ["certificate.pem", "key.pem"])
def test_a_broken_certificate_is_replaced(tmp_path: Path, broken: str) -> None:
    lan.certificate(tmp_path, NAMES, ADDRESSES)
    if broken == "key.pem":
        (tmp_path / broken).unlink()
    else:
        (tmp_path / broken).write_text("no certificate")
    pair = lan.certificate(tmp_path, NAMES, ADDRESSES)
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(pair.certificate, pair.key)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_address_is_told_and_drawn_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lan, "addresses", lambda: ("192.168.7.7",))
    plain, drawn = io.StringIO(), Terminal()
    lan.announce(8100, own=True, out=plain)
    lan.announce(8100, own=False, out=drawn)
    assert plain.getvalue().startswith(
        "Phones and other computers of this network: https://192.168.7.7:8100/\n"
    )
    assert "warn once" in plain.getvalue()
    assert "▀" in drawn.getvalue()
    assert "warn once" not in drawn.getvalue()


def test_the_command_serves_https_that_its_certificate_vouches_for(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "server.cli",
        "serve",
        "--lan",
        "--host",
        "localhost",
        "--port",
        "0",
    ]
    command += [
        "--model",
        f"toy={toy.build()}",
        "--default-model",
        "toy",
        "--offline",
        "--device",
        "cpu",
    ]
    environment = {"XDG_STATE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stderr is not None
            url = next(
                line.split()[2] for line in process.stderr if line.startswith("open-speech on")
            )
            assert url.startswith("https://localhost:")
            trusted = ssl.create_default_context(
                cafile=tmp_path / "open-speech" / "certificate.pem"
            )
            answer = httpx2.get(url + "/livez", verify=trusted)
            assert answer.status_code == 200
        finally:
            process.terminate()
            process.communicate(timeout=30)
