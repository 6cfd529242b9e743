"""A certificate for tests, made by the openssl program."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

INSTALL = "needs the openssl program: apt-get install openssl"


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


def trusting(certificate: Path) -> ssl.SSLContext:
    """What a client believes that knows this certificate alone."""
    return ssl.create_default_context(cafile=str(certificate))
