"""Who calls a server: what an owner may be named, the roles, and the settings of client certificates and of OIDC."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from evalrpc.config.declaration import STRING, STRINGS, Kind, Rule, metadata, one_of, setting

ROLES: Final = ("viewer", "submitter", "operator")
"""From the least to the most that a caller may do."""

ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""The signatures that a token of an issuer may have. `none` and those with a shared secret are not among them."""

_OWNER: Final = re.compile(r"[A-Za-z0-9._@-]{1,63}")
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


def is_owner(text: str) -> bool:
    """Return whether an owner may be named so."""
    return _OWNER.fullmatch(text) is not None


def is_safe_url(text: str) -> bool:
    """Return whether nobody on the way can change what is read from a URL: it is encrypted, or stays on this machine."""
    try:
        url = urlsplit(text)
    except ValueError:
        return False
    return bool(url.hostname) and (url.scheme == "https" or (url.scheme == "http" and url.hostname in _LOOPBACK))


def _are_algorithms(names: tuple[str, ...]) -> bool:
    return bool(names) and set(names) <= set(ALGORITHMS)


def _roles_by_value(value: Any, _: object) -> Mapping[str, str]:
    if not isinstance(value, dict) or not set(value.values()) <= set(ROLES):
        raise TypeError
    return dict(value)


OWNER_RULE: Final = Rule("be 1 to 63 of the characters A-Z, a-z, 0-9, `.`, `_`, `@` and `-`", is_owner)
"""What an owner may be named."""

_ROLE_RULE: Final = one_of(*ROLES)
_URL_RULE: Final = Rule("be an https URL, or an http URL of this machine", is_safe_url)
_ALGORITHMS_RULE: Final = Rule(f"be some of {', '.join(ALGORITHMS)}", _are_algorithms)
_NOT_EMPTY: Final = Rule("not be empty", bool)
_ROLES: Final = Kind(f"a table with the roles {', '.join(ROLES)} by the values of a claim", "", _roles_by_value)


@dataclass(frozen=True)
class ClientCertificate:
    """One line of `[client_certificates]`: who the bearer of a certificate with this name is."""

    owner: str = field(
        metadata=metadata(STRING, "Whom its jobs belong to.", rule=OWNER_RULE, default_text="none; it is needed")
    )
    role: str = field(metadata=metadata(STRING, "What it may do.", rule=_ROLE_RULE, default_text="none; it is needed"))


@dataclass(frozen=True)
class OidcSettings:
    """The `[oidc]` table: tokens of an identity provider, which are JWTs."""

    issuer: str = field(
        metadata=metadata(
            STRING,
            "The issuer, exactly as its tokens name it in `iss`.",
            rule=_URL_RULE,
            default_text="none; it is needed",
        )
    )
    audience: str = field(
        metadata=metadata(
            STRING, "This server, as tokens for it name it in `aud`.", rule=_NOT_EMPTY, default_text="none; it is needed"
        )
    )
    jwks_url: str = field(
        default="",
        metadata=metadata(
            STRING,
            "Where the issuer's public keys are.",
            rule=Rule(_URL_RULE.description, lambda url: not url or is_safe_url(url)),
            default_text="what `ISSUER/.well-known/openid-configuration` says",
        ),
    )
    owner_claim: str = setting(
        "sub",
        STRING,
        "The claim that names the owner, by the same rule as `evalrpc token create`. A verified `email` works too.",
    )
    role: str = field(
        default="",
        metadata=metadata(
            STRING,
            "What everybody may do whom `role_claim` gives no role.",
            rule=Rule(_ROLE_RULE.description, lambda role: not role or role in ROLES),
            default_text="nothing: they are refused",
        ),
    )
    role_claim: str = setting(
        "", STRING, "The claim with the role, or with a list such as one of groups. The greatest counts.", default_text="none"
    )
    roles: Mapping[str, str] = field(
        default_factory=dict,
        metadata=metadata(
            _ROLES,
            'The roles by the values of `role_claim`: `roles = { "gpu-admins" = "operator" }`.',
            default_text="the values are roles themselves",
        ),
    )
    algorithms: tuple[str, ...] = field(
        default=("RS256", "ES256"),
        metadata=metadata(
            STRINGS,
            "The signatures that tokens may have. Never one with a shared secret, and never none.",
            rule=_ALGORITHMS_RULE,
            default_text='`["RS256", "ES256"]`',
        ),
    )
