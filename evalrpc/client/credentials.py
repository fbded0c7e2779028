"""What a client brings to a server: whom it trusts, its certificate, its token. Nothing here shows a token or sends one."""

import os
import re
import ssl
from pathlib import Path
from typing import Final, NamedTuple

from evalrpc.client.addresses import Address
from evalrpc.client.logins import kept_token
from evalrpc.files.regular import read_named_file

TLS_CA_VARIABLE: Final = "EVALRPC_TLS_CA"
TLS_CERT_VARIABLE: Final = "EVALRPC_TLS_CLIENT_CERT"
TLS_KEY_VARIABLE: Final = "EVALRPC_TLS_CLIENT_KEY"
TOKEN_VARIABLE: Final = "EVALRPC_TOKEN"  # noqa: S105 - a name
ROOTS_VARIABLE: Final = "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"

_TOKEN: Final = re.compile(r"[!-~]+")

FilePath = str | os.PathLike[str]
Metadata = tuple[tuple[str, str], ...]


class TlsOptions(NamedTuple):
    """What gRPC makes channel credentials of, all as PEM."""

    root_certificates: bytes | None
    """None leaves the choice to gRPC."""
    private_key: bytes | None
    certificate_chain: bytes | None


class Bearer:
    """The token of a client, if it has one."""

    def __init__(self, token: str = "", file: Path | None = None) -> None:
        """A file is read for every call, so that a token can be exchanged while the client is in use."""
        self._metadata = _metadata(token, "the token") if token else ()
        self._file = file

    def metadata(self) -> Metadata:
        """Return what to send with a call. Raises OSError and ValueError if the file has no token."""
        if self._file is None:
            return self._metadata
        return _metadata(_token_in(self._file), f"the token in {self._file}")

    def __bool__(self) -> bool:
        return bool(self._metadata) or self._file is not None


def tls_options(
    address: Address, ca: FilePath | None = None, cert: FilePath | None = None, key: FilePath | None = None
) -> TlsOptions | None:
    """Read the files that are given, else those that EVALRPC_TLS_CA, EVALRPC_TLS_CLIENT_CERT and EVALRPC_TLS_CLIENT_KEY name.
    Without a `ca`, the certificates that this machine trusts count. Returns None for an address without TLS.

    Raises ValueError for what makes no sense, OSError for a file that can't be read.
    """
    _require_not_empty(tls_ca=ca, tls_cert=cert, tls_key=key)
    if not address.uses_tls:
        if ca or cert or key:
            raise ValueError(f"certificates need an address with TLS: write https://{address.target}")
        return None
    ca = ca or os.environ.get(TLS_CA_VARIABLE)
    cert = cert or os.environ.get(TLS_CERT_VARIABLE)
    key = key or os.environ.get(TLS_KEY_VARIABLE)
    if bool(cert) != bool(key):
        raise ValueError("tls_cert and tls_key belong together: give both, or neither")
    roots = _authorities(Path(ca)) if ca else root_certificates()
    if not cert or not key:
        return TlsOptions(roots, None, None)
    return TlsOptions(roots, *_key_and_chain(Path(key), Path(cert)))


def bearer(address: Address, token: str | None = None, token_file: FilePath | None = None) -> Bearer:
    """Return the token that is given, else that in the file, else that in EVALRPC_TOKEN, else that of `evalrpc login`.

    Raises ValueError where it would travel in the open, and for what is no token; OSError for a file that can't be read.
    """
    _require_not_empty(token_file=token_file)
    if token and token_file:
        raise ValueError("give either a token or a token_file, not both")
    if token_file:
        found = Bearer(file=Path(token_file).absolute())
        found.metadata()  # so that what is wrong with the file is said at once
    else:
        found = Bearer(token or os.environ.get(TOKEN_VARIABLE) or kept_token(address.target))
    if found and not address.uses_tls and not address.is_local:
        raise ValueError(
            f"a token is sent with TLS only, or to this machine: write https://{address.target}, or give no token (see "
            f"{TOKEN_VARIABLE} and `evalrpc logout`)"
        )
    return found


def root_certificates() -> bytes | None:
    """Return the certificates that this machine trusts, as PEM; None leaves the choice to gRPC, which has a list of its own.

    That is the case if the machine has none, and if gRPC's variable GRPC_DEFAULT_SSL_ROOTS_FILE_PATH names a file.
    """
    if os.environ.get(ROOTS_VARIABLE):
        return None
    certificates = ssl.create_default_context().get_ca_certs(binary_form=True)
    return "".join(map(ssl.DER_cert_to_PEM_cert, certificates)).encode() or None


def _require_not_empty(**files: FilePath | None) -> None:
    """Raise ValueError for a name that is empty, such as that of a variable which is not set: nobody means no file by it."""
    if empty := next((name for name, file in files.items() if file is not None and not os.fspath(file)), None):
        raise ValueError(f"{empty} is empty: name a file, or leave it out")


def _token_in(file: Path) -> str:
    return read_named_file(file).decode(errors="replace").strip()


def _authorities(path: Path) -> bytes:
    content = read_named_file(path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        raise ValueError(f"tls_ca: {path} must hold certificates, as PEM") from None
    return content


def _key_and_chain(key: Path, cert: Path) -> tuple[bytes, bytes]:
    contents = read_named_file(key), read_named_file(cert)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(cert, key, password="")  # else OpenSSL would ask for one
    except ssl.SSLError:
        raise ValueError(
            f"tls_cert: {cert} and {key} must be a certificate and its key, as PEM and without a password"
        ) from None
    return contents


def _metadata(token: str, name: str) -> Metadata:
    if not _TOKEN.fullmatch(token):
        raise ValueError(f"{name} is empty, or has characters that no token has")  # without it, since it may be a secret
    return (("authorization", f"Bearer {token}"),)
