"""Tokens of an identity provider: what is good, what is refused and with which words, and how its keys are fetched and kept."""

import asyncio
import base64
import hashlib
import hmac
import json
import sys
import time
from typing import Any

import jwt
import pytest
from callers import add_token
from clocks import ManualClock
from cryptography.hazmat.primitives import serialization
from door import Door, Within
from identity_provider import DISCOVERY_PATH, EC_KEY, FOREIGN_KEY, JWKS_PATH, RSA_KEY, IdentityProvider, base64url, jwk
from waiting import eventually

from evalrpc import extras
from evalrpc.errors import ConfigurationError, EvalrpcError, PermissionDeniedError, SignInUnavailableError, UnauthenticatedError
from evalrpc.server.auth import authenticator, signing_keys
from evalrpc.server.auth.oidc import CLOCK_SKEW_SECONDS
from evalrpc.server.call import Role
from evalrpc.server.sign_in import SignInMethod


async def refused(door: Door, token: str) -> EvalrpcError:
    with pytest.raises(EvalrpcError) as caught:
        await door.enter(token)
    return caught.value


@pytest.mark.parametrize(("key", "algorithm", "key_id"), [(RSA_KEY, "RS256", "rsa"), (EC_KEY, "ES256", "ec")])
def test_a_good_token_lets_its_subject_in_until_it_expires(
    within: Within, provider: IdentityProvider, clock: ManualClock, key: Any, algorithm: str, key_id: str
) -> None:
    expires = int(clock.seconds) + 100
    token = provider.token(key, algorithm, {"kid": key_id}, exp=expires)

    async def use(door: Door) -> None:
        principal = await door.enter(token)
        assert (principal.owner, principal.role) == ("alice", Role.SUBMITTER)
        assert principal.sign_in.method is SignInMethod.OIDC
        assert principal.sign_in.expires_at_ns == expires * 10**9
        assert await door.enter(token) is principal, "it is verified only once"
        stream = asyncio.create_task(principal.sign_in.while_valid(asyncio.Event().wait()))
        await asyncio.sleep(0)
        clock.seconds = expires
        with pytest.raises(UnauthenticatedError, match="expired"):
            await stream
        for _ in range(2):
            assert "expired" in str(await refused(door, token))

    within(use, oidc=provider.settings())


def test_tokens_of_the_server_are_good_beside_those_of_the_provider(
    within: Within, provider: IdentityProvider, tmp_path: Any
) -> None:
    token = add_token(tmp_path, "carol")

    async def use(door: Door) -> None:
        assert (await door.enter(token)).owner == "carol"
        assert (await door.enter(provider.token())).owner == "alice"

    within(use, oidc=provider.settings())
    assert provider.asked == {JWKS_PATH: 1}


HOUR = 3600
PUBLIC_PEM = RSA_KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"aud": "other"}, "another audience"),
        ({"aud": ["other", "more"]}, "another audience"),
        ({"aud": None}, "no claim `aud`"),
        ({"iss": "https://evil.example.org"}, "another issuer"),
        ({"iss": None}, "no claim `iss`"),
        ({"exp": None}, "no claim `exp`"),
        ({"exp": int(time.time()) - HOUR}, "expired"),
        ({"exp": True}, "no time"),
        ({"exp": "tomorrow"}, "no time"),
        ({"exp": float("nan")}, "no time"),
        ({"exp": 1e300}, "no time"),
        ({"exp": 10**400}, "no time"),
        ({"nbf": int(time.time()) + HOUR}, "not valid yet"),
        ({"nbf": []}, "no time"),
        ({"sub": None}, "the claim `sub`"),
        ({"sub": ""}, "the claim `sub`"),
        ({"sub": "a b"}, "the claim `sub`"),
        ({"sub": "x" * 64}, "the claim `sub`"),
    ],
)
def test_a_token_with_a_wrong_claim_is_refused_in_clear_words(
    within: Within, provider: IdentityProvider, changed: dict[str, Any], words: str
) -> None:
    async def use(door: Door) -> None:
        error = await refused(door, provider.token(**changed))
        assert type(error) is UnauthenticatedError
        assert words in error.message

    within(use, oidc=provider.settings())


def test_the_clock_of_the_provider_may_be_a_little_ahead(
    within: Within, provider: IdentityProvider, clock: ManualClock
) -> None:
    token = provider.token(nbf=int(clock.seconds + CLOCK_SKEW_SECONDS / 2))

    async def use(door: Door) -> None:
        await door.enter(token)

    within(use, oidc=provider.settings())


