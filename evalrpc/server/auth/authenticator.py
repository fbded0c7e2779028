"""Finds out who calls by what a caller presents: a token of the server's own, one of the identity provider, or a certificate.

A token decides before a certificate does, since whoever sends one means it. A token is verified once: after that, its header is
known by a digest until its sign-in ends, which takes half of the time. The digest has a key of its own, so that nobody can
choose it, and memory has no tokens.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from functools import partial
from hashlib import blake2b
from secrets import token_bytes
from typing import TYPE_CHECKING, Final

from evalrpc import extras
from evalrpc.clock import Clock
from evalrpc.config import ClientCertificate, OidcSettings, Settings
from evalrpc.errors import ConfigurationError, EvalrpcError, InternalError, PermissionDeniedError, UnauthenticatedError
from evalrpc.server.auth.client_certificates import ClientCertificates
from evalrpc.server.auth.presented import Presented, authorization, bearer_token, source_of
from evalrpc.server.auth.refusals import RefusalLog
from evalrpc.server.auth.token_format import PREFIX
from evalrpc.server.auth.token_store import TokenReader
from evalrpc.server.auth.tokens import Tokens, expired
from evalrpc.server.call import ANONYMOUS, Principal
from evalrpc.server.sign_in import SignIn
from evalrpc.server.threads import start_pool

if TYPE_CHECKING:
    from evalrpc.server.auth.oidc import OidcTokens

Authenticate = Callable[[Presented], Principal | Awaitable[Principal]]
"""Returns who calls, or waits for that. Raises UnauthenticatedError, PermissionDeniedError, SignInUnavailableError."""

INTERVAL_SECONDS: Final = 0.5
"""How often it is looked what has changed or expired."""

MAX_KNOWN: Final = 10_000
"""How many headers are known; others are verified again."""

_DIGEST_BYTES: Final = 32
_OIDC_THREADS: Final = 2  # one that asks the provider, and one that checks signatures meanwhile

_log = logging.getLogger(__name__)


class Authenticator:
    """All ways to sign in. Created and used on the event loop."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        """Raises ConfigurationError if a library is missing that the settings need."""
        self._clock = clock
        self._live: set[SignIn] = set()
        self._reader = TokenReader(settings.data_dir)
        self._reading = start_pool(1, "tokens")
        self._tokens = Tokens(self._reader, clock, self._reading, self._live)
        self._certificates = ClientCertificates(settings.client_certificates)
        self._verifying = start_pool(_OIDC_THREADS, "oidc") if settings.oidc else None
        self._oidc = _oidc_tokens(settings.oidc, clock, self._verifying, self._live)
        self._refusals = RefusalLog(clock)
        self._known: dict[bytes, Principal] = {}
        self._digest_key = token_bytes(_DIGEST_BYTES)
        self._ticking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read the tokens, and keep up with them."""
        await self._tokens.refresh()
        self._ticking = asyncio.create_task(self._run())

    def stop(self) -> None:
        """Notice nothing more."""
        if self._ticking is not None:
            self._ticking.cancel()
        self._reading.submit(self._reader.close)
        for pool in (self._reading, self._verifying):
            if pool is not None:
                pool.shutdown(wait=False)

    def exchange_certificates(self, table: Mapping[str, ClientCertificate]) -> None:
        """Replace the table of client certificates."""
        self._certificates.exchange(table)

    def for_listener(self, *, requires_sign_in: bool, owner: str = "") -> Authenticate:
        """Return what finds out who calls at one of the server's addresses. Where nobody has to sign in, whoever presents
        nothing is anonymous, or counts as the owner; what somebody does present is checked there, too."""
        if requires_sign_in:
            return self._authenticate
        if owner:
            return partial(self._authenticate, otherwise=ANONYMOUS._replace(owner=owner))
        return self._authenticate_or_anonymous

    def _authenticate(self, presented: Presented, otherwise: Principal | None = None) -> Principal | Awaitable[Principal]:
        try:
            found = self._find(presented, otherwise)
        except Exception as error:  # noqa: BLE001 - the last resort: a bug lets nobody in
            raise self._refused(presented, error) from None
        return found if isinstance(found, Principal) else self._awaited(found, presented)

    def _authenticate_or_anonymous(self, presented: Presented) -> Principal | Awaitable[Principal]:
        if self._oidc is None and self._tokens.is_empty and self._certificates.is_empty:
            return ANONYMOUS  # without a look at the headers, which takes 8 µs
        return self._authenticate(presented, otherwise=ANONYMOUS)

    def _find(self, presented: Presented, otherwise: Principal | None) -> Principal | Awaitable[Principal]:
        """Return who calls, or wait for that. `otherwise` is who presents nothing; None: nobody may."""
        header = authorization(presented)
        if header is None:
            principal = self._certificates.principal_of(presented.auth_context()) or otherwise
            if principal is None:
                raise UnauthenticatedError("the server asks who calls: send a token, as `evalrpc login` or EVALRPC_TOKEN do")
            return principal
        digest = blake2b(header.encode(errors="surrogatepass"), digest_size=_DIGEST_BYTES, key=self._digest_key).digest()
        known = self._known.get(digest)
        if known is not None and known.sign_in.holds(self._clock):
            return known
        token = bearer_token(header)
        if self._oidc is None or token.startswith(PREFIX):
            return self._remember(digest, self._tokens.principal_of(token))
        return self._verified(digest, self._oidc.principal_of(token))

    async def _verified(self, digest: bytes, principal: Awaitable[Principal]) -> Principal:
        return self._remember(digest, await principal)

    def _remember(self, digest: bytes, principal: Principal) -> Principal:
        self._known[digest] = principal
        if len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]  # the oldest
        return principal

    async def _awaited(self, principal: Awaitable[Principal], presented: Presented) -> Principal:
        try:
            return await principal
        except Exception as error:  # noqa: BLE001 - as above
            raise self._refused(presented, error) from None

    def _refused(self, presented: Presented, error: Exception) -> EvalrpcError:
        """Log a refusal, and return the error that says it."""
        if isinstance(error, UnauthenticatedError | PermissionDeniedError):
            self._refusals.note(source_of(presented), error.message)
        if isinstance(error, EvalrpcError):
            return error
        _log.error("a bug in finding out who calls", exc_info=error)
        return InternalError("the server has a bug; its log has the details")

    async def _run(self) -> None:
        """Notice what was changed and what has expired, until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL_SECONDS)
            await self._tokens.refresh()
            for sign_in in [sign_in for sign_in in self._live if sign_in.has_expired(self._clock)]:
                sign_in.end(expired)


def _oidc_tokens(
    settings: OidcSettings | None, clock: Clock, executor: Executor | None, live: set[SignIn]
) -> "OidcTokens | None":
    if settings is None or executor is None:
        return None
    try:
        from evalrpc.server.auth.oidc import OidcTokens
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"setting oidc: {extras.missing(error, 'oidc')}") from error
    return OidcTokens(settings, clock, executor, live)
