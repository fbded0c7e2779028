"""What PostgreSQL can't keep as text."""

from collections.abc import Iterable


def storable(texts: Iterable[str]) -> list[str]:
    """Return the texts that a column may have, since nothing is equal to the others: those with a zero character."""
    return [text for text in texts if "\0" not in text]
