"""Who is let in, and for how long; whatever breaks lets nobody in."""

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from callers import Caller, add_token, revoke_token, spoil_tokens
from clocks import ManualClock
from door import Door, Within
from identity_provider import IdentityProvider

from evalrpc.config import ClientCertificate
from evalrpc.config.callers import ROLES
from evalrpc.errors import EvalrpcError, InternalError, SignInUnavailableError, UnauthenticatedError
from evalrpc.server.auth import refusals
from evalrpc.server.auth.token_format import new_token
from evalrpc.server.auth.token_store import FILE_NAME
from evalrpc.server.call import ANONYMOUS, Principal, Role
from evalrpc.server.sign_in import SignIn, SignInMethod


async def refused(door: Door, token: str | None = None, **presented: object) -> EvalrpcError:
    with pytest.raises(EvalrpcError) as caught:
        await door.enter(token, **presented)
    return caught.value


async def become(door: Door, token: str, error: type[EvalrpcError] | None) -> None:
    """Wait until a token is refused with this error, or is good."""
    while True:
        try:
            await door.enter(token)
            found: type[EvalrpcError] | None = None
        except EvalrpcError as failure:
            found = type(failure)
        if found is error:
            return
        await asyncio.sleep(0.005)


@asynccontextmanager
async def open_stream(principal: Principal) -> AsyncIterator["asyncio.Task[None]"]:
    stream = asyncio.create_task(principal.sign_in.while_valid(asyncio.Event().wait()))
    await asyncio.sleep(0)
    try:
        yield stream  # type: ignore[misc]
    finally:
        stream.cancel()
        with suppress(asyncio.CancelledError, EvalrpcError):
            await stream


def test_a_token_lets_its_owner_in_with_its_role(within: Within, tmp_path: Path) -> None:
    tokens = {role: add_token(tmp_path, f"{role.value}@example.org", role.value) for role in Role}

    async def use(door: Door) -> None:
        for role, token in tokens.items():
            owner, found, sign_in = await door.enter(token)
            assert (owner, found, sign_in.method) == (f"{role.value}@example.org", role, SignInMethod.TOKEN)

    within(use)


def test_the_roles_of_the_settings_are_those_of_callers() -> None:
    assert tuple(role.value for role in Role) == ROLES


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_of_the_header_may_have_any_case(within: Within, tmp_path: Path, scheme: str) -> None:
    token = add_token(tmp_path)

    async def use(door: Door) -> None:
        assert (await door.enter(headers=[("authorization", f"{scheme} {token}")])).owner == "alice"

    within(use)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", "")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer ")],
        [("authorization", "TOKEN")],
        [("authorization", " Bearer TOKEN")],
        [("authorization", "Bearer  TOKEN")],
        [("authorization", "Bearer TOKEN ")],
        [("authorization", "Basic TOKEN")],
        [("authorization", "Bearer TOKEN"), ("authorization", "Bearer TOKEN")],
        [("x-authorization", "Bearer TOKEN")],
    ],
)
def test_a_good_token_in_a_wrong_header_lets_nobody_in(within: Within, tmp_path: Path, headers: list[tuple[str, str]]) -> None:
    token = add_token(tmp_path)

    async def use(door: Door) -> None:
        error = await refused(door, headers=[(name, value.replace("TOKEN", token)) for name, value in headers])
        assert type(error) is UnauthenticatedError
        assert token not in error.message

    within(use)


def test_an_unknown_token_and_a_wrong_secret_are_refused_in_the_same_words(within: Within, tmp_path: Path) -> None:
    token = add_token(tmp_path)
    unknown, _ = new_token()

    async def use(door: Door) -> None:
        messages = {str(await refused(door, wrong)) for wrong in (unknown, f"{token[:21]}{unknown[21:]}", "x", token.upper())}
        assert messages == {"the server does not know this token: ask its operator for one"}

    within(use)


def test_where_nobody_must_sign_in_one_who_presents_nothing_is_anonymous_and_a_token_is_checked_nevertheless(
    within: Within, tmp_path: Path
) -> None:
    token = add_token(tmp_path, role="operator")

    async def use(door: Door) -> None:
        assert await door.enter() is ANONYMOUS
        assert (await door.enter(token))[:2] == ("alice", Role.OPERATOR)
        assert type(await refused(door, f"{token}x")) is UnauthenticatedError

    within(use, requires_sign_in=False)


def test_where_nobody_must_sign_in_and_nobody_can_all_are_anonymous(within: Within) -> None:
    async def use(door: Door) -> None:
        assert await door.enter("whatever") is ANONYMOUS

    within(use, requires_sign_in=False)


