"""The log of an engine, which may run for weeks: past a bound only its end is kept."""

import os
from pathlib import Path
from typing import Final

from evalrpc.files.opening import open_to_overwrite

_KEPT_BYTES: Final = 1024 * 1024


def bound_log(path: Path, max_bytes: int) -> None:
    """Cut a log that has more bytes than that to its last lines, below one that says so. 0: any number. A line that is written
    at the same moment may be lost. Raises OSError."""
    with open_to_overwrite(path) as log:
        size = os.fstat(log).st_size if log is not None else 0
        if log is None or not 0 < max_bytes < size:
            return
        kept_bytes = min(_KEPT_BYTES, max_bytes // 2)
        kept = os.pread(log, kept_bytes, size - kept_bytes)
        lines = kept[kept.find(b"\n") + 1 :]
        note = f"evalrpc: {size - len(lines)} bytes were dropped, since the log had more than {max_bytes} (max_log_bytes)\n"
        os.ftruncate(log, 0)  # the engine appends
        os.pwrite(log, note.encode() + lines, 0)
