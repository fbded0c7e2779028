"""How much of a journal is dropped at a time, so that no write waits long for it."""

from typing import Final

CHUNK_REVISIONS: Final = 5_000
CHUNK_BYTES: Final = 4 * 1024 * 1024
