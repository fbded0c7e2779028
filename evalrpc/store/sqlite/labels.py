"""The labels of a job that is in the database already."""

import sqlite3
from collections.abc import Mapping
from typing import Final

from evalrpc.store.sqlite.bitmap_index import block_of

_MARK: Final = "INSERT INTO label_changes VALUES (?, 1) ON CONFLICT (block) DO UPDATE SET changes = changes + 1"


def relabel(connection: sqlite3.Connection, sequence: int, before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """Replace the labels of a job, whose rows have been written. Its block is marked, so that the next reader does not find it
    in the bitmaps of before. Raises sqlite3.Error."""
    gone = [(label, sequence) for label in before if label not in after]
    new = [(label, sequence, value) for label, value in after.items() if label not in before or before[label] != value]
    if gone or new:
        connection.executemany("DELETE FROM job_labels WHERE label = ? AND sequence = ?", gone)
        connection.executemany("INSERT OR REPLACE INTO job_labels (label, sequence, value) VALUES (?, ?, ?)", new)
        connection.execute(_MARK, (block_of(sequence),))
