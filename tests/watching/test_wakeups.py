"""Waiting for news and for heartbeats, with the time that a test sets."""

import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest

from evalrpc.watching.wakeups import DEFAULT_HEARTBEAT_SECONDS, Heartbeat, Waiters, default_interval


class ManualLoop:
    """The part of an event loop that a heartbeat uses."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[..., None]]] = []
        self.cancelled = 0

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[..., None]) -> "ManualLoop":
        self.timers.append((when, callback))
        return self

    def cancel(self) -> None:
        self.cancelled += 1

    def fire(self) -> None:
        """Move the time to the timer's, and call it."""
        self.now, callback = self.timers.pop()
        callback()


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> ManualLoop:
    loop = ManualLoop()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    return loop


def test_by_default_each_interval_is_random_and_at_most_20_seconds() -> None:
    intervals = [default_interval() for _ in range(1000)]
    assert DEFAULT_HEARTBEAT_SECONDS == 20
    assert max(intervals) <= 20
    assert min(intervals) >= 15
    assert len(set(intervals)) > 900


def test_each_interval_is_asked_for_anew(loop: ManualLoop) -> None:
    intervals = iter([3.0, 5.0, 7.0])
    heartbeat = Heartbeat(lambda: next(intervals))
    assert heartbeat.seconds_left() == 3
    loop.now = 2.0
    heartbeat.sent()
    assert heartbeat.seconds_left() == 5
    loop.now = 7.0
    assert heartbeat.is_due()
    heartbeat.sent()
    assert (heartbeat.seconds_left(), heartbeat.is_due()) == (7, False)


def test_no_heartbeats_are_never_due(loop: ManualLoop) -> None:
    heartbeat = Heartbeat(None)
    loop.now = 1e9
    heartbeat.sent()
    assert heartbeat.seconds_left() == math.inf
    assert not heartbeat.is_due()


def run(scenario: Callable[[], Any]) -> None:
    async def main() -> None:
        await scenario()

    asyncio.run(main())


def waiting(heartbeat: Heartbeat, waiters: Waiters) -> "asyncio.Task[None]":
    return asyncio.get_running_loop().create_task(heartbeat.wait(waiters))


def test_who_waits_wakes_for_news_and_for_a_heartbeat_that_is_due() -> None:
    async def scenario() -> None:
        loop, waiters = ManualLoop(), Waiters()
        with Heartbeat(lambda: 20.0) as heartbeat:
            heartbeat._loop = loop  # type: ignore[assignment]
            heartbeat.sent()
            for wake in (waiters.wake, loop.fire):
                task = waiting(heartbeat, waiters)
                await asyncio.sleep(0)
                assert not task.done()
                wake()
                await task
            assert heartbeat.is_due()
        assert not waiters.futures

    run(scenario)


def test_a_timer_is_set_once_however_often_something_is_sent_and_anew_when_it_fires_too_early() -> None:
    async def scenario() -> None:
        loop, waiters = ManualLoop(), Waiters()
        with Heartbeat(lambda: 20.0) as heartbeat:
            heartbeat._loop = loop  # type: ignore[assignment]
            heartbeat.sent()
            for second in range(1, 11):
                task = waiting(heartbeat, waiters)
                await asyncio.sleep(0)
                waiters.wake()
                await task
                loop.now = float(second)
                heartbeat.sent()
            assert [when for when, _ in loop.timers] == [20]
            task = waiting(heartbeat, waiters)
            await asyncio.sleep(0)
            loop.fire()
            await asyncio.sleep(0)
            assert not task.done(), "the last message was sent 10 seconds ago"
            assert [when for when, _ in loop.timers] == [30]
            loop.fire()
            await task
            assert heartbeat.is_due()

    run(scenario)


def test_who_leaves_cancels_the_timer_and_is_not_waited_for() -> None:
    async def scenario() -> None:
        loop, waiters = ManualLoop(), Waiters()
        with Heartbeat(lambda: 20.0) as heartbeat:
            heartbeat._loop = loop  # type: ignore[assignment]
            heartbeat.sent()
            task = waiting(heartbeat, waiters)
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        assert loop.cancelled == 1
        assert not waiters.futures

    run(scenario)
