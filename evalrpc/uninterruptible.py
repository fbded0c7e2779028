"""Waiting for work that can't be interrupted, as a thread at work can't."""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import TypeVar

_T = TypeVar("_T")


async def uninterruptible(work: Awaitable[_T]) -> _T:
    """Return what comes of some work, or raise what it raises. Whoever is cancelled meanwhile leaves only when it is over."""
    working = asyncio.ensure_future(work)
    working.add_done_callback(_take_note)
    try:
        return await asyncio.shield(working)
    finally:
        while not working.done():
            with suppress(asyncio.CancelledError):  # it comes out of here once the work is over
                await asyncio.wait([working])


def _take_note(done: asyncio.Future[_T]) -> None:
    """Ask for the error, if there is one: after a cancel nobody else does, and then asyncio would log it as a bug."""
    if not done.cancelled():
        done.exception()
