"""CommitQueue of writes: nothing is lost or reordered, many are waited for, few are not."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from clocks import ManualClock

from evalrpc.store import group_commit
from evalrpc.store.group_commit import CommitQueue

MANY = 6
FEW = 4


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    """A clock, and linger without end for a batch after one that took a minute."""
    monkeypatch.setattr(group_commit, "_MAX_LINGER_SECONDS", 60.0)
    return ManualClock()


@pytest.fixture
def taker() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def put_all(target: CommitQueue[int], *items: int) -> None:
    assert all(target.put(item) for item in items)


def take_after(target: CommitQueue[int], count: int, seconds: float, clock: ManualClock) -> None:
    """Take a batch of so many, which takes so long."""
    put_all(target, *range(count))
    assert target.take() == list(range(count))
    clock.seconds += seconds


def test_everything_is_taken_once_and_in_order(clock: ManualClock) -> None:
    queue = CommitQueue[int](clock)
    put_all(queue, 1, 2, 3)
    assert queue.take() == [1, 2, 3]
    put_all(queue, 4)
    assert queue.take() == [4]


def test_one_who_takes_waits_for_the_first(clock: ManualClock, taker: ThreadPoolExecutor) -> None:
    queue = CommitQueue[int](clock)
    taken: Future[list[int]] = taker.submit(queue.take)
    put_all(queue, 1)
    assert taken.result() == [1]


def test_after_many_as_many_are_waited_for(clock: ManualClock, taker: ThreadPoolExecutor) -> None:
    queue = CommitQueue[int](clock)
    take_after(queue, MANY, 60, clock)
    taken: Future[list[int]] = taker.submit(queue.take)
    put_all(queue, *range(MANY))
    assert taken.result() == list(range(MANY))


def test_after_few_nothing_is_waited_for(clock: ManualClock) -> None:
    queue = CommitQueue[int](clock)
    take_after(queue, FEW, 60, clock)
    put_all(queue, 1)
    assert queue.take() == [1]


def test_no_longer_is_waited_than_the_last_batch_allows(clock: ManualClock) -> None:
    queue = CommitQueue[int](clock)
    take_after(queue, MANY, 0, clock)
    put_all(queue, 1)
    assert queue.take() == [1]


def test_what_comes_before_the_close_is_taken_and_nothing_after(clock: ManualClock) -> None:
    queue = CommitQueue[int](clock)
    put_all(queue, 1)
    queue.close()
    assert not queue.put(2)
    assert queue.take() == [1]
    assert queue.take() == []
    assert queue.take() == []


def test_a_close_ends_every_wait(clock: ManualClock, taker: ThreadPoolExecutor) -> None:
    queue = CommitQueue[int](clock)
    take_after(queue, MANY, 60, clock)
    put_all(queue, 1)
    taken: Future[list[int]] = taker.submit(queue.take)
    queue.close()
    assert taken.result() == [1]


def test_many_threads_lose_nothing(taker: ThreadPoolExecutor) -> None:
    queue = CommitQueue[int](ManualClock())
    threads = [threading.Thread(target=put_all, args=(queue, *range(first, 400, 4))) for first in range(4)]
    taken: Future[list[int]] = taker.submit(lambda: [item for batch in iter(queue.take, []) for item in batch])
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    queue.close()
    items = taken.result()
    assert sorted(items) == list(range(400))
    assert all([item for item in items if item % 4 == first] == list(range(first, 400, 4)) for first in range(4))
