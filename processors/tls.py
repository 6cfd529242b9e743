"""TLS of the fronts, from `--ssl-certfile` and `--ssl-keyfile`."""

from __future__ import annotations

import ssl

from processors.settings import HttpSettings, SettingsError


def server_context(http: HttpSettings) -> ssl.SSLContext | None:
    """None without a certificate. Raises SettingsError when it can't be used with its key."""
    if not http.ssl_certfile:
        return None
    where = f"--ssl-certfile {http.ssl_certfile}"
    if http.ssl_keyfile:
        where += f" --ssl-keyfile {http.ssl_keyfile}"
    # Python's own choice of versions and ciphers: nothing older than TLS 1.2.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(http.ssl_certfile, http.ssl_keyfile or None, _no_password)
    except ssl.SSLError as error:
        reason = error.reason or "there is no certificate with its key in PEM in it"
        raise SettingsError(f"{where}: {reason}") from error
    except OSError as error:
        raise SettingsError(f"{where}: {error.strerror}") from error
    return context


def _no_password() -> str:
    """Without it OpenSSL would ask at the terminal."""
    raise SettingsError("--ssl-keyfile: the key is encrypted, it must not be")
