"""The tokens that `evalrpc login` keeps, by the address of their server, in a file for the user alone."""

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final

from evalrpc.files.regular import open_named_file

_FOLDER_MODE: Final = 0o700
_RIGHTS_OF_OTHERS: Final = 0o077


def logins_path() -> Path:
    """Return the file, in the user's folder for settings: XDG_CONFIG_HOME, else ~/.config; on Windows, APPDATA."""
    variable, default = ("APPDATA", "AppData/Roaming") if os.name == "nt" else ("XDG_CONFIG_HOME", ".config")
    given = os.environ.get(variable)
    return (Path(given) if given else Path.home() / default) / "evalrpc" / "tokens.json"


def kept_token(target: str) -> str:
    """Return the token that is kept for a server, or nothing. Raises ValueError for a file that is broken or that others may
    read, OSError for one that can't be read."""
    return _read().get(target, "")


def keep_token(target: str, token: str) -> Path:
    """Keep a token for a server, instead of the one before. Returns the file. Raises ValueError, OSError."""
    return _write({**_read(), target: token})


def forget_token(target: str) -> bool:
    """Remove the token that is kept for a server. Returns whether there was one. Raises ValueError, OSError."""
    tokens = dict(_read())
    if target not in tokens:
        return False
    del tokens[target]
    _write(tokens)
    return True


def _read() -> Mapping[str, str]:
    try:
        path = logins_path()
        with open_named_file(path) as file:
            rights = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read()
    except (FileNotFoundError, NotADirectoryError, RuntimeError):  # the last: the user has no home
        return {}
    if os.name != "nt" and rights & _RIGHTS_OF_OTHERS:
        raise ValueError(f"{path} has tokens that others may read: run `chmod 600` on it, and think about revoking them")
    try:
        tokens = json.loads(content)
    except ValueError:
        tokens = None
    if not isinstance(tokens, dict) or not all(isinstance(token, str) for token in tokens.values()):
        raise ValueError(f"{path} is not as `evalrpc login` writes it: delete it, and log in again")
    return tokens


def _write(tokens: Mapping[str, str]) -> Path:
    """Replace the file as a whole, so that nobody reads half of it."""
    path = logins_path()
    path.parent.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
    with NamedTemporaryFile("w", dir=path.parent, prefix=".tokens-", delete=False) as file:  # has the mode 0600
        json.dump(tokens, file, indent=2)
    return Path(file.name).replace(path)
