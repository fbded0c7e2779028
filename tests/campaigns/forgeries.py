"""Tokens that must let nobody in: made from good ones by small changes, by mixing, and by signing what must not be signed."""

import hashlib
import hmac
import json
import random
import string
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives import serialization
from identity_provider import EC_KEY, FOREIGN_KEY, RSA_KEY, IdentityProvider, base64url

from evalrpc.server.auth.token_format import new_token

ALPHABET: Final = string.ascii_letters + string.digits + "-_.=+/ ~"
PUBLIC_FORMS: Final = (
    (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
    (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo),
)


@dataclass
class Forgeries:
    """An endless supply. A seed repeats the choices, though not the random bytes of keys and tokens."""

    good: Sequence[str]
    """Tokens of the server that are good."""
    ended: Sequence[str]
    """Those that were revoked or have expired."""
    provider: IdentityProvider
    seed: int
    signed: list[str] = field(default_factory=list)
    """Good tokens of the provider."""

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)
        self.signed += [self.provider.token(jti=str(number)) for number in range(10)]
        self.signed += [self.provider.token(EC_KEY, "ES256", {"kid": "ec"}, jti=str(number)) for number in range(10)]
        self._wrong = list(_wrongly_signed(self.provider))
        self._is_good = {*self.good, *self.signed}
        self._kinds: Sequence[Callable[[], str]] = (
            *([lambda: self._changed(self.good)] * 4),
            *([lambda: self._changed(self.signed)] * 4),
            self._mixed,
            self._spliced,
            self._unknown,
            lambda: self._dice.choice(self.ended),
            lambda: self._changed(self.ended),
            lambda: self._dice.choice(self._wrong),
            lambda: self._changed(self._wrong),
            self._noise,
        )

    def __iter__(self) -> Iterator[str]:
        while True:
            forged = self._dice.choice(self._kinds)()
            if forged.strip() not in self._is_good:  # HTTP/2 may drop spaces around a header's value
                yield forged

    def _changed(self, tokens: Sequence[str]) -> str:
        """Change a token in one place, and sometimes in more."""
        text = self._dice.choice(tokens)
        for _ in range(self._dice.choice((1, 1, 1, 2, 5))):
            place = self._dice.randrange(len(text))
            letter = self._dice.choice(ALPHABET)
            text = self._dice.choice(
                (
                    text[:place] + letter + text[place + 1 :],
                    text[:place] + letter + text[place:],
                    text[:place] + text[place + 1 :],
                    text[:place] + text[place].swapcase() + text[place + 1 :],
                    text[:place] or letter,
                    text[place:],
                    text[:place] + text[:place:-1],
                    text + text[:place],
                )
            )
            if not text:
                return letter
        return text

    def _mixed(self) -> str:
        """Take the id of one token and the secret of another."""
        first, second = self._dice.sample([*self.good, *self.ended], 2)
        return f"{first[:20]}_{second[21:]}"

    def _spliced(self) -> str:
        """Take the parts of a JWT from several."""
        chosen = [self._dice.choice(self.signed + self._wrong).split(".") for _ in range(3)]
        return ".".join(each[place % len(each)] for place, each in enumerate(chosen))

    def _unknown(self) -> str:
        return new_token()[0]

    def _noise(self) -> str:
        length = self._dice.choice((1, 16, 64, 300))
        prefix = self._dice.choice(("", "evr_", "eyJ", "evr_aaaaaaaaaaaaaaaa_"))
        return prefix + "".join(self._dice.choices(ALPHABET, k=length))


def _wrongly_signed(provider: IdentityProvider) -> Iterator[str]:
    """Yield tokens with a sound signature of the wrong kind, or of the wrong claims."""
    now = int(time.time())
    wrong_claims: Sequence[dict[str, Any]] = (
        *({"aud": "other"}, {"aud": []}, {"aud": None}, {"iss": "https://evil.example.org"}, {"iss": None}),
        *({"exp": now - 10}, {"exp": None}, {"exp": "9999999999"}, {"nbf": now + 3600}, {"sub": None}, {"sub": "a b"}),
    )
    for claims in wrong_claims:
        yield provider.token(**claims)
        yield provider.token(EC_KEY, "ES256", {"kid": "ec"}, **claims)
    for headers in ({}, {"kid": "ec"}, {"kid": "new"}, {"jku": "https://evil.example.org/keys"}):
        yield provider.token(FOREIGN_KEY, headers=headers)
    for algorithm in ("RS384", "RS512", "PS256"):
        yield provider.token(algorithm=algorithm)
    yield jwt.encode(provider.claims(), None, "none", {"kid": "rsa"})
    yield from _signed_with_public_keys(provider)


def _signed_with_public_keys(provider: IdentityProvider) -> Iterator[str]:
    """Yield tokens that take a public key for a shared secret."""
    payload = base64url(json.dumps(provider.claims()).encode())
    for key, key_id in ((RSA_KEY, "rsa"), (EC_KEY, "ec")):
        for encoding, form in PUBLIC_FORMS:
            secret = key.public_key().public_bytes(encoding, form)
            for algorithm in ("HS256", "RS256", "ES256"):
                signed = f"{base64url(json.dumps({'alg': algorithm, 'kid': key_id}).encode())}.{payload}"
                yield f"{signed}.{base64url(hmac.digest(secret, signed.encode(), hashlib.sha256))}"
