"""The labels of jobs, as they are searched for."""

import sqlite3
from collections.abc import Mapping


def relabel(connection: sqlite3.Connection, sequence: int, before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """Change the labels of a job that has been written. Raises sqlite3.Error."""
    gone, new = before.items() - after.items(), after.items() - before.items()
    connection.executemany(
        "DELETE FROM job_labels WHERE label = ? AND value = ? AND sequence = ?", [(*label, sequence) for label in gone]
    )
    connection.executemany(
        "INSERT INTO job_labels (label, value, sequence) VALUES (?, ?, ?)", [(*label, sequence) for label in new]
    )
