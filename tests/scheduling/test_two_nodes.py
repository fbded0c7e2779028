"""The scheduler where there are two nodes: `a` with four GPUs and `b` with two."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from scheduler_house import FAILED, RUNNING, House
from waiting import eventually

from evalrpc.errors import RunFailedError
from evalrpc.scheduling import scheduler
from evalrpc.testing.executor import TWO_NODES, FakeExecutor, FakeRun


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path, FakeExecutor(TWO_NODES))
    house.scheduler.start()
    yield house
    house.close()


def started(house: House, num_gpus: int) -> FakeRun:
    return house.wait_until_running(house.submit(num_gpus))


def reason(house: House, job_id: str) -> str:
    return house.queue_state.described(house.job(job_id)).wait_reason


def test_a_job_never_spans_nodes_and_waits_for_gpus_of_one(house: House) -> None:
    first = started(house, 3)
    waiting = house.submit(3)
    assert first.devices == ("a0", "a1", "a2")
    assert reason(house, waiting) == "needs 3 GPUs on one node, at most 2 free on one"
    first.finish()
    assert house.wait_until_running(waiting).devices == ("a0", "a1", "a2")


def test_the_tighter_node_is_filled_so_that_a_wide_job_finds_room(house: House) -> None:
    assert [started(house, 1).node for _ in range(2)] == ["b", "b"]
    wide = started(house, 4)
    assert (wide.node, wide.devices) == ("a", ("a0", "a1", "a2", "a3"))


def test_a_job_that_no_node_is_wide_enough_for_says_so(house: House) -> None:
    assert reason(house, house.submit(5)) == "needs 5 GPUs on one node, and no node of this server has more than 4"
    assert started(house, 1).node == "b", "it keeps nobody waiting"


def test_a_job_waits_while_gpus_are_quarantined_and_starts_when_they_come_back(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: float) -> None:
        raise RunFailedError("PROCESS_UNKILLABLE", "process 7 could not be killed")

    monkeypatch.setattr(scheduler, "_RECHECK_SECONDS", 0.001)
    run = started(house, 3)
    run.end = refuse  # type: ignore[method-assign]
    run.finish()
    house.wait_for(run.key.job_id, FAILED)
    assert sorted(house.executor.quarantined()) == ["a0", "a1", "a2"]
    waiting = house.submit(3)
    expected = "needs 3 GPUs on one node, at most 2 free on one, 3 quarantined, see GetQueue"
    assert reason(house, waiting) == expected
    assert started(house, 2).node == "b"
    house.executor.can_kill_leftovers = True
    assert house.wait_until_running(waiting).devices == ("a0", "a1", "a2")


def test_after_a_restart_each_run_is_found_on_its_node_and_its_gpus_stay_held(tmp_path: Path) -> None:
    first = House(tmp_path, FakeExecutor(TWO_NODES))
    first.scheduler.start()
    wide, narrow = started(first, 4), started(first, 1)
    first.close()
    second = House(tmp_path, first.executor)
    second.scheduler.start()
    assert started(second, 1).devices == ("b1",), "all others are held"
    assert [second.job(run.key.job_id).status for run in (wide, narrow)] == [RUNNING, RUNNING]
    wide.finish()
    second.wait_for(wide.key.job_id, FAILED)
    assert started(second, 4).devices == wide.devices
    second.close()


def test_a_run_that_was_placed_but_never_started_is_started_on_its_node_by_the_next_server(tmp_path: Path) -> None:
    first = House(tmp_path, FakeExecutor(TWO_NODES))
    first.scheduler.start()
    run = started(first, 2)
    first.close()
    first.executor.runs.clear()  # as if the server had been killed just before the start
    second = House(tmp_path, first.executor)
    second.scheduler.start()
    again = second.wait_until_running(run.key.job_id)
    assert (again.key, again.node, again.devices) == (run.key, "b", ("b0", "b1"))
    again.finish()
    eventually(second.is_empty)
    second.close()
