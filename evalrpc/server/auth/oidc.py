"""Tokens of an identity provider (OpenID Connect): JWTs that it has signed, whose claims say who calls and what its role is.

Signatures are checked off the event loop.
"""

import asyncio
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from typing import Any, Final, NamedTuple

import jwt

from evalrpc.clock import Clock
from evalrpc.config import OidcSettings
from evalrpc.config.callers import ROLES, is_owner
from evalrpc.errors import PermissionDeniedError, UnauthenticatedError
from evalrpc.protobuf.times import seconds_of
from evalrpc.server.auth.signing_keys import SigningKeys
from evalrpc.server.auth.tokens import expired
from evalrpc.server.call import Principal, Role
from evalrpc.server.sign_in import SignIn, SignInMethod

CLOCK_SKEW_SECONDS: Final = 60.0
"""How far the provider's clock may be ahead of ours."""

_MAX_CHARACTERS: Final = 16 * 1024
_FORM: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
"""Without the padding that PyJWT allows: no two texts are the same token."""

_LAST_SECOND: Final = 253_402_300_799  # the end of the year 9999, which is the last that a Timestamp has
_FARTHEST_SECOND: Final = 1e15
_OPTIONS: Final[Any] = {"require": ["exp", "iss", "aud"], "verify_exp": False, "verify_nbf": False, "verify_iat": False}
"""The times are checked here, by the server's clock."""


class _Header(NamedTuple):
    key_id: str
    algorithm: str


class OidcTokens:
    """Verifies the tokens of one provider. Used on the event loop; signatures are checked in `executor`."""

    def __init__(self, settings: OidcSettings, clock: Clock, executor: Executor, live: set[SignIn]) -> None:
        """`live` gets the sign-ins that have streams."""
        self._settings = settings
        self._clock = clock
        self._executor = executor
        self._live = live
        self._keys = SigningKeys(settings, clock, executor)

    async def principal_of(self, token: str) -> Principal:
        """Return whom a token belongs to. Raises UnauthenticatedError, PermissionDeniedError for one that has no role, and
        SignInUnavailableError if the provider's keys can't be had."""
        header = _read_header(token)
        if header.algorithm not in self._settings.algorithms:
            raise UnauthenticatedError("the token is signed by an algorithm that this server does not accept")
        key = await self._keys.find(header.key_id, header.algorithm)
        if key is None:
            raise UnauthenticatedError("the token is signed with a key that its issuer does not have")
        decode = asyncio.get_running_loop().run_in_executor(self._executor, _decode, token, key, header, self._settings)
        return self._principal(await decode)

    def _principal(self, claims: Mapping[str, Any]) -> Principal:
        """Return whom verified claims belong to."""
        now_seconds = seconds_of(self._clock.now())
        expires_seconds = min(_time(claims, "exp"), _LAST_SECOND)
        if now_seconds >= expires_seconds:
            raise expired()
        if "nbf" in claims and now_seconds + CLOCK_SKEW_SECONDS < _time(claims, "nbf"):
            raise UnauthenticatedError("the token is not valid yet")
        sign_in = SignIn(SignInMethod.OIDC, int(expires_seconds * 1e9), self._live)
        return Principal(self._owner(claims), self._role(claims), sign_in)

    def _owner(self, claims: Mapping[str, Any]) -> str:
        name = self._settings.owner_claim
        owner = claims.get(name)
        if not isinstance(owner, str) or not is_owner(owner):
            raise UnauthenticatedError(f"the claim `{name}` of the token is missing, or can't be the name of an owner here")
        if name == "email" and claims.get("email_verified") is not True:
            raise UnauthenticatedError("the issuer has not verified the `email` of the token")
        return owner

    def _role(self, claims: Mapping[str, Any]) -> Role:
        """Return the greatest role that the claims give."""
        given = set(self._given_roles(claims))
        for role in reversed(ROLES):
            if role in given:
                return Role(role)
        if self._settings.role:
            return Role(self._settings.role)
        raise PermissionDeniedError(f"the claim `{self._settings.role_claim}` of the token gives no role on this server")

    def _given_roles(self, claims: Mapping[str, Any]) -> Iterator[str]:
        value = claims.get(self._settings.role_claim) if self._settings.role_claim else None
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, str):
                yield self._settings.roles.get(each, "") if self._settings.roles else each


def _read_header(token: str) -> _Header:
    """Return what the header says, which is not verified. Raises UnauthenticatedError for what is no signed JWT."""
    if len(token) > _MAX_CHARACTERS or _FORM.fullmatch(token) is None:
        raise _unreadable()
    try:
        header = jwt.get_unverified_header(token)
    except jwt.InvalidTokenError:
        raise _unreadable() from None
    return _Header(header.get("kid", ""), str(header.get("alg")))


def _decode(token: str, key: jwt.PyJWK, header: _Header, settings: OidcSettings) -> Mapping[str, Any]:
    """Return the claims of a token, verified but for the times. Raises UnauthenticatedError."""
    try:
        claims: Mapping[str, Any] = jwt.decode(
            token, key, [header.algorithm], options=_OPTIONS, audience=settings.audience, issuer=settings.issuer
        )
    except jwt.InvalidSignatureError:
        raise UnauthenticatedError("the signature of the token is wrong") from None
    except jwt.InvalidAudienceError:
        raise UnauthenticatedError("the token is for another audience than this server") from None
    except jwt.InvalidIssuerError:
        raise UnauthenticatedError("the token is from another issuer than this server accepts") from None
    except jwt.MissingRequiredClaimError as error:
        raise UnauthenticatedError(f"the token has no claim `{error.claim}`") from None
    except (jwt.InvalidTokenError, RecursionError):
        raise _unreadable() from None
    return claims


def _time(claims: Mapping[str, Any], name: str) -> float:
    """Return a time, in seconds since 1970. Raises UnauthenticatedError for what is none."""
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_FARTHEST_SECOND < value < _FARTHEST_SECOND:
        raise UnauthenticatedError(f"the claim `{name}` of the token is no time")
    return value


def _unreadable() -> UnauthenticatedError:
    return UnauthenticatedError("the token is neither one of this server nor a signed JWT that it can read")
