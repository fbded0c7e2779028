"""Names in braces in an operator's command line, such as `{model}`, which are filled in for each run."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from evalrpc.errors import ConfigurationError

_PLACEHOLDER: Final = re.compile(r"\{(\w+)\}")


def placeholders_in(arguments: Iterable[str]) -> set[str]:
    """Return the names of all placeholders."""
    return {name for argument in arguments for name in _PLACEHOLDER.findall(argument)}


def require_known(where: str, arguments: Iterable[str], known: Sequence[str]) -> None:
    """Raise ConfigurationError for the first placeholder, by name, that is unknown. `where` names the setting."""
    for name in sorted(placeholders_in(arguments).difference(known)):
        names = ", ".join(f"{{{placeholder}}}" for placeholder in known)
        raise ConfigurationError(f"{where}: {{{name}}} is unknown; there are: {names}")


def filled_in(arguments: Iterable[str], values: Mapping[str, str]) -> tuple[str, ...]:
    """Fill in the placeholders, separately in each argument."""
    return tuple(_PLACEHOLDER.sub(lambda match: values[match[1]], argument) for argument in arguments)
