"""What the service asks to trace submissions. Without traces no object is made for one."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from evalrpc.server.call import Call

TraceSubmission = Callable[[str, Call], AbstractContextManager[str]]
"""Traces the call of a method while it is made. Gives what its jobs have as `traceparent`."""

_UNTRACED: Final = nullcontext("")


def untraced(method: str, call: Call) -> AbstractContextManager[str]:  # noqa: ARG001 - the shape of TraceSubmission
    """Trace nothing."""
    return _UNTRACED
