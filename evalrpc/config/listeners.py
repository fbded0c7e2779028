"""The rules of each address that a server listens at, and which of them are too dangerous to start with."""

from collections.abc import Sequence
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

from evalrpc.config.addresses import ListenAddress, PortAddress, SocketAddress, parse_listen_address
from evalrpc.config.listen import HttpListenSettings, ListenSettings
from evalrpc.config.settings import Settings
from evalrpc.errors import ConfigurationError


class TlsFiles(NamedTuple):
    """The files of a listener with TLS, as PEM."""

    cert: Path
    """Its certificate, with the chain."""
    key: Path
    client_ca: Path | None
    """Mutual TLS: the certificates that sign those of clients."""


class Listener(NamedTuple):
    """An address with its rules."""

    address: ListenAddress
    tls: TlsFiles | None
    requires_sign_in: bool
    setting_name: str = "listen"
    """The setting that names the address."""
    lmms_eval_paths: bool = False
    """Whether it has the paths of lmms-eval's own server."""
    proxy_token_header: str = ""
    """The header, in lower case, in which a proxy passes on the tokens of browsers. Empty: none does."""
    owner: str = ""
    """Whom the jobs of those belong to who have not signed in."""

    @property
    def risk(self) -> str:
        """What operators should know about this address. Empty: nothing."""
        if self.requires_sign_in:
            return ""
        callers = "any local user and any proxy on this host" if self.address.is_local else "whoever reaches it"
        return f"{self.address} asks nobody to sign in: {callers} is an anonymous submitter"


def listeners_of(settings: Settings) -> tuple[Listener, ...]:
    """Return the listeners for gRPC. Raises ConfigurationError for rules that contradict each other or that leave the server
    open."""
    return _listeners(settings.listen, settings)


def http_listeners_of(settings: Settings) -> tuple[Listener, ...]:
    """Return those for HTTP. Raises ConfigurationError as `listeners_of`."""
    listeners = tuple(map(_http_listener, settings.http_listen, _listeners(settings.http_listen, settings), repeat(settings)))
    if settings.lmms_eval_paths and not any(listener.lmms_eval_paths for listener in listeners):
        raise ConfigurationError(
            "setting lmms_eval_paths: lmms-eval's clients can't sign in, and there is no address for HTTP where nobody has to"
        )
    taken = [listener.address for listener in listeners_of(settings)]
    for listener in listeners:
        if listener.address in taken and not _is_any_port(listener.address):
            raise ConfigurationError(
                f"setting http_listen: names {listener.address}, as listen does: gRPC and HTTP need an address each"
            )
    return listeners


def _http_listener(given: HttpListenSettings, listener: Listener, settings: Settings) -> Listener:
    if listener.requires_sign_in and (given.lmms_eval_paths or given.owner):
        key = "lmms_eval_paths" if given.lmms_eval_paths else "owner"
        raise ConfigurationError(
            f"setting http_listen.{key}: is for addresses where nobody has to sign in, and {listener.address} requires it"
        )
    if given.proxy_token_header and not (listener.requires_sign_in and settings.oidc):
        needed = "`[oidc]`, whose tokens it has" if listener.requires_sign_in else 'sign-in at its address: auth = "required"'
        raise ConfigurationError(f"setting http_listen.proxy_token_header: needs {needed}")
    has_paths = settings.lmms_eval_paths if given.lmms_eval_paths is None else given.lmms_eval_paths
    return listener._replace(
        lmms_eval_paths=has_paths and not listener.requires_sign_in,
        owner=given.owner or "",
        proxy_token_header=(given.proxy_token_header or "").lower(),
    )


def _listeners(listen: Sequence[ListenSettings], settings: Settings) -> tuple[Listener, ...]:
    listeners = tuple(_listener(given, settings) for given in listen)
    addresses = [listener.address for listener in listeners if not _is_any_port(listener.address)]
    for given, address in zip(listen, addresses, strict=False):
        if addresses.count(address) > 1:
            raise ConfigurationError(f"setting {given.setting_name}: names {address} more than once")
    return listeners


def _is_any_port(address: ListenAddress) -> bool:
    return isinstance(address, PortAddress) and address.port == 0


def _listener(given: ListenSettings, settings: Settings) -> Listener:
    address = parse_listen_address(given.address)
    tls = _tls(given, address, settings)
    auth = given.auth or settings.auth or ("off" if address.is_local or settings.insecure_no_auth else "required")
    if auth == "off" and not address.is_local and not settings.insecure_no_auth:
        raise ConfigurationError(
            f"setting auth: `off` on {address}, which is not loopback, lets whoever reaches it run code as this account; "
            "require sign-in, or accept that with --insecure-no-auth"
        )
    if auth == "required" and tls is None and not address.is_local and not settings.proxy_terminates_tls:
        raise ConfigurationError(
            f"setting tls_cert: {address} is not loopback, so callers must sign in, and without TLS anybody on the way could "
            "read their tokens; set tls_cert and tls_key, or proxy_terminates_tls if a proxy before it speaks TLS"
        )
    return Listener(address, tls, auth == "required", given.setting_name)


def _tls(given: ListenSettings, address: ListenAddress, settings: Settings) -> TlsFiles | None:
    if isinstance(address, SocketAddress):
        if given.tls_cert or given.tls_key or given.tls_client_ca:
            raise ConfigurationError(f"setting {given.setting_name}.tls_cert: {address} is a socket, which has no TLS")
        return None
    cert = given.tls_cert or settings.tls_cert
    key = given.tls_key or settings.tls_key
    client_ca = given.tls_client_ca or settings.tls_client_ca
    if cert and key:
        return TlsFiles(cert, key, client_ca)
    if cert or key or client_ca:
        missing = "tls_key" if cert else "tls_cert"
        raise ConfigurationError(f"setting {missing}: is missing: TLS at {address} needs a certificate and its key")
    return None
