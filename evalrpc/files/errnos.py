"""Classifies OS errors: a temporary resource shortage of the server, or a file that can't be read.

Only a missing file counts as nothing. Missing permissions, a lack of descriptors and a failing disk are reported.
"""

import errno
import os
from pathlib import Path
from typing import Final

from evalrpc.errors import EvalrpcError, FileUnavailableError, FileUnreadableError

_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC, errno.EDQUOT})
_FAILING_DISK: Final = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT})
_FORBIDDEN: Final = frozenset({errno.EACCES, errno.EPERM})
_RETRY_DELAY_SECONDS: Final = 1.0


def is_shortage(error: OSError) -> bool:
    """Return whether an error means a temporary resource shortage of the server, and so says nothing about the file."""
    return error.errno in _SHORTAGES


def is_shortage_behind(error: Exception) -> bool:
    """Return whether that is so for an OSError, or for the error that `unreadable` made of it."""
    cause = error.__cause__ if isinstance(error, EvalrpcError) else error
    return isinstance(cause, OSError) and is_shortage(cause)


def require_no_shortage(error: OSError) -> None:
    """Raise the error if it is a shortage, or comes from a failing disk, so that those who read a run's files don't judge the
    run by it."""
    if is_shortage(error) or error.errno in _FAILING_DISK:
        raise error


def unreadable(error: OSError) -> EvalrpcError:
    """Return the error to send to a client for a file that exists but can't be read."""
    name = errno.errorcode.get(error.errno or 0, "")
    what = Path(os.fsdecode(error.filename)).name if isinstance(error.filename, str | bytes) else "a file of the job"
    message = f"{ascii(what)[1:-1]} can't be read: {error.strerror} ({name})"
    metadata = {"errno": name}
    if is_shortage(error) or error.errno in _FAILING_DISK:
        return FileUnavailableError(f"{message}; try again", metadata=metadata, retry_delay_seconds=_RETRY_DELAY_SECONDS)
    todo = "; the server's account needs access to it" if error.errno in _FORBIDDEN else ""
    return FileUnreadableError(f"{message}{todo}", metadata=metadata)
