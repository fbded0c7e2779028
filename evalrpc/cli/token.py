"""`evalrpc token`: the tokens that people and programs sign in with. Works on the server's files, also while it runs."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc.cli import parameters, wording
from evalrpc.cli.connection import form_options
from evalrpc.cli.exit_codes import ExitCode, fail, reported, require_folder
from evalrpc.cli.output import Form, print_json_text, print_line, print_table
from evalrpc.cli.setting_flags import setting_flags
from evalrpc.cli.suggestions import SuggestingGroup
from evalrpc.cli.tables import Cell, Column, Kind
from evalrpc.clock import Clock, SystemClock
from evalrpc.config import Settings, load_settings
from evalrpc.config.callers import OWNER_RULE, ROLES, is_owner

if TYPE_CHECKING:
    from evalrpc.server.auth.token_store import StoredToken, TokenStore

clock: Clock = SystemClock()
"""Tells what has expired."""

_COLUMNS: Final = (
    Column("token", Kind.WHOLE),
    Column("owner"),
    Column("role", Kind.WHOLE),
    Column("state", Kind.WHOLE),
    Column("created", Kind.WHOLE),
    Column("expires", Kind.WHOLE),
)

_MAX_LIFETIME: Final = timedelta(days=36_500)

_changing_flags: Final[Callable[[Callable[..., Any]], Callable[..., Any]]] = setting_flags("data_dir", "audit_file")

_json_flag: Final[Callable[[Callable[..., Any]], Callable[..., Any]]] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON."
)


def _owner(text: str) -> str:
    if not is_owner(text):
        raise click.BadParameter(f"{text!r} must {OWNER_RULE.description}")
    return text


def _lifetime(text: str) -> timedelta:
    lifetime = parameters.duration(text)
    if not timedelta() < lifetime <= _MAX_LIFETIME:
        raise click.BadParameter(f"{text!r} must be more than nothing and at most {_MAX_LIFETIME.days}d")
    return lifetime


@click.group(cls=SuggestingGroup, short_help="Create, list and revoke the tokens that callers sign in with.")
def token_command() -> None:
    """Create, list and revoke the tokens that callers sign in with.

    These commands work on the data folder of the server, so they run on its machine, as its account. A running server takes
    up every change within a second.
    """


@token_command.command("create", short_help="Create a token, and print it once.")
@click.option(
    "--owner",
    required=True,
    type=_owner,
    metavar="NAME",
    help=f"Whom its jobs belong to. Must {OWNER_RULE.description}.".replace("`", ""),
)
@click.option("--role", required=True, type=click.Choice(ROLES), help="What it may do.")
@click.option("--expires", type=_lifetime, metavar="DURATION", help="Let it expire after this time: 90d. Default: never.")
@_json_flag
@_changing_flags
def create_command(owner: str, role: str, expires: timedelta | None, as_json: bool, config: Path | None, **flags: Any) -> None:
    """Create a token and print it. It is shown only now: the server keeps no more than a digest of it."""
    from evalrpc.server.auth.token_format import new_token
    from evalrpc.server.auth.token_store import StoredToken

    text, parts = new_token()
    now_ns = clock.now().ToNanoseconds()
    expires_ns = now_ns + int(expires / timedelta(microseconds=1)) * 1000 if expires else None
    token = StoredToken(parts.token_id, parts.digest, owner, role, now_ns, expires_ns)
    settings = _settings(config, flags)
    with _token_store(settings) as store:
        store.add(token)
    _record(settings, "token create", f"token {token.token_id} of {owner}, {role}")
    if as_json:
        print_json_text(json.dumps({"token": text, **_document(token)}))
        return
    print_line(text)
    end = f"expires {_time_text(expires_ns)}" if expires_ns else "does not expire"
    print_line(f"evalrpc: token {parts.token_id} of {owner}, {role}, {end}; it is shown only now", err=True)


@token_command.command("list", short_help="List the tokens, without their secrets.")
@setting_flags("data_dir")
@form_options
def list_command(form: Form, config: Path | None, **flags: Any) -> None:
    """List the tokens, the oldest first, without their secrets, which nobody has."""
    settings = _settings(config, flags)
    require_folder(settings.data_dir)
    with _token_store(settings) as store:
        tokens = store.tokens()
    if form in (Form.JSON, Form.JSONL):
        for token in tokens:
            print_json_text(json.dumps(_document(token)))
    else:
        print_table(form, _COLUMNS, map(_row, tokens))


@token_command.command("revoke", short_help="Revoke a token.")
@click.argument("token_id", metavar="TOKEN")
@_json_flag
@_changing_flags
def revoke_command(token_id: str, as_json: bool, config: Path | None, **flags: Any) -> None:
    """Revoke the token with this id, for good. Within a second its calls are refused and its streams end."""
    settings = _settings(config, flags)
    with _token_store(settings) as store:
        if not store.revoke(token_id, clock.now().ToNanoseconds()):
            fail(ExitCode.WRONG_CALL, f"there is no token {token_id}: `evalrpc token list` lists them")
    _record(settings, "token revoke", f"token {token_id}")
    if as_json:
        print_json_text(json.dumps({"token_id": token_id, "state": "revoked"}))
    else:
        print_line(f"token {token_id} is revoked")


def _settings(config: Path | None, flags: Mapping[str, Any]) -> Settings:
    with reported():
        return load_settings(flags, os.environ, config)


@contextmanager
def _token_store(settings: Settings) -> Iterator["TokenStore"]:
    from evalrpc.server.auth.token_store import TokenStore

    with reported():
        yield TokenStore(settings.data_dir)


def _record(settings: Settings, command: str, target: str) -> None:
    """Record in the audit what was done. It is done, so it does not fail if that can't be written."""
    from evalrpc.server.audit_file import AuditEntry, audit_file

    time, peer = clock.now().ToJsonString(), f"uid:{os.getuid()}"
    entry = AuditEntry(time, command, "OK", role="operator", sign_in_method="local", peer=peer, target=target)
    file = audit_file(settings)
    try:
        file.append([entry])
    except OSError as error:
        print_line(f"evalrpc: warning: can't write {file.path}: {error.strerror}", err=True)


def _row(token: "StoredToken") -> tuple[Cell, ...]:
    expires = _time_text(token.expires_ns) if token.expires_ns else ""
    return token.token_id, token.owner, token.role, _state(token), _time_text(token.created_ns), expires


def _document(token: "StoredToken") -> dict[str, str | None]:
    return {
        "token_id": token.token_id,
        "owner": token.owner,
        "role": token.role,
        "state": _state(token),
        "created_at": _time(token.created_ns).ToJsonString(),
        "expires_at": _time(token.expires_ns).ToJsonString() if token.expires_ns else None,
    }


def _state(token: "StoredToken") -> str:
    if token.revoked_ns is not None:
        return "revoked"
    has_expired = token.expires_ns is not None and token.expires_ns <= clock.now().ToNanoseconds()
    return "expired" if has_expired else "active"


def _time_text(time_ns: int) -> str:
    return wording.time_text(_time(time_ns))


def _time(time_ns: int) -> Timestamp:
    time = Timestamp()
    time.FromNanoseconds(time_ns)
    return time