def test_a_token_that_is_made_while_the_server_runs_is_good_soon(within: Within, tmp_path: Path) -> None:
    async def use(door: Door) -> None:
        assert "asks who calls" in str(await refused(door))
        await become(door, add_token(tmp_path), None)

    within(use)


def test_revoking_a_token_refuses_its_calls_and_ends_its_streams_and_no_others(within: Within, tmp_path: Path) -> None:
    token, other = add_token(tmp_path), add_token(tmp_path)

    async def use(door: Door) -> None:
        async with open_stream(await door.enter(token)) as stream, open_stream(await door.enter(other)) as going_on:
            revoke_token(tmp_path, token)
            with pytest.raises(UnauthenticatedError, match="revoked"):
                await stream
            assert "revoked" in str(await refused(door, token))
            await door.ticks()
            await door.enter(other)
            assert not going_on.done()

    within(use)


def test_a_token_is_good_to_the_moment_when_it_expires(within: Within, tmp_path: Path, clock: ManualClock) -> None:
    clock.seconds = 100.0
    token = add_token(tmp_path, expires_ns=200_000_000_000)

    async def use(door: Door) -> None:
        async with open_stream(await door.enter(token)) as stream:
            clock.seconds = 199.999
            await door.enter(token)
            await door.ticks()
            assert not stream.done()
            clock.seconds = 200.0
            assert "expired" in str(await refused(door, token))
            with pytest.raises(UnauthenticatedError, match="expired"):
                await stream

    within(use)


def test_a_stream_that_ends_by_itself_leaves_nothing_behind(within: Within, tmp_path: Path) -> None:
    token = add_token(tmp_path)

    async def use(door: Door) -> None:
        sign_in = (await door.enter(token)).sign_in
        assert await sign_in.while_valid(asyncio.sleep(0, "done")) == "done"
        assert not door.authenticator._live
        assert not sign_in._streams

    within(use)


def test_a_stream_of_an_ended_sign_in_ends_at_once_and_keeps_its_own_errors_before() -> None:
    async def fail() -> None:
        raise TimeoutError("its own")

    async def check() -> None:
        sign_in = SignIn(SignInMethod.TOKEN)
        with pytest.raises(TimeoutError, match="its own"):
            await sign_in.while_valid(fail())
        sign_in.end(lambda: UnauthenticatedError("revoked"))
        sign_in.end(lambda: InternalError("again"))
        with pytest.raises(UnauthenticatedError):
            await sign_in.while_valid(asyncio.Event().wait())

    asyncio.run(check())


def test_a_cancelled_stream_is_cancelled() -> None:
    async def check() -> None:
        async with open_stream(Principal("alice", Role.VIEWER, SignIn(SignInMethod.TOKEN))) as stream:
            stream.cancel()
            with pytest.raises(asyncio.CancelledError):
                await stream

    asyncio.run(check())


