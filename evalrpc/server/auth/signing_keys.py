"""The public keys of an identity provider: fetched when first needed, and again when they are old or one is unknown.

However many calls want them, one fetch runs at a time, and no more than one starts in ten seconds.
"""

import asyncio
import http.client
import json
import logging
import math
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, Final

import jwt

from evalrpc.clock import Clock
from evalrpc.config import OidcSettings
from evalrpc.config.callers import is_safe_url
from evalrpc.errors import SignInUnavailableError

MIN_SECONDS_BETWEEN_FETCHES: Final = 10.0
REFRESH_SECONDS: Final = 600.0
MAX_AGE_SECONDS: Final = 3600.0
"""Keys are not used for longer after the last fetch that succeeded."""

_FETCH_TIMEOUT_SECONDS: Final = 5.0
_MAX_ANSWER_BYTES: Final = 1024 * 1024
_DISCOVERY_PATH: Final = "/.well-known/openid-configuration"
_KEY_TYPES: Final[Mapping[str, tuple[str, str]]] = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), ("RSA", "")),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
}
"""The type and the curve of the keys of each algorithm. A shared secret is of none."""

_log = logging.getLogger(__name__)


class SigningKeys:
    """The keys. Used on the event loop; the provider is asked in `executor`."""

    def __init__(self, settings: OidcSettings, clock: Clock, executor: Executor) -> None:
        self._settings = settings
        self._clock = clock
        self._executor = executor
        self._keys: Mapping[tuple[str, str], jwt.PyJWK] = {}
        self._fetched_at = -math.inf
        self._tried_at = -math.inf
        self._fetch: asyncio.Task[None] | None = None

    async def find(self, key_id: str, algorithm: str) -> jwt.PyJWK | None:
        """Return a key for signatures by this algorithm; None if the provider has none of this id.

        Raises SignInUnavailableError if the provider can't be asked.
        """
        key = self._keys.get((key_id, algorithm))
        if key is None or self._age_seconds() > REFRESH_SECONDS:
            await self._refresh()
            key = self._keys.get((key_id, algorithm))
        has_failed = self._tried_at > self._fetched_at
        if self._age_seconds() > MAX_AGE_SECONDS or (key is None and has_failed):
            raise SignInUnavailableError(
                "the server can't get the keys of the identity provider at present; its log says why",
                retry_delay_seconds=MIN_SECONDS_BETWEEN_FETCHES,
            )
        return key

    async def _refresh(self) -> None:
        if self._fetch is None and self._clock.monotonic() - self._tried_at >= MIN_SECONDS_BETWEEN_FETCHES:
            self._fetch = asyncio.create_task(self._replace())
        if self._fetch is not None:
            await asyncio.shield(self._fetch)  # other calls wait for it too

    async def _replace(self) -> None:
        self._tried_at = self._clock.monotonic()
        try:
            self._keys = await asyncio.get_running_loop().run_in_executor(self._executor, _fetch_keys, self._settings)
            self._fetched_at = self._tried_at
        except (OSError, http.client.HTTPException, TypeError, ValueError) as error:
            _log.warning("can't get the keys of the identity provider %s: %s", self._settings.issuer, error)
        finally:
            self._fetch = None

    def _age_seconds(self) -> float:
        return self._clock.monotonic() - self._fetched_at


def _fetch_keys(settings: OidcSettings) -> Mapping[tuple[str, str], jwt.PyJWK]:
    """Return the usable keys by id and algorithm. Raises OSError, HTTPException, TypeError and ValueError."""
    key_set = _get_json(settings.jwks_url or _discover(settings.issuer))
    listed = key_set.get("keys")
    if not isinstance(listed, list):
        raise TypeError("the answer has no list of keys")
    keys: dict[tuple[str, str], jwt.PyJWK] = {}
    for key in filter(lambda key: isinstance(key, dict), listed):
        for algorithm in _algorithms_of(key, settings.algorithms):
            try:
                keys[_text(key, "kid"), algorithm] = jwt.PyJWK(key, algorithm)
            except (jwt.PyJWTError, ValueError) as error:  # the others are good nevertheless
                _log.warning("a key of the identity provider %s can't be read: %s", settings.issuer, error)
    return keys


def _algorithms_of(key: Mapping[str, Any], allowed: Sequence[str]) -> Iterator[str]:
    """Yield the algorithms that a key is for."""
    if _text(key, "use") not in ("", "sig"):
        return
    for algorithm in allowed:
        key_type, curve = _KEY_TYPES[algorithm]
        is_fitting = _text(key, "kty") == key_type and curve in ("", _text(key, "crv"))
        if is_fitting and _text(key, "alg") in ("", algorithm):
            yield algorithm


def _text(key: Mapping[str, Any], name: str) -> str:
    value = key.get(name, "")
    return value if isinstance(value, str) else "?"


def _discover(issuer: str) -> str:
    """Return where the keys are, as the provider says. Raises as `_fetch_keys` does."""
    document = _get_json(issuer.rstrip("/") + _DISCOVERY_PATH)
    if document.get("issuer") != issuer:
        raise ValueError(f"its configuration is that of another issuer, {document.get('issuer')!r}")
    url = document.get("jwks_uri")
    if not isinstance(url, str) or not is_safe_url(url):
        raise ValueError(f"its configuration has no good jwks_uri, but {url!r}")
    return url


def _get_json(url: str) -> dict[str, Any]:
    request = urllib.request.Request(url, headers={"Accept": "application/json"})  # noqa: S310 - its scheme was checked
    with _OPENER.open(request, timeout=_FETCH_TIMEOUT_SECONDS) as answer:
        body = answer.read(_MAX_ANSWER_BYTES + 1)
    if len(body) > _MAX_ANSWER_BYTES:
        raise ValueError(f"{url} answers with more than {_MAX_ANSWER_BYTES} bytes")
    document = json.loads(body)
    if not isinstance(document, dict):
        raise TypeError(f"{url} answers with no JSON object")
    return document


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses redirects, which may lead to where nothing is encrypted."""

    def redirect_request(self, *_: Any) -> None:
        """Follow none, so that the answer is an error."""
        return


_OPENER: Final = urllib.request.build_opener(_NoRedirects)
