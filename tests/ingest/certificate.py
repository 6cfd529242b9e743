"""A certificate for tests, made by the openssl program."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

INSTALL = "needs the openssl program: apt-get install openssl"
NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def make_certificate(folder: Path, name: str = "cert") -> tuple[Path, Path]:
    """-> certificate and key in PEM, for localhost and 127.0.0.1, signed by itself."""
    if shutil.which("openssl") is None:
        pytest.skip(INSTALL)
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return certificate, key


class Authority:
    """One of our own."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.certificate = folder / f"{name}.pem"
        self._key = folder / f"{name}.key"
        _openssl(
            *("req", "-x509", *NEW_KEY, "-days", "2", "-subj", f"/CN={name}"),
            *("-addext", "basicConstraints=critical,CA:TRUE"),
            *("-keyout", self._key, "-out", self.certificate),
        )

    def server(self, host: str) -> ssl.SSLContext:
        """What a server speaks TLS with, by a certificate for that name."""
        paths = [self.folder / f"{host}.{end}" for end in ("key", "csr", "pem", "ext")]
        key, request, certificate, words = paths
        words.write_text(f"subjectAltName=DNS:{host}\nbasicConstraints=CA:FALSE\n")
        _openssl("req", *NEW_KEY, "-subj", f"/CN={host}", "-keyout", key, "-out", request)
        _openssl(
            *("x509", "-req", "-in", request, "-days", "2", "-extfile", words),
            *("-CA", self.certificate, "-CAkey", self._key, "-set_serial", "7"),
            *("-out", certificate),
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        return context


def _openssl(*words: str | Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip(INSTALL)
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


def trusting(certificate: Path) -> ssl.SSLContext:
    """What a client believes that knows this certificate alone."""
    return ssl.create_default_context(cafile=str(certificate))