def test_with_a_corrupt_store_calls_are_unavailable_and_streams_end_and_the_log_says_it_once(
    within: Within, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token = add_token(tmp_path)
    good = (tmp_path / FILE_NAME).read_bytes()

    async def use(door: Door) -> None:
        async with open_stream(await door.enter(token)) as stream:
            spoil_tokens(tmp_path)
            with pytest.raises(SignInUnavailableError):
                await stream
        for presented in (token, "evr_x", "x"):
            error = await refused(door, presented)
            assert type(error) is SignInUnavailableError
            assert error.retry_delay_seconds
        await door.ticks()
        lines = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert len(lines) == 1
        assert FILE_NAME in lines[0].getMessage()
        (tmp_path / FILE_NAME).write_bytes(good)
        await become(door, token, None)

    within(use)


@pytest.mark.parametrize("requires_sign_in", [True, False])
def test_a_server_that_starts_with_a_locked_store_lets_no_token_in(
    within: Within, tmp_path: Path, requires_sign_in: bool
) -> None:
    token = add_token(tmp_path)
    holder = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")

    async def use(door: Door) -> None:
        assert type(await refused(door, token)) is SignInUnavailableError
        holder.close()
        await become(door, token, None)

    within(use, requires_sign_in=requires_sign_in)


def test_a_bug_lets_nobody_in(within: Within, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Caller):
        def invocation_metadata(self) -> list[tuple[str, str]]:
            raise ZeroDivisionError("a secret")

    async def use(door: Door) -> None:
        with pytest.raises(InternalError) as caught:
            door.authenticate(Broken())
        assert "secret" not in caught.value.message

    within(use)
    assert "a bug in finding out who calls" in caplog.text


def test_a_bug_in_reading_the_tokens_lets_nobody_in(
    within: Within, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    token = add_token(tmp_path)

    async def use(door: Door) -> None:
        await door.enter(token)
        monkeypatch.setattr(door.authenticator._reader, "read_if_changed", lambda: 1 / 0)
        await become(door, token, SignInUnavailableError)

    within(use)
    assert "a bug in reading the tokens" in caplog.text


# Client certificates.

TABLE = {
    "spiffe://example.org/ci": ClientCertificate("ci", "submitter"),
    "alice.example.org": ClientCertificate("alice", "operator"),
    "Bob": ClientCertificate("bob", "viewer"),
}


@pytest.mark.parametrize(
    ("names", "owner"),
    [
        ({"peer_spiffe_id": [b"spiffe://example.org/ci"], "x509_common_name": [b"Bob"]}, "ci"),
        ({"x509_subject_alternative_name": [b"x", b"alice.example.org"], "x509_common_name": [b"Bob"]}, "alice"),
        ({"x509_subject_alternative_name": [b"x"], "x509_common_name": [b"Bob"]}, "bob"),
    ],
)
def test_a_certificate_belongs_to_the_owner_of_its_most_specific_name_in_the_table(
    within: Within, names: dict[str, list[bytes]], owner: str
) -> None:
    async def use(door: Door) -> None:
        principal = await door.enter(certificate=names)
        assert (principal.owner, principal.sign_in.method) == (owner, SignInMethod.CERTIFICATE)
        assert principal.role.value == next(line.role for line in TABLE.values() if line.owner == owner)

    within(use, client_certificates=TABLE)


@pytest.mark.parametrize(
    ("names", "seen"),
    [
        ({"x509_common_name": [b"mallory"]}, "mallory"),
        ({"x509_common_name": [b"bob"], "peer_spiffe_id": [b"spiffe://x"]}, "spiffe://x, bob"),
        ({"x509_common_name": [b"Bob\x00.evil\xff\x1b[31m"]}, r"Bob\x00.evil�\x1b[31m"),
        ({}, "no name"),
    ],
)
def test_an_unknown_certificate_is_refused_and_the_message_has_its_names(
    within: Within, names: dict[str, list[bytes]], seen: str
) -> None:
    async def use(door: Door) -> None:
        error = await refused(door, certificate=names)
        assert type(error) is UnauthenticatedError
        assert error.message.endswith(f"it has: {seen}")

    within(use, client_certificates=TABLE)


def test_names_without_a_certificate_are_nobody(within: Within) -> None:
    class Unverified(Caller):
        def auth_context(self) -> dict[str, list[bytes]]:
            return {"x509_common_name": [b"Bob"]}

    async def use(door: Door) -> None:
        with pytest.raises(UnauthenticatedError):
            door.authenticate(Unverified())

    within(use, client_certificates=TABLE)


def test_a_token_decides_before_a_certificate(within: Within, tmp_path: Path) -> None:
    token = add_token(tmp_path, "carol")

    async def use(door: Door) -> None:
        bob = {"x509_common_name": [b"Bob"]}
        assert (await door.enter(token, certificate=bob)).owner == "carol"
        assert type(await refused(door, f"{token}x", certificate=bob)) is UnauthenticatedError

    within(use, client_certificates=TABLE)


# The log.


def refusal_lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == refusals.__name__]


def test_a_source_that_is_refused_again_and_again_has_one_line_per_period_without_the_token(
    within: Within, tmp_path: Path, clock: ManualClock, caplog: pytest.LogCaptureFixture, provider: IdentityProvider
) -> None:
    token, jwt = add_token(tmp_path), provider.token(aud="other")

    async def use(door: Door) -> None:
        for port in range(50):
            await refused(door, f"{token[:-1]}!", peer=f"ipv4:192.0.2.7:{port}")
        await refused(door, jwt, peer="ipv6:%5B::1%5D:99")
        await refused(door, peer="unix:")
        assert [vars(record)["source"] for record in refusal_lines(caplog)] == ["192.0.2.7", "::1", "unix"]
        clock.seconds += refusals.PERIOD_SECONDS
        await refused(door, token[:-1])
        assert "49 more" in refusal_lines(caplog)[-2].getMessage()

    within(use, oidc=provider.settings())
    for secret in (token[21:-1], jwt, *jwt.split(".")):
        assert secret not in caplog.text


def test_many_sources_have_no_more_lines_than_the_bound(within: Within, caplog: pytest.LogCaptureFixture) -> None:
    async def use(door: Door) -> None:
        for number in range(refusals.MAX_SOURCES + 50):
            await refused(door, "x", peer=f"ipv4:10.0.{number // 256}.{number % 256}:1")

    within(use)
    assert len(refusal_lines(caplog)) == refusals.MAX_SOURCES