def joined(*parts: bytes) -> str:
    return ".".join(map(base64url, parts))


def forged(provider: IdentityProvider, **header: Any) -> str:
    """Return a token with this header and an empty signature."""
    head = {key: value for key, value in {"alg": "RS256", "kid": "rsa", **header}.items() if value is not None}
    return joined(json.dumps(head).encode(), json.dumps(provider.claims()).encode(), b"\0" * 256)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p.token(FOREIGN_KEY), "signature"),
        (lambda p: p.token(FOREIGN_KEY, headers={"kid": "foreign"}), "a key that its issuer does not have"),
        (lambda p: p.token(FOREIGN_KEY, headers={"kid": "foreign", "jwk": jwk(FOREIGN_KEY)}), "a key that its issuer"),
        (lambda p: p.token(FOREIGN_KEY, headers={"jku": "http://127.0.0.1:1/keys"}), "signature"),
        (lambda p: p.token(EC_KEY, "ES256"), "a key that its issuer does not have"),
        (lambda p: p.token(RSA_KEY, "RS512"), "an algorithm"),
        (lambda p: p.token(RSA_KEY, "PS256"), "an algorithm"),
        (lambda p: jwt.encode(p.claims(), None, "none", {"kid": "rsa"}), "neither"),
        (lambda p: forged(p, alg="none"), "an algorithm"),
        (lambda p: forged(p, alg="None"), "an algorithm"),
        (lambda p: forged(p, alg="HS256"), "an algorithm"),
        (lambda p: forged(p, alg=None), "an algorithm"),
        (lambda p: forged(p, alg=["RS256"]), "an algorithm"),
        (lambda p: forged(p, kid=7), "neither"),
        (lambda p: forged(p, kid="../../etc/passwd"), "a key that its issuer does not have"),
        (lambda p: forged(p, kid=None), "a key that its issuer does not have"),
        (lambda p: forged(p, crit=["b64"], b64=False), "neither"),
        (lambda p: forged(p), "signature"),
        (lambda p: "x", "neither"),
        (lambda p: "a.b.c", "neither"),
        (lambda p: "..", "neither"),
        (lambda p: p.token() + ".x", "neither"),
        (lambda p: p.token() + "=", "neither"),
        (lambda p: p.token() + "==", "neither"),
        (lambda p: f"{p.token()[:-1]}B", "neither"),  # the same bytes in other letters, as 342 letters have 4 bits to spare
        (lambda p: joined(b"[" * 10_000, b"{}", b"x"), "neither"),
        (lambda p: joined(b"\xff", b"{}", b"x"), "neither"),
        (lambda p: joined(b"7", b"{}", b"x"), "neither"),
        (lambda p: "a" * 20_000, "neither"),
        (lambda p: "\u20ac\udc80", "neither"),
    ],
)
def test_a_forged_token_is_refused_in_clear_words(within: Within, provider: IdentityProvider, make: Any, words: str) -> None:
    async def use(door: Door) -> None:
        error = await refused(door, make(provider))
        assert type(error) is UnauthenticatedError
        assert words in error.message

    within(use, oidc=provider.settings())


def test_a_public_key_is_no_shared_secret(within: Within, provider: IdentityProvider) -> None:
    head = base64url(json.dumps({"alg": "HS256", "kid": "rsa"}).encode())
    payload = base64url(json.dumps(provider.claims()).encode())
    signature = hmac.digest(PUBLIC_PEM, f"{head}.{payload}".encode(), hashlib.sha256)

    async def use(door: Door) -> None:
        assert type(await refused(door, f"{head}.{payload}.{base64url(signature)}")) is UnauthenticatedError

    within(use, oidc=provider.settings())


@pytest.mark.parametrize("payload", [b"", b"[]", b"null", b"\xff", b"[" * 100_00, b'{"exp":'])
def test_a_signed_payload_that_is_no_object_is_refused(within: Within, provider: IdentityProvider, payload: bytes) -> None:
    token = jwt.api_jws.encode(payload, RSA_KEY, "RS256", {"kid": "rsa"})

    async def use(door: Door) -> None:
        assert type(await refused(door, token)) is UnauthenticatedError

    within(use, oidc=provider.settings())


# Owners and roles.

GROUPS = {"ml-admins": "operator", "ml": "submitter", "staff": "viewer"}


