"""Owners take turns, whoever leaves takes nothing with it, and no turn is lost."""

import asyncio
from collections.abc import Awaitable, Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from evalrpc.reading.turns import Turns


class Crowd:
    """Callers that have their turn until they are told to end."""

    def __init__(self, max_count: int) -> None:
        self.turns = Turns(max_count)
        self.served: list[str] = []
        self.working: list[tuple[str, asyncio.Event]] = []

    async def call(self, owner: str, name: str) -> None:
        async with self.turns.turn(owner):
            end = asyncio.Event()
            self.served.append(name)
            self.working.append((name, end))
            try:
                await end.wait()
            finally:
                self.working.remove((name, end))

    def come(self, *names: str) -> list[asyncio.Task[None]]:
        """Let callers come, each with its owner's letter before its number."""
        return [asyncio.ensure_future(self.call(name[0], name)) for name in names]

    async def settle(self) -> None:
        """Let all go on that can."""
        for _ in range(10):
            await asyncio.sleep(0)

    async def end_all(self) -> None:
        await self.settle()
        while self.working:
            self.working[0][1].set()
            await self.settle()


def run(scene: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scene())  # type: ignore[arg-type]


def test_owners_take_turns_however_many_calls_one_has_made_before() -> None:
    async def scene() -> None:
        crowd = Crowd(2)
        crowd.come("a1", "a2", "a3", "a4", "a5", "b1", "c1", "b2")
        await crowd.settle()
        assert crowd.served == ["a1", "a2"]
        await crowd.end_all()
        assert crowd.served == ["a1", "a2", "a3", "b1", "c1", "a4", "b2", "a5"]

    run(scene)


def test_whoever_leaves_while_it_waits_has_no_turn_and_one_that_has_leaves_it_to_others() -> None:
    async def scene() -> None:
        crowd = Crowd(1)
        first, second, third, _ = crowd.come("a1", "a2", "a3", "a4")
        await crowd.settle()
        second.cancel()
        first.cancel()
        await crowd.settle()
        assert crowd.served == ["a1", "a3"]
        crowd.working[-1][1].set()
        await asyncio.sleep(0)  # a3 ends, and a4 has its turn, but does not know yet
        third.cancel()
        await crowd.end_all()
        assert crowd.served == ["a1", "a3", "a4"]

    run(scene)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["stays", "leaves at once", "leaves later"])), max_size=12))
def test_no_turn_is_lost_whoever_comes_and_leaves(callers: list[tuple[str, str]]) -> None:
    async def scene() -> None:
        crowd = Crowd(2)
        tasks = crowd.come(*(f"{owner}{number}" for number, (owner, _) in enumerate(callers)))
        for when in ("leaves at once", "leaves later"):
            for task, (_, what) in zip(tasks, callers, strict=True):
                if what == when:
                    task.cancel()
            if crowd.working:
                crowd.working[0][1].set()
            await asyncio.sleep(0)
        await crowd.end_all()
        await asyncio.wait(tasks) if tasks else None
        crowd.come("z1", "z2", "z3")
        await crowd.settle()
        assert len(crowd.working) == 2
        await crowd.end_all()
        assert crowd.served[-3:] == ["z1", "z2", "z3"]

    run(scene)
