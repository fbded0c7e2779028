"""TLS for HTTP. A connection gets the certificate that is the newest when it is made."""

import asyncio
import logging
import ssl
from concurrent.futures import Executor
from typing import Final

from evalrpc.server.certificates import Certificate

_CHECK_SECONDS: Final = 1.0

_log = logging.getLogger(__name__)


class ChangingContext:
    """The context of a listener, which passes each handshake on to that of the certificate in use."""

    def __init__(self, certificate: Certificate) -> None:
        self.context: Final = _context(certificate)
        """For the event loop."""
        self.context.sni_callback = self._choose
        self._newest = self.context
        self._certificate = certificate

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:  # noqa: ARG002 - its shape
        connection.context = self._newest

    async def run(self, readers: Executor) -> None:
        """Take up new certificates, until cancelled."""
        loop, is_stale = asyncio.get_running_loop(), False
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            is_stale = await loop.run_in_executor(readers, self._certificate.changed) is not None or is_stale
            if is_stale:
                is_stale = not await loop.run_in_executor(readers, self._take_up)

    def _take_up(self) -> bool:
        """Return whether the new files could be used."""
        try:
            self._newest = _context(self._certificate)
        except OSError as error:  # they are being exchanged once more, at this moment
            _log.warning("the certificate read before stays in use at first: %s", error)
            return False
        return True


def _context(certificate: Certificate) -> ssl.SSLContext:
    """Return a context with the files as they are now. Raises OSError."""
    files = certificate.files
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key, password="")  # without one, OpenSSL would ask for it at the terminal
    context.set_alpn_protocols(["http/1.1"])
    if files.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(files.client_ca)
    return context
