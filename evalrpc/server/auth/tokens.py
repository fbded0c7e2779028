"""Which tokens are good at this moment, in memory: checking one reads no file.

The file is looked at twice a second, and the streams of tokens that were revoked end. While the file can't be read, no token is
good, and no stream of one goes on, since a revocation could not be noticed.
"""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial
from hmac import compare_digest
from typing import Final, NamedTuple

from evalrpc.clock import Clock
from evalrpc.errors import SignInUnavailableError, UnauthenticatedError
from evalrpc.server.auth.token_format import parse_token
from evalrpc.server.auth.token_store import StoredToken, TokenReader
from evalrpc.server.call import Principal, Role
from evalrpc.server.sign_in import SignIn, SignInMethod

_RETRY_DELAY_SECONDS: Final = 1.0
_NO_DIGEST: Final = bytes(32)

_log = logging.getLogger(__name__)


class _Token(NamedTuple):
    stored: StoredToken
    principal: Principal


class Tokens:
    """The tokens of the server. Used on the event loop; the file is read in `executor`."""

    def __init__(self, reader: TokenReader, clock: Clock, executor: Executor, live: set[SignIn]) -> None:
        """`live` gets the sign-ins that have streams."""
        self._reader = reader
        self._clock = clock
        self._executor = executor
        self._live = live
        self._tokens: dict[str, _Token] = {}
        self._failure: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there surely are no tokens."""
        return not self._tokens and self._failure is None

    def principal_of(self, text: str) -> Principal:
        """Return whom a token belongs to. Raises UnauthenticatedError, and SignInUnavailableError if nobody can tell."""
        if self._failure is not None:
            raise self._unavailable()
        parts = parse_token(text)
        token = self._tokens.get(parts.token_id) if parts else None
        is_genuine = compare_digest(parts.digest if parts else _NO_DIGEST, token.stored.digest if token else _NO_DIGEST)
        if token is None or not is_genuine:
            raise UnauthenticatedError("the server does not know this token: ask its operator for one")
        if token.stored.revoked_ns is not None:
            raise _revoked()
        if token.principal.sign_in.has_expired(self._clock):
            raise expired()
        return token.principal

    async def refresh(self) -> None:
        """Read the file if it has changed."""
        try:
            tokens = await asyncio.get_running_loop().run_in_executor(self._executor, self._reader.read_if_changed)
            if tokens is not None:
                self._replace(tokens)
        except SignInUnavailableError as error:
            self._fail(error.message)
        except Exception:  # noqa: BLE001 - the last resort: a bug lets nobody in
            _log.exception("a bug in reading the tokens")
            self._fail("a bug keeps the server from reading its tokens")

    def _replace(self, tokens: Sequence[StoredToken]) -> None:
        if self._failure is not None:
            _log.info("the tokens can be read again")
            self._failure = None
        before, self._tokens = self._tokens, {}
        for stored in tokens:
            known = before.get(stored.token_id)
            is_same = known is not None and known.stored == stored
            self._tokens[stored.token_id] = known if known is not None and is_same else self._token(stored)
        for token_id, token in before.items():
            if self._tokens.get(token_id) is not token:
                token.principal.sign_in.end(_revoked)

    def _token(self, stored: StoredToken) -> _Token:
        sign_in = SignIn(SignInMethod.TOKEN, stored.expires_ns, self._live, stored.token_id)
        return _Token(stored, Principal(stored.owner, Role(stored.role), sign_in))

    def _fail(self, reason: str) -> None:
        if reason != self._failure:
            _log.error("%s; calls with a token are refused until they can be read", reason)
        self._failure = reason
        for token in self._tokens.values():
            token.principal.sign_in.end(self._unavailable)
        self._tokens = {}

    def _unavailable(self) -> SignInUnavailableError:
        return SignInUnavailableError(
            "the server can't read its tokens at present; its log says why", retry_delay_seconds=_RETRY_DELAY_SECONDS
        )


def expired() -> UnauthenticatedError:
    """Return the error for a token that was good once."""
    return UnauthenticatedError("the token has expired: take another one")


_revoked: Final = partial(UnauthenticatedError, "the token was revoked: take another one")
