"""The certificate of a listener, read from disk again when its files change.

Files are exchanged one after the other, so for a moment they may not fit together: until they do, the old ones are used.
"""

import logging
import ssl
import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

from evalrpc.config.listeners import TlsFiles
from evalrpc.errors import ConfigurationError
from evalrpc.files.regular import read_named_file
from evalrpc.server.x509 import validity_of

_EARLIEST_WARNING: Final = timedelta(days=14)
_WARNED_PART: Final = 0.2
"""Of the time that a certificate is valid, for those that are not valid for months."""

_log = logging.getLogger(__name__)


class Pem(NamedTuple):
    """What the files of a listener hold."""

    cert: bytes
    key: bytes
    client_ca: bytes | None


class Expiry(NamedTuple):
    """When a certificate ends."""

    text: str
    """As the predicate of a sentence about the certificate."""
    is_near: bool
    """Whether it is over, or it is time to renew the certificate."""


class Certificate:
    """The files of one listener. Thread-safe: gRPC asks for news in threads of its own, once per handshake."""

    def __init__(self, files: TlsFiles) -> None:
        """Reads the files. Raises ConfigurationError, naming the setting, if they can't be used."""
        self.path = files.cert
        self.pem = read_tls_files(files)
        """What is in use."""
        self.files = files
        """Where they are."""
        self._complaint = ""
        self._lock = threading.Lock()

    def changed(self) -> Pem | None:
        """Return what the files hold now if that is new and can be used. Logs once why it can't."""
        with self._lock:
            try:
                new = None if _read(self.files) == self.pem else read_tls_files(self.files)
            except ConfigurationError as error:
                self._complain(error.message)
                return None
            self._complaint = ""
            if new is not None:
                self.pem = new
                _log.info("took up the new certificate in %s", self.path)
            return new

    def _complain(self, complaint: str) -> None:
        if complaint != self._complaint:
            self._complaint = complaint
            _log.error("the certificate read before stays in use: %s", complaint)


def read_tls_files(files: TlsFiles) -> Pem:
    """Read the files of a listener. Raises ConfigurationError, naming the setting, if they can't be used."""
    pem = _read(files)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(files.cert, files.key, password="")  # without one, OpenSSL would ask for it at the terminal
        validity_of(pem.cert)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"setting tls_cert: {files.cert} and {files.key} must be a certificate and its key, as PEM and without a password "
            f"({_reason(error)})"
        ) from error
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except OSError as error:
            raise ConfigurationError(
                f"setting tls_client_ca: {files.client_ca} must hold certificates, as PEM ({_reason(error)})"
            ) from error
    if _read(files) != pem:  # so perhaps not what was checked
        raise ConfigurationError(f"setting tls_cert: {files.cert} or a file beside it is being written at this moment")
    return pem


def expiry_of(pem: Pem, now: datetime) -> Expiry:
    """Return when the certificate ends."""
    begins, ends = validity_of(pem.cert)
    warned_time = min(_EARLIEST_WARNING, (ends - begins) * _WARNED_PART)
    if now >= ends:
        return Expiry(f"has expired on {ends:%Y-%m-%d %H:%M} UTC: renew it", is_near=True)
    if now >= ends - warned_time:
        return Expiry(f"expires soon, on {ends:%Y-%m-%d %H:%M} UTC: renew it", is_near=True)
    return Expiry(f"is valid until {ends:%Y-%m-%d %H:%M} UTC", is_near=False)


def _read(files: TlsFiles) -> Pem:
    return Pem(
        _bytes_of("tls_cert", files.cert),
        _bytes_of("tls_key", files.key),
        None if files.client_ca is None else _bytes_of("tls_client_ca", files.client_ca),
    )


def _bytes_of(setting: str, path: Path) -> bytes:
    try:
        return read_named_file(path)
    except OSError as error:
        raise ConfigurationError(f"setting {setting}: can't read {path}: {error.strerror}") from error


def _reason(error: Exception) -> str:
    return (isinstance(error, ssl.SSLError) and error.reason) or str(error)
