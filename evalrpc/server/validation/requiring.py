"""Refuse a request for what is wrong with it."""

from collections.abc import Iterable

from evalrpc.errors import FieldViolation, InvalidRequestError
from evalrpc.server.validation import fields


def require(violations: Iterable[FieldViolation]) -> None:
    """Raise InvalidRequestError with all violations, if there are any."""
    found = tuple(violations)
    if found:
        raise InvalidRequestError(violations=found)


def require_job_id(job_id: str) -> str:
    """Return the id in its canonical form. Raises InvalidRequestError unless it is a UUID."""
    require(fields.job_id("job_id", job_id))
    return job_id.lower()


def require_page_size(page_size: int, default: int, maximum: int) -> int:
    """Return the page size to use. Raises InvalidRequestError if it is negative."""
    require(fields.not_negative("page_size", page_size))
    return min(page_size or default, maximum)
