"""Which secrets a request may name, and that it has none in its arguments, where everybody could read them. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from evalrpc.config import ModelServer, SecretSettings
from evalrpc.config.secrets import may_use
from evalrpc.errors import FieldViolation
from evalrpc.jobs.served_models import SERVED_FIELDS
from evalrpc.server.argument_values import Argument
from evalrpc.v1.jobs_pb2 import EvaluateRequest

MAX_SECRETS: Final = 64
SECRET_ARGUMENTS: Final = frozenset({"api_key", "openai_api_key", "hf_token", "password", "secret", "token"})
"""The names of arguments that hold secrets."""

_MAY_BE_BOOLEAN: Final = "token"
"""Whether to use the token of an earlier login."""


def violations(
    request: EvaluateRequest, arguments: Iterable[Argument], known: Mapping[str, SecretSettings], owner: str
) -> Iterator[FieldViolation]:
    """Yield what is wrong with the `secrets` of a request, and with those of its arguments that hold one."""
    yield from _names(request, known, owner)
    yield from _holding_secrets(arguments)


def not_allowed(
    request: EvaluateRequest, known: Mapping[str, SecretSettings], servers: Mapping[str, ModelServer], owner: str
) -> Iterator[FieldViolation]:
    """Yield the secrets, of those that there are, which jobs of this owner may not use: those that the request names, and those
    of the engines and endpoints that it names."""
    for field in SERVED_FIELDS:
        server = servers.get(getattr(request, field).engine) if request.HasField(field) else None
        withheld = [name for name in server.secrets if not may_use(known[name], owner)] if server is not None else []
        if server is not None and withheld:
            text = f"{server.name} takes {', '.join(withheld)}, which is not for {_described(owner)}: ask the operator"
            yield FieldViolation(f"request.{field}.engine", text)
    for index, name in enumerate(request.secrets[:MAX_SECRETS]):
        if name in known and not may_use(known[name], owner):
            text = f"{name} is not for {_described(owner)}: its owners are the operator's choice"
            yield FieldViolation(f"request.secrets[{index}]", text)


def _names(request: EvaluateRequest, known: Mapping[str, SecretSettings], owner: str) -> Iterator[FieldViolation]:
    if len(request.secrets) > MAX_SECRETS:
        yield FieldViolation("request.secrets", f"has {len(request.secrets)} names; at most {MAX_SECRETS} are allowed")
        return
    usable = ", ".join(sorted(name for name, secret in known.items() if may_use(secret, owner))) or "none"
    for index, name in enumerate(request.secrets):
        field = f"request.secrets[{index}]"
        if name not in known:
            yield FieldViolation(field, f"this server has no secret {name[:80]!r}; {_described(owner)} may use: {usable}")
        elif name in request.secrets[:index]:
            yield FieldViolation(field, f"{name} is there twice")


def _holding_secrets(arguments: Iterable[Argument]) -> Iterator[FieldViolation]:
    for path, name, _, value in arguments:
        if name in SECRET_ARGUMENTS and not (name == _MAY_BE_BOOLEAN and isinstance(value, bool)):
            hint = "would be shown to everybody: ask the operator for a secret, and name it in `secrets`"
            yield FieldViolation(f"request.{path}", f"a value of `{name}` {hint}")


def _described(owner: str) -> str:
    return repr(owner) if owner else "who is not signed in"
