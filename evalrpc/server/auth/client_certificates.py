"""Who the bearer of a client certificate is. TLS has verified the certificate; here its names are looked up."""

from collections.abc import Iterable, Iterator, Mapping

from evalrpc.config import ClientCertificate
from evalrpc.errors import UnauthenticatedError
from evalrpc.printable import printable
from evalrpc.server.call import Principal, Role
from evalrpc.server.sign_in import SignIn, SignInMethod

_NAMES = ("peer_spiffe_id", "x509_subject_alternative_name", "x509_common_name")
"""Where gRPC has the names of a certificate, the most specific first."""


class ClientCertificates:
    """The table of the operator. Used on the event loop."""

    def __init__(self, table: Mapping[str, ClientCertificate]) -> None:
        self._table = table
        self._principals = {name: _principal(line) for name, line in table.items()}

    def exchange(self, table: Mapping[str, ClientCertificate]) -> None:
        """Replace the table. The streams of whom it names no longer, or as somebody else, end."""
        before, same = self._principals, {name for name, line in table.items() if self._table.get(name) == line}
        self._table = table
        self._principals = {name: before[name] if name in same else _principal(line) for name, line in table.items()}
        for name, principal in before.items():
            if name not in same:
                principal.sign_in.end(_withdrawn)

    @property
    def is_empty(self) -> bool:
        """Whether the table names nobody."""
        return not self._principals

    def principal_of(self, auth_context: Mapping[str, Iterable[bytes]]) -> Principal | None:
        """Return whom a certificate belongs to, by the first of its names that the table has; None if there is no certificate.

        Raises UnauthenticatedError, with the names, if the table has none of them.
        """
        if "x509_pem_cert" not in auth_context:
            return None
        names = list(dict.fromkeys(_names(auth_context)))
        for name in names:
            if name in self._principals:
                return self._principals[name]
        seen = ", ".join(map(printable, names)) or "no name"
        raise UnauthenticatedError(f"no owner belongs to this client certificate; it has: {seen}")


def _principal(line: ClientCertificate) -> Principal:
    return Principal(line.owner, Role(line.role), SignIn(SignInMethod.CERTIFICATE))


def _withdrawn() -> UnauthenticatedError:
    return UnauthenticatedError("the operator has changed whom this client certificate belongs to: call again")


def _names(auth_context: Mapping[str, Iterable[bytes]]) -> Iterator[str]:
    for key in _NAMES:
        for name in auth_context.get(key, ()):
            yield name.decode(errors="replace")
