"""A call as a handler sees it, whichever transport it came through."""

from collections.abc import Callable
from enum import Enum
from typing import Final, NamedTuple

from evalrpc.server.sign_in import NOT_SIGNED_IN, SignIn
from evalrpc.watching.feed import Reserve, Send, no_reserve


class Role(Enum):
    """What a caller may do."""

    VIEWER = "viewer"
    """Reads."""
    SUBMITTER = "submitter"
    """Reads, submits, and changes its own jobs."""
    OPERATOR = "operator"
    """Everything."""


class Principal(NamedTuple):
    """Who calls."""

    owner: str
    """Whom the jobs that it submits belong to. Empty: nobody has signed in."""
    role: Role
    sign_in: SignIn = NOT_SIGNED_IN
    """How it has signed in. Its streams end with it."""


ANONYMOUS: Final = Principal("", Role.SUBMITTER)
"""Whoever calls a server that asks nobody who they are."""


class Call(NamedTuple):
    """Who calls, and where the messages of a streaming answer go."""

    principal: Principal
    send: Send
    """Sends one serialised message, and returns when the transport has taken it. Not used by unary calls."""
    reserve: Reserve = no_reserve
    """Takes room for the next message, of up to so many bytes, before it is made. For streams of large ones."""
    header: Callable[[str], str] = lambda _: ""
    """Returns what the client sent beside the message under a name in lower case; empty if nothing."""
    peer: Callable[[], str] = str
    """Names the other end of the connection as gRPC does, such as `ipv4:10.0.0.7:50123`; empty within the process."""
