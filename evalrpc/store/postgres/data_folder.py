"""Which data folder belongs to a database: the files of its jobs are there, and those of no others."""

import uuid
from pathlib import Path

from evalrpc.errors import ConfigurationError
from evalrpc.files.private import create_private_file
from evalrpc.store.lock import STORE_ID_NAME
from evalrpc.store.postgres.connecting import Connection


def require_same_folder(connection: Connection, data_dir: Path) -> None:
    """Note in a new database which folder is its own. Raises ConfigurationError if it has another one, psycopg.Error."""
    try:
        known = _id_of(data_dir)
        with connection.transaction():
            (row,) = connection.execute("SELECT data_id FROM head FOR UPDATE").fetchall()
            if not row[0]:
                known = known or _new_id(data_dir)
                connection.execute("UPDATE head SET data_id = %s", (known,))
            elif row[0] != known:
                raise ConfigurationError(
                    f"setting store: this database belongs to another data folder than {data_dir} (its {STORE_ID_NAME} says "
                    f"{known or 'nothing'}): set data_dir to that folder, or take an empty database"
                )
    except OSError as error:
        raise ConfigurationError(f"setting data_dir: {data_dir} can't be used: {error.strerror}") from error


def _id_of(data_dir: Path) -> str:
    path = data_dir / STORE_ID_NAME
    return path.read_text().strip() if path.exists() else ""


def _new_id(data_dir: Path) -> str:
    made = str(uuid.uuid4())
    with create_private_file(data_dir / STORE_ID_NAME) as file:
        file.write(f"{made}\n".encode())
    return made
