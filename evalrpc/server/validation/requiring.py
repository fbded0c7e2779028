"""Refuse a request for what is wrong with it."""

from collections.abc import Iterable
from itertools import chain

from evalrpc.errors import FieldViolation, InvalidRequestError
from evalrpc.server.validation import fields


def require(violations: Iterable[FieldViolation]) -> None:
    """Raise InvalidRequestError with all violations, if there are any."""
    found = tuple(violations)
    if found:
        raise InvalidRequestError(violations=found)


def require_job_id(job_id: str, *others: Iterable[FieldViolation]) -> str:
    """Return the id in its canonical form. Raises InvalidRequestError, with what is wrong in other fields too, unless it is a
    UUID and nothing else is wrong."""
    require(chain(fields.job_id("job_id", job_id), *others))
    return job_id.lower()


def page_size_of(page_size: int, default: int, maximum: int) -> int:
    """Return the page size to use for one that is not negative."""
    return min(page_size or default, maximum)
