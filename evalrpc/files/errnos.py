"""What an error of the operating system says: that the server lacks something at present, or that a file can't be read.

Only a file that is not there counts as nothing. Where the server lacks the rights, a descriptor or a disk that
works, that is said.
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
    """Tell whether an error says that the server lacks something at present, and nothing about the file."""
    return error.errno in _SHORTAGES


def require_no_shortage(error: OSError) -> None:
    """Raise an error that says nothing about the file, so that whoever reads a run's files does not judge the run by it."""
    if is_shortage(error):
        raise error


def unreadable(error: OSError) -> EvalrpcError:
    """Return what a client is told of a file that is there and can't be read."""
    name = errno.errorcode.get(error.errno or 0, "")
    what = Path(os.fsdecode(error.filename)).name if isinstance(error.filename, str | bytes) else "a file of the job"
    message = f"{ascii(what)[1:-1]} can't be read: {error.strerror} ({name})"
    metadata = {"errno": name}
    if is_shortage(error) or error.errno in _FAILING_DISK:
        return FileUnavailableError(f"{message}; try again", metadata=metadata, retry_delay_seconds=_RETRY_DELAY_SECONDS)
    todo = "; the server's account needs access to it" if error.errno in _FORBIDDEN else ""
    return FileUnreadableError(f"{message}{todo}", metadata=metadata)
