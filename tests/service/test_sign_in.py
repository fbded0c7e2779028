"""What a client sees of a real server that asks who calls."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from callers import add_token, revoke_token, spoil_tokens
from certificates import Authority
from click.testing import CliRunner
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from identity_provider import AUDIENCE, IdentityProvider
from serving import SECONDS, Api, MovableClock, ServerHere, Site, reason_of, submission
from waiting import eventually

from evalrpc.cli import main
from evalrpc.client import EvalClient
from evalrpc.errors import UnauthenticatedError
from evalrpc.server.app import SERVICE
from evalrpc.server.auth import authenticator
from evalrpc.server.auth.token_store import FILE_NAME
from evalrpc.server.transports.grpc import _is_no_departure
from evalrpc.v1.callers_pb2 import (
    CALLER_ROLE_OPERATOR,
    CALLER_ROLE_SUBMITTER,
    CALLER_ROLE_VIEWER,
    SIGN_IN_METHOD_CERTIFICATE,
    SIGN_IN_METHOD_NONE,
    SIGN_IN_METHOD_OIDC,
    SIGN_IN_METHOD_TOKEN,
)

Serve = Callable[..., ServerHere]
METHODS = [method.name for method in SERVICE.methods]


def error_of(call: Callable[[], object]) -> grpc.RpcError:
    """Call, read a stream to its end, and return the resulting error."""
    with pytest.raises(grpc.RpcError) as caught:
        read(call())
    return caught.value


def read(answer: object) -> object:
    return list(answer) if isinstance(answer, Iterator) else answer


@pytest.fixture
def data_dir(site: Site) -> Path:
    return site.folder / "data"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authenticator, "INTERVAL_SECONDS", 0.02)


@pytest.fixture
def server(serve: Serve) -> ServerHere:
    return serve(auth="required")


@contextmanager
def signed_in(server: ServerHere, token: str) -> Iterator[Api]:
    """Yield the calls of the server with a token, once the server knows the token."""
    api = Api(server.address, token=token)

    def is_known() -> bool:
        try:
            api.GetCaller()
        except grpc.RpcError as error:
            return "does not know" not in (error.details() or "")
        return True

    eventually(is_known, "for the server to know a token")
    yield api
    api.close()


def test_every_call_is_refused_without_a_token_and_with_a_wrong_one(server: ServerHere, data_dir: Path) -> None:
    with signed_in(server, add_token(data_dir)) as api:
        assert api.GetCaller().owner == "alice"
        for presented in ("", "evr_x", api.metadata[0][1].removeprefix("Bearer ") + "x"):
            other = Api(server.address, token=presented)
            for call in [getattr(other, name) for name in METHODS]:
                error = error_of(call)
                assert error.code() is grpc.StatusCode.UNAUTHENTICATED
                assert reason_of(error) == "UNAUTHENTICATED"
            other.close()


def test_every_call_is_refused_with_what_is_over_or_meant_for_others(serve: Serve, site: Site, data_dir: Path) -> None:
    with IdentityProvider() as provider:
        with site.config.open("a") as config:
            config.write(f'[oidc]\nissuer = "{provider.issuer}"\naudience = "{AUDIENCE}"\nrole = "operator"\n')
        server = serve(auth="required")
        with signed_in(server, add_token(data_dir, role="operator")) as api:
            revoked = api.metadata[0][1].removeprefix("Bearer ")
            revoke_token(data_dir, revoked)
            eventually(lambda: not _is_in(api), "for the server to notice the revocation")
        expired = add_token(data_dir, role="operator", expires_ns=2)
        for presented in (revoked, expired, provider.token(aud="other"), provider.token(iss="https://other.example")):
            other = Api(server.address, token=presented)
            outcomes = {(error.code(), reason_of(error)) for error in (error_of(getattr(other, name)) for name in METHODS)}
            assert outcomes == {(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")}
            other.close()


def test_no_call_is_unauthenticated_with_a_token(server: ServerHere, data_dir: Path) -> None:
    with signed_in(server, add_token(data_dir, role="operator")) as api:
        for name in METHODS:
            if name == "WatchJobs":
                next(api.WatchJobs())  # it has no end
                continue
            with suppress(grpc.RpcError):
                read(getattr(api, name)())
                continue
            error = error_of(getattr(api, name))
            assert error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION), name


def test_health_and_reflection_are_open_to_all(server: ServerHere) -> None:
    stub = health_pb2_grpc.HealthStub(server.api.channel)
    assert stub.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS).status == health_pb2.HealthCheckResponse.SERVING
    reflection = reflection_pb2_grpc.ServerReflectionStub(server.api.channel)
    asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    (answer,) = reflection.ServerReflectionInfo(asked, timeout=SECONDS)
    assert SERVICE.full_name in {service.name for service in answer.list_services_response.service}


@pytest.mark.parametrize(
    ("role", "shown"),
    [("viewer", CALLER_ROLE_VIEWER), ("submitter", CALLER_ROLE_SUBMITTER), ("operator", CALLER_ROLE_OPERATOR)],
)
def test_a_caller_learns_who_it_is(server: ServerHere, data_dir: Path, role: str, shown: int) -> None:
    expires_ns = 4_000_000_000_123_456_789
    with signed_in(server, add_token(data_dir, "team@example.org", role, expires_ns)) as api:
        caller = api.GetCaller()
        assert (caller.owner, caller.role, caller.sign_in_method) == ("team@example.org", shown, SIGN_IN_METHOD_TOKEN)
        assert caller.expires_at.ToNanoseconds() == expires_ns
    with signed_in(server, add_token(data_dir)) as api:
        assert not api.GetCaller().HasField("expires_at")


def test_where_nobody_must_sign_in_the_caller_is_anonymous_unless_it_has_a_token(serve: Serve, data_dir: Path) -> None:
    server = serve()
    caller = server.api.GetCaller()
    assert (caller.owner, caller.role, caller.sign_in_method) == ("", CALLER_ROLE_SUBMITTER, SIGN_IN_METHOD_NONE)
    with signed_in(server, add_token(data_dir, "bob")) as api:
        eventually(lambda: api.GetCaller().owner == "bob")
        assert api.submit().owner == "bob"
        assert server.api.GetCaller().owner == ""
        error = error_of(Api(server.address, token="evr_x").GetCaller)
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_job_belongs_to_the_owner_of_the_token(server: ServerHere, data_dir: Path) -> None:
    with signed_in(server, add_token(data_dir, "carol")) as api:
        assert api.submit().owner == "carol"


def test_a_revoked_token_ends_its_watch_which_goes_on_with_another_token(
    server: ServerHere, site: Site, data_dir: Path
) -> None:
    token, another = add_token(data_dir), add_token(data_dir)
    with signed_in(server, token) as api, signed_in(server, another) as other:
        job = api.submit("slow")
        watches = [api.watch(job.job_id), api.WatchJobs(), api.ReadLog(job_id=job.job_id, follow=True)]
        going_on = other.watch(job.job_id)
        first = next(watches[0])
        next(watches[1]), next(going_on)
        site.wait_for_log(job.job_id)
        next(watches[2])
        revoke_token(data_dir, token)
        for watch in watches:
            error = error_of(lambda watch=watch: watch)
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED
            assert reason_of(error) == "UNAUTHENTICATED"
            assert error.details() == "the token was revoked: take another one"
        assert error_of(api.GetCaller).details() == "the token was revoked: take another one"
        site.release(job.job_id)
        events = list(other.watch(job.job_id, after_revision=first.revision))
        assert events[-1].terminal
        assert list(going_on)[-1].terminal


def test_an_expired_token_ends_its_watch(server: ServerHere, clock: MovableClock, data_dir: Path) -> None:
    expires_ns = clock.now().ToNanoseconds() + 3600 * 10**9
    with signed_in(server, add_token(data_dir, expires_ns=expires_ns)) as api:
        watch = api.WatchJobs()
        next(watch)
        clock.move_ahead(3601)
        error = error_of(lambda: watch)
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        assert error_of(api.GetCaller).details() == error.details() == "the token has expired: take another one"


def test_a_reader_that_never_reads_does_not_keep_a_revoked_token_alive(
    server: ServerHere, data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token = add_token(data_dir)
    with signed_in(server, token) as api:
        for _ in range(20):  # in all more than any window of HTTP/2 holds
            call = submission()
            call.request.model_args.update({"x": "y" * 400_000})
            api.SubmitJob(call)
        watches = [api.WatchJobs() for _ in range(3)]
        principal = server.server._authenticator._tokens.principal_of(token)
        eventually(lambda: len(principal.sign_in._streams) == 3, "for the streams to be open")
        revoke_token(data_dir, token)
        eventually(lambda: not principal.sign_in._streams, "for the streams to end")
        for watch in watches:
            watch.cancel()
    server.stop()
    assert [record for record in caplog.records if record.levelno >= logging.ERROR and _is_no_departure(record)] == []


def test_a_store_that_can_not_be_read_makes_calls_unavailable_until_it_can(
    server: ServerHere, data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = data_dir / FILE_NAME
    with signed_in(server, add_token(data_dir)) as api:
        watch = api.WatchJobs()
        next(watch)
        good = path.read_bytes()
        spoil_tokens(data_dir)
        for call in (lambda: watch, api.GetQueue):
            error = error_of(call)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert reason_of(error) == "SIGN_IN_UNAVAILABLE"
        assert [record.levelno for record in caplog.records if FILE_NAME in record.getMessage()] == [logging.ERROR]
        path.write_bytes(good)
        eventually(lambda: _is_in(api))


def _is_in(api: Api) -> bool:
    try:
        return bool(api.GetCaller().owner)
    except grpc.RpcError:
        return False


def test_an_identity_provider_is_accepted_and_the_log_has_no_token(
    serve: Serve, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    with IdentityProvider() as provider:
        with site.config.open("a") as config:
            config.write(f'[oidc]\nissuer = "{provider.issuer}"\naudience = "{AUDIENCE}"\nrole = "viewer"\n')
        server = serve(auth="required")
        good, bad = provider.token(), provider.token(aud="other")
        caller = Api(server.address, token=good).GetCaller()
        assert (caller.owner, caller.role, caller.sign_in_method) == ("alice", CALLER_ROLE_VIEWER, SIGN_IN_METHOD_OIDC)
        assert caller.HasField("expires_at")
        error = error_of(Api(server.address, token=bad).GetCaller)
        assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    (line,) = [record for record in caplog.records if "sign-in refused" in record.getMessage()]
    assert "another audience" in line.getMessage()
    for part in (*good.split("."), *bad.split(".")):
        assert part not in caplog.text


def test_a_watch_of_the_client_ends_with_its_token_and_is_resumed_with_another(
    server: ServerHere, site: Site, data_dir: Path
) -> None:
    token, another = add_token(data_dir), add_token(data_dir)
    with signed_in(server, token), signed_in(server, another):
        pass
    with EvalClient(server.address, token=token) as client:
        job = client.submit(submission("slow").request)
        events = client.watch(job.job_id)
        revision = next(events).revision
        revoke_token(data_dir, token)
        with pytest.raises(UnauthenticatedError, match="the token was revoked"):
            list(events)
    site.release(job.job_id)
    with EvalClient(server.address, token=another) as client:
        assert list(client.watch(job.job_id, after_revision=revision))[-1].terminal


def test_the_command_line_signs_in_and_says_who_one_is(server: ServerHere, data_dir: Path) -> None:
    token = add_token(data_dir, "bob", "viewer")
    with signed_in(server, token):
        result = CliRunner().invoke(main, ["whoami", "--address", server.address], env={"EVALRPC_TOKEN": token})
    assert result.exit_code == 0
    assert "owner\tbob\nrole\tviewer\nsigned in by\ttoken\n" in result.stdout
    result = CliRunner().invoke(main, ["whoami", "--address", server.address])
    assert result.exit_code == 4
    assert "the server asks who calls" in result.stderr


def test_a_client_certificate_signs_in_and_an_unknown_one_is_refused(serve: Serve, site: Site, tmp_path: Path) -> None:
    authority = Authority()
    ca, (cert, key) = authority.write(tmp_path), authority.issue().write(tmp_path)
    with site.config.open("a") as config:
        config.write('[client_certificates]\n"ci.example.org" = { owner = "ci", role = "operator" }\n')
    address = f"https://{serve(tls_cert=cert, tls_key=key, tls_client_ca=ca, auth='required').address}"
    known, unknown = (authority.issue(name, (f"{name}.example.org",)).write(tmp_path, name) for name in ("ci", "mallory"))
    with EvalClient(address, tls_ca=ca, tls_cert=known[0], tls_key=known[1]) as client:
        caller = client.get_caller()
    assert (caller.owner, caller.role, caller.sign_in_method) == ("ci", CALLER_ROLE_OPERATOR, SIGN_IN_METHOD_CERTIFICATE)
    with (
        EvalClient(address, tls_ca=ca, tls_cert=unknown[0], tls_key=unknown[1]) as client,
        pytest.raises(UnauthenticatedError, match=r"it has: mallory\.example\.org, mallory"),
    ):
        client.get_caller()
    credentials = grpc.ssl_channel_credentials(ca.read_bytes(), unknown[1].read_bytes(), unknown[0].read_bytes())
    other = Api(address.removeprefix("https://"), credentials=credentials)
    assert {error_of(getattr(other, name)).code() for name in METHODS} == {grpc.StatusCode.UNAUTHENTICATED}
    other.close()
