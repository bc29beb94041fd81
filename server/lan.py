"""`serve --lan`: a certificate of this machine's own, and the address as a code to scan.

Browsers give the microphone only to HTTPS. The certificate is kept, so that the one warning of a browser stays the only
one. `cryptography` makes it: keys and signatures are no place for code of our own.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from server.configuration import Misconfigured
from server.settings import Settings

DAYS = 397
"""How long a certificate lasts; browsers distrust those that last much longer."""
SPARE = 30
"""Days before its end on which it is replaced."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Files of a certificate and its key, both PEM."""

    certificate: Path
    key: Path


def prepare(settings: Settings) -> Settings:
    """`settings` for the local network: all addresses, over HTTPS. Raises Misconfigured if the extra is missing."""
    host = "0.0.0.0" if settings.host == "127.0.0.1" else settings.host
    if settings.tls_cert is not None:
        return replace(settings, host=host)
    pair = certificate(_state(), ("localhost", socket.gethostname()), ("127.0.0.1", *addresses()))
    return replace(settings, host=host, tls_cert=pair.certificate, tls_key=pair.key)


def addresses() -> tuple[str, ...]:
    """This machine's address on the local network; none if there is no network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: it only asks which address would
            found = str(probe.getsockname()[0])
        except OSError:
            return ()
    return () if found.startswith("127.") else (found,)


def loopback(host: str) -> bool:
    """Only this machine reaches what listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def certificate(folder: Path, names: tuple[str, ...], reached_at: tuple[str, ...]) -> Pair:
    """A certificate for `names` and addresses in `folder`: the one that is there if it will do, else a new one."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
    except ImportError:
        raise Misconfigured(
            "--lan makes a certificate with a package that is not installed; pip install 'open-speech-server[lan]',"
            " or give --tls-cert and --tls-key"
        ) from None
    pair = Pair(folder / "certificate.pem", folder / "key.pem")
    alternatives = x509.SubjectAlternativeName(
        [
            *(x509.DNSName(name) for name in dict.fromkeys(names) if name.isascii()),
            *(x509.IPAddress(ipaddress.ip_address(each)) for each in dict.fromkeys(reached_at)),
        ]
    )
    now = datetime.datetime.now(datetime.UTC)
    try:
        kept = x509.load_pem_x509_certificate(pair.certificate.read_bytes())
        covered = kept.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        lasts = kept.not_valid_after_utc - now > datetime.timedelta(days=SPARE)
        if lasts and set(alternatives) <= set(covered) and pair.key.is_file():
            return pair
    except (OSError, ValueError, x509.ExtensionNotFound):
        pass  # there is none, or none that will do
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "open-speech on this network")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # clocks of phones differ
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(alternatives, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    pair.key.unlink(missing_ok=True)
    with os.fdopen(os.open(pair.key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
    pair.certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return pair


def is_own(certificate: Path) -> bool:
    """`certificate` is one that `prepare` made."""
    return certificate.parent == _state()


def announce(port: int, own: bool, out: TextIO = sys.stderr) -> None:
    """Say where other devices find the server; on a terminal with a code to scan. `own`: the certificate is ours."""
    found = addresses()
    if not found:
        print("open-speech found no network; only this machine can reach it", file=out)
        return
    url = f"https://{found[0]}:{port}/"
    if out.isatty():
        try:
            import segno
        except ImportError:
            pass
        else:
            segno.make(url, error="m").terminal(out=out, compact=True)
    print(f"Phones and other computers of this network: {url}", file=out)
    if own:
        print(
            "Their browsers warn once, since this machine made the certificate itself: choose to go on.",
            file=out,
        )
    out.flush()


def _state() -> Path:
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "open-speech"
