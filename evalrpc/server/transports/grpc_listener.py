"""A gRPC server at one address, with the rules of that address."""

import grpc

from evalrpc.config import Settings
from evalrpc.config.addresses import PortAddress
from evalrpc.config.listeners import Listener
from evalrpc.errors import ConfigurationError
from evalrpc.server.certificates import Certificate, Pem
from evalrpc.server.listening import make_private, require_free
from evalrpc.server.transports.grpc_options import channel_options, connection_options


class GrpcListener:
    """Created within the event loop that it belongs to."""

    def __init__(self, listener: Listener, certificate: Certificate | None, settings: Settings) -> None:
        self.listener = listener
        """Its rules, with the port that it got once it is bound."""
        self.certificate = certificate
        """None: it has no TLS."""
        self._server = grpc.aio.server(options=[*channel_options(settings.max_request_bytes), *connection_options(settings)])

    @property
    def address(self) -> str:
        """Where it listens, as HOST:PORT or unix:PATH."""
        return str(self.listener.address)

    def add(self, *handlers: grpc.GenericRpcHandler) -> None:
        """Serve what these handle. To be called before it starts."""
        self._server.add_generic_rpc_handlers(handlers)

    def bind(self) -> None:
        """Take the port, or the socket. Raises ConfigurationError, with the reason, if that is impossible."""
        address = self.listener.address
        require_free(address)
        try:
            port = self._add_port(str(address))
        except RuntimeError as error:
            raise ConfigurationError(f"setting listen: gRPC can't listen on {address}; its log line says why") from error
        if isinstance(address, PortAddress):
            self.listener = self.listener._replace(address=address._replace(port=port))
        else:
            make_private(address)

    async def start(self) -> None:
        """Begin to serve."""
        await self._server.start()

    async def stop(self, grace_seconds: float) -> None:
        """Take no new calls, and end those that are left after this time."""
        await self._server.stop(grace_seconds)

    def _add_port(self, address: str) -> int:
        if self.certificate is None:
            return self._server.add_insecure_port(address)
        return self._server.add_secure_port(address, _credentials(self.certificate))


def _credentials(certificate: Certificate) -> grpc.ServerCredentials:
    """Return credentials that ask at every handshake whether the certificate has changed. Open connections keep theirs."""

    def changed() -> grpc.ServerCertificateConfiguration | None:
        pem = certificate.changed()
        return _configuration(pem) if pem else None

    first = certificate.pem
    requires_client_certificate = first.client_ca is not None
    return grpc.dynamic_ssl_server_credentials(
        _configuration(first),
        changed,  # type: ignore[arg-type] # gRPC takes None for "not changed"
        requires_client_certificate,
    )


def _configuration(pem: Pem) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pem.key, pem.cert)], pem.client_ca)
