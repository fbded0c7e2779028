"""Where a server listens: the keys of `[[listen]]` and `[[http_listen]]` tables, and the short forms of both."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

from evalrpc.config.addresses import ADDRESS_FORMS, parse_listen_address
from evalrpc.config.callers import OWNER_RULE
from evalrpc.config.declaration import BOOLEAN, FILE, NAMES, STRING, Kind, Rule, metadata, one_of, setting, settings_of
from evalrpc.errors import ConfigurationError

AUTH_RULE: Final = one_of("off", "required")

_HEADER_RULE: Final = Rule(
    "be the name of a header of its own: letters, digits and -, and neither `Authorization` nor `Cookie`",
    lambda name: bool(re.fullmatch("[A-Za-z0-9-]+", name)) and name.lower() not in ("authorization", "cookie"),
)
_ORIGIN: Final = re.compile(r"https?://[^/?#@\s]+")


def _address(value: Any, folder: Path) -> str:
    return str(parse_listen_address(STRING.parse(value, folder), folder))


_ADDRESS: Final = Kind(ADDRESS_FORMS, "HOST:PORT", _address)


@dataclass(frozen=True)
class ListenSettings:
    """One address, or one `[[listen]]` table. What is None is as the setting of the same name says. Raises ConfigurationError,
    naming the key, for a value that it may not have."""

    setting_name: ClassVar[str] = "listen"

    address: str = field(metadata=metadata(_ADDRESS, "The address.", default_text="none: every table needs one"))
    tls_cert: Path | None = setting(None, FILE, "Replaces the setting `tls_cert` here.", default_text="the setting")
    tls_key: Path | None = setting(None, FILE, "Replaces the setting `tls_key` here.", default_text="the setting")
    tls_client_ca: Path | None = setting(None, FILE, "Replaces the setting `tls_client_ca` here.", default_text="the setting")
    auth: str | None = setting(None, STRING, "Replaces the setting `auth` here.", rule=AUTH_RULE, default_text="the setting")

    def __post_init__(self) -> None:
        """Reject invalid values."""
        for name, declared in settings_of(type(self), f"{self.setting_name}.").items():
            if (value := getattr(self, name)) is not None:
                declared.read(value, Path())


@dataclass(frozen=True)
class HttpListenSettings(ListenSettings):
    """The same for HTTP: one address, or one `[[http_listen]]` table."""

    setting_name: ClassVar[str] = "http_listen"

    lmms_eval_paths: bool | None = setting(
        None, BOOLEAN, "Replaces the setting `lmms_eval_paths` here.", default_text="the setting"
    )
    proxy_token_header: str | None = setting(
        None,
        STRING,
        "The header in which a proxy that signs browsers in passes on the token of each, a JWT of the identity provider of "
        "`[oidc]`, such as `X-Forwarded-Access-Token`. It is verified as a token that a client sends itself is. Only the proxy "
        "should reach this address.",
        rule=_HEADER_RULE,
        default_text="none",
    )
    owner: str | None = setting(
        None,
        STRING,
        "Whom the jobs belong to of whoever calls here and has not signed in. Only where nobody has to.",
        rule=OWNER_RULE,
        default_text="nobody",
    )


_Table = TypeVar("_Table", bound=ListenSettings)


def _listen(table: type[_Table]) -> Callable[[Any, Path], tuple[_Table, ...]]:
    """Return what reads addresses with commas between them, or a list of such texts and of tables."""

    def read(value: Any, folder: Path) -> tuple[_Table, ...]:
        entries = [value] if isinstance(value, str) else value
        if not isinstance(entries, list | tuple) or not all(isinstance(entry, str | dict) for entry in entries):
            raise TypeError
        listen: list[_Table] = []
        for entry in entries:
            if isinstance(entry, dict):
                listen.append(_read_table(table, entry, folder))
            else:
                listen += (table(_address(text.strip(), folder)) for text in entry.split(","))
        return tuple(listen)

    return read


def _read_table(table: type[_Table], given: Mapping[str, Any], folder: Path) -> _Table:
    name = table.setting_name
    declared = settings_of(table, prefix=f"{name}.")
    for key in given:
        if key not in declared:
            raise ConfigurationError(f"setting {name}.{key}: is unknown; there are: {', '.join(sorted(declared))}")
    if "address" not in given:
        raise ConfigurationError(f"setting {name}.address: every [[{name}]] table needs one")
    return table(**{key: declared[key].read(value, folder) for key, value in given.items()})


def _kind(table: type[ListenSettings]) -> Kind:
    return Kind(
        f"{ADDRESS_FORMS}; several with commas between them, or as a list",
        "ADDRESS",
        _listen(table),
        lambda listen: ",".join(one.address for one in listen),
        is_repeatable=True,
    )


LISTEN: Final = _kind(ListenSettings)
HTTP_LISTEN: Final = _kind(HttpListenSettings)
HOST_NAMES: Final = NAMES._replace(description="a list of host names, in a flag or variable with commas", metavar="HOST,HOST")
ORIGINS: Final = NAMES._replace(description="a list of origins, in a flag or variable with commas", metavar="ORIGIN,ORIGIN")
ORIGINS_RULE: Final = Rule(
    "be origins: http:// or https://, a host, and perhaps a port, without a path",
    lambda origins: all(_ORIGIN.fullmatch(origin) for origin in origins),
)