@pytest.mark.parametrize(
    ("settings", "claims", "role"),
    [
        ({"role": "viewer"}, {}, Role.VIEWER),
        ({"role": "", "role_claim": "r"}, {"r": "operator"}, Role.OPERATOR),
        ({"role": "", "role_claim": "r"}, {"r": "root"}, None),
        ({"role": "", "role_claim": "r"}, {}, None),
        ({"role": "", "role_claim": "r"}, {"r": {"operator": 1}}, None),
        ({"role": "viewer", "role_claim": "r"}, {"r": 7}, Role.VIEWER),
        ({"role": "", "role_claim": "groups", "roles": GROUPS}, {"groups": ["staff", "ml-admins", "ml"]}, Role.OPERATOR),
        ({"role": "", "role_claim": "groups", "roles": GROUPS}, {"groups": ["staff", 7, None]}, Role.VIEWER),
        ({"role": "", "role_claim": "groups", "roles": GROUPS}, {"groups": ["operator"]}, None),
        ({"role": "viewer", "role_claim": "groups", "roles": GROUPS}, {"groups": []}, Role.VIEWER),
    ],
)
def test_the_role_is_the_greatest_that_the_claim_gives(
    within: Within, provider: IdentityProvider, settings: dict[str, Any], claims: dict[str, Any], role: Role | None
) -> None:
    async def use(door: Door) -> None:
        if role is None:
            assert type(await refused(door, provider.token(**claims))) is PermissionDeniedError
        else:
            assert (await door.enter(provider.token(**claims))).role is role

    within(use, oidc=provider.settings(**settings))


def test_the_owner_may_come_from_a_verified_email(within: Within, provider: IdentityProvider) -> None:
    async def use(door: Door) -> None:
        assert (await door.enter(provider.token(email="a@b.c", email_verified=True))).owner == "a@b.c"
        for verified in (False, None, "true"):
            assert "not verified" in str(await refused(door, provider.token(email="a@b.c", email_verified=verified)))

    within(use, oidc=provider.settings(owner_claim="email"))


# Keys.


def test_the_keys_are_found_by_discovery_and_fetched_once(within: Within, provider: IdentityProvider) -> None:
    async def use(door: Door) -> None:
        callers = [door.enter(provider.token(number=number)) for number in range(20)]
        assert {principal.owner for principal in await asyncio.gather(*callers)} == {"alice"}

    within(use, oidc=provider.settings(jwks_url=""))
    assert provider.asked == {DISCOVERY_PATH: 1, JWKS_PATH: 1}


def test_the_loop_goes_on_while_the_provider_does_not_answer(within: Within, provider: IdentityProvider, tmp_path: Any) -> None:
    provider.may_answer.clear()
    token = add_token(tmp_path)

    async def use(door: Door) -> None:
        waiting = asyncio.create_task(door.enter(provider.token()))
        await asyncio.to_thread(eventually, lambda: provider.asked)
        assert (await door.enter(token)).owner == "alice"
        assert not waiting.done()
        provider.may_answer.set()
        await waiting

    within(use, oidc=provider.settings())


def test_an_unknown_key_is_asked_for_but_not_more_often_than_the_bound(
    within: Within, provider: IdentityProvider, clock: ManualClock
) -> None:
    new = provider.token(FOREIGN_KEY, headers={"kid": "new"})

    async def use(door: Door) -> None:
        await door.enter(provider.token())
        for _ in range(30):
            await refused(door, new)
        assert provider.asked[JWKS_PATH] == 1, "the first answer is too young"
        provider.keys.append(jwk(FOREIGN_KEY, kid="new"))
        clock.seconds += signing_keys.MIN_SECONDS_BETWEEN_FETCHES
        await door.enter(new)
        assert provider.asked[JWKS_PATH] == 2

    within(use, oidc=provider.settings())


def test_a_key_that_the_provider_has_withdrawn_is_no_longer_good(
    within: Within, provider: IdentityProvider, clock: ManualClock
) -> None:
    async def use(door: Door) -> None:
        await door.enter(provider.token())
        del provider.keys[0]
        clock.seconds += signing_keys.REFRESH_SECONDS + 1
        assert "does not have" in str(await refused(door, provider.token(jti="another", exp=int(clock.seconds) + 100)))

    within(use, oidc=provider.settings())


