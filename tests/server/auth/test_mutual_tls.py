"""Client certificates over a real connection, as gRPC verifies them and hands on their names."""

import grpc
import pytest
from caller_limits import caller_limits
from certificates import Authority, Issued
from door import Door, Within
from test_authenticator import TABLE

from evalrpc.client.failures import from_rpc_error
from evalrpc.errors import UnauthenticatedError
from evalrpc.server.app import SERVICE
from evalrpc.server.call import Call
from evalrpc.server.handlers import handlers_of
from evalrpc.server.transports.grpc import generic_handler
from evalrpc.v1.callers_pb2 import GetCallerRequest, GetCallerResponse

AUTHORITY = Authority()
SERVER = AUTHORITY.issue()


class Service:
    async def GetCaller(self, request: GetCallerRequest, call: Call) -> GetCallerResponse:
        return GetCallerResponse(owner=call.principal.owner)


async def call_with(certificate: Issued, door: Door) -> str:
    """Return the owner of the certificate, as a server finds it out."""
    server = grpc.aio.server()
    handlers = handlers_of(SERVICE, Service(), caller_limits())
    server.add_generic_rpc_handlers((generic_handler(SERVICE, handlers, door.authenticate),))
    credentials = grpc.ssl_server_credentials([(SERVER.key, SERVER.cert)], AUTHORITY.pem, require_client_auth=True)
    port = server.add_secure_port("localhost:0", credentials)
    await server.start()
    try:
        own = grpc.ssl_channel_credentials(AUTHORITY.pem, certificate.key, certificate.cert)
        async with grpc.aio.secure_channel(f"localhost:{port}", own) as channel:
            answer = await channel.unary_unary(f"/{SERVICE.full_name}/GetCaller")(b"")
            return GetCallerResponse.FromString(answer).owner
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from None
    finally:
        await server.stop(None)


@pytest.mark.parametrize(
    ("certificate", "owner"),
    [
        (AUTHORITY.issue("Bob", ()), "bob"),
        (AUTHORITY.issue("Bob", ("alice.example.org",)), "alice"),
        (AUTHORITY.issue("Bob", ("spiffe://example.org/ci",)), "ci"),
    ],
    ids=["common name", "alternative name", "SPIFFE id"],
)
def test_a_certificate_signs_its_owner_in(within: Within, certificate: Issued, owner: str) -> None:
    async def use(door: Door) -> None:
        assert await call_with(certificate, door) == owner

    within(use, client_certificates=TABLE)


def test_an_unknown_certificate_is_refused_with_its_names(within: Within) -> None:
    async def use(door: Door) -> None:
        with pytest.raises(UnauthenticatedError, match=r"it has: evil\.example\.org, mallory$"):
            await call_with(AUTHORITY.issue("mallory", ("evil.example.org",)), door)

    within(use, client_certificates=TABLE)