def test_known_keys_are_used_while_the_provider_is_away_but_not_for_ever(
    within: Within, provider: IdentityProvider, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def use(door: Door) -> None:
        await door.enter(provider.token())
        provider.status = 500
        clock.seconds += signing_keys.REFRESH_SECONDS + 1
        await door.enter(provider.token(jti="another", exp=int(clock.seconds) + 100))
        assert "can't get the keys" in caplog.text
        clock.seconds += signing_keys.MAX_AGE_SECONDS
        assert type(await refused(door, provider.token(jti="third", exp=int(clock.seconds) + 100))) is SignInUnavailableError
        provider.status = 200
        clock.seconds += signing_keys.MIN_SECONDS_BETWEEN_FETCHES
        await door.enter(provider.token(jti="third", exp=int(clock.seconds) + 100))

    within(use, oidc=provider.settings())


@pytest.mark.parametrize(
    ("jwks_url", "path", "answer"),
    [
        ("set", JWKS_PATH, []),
        ("set", JWKS_PATH, {}),
        ("set", JWKS_PATH, {"keys": "x" * 2**20}),
        ("", DISCOVERY_PATH, {"issuer": "https://other.example.org", "jwks_uri": "https://other.example.org/keys"}),
        ("", DISCOVERY_PATH, "issuer"),
        ("", DISCOVERY_PATH, {"jwks_uri": "http://evil.example.org/keys"}),
        ("", DISCOVERY_PATH, {"jwks_uri": 7}),
    ],
)
def test_a_provider_that_answers_nonsense_is_unavailable(
    within: Within, provider: IdentityProvider, caplog: pytest.LogCaptureFixture, jwks_url: str, path: str, answer: Any
) -> None:
    if isinstance(answer, dict) and path == DISCOVERY_PATH:
        answer = {"issuer": provider.issuer, **answer}
    provider.answers[path] = answer

    async def use(door: Door) -> None:
        assert type(await refused(door, provider.token())) is SignInUnavailableError

    within(use, oidc=provider.settings(**({} if jwks_url else {"jwks_url": ""})))
    assert "can't get the keys of the identity provider" in caplog.text
    assert len(caplog.text) < 2000


def test_a_redirect_is_not_followed(within: Within, provider: IdentityProvider) -> None:
    provider.status = 302

    async def use(door: Door) -> None:
        assert type(await refused(door, provider.token())) is SignInUnavailableError

    within(use, oidc=provider.settings(jwks_url=f"{provider.issuer}/moved"))
    assert provider.asked == {"/moved": 1}


def test_keys_that_are_not_for_signatures_or_can_not_be_read_are_left_out(
    within: Within, provider: IdentityProvider, caplog: pytest.LogCaptureFixture
) -> None:
    secret = base64.urlsafe_b64encode(b"s" * 32).decode()
    provider.keys = [
        jwk(RSA_KEY, kid="encryption", use="enc"),
        {"kty": "oct", "kid": "shared", "k": secret, "alg": "HS256"},
        {"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"},
        jwk(RSA_KEY, kid="other", alg="RS512"),
        *["nonsense", 7],  # type: ignore[list-item]
        jwk(RSA_KEY, kid="rsa"),
    ]

    async def use(door: Door) -> None:
        assert (await door.enter(provider.token())).owner == "alice"
        for key_id in ("encryption", "shared", "broken", "other"):
            assert "does not have" in str(await refused(door, provider.token(headers={"kid": key_id})))

    within(use, oidc=provider.settings())
    assert "can't be read" in caplog.text


def test_without_the_library_the_server_does_not_start_and_says_what_to_install(
    within: Within, provider: IdentityProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "evalrpc.server.auth.oidc", None)

    def missing(error: ModuleNotFoundError, extra: str) -> str:
        return f"install {extra}"

    monkeypatch.setattr(extras, "missing", missing)

    async def use(door: Door) -> None:
        raise AssertionError

    with pytest.raises(ConfigurationError, match="setting oidc: install oidc"):
        within(use, oidc=provider.settings())


def test_a_verified_token_is_forgotten_before_there_are_too_many(
    within: Within, provider: IdentityProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authenticator, "MAX_KNOWN", 3)

    async def use(door: Door) -> None:
        tokens = [provider.token(jti=str(number)) for number in range(5)]
        for token in tokens:
            await door.enter(token)
        assert len(door.authenticator._known) == 3
        await door.enter(tokens[0])

    within(use, oidc=provider.settings())
