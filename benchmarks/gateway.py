"""The gateway of served models, beside the direct way to the same engine."""

import base64
import os
import secrets
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Final

from benchmarks.http1 import Answered, Questions, ask
from benchmarks.processes import Server, gateway_program, stub_engine, workplace
from benchmarks.report import Row, at_most, compare, figures, in_turn, ratio_at_least
from benchmarks.scale import Scale
from evalrpc.engines.gateway.contract import Engine, Replica, Route
from evalrpc.engines.gateway_client import GatewayClient

_PATH: Final = "/v1/chat/completions"
_DELAY_SECONDS: Final = 0.02
_IN_FLIGHT: Final = 32
_IMAGE_BYTES: Final = 750_000
_LARGE_SHARE: Final = 10
"""There are fewer questions with images by this factor."""

_MANY: Final = 10
"""There are more questions by this factor while memory is measured: 100,000 at full scale."""

_BEFORE: Final = b'{"model":"tiny","temperature":0,"max_tokens":16,"messages":[{"role":"user","content":"Question '
_AFTER: Final = b': what is 2 + 2? Answer with a number."}]}'
_BEFORE_IMAGE: Final = b'{"model":"tiny","temperature":0,"messages":[{"role":"user","content":[{"type":"text","text":"Image '
_NOTE: Final = f"an engine of {_DELAY_SECONDS * 1000:.0f} ms; yardstick: without the gateway"


def beside_the_direct_way(scale: Scale) -> Iterator[Row]:
    """Questions through the gateway, which records all answers, and without it."""
    with workplace() as folder, stub_engine(folder, _DELAY_SECONDS) as engine, gateway_program(folder) as gateway:
        bench = _Bench(folder, engine, gateway)
        yield from bench.rates("text", scale.calls, scale.rounds, Questions("", _BEFORE, _AFTER), 0.9)
        image = base64.b64encode(os.urandom(_IMAGE_BYTES))
        after = b'"},{"type":"image_url","image_url":{"url":"data:image/png;base64,' + image + b'"}}]}]}'
        yield from bench.rates("1 MB", scale.calls // _LARGE_SHARE, scale.rounds, Questions("", _BEFORE_IMAGE, after), 0.8)
        yield bench.memory(scale.calls * _MANY)
        yield bench.replay(scale.calls, scale.rounds)


class _Bench:
    def __init__(self, folder: Path, engine: Server, gateway: Server) -> None:
        self._folder = folder
        self._engine = engine
        self._gateway = gateway
        self._client = GatewayClient(folder)
        self._client.declare([Engine("tiny", (Replica(f"http://{engine.address}/v1"),))], [])
        self._attempts = count()
        self._numbers = count()

    def rates(self, kind: str, calls: int, rounds: int, questions: Questions, aim: float) -> Iterator[Row]:
        """How many answers come each second, and after how long."""
        token = self._route(kind)
        numbers = (range(number * calls, (number + 1) * calls) for number in self._numbers)
        sides = in_turn(
            rounds,
            lambda: self._ask(questions, next(numbers), token),
            lambda: self._ask(questions, next(numbers), None),
        )
        name = f"gateway, {kind}, {_IN_FLIGHT} in flight"
        yield compare(name, "/s", figures(sides, lambda each: each.per_second), ratio_at_least(aim), _NOTE)
        ours, direct = figures(sides, lambda each: each.p50 * 1000)
        added = sorted(a - b for a, b in zip(ours, direct, strict=True))
        bound = at_most(2.0) if kind == "text" else None
        note = f"more than without it: {min(added):.2f} to {max(added):.2f} ms"
        yield Row(f"{name}, added to the median", "ms", added[len(added) // 2], aim=bound, note=note)

    def memory(self, calls: int) -> Row:
        """How much the gateway grows while it answers many questions."""
        token = self._route("memory")
        questions = Questions("", _BEFORE, _AFTER)
        self._ask(questions, range(10**8, 10**8 + calls // _MANY), token)
        before, cpu = self._gateway.memory(), self._gateway.cpu_seconds()
        self._ask(questions, range(10**8 + calls, 10**8 + 2 * calls), token)
        cpu_milliseconds = (self._gateway.cpu_seconds() - cpu) / calls * 1000
        grown = (self._gateway.memory() - before) / 1e6
        note = f"{before / 1e6:.0f} MB before; {cpu_milliseconds:.2f} ms of a processor for each"
        return Row(f"gateway, growth over {calls:,} questions", "MB", grown, aim=at_most(4.0), note=note)

    def replay(self, calls: int, rounds: int) -> Row:
        """How many recorded answers come each second."""
        questions = Questions("", _BEFORE, _AFTER)
        recorded = range(10**8 + 2 * calls, 10**8 + 3 * calls)
        self._ask(questions, recorded, self._route("replay"))
        rates = sorted(self._ask(questions, recorded, self._route("replay")).per_second for _ in range(rounds))
        note = f"{rates[0]:,.0f} to {rates[-1]:,.0f}"
        return Row(
            "gateway, replay",
            "/s",
            rates[len(rates) // 2],
            yardstick=2000.0,
            ratio=rates[len(rates) // 2] / 2000.0,
            aim=ratio_at_least(1.0),
            note=note,
        )

    def _ask(self, questions: Questions, numbers: range, token: str | None) -> Answered:
        server, path = (self._engine, _PATH) if token is None else (self._gateway, f"/j/{token}{_PATH}")
        return ask(server.address, Questions(path, questions.before, questions.after), numbers, _IN_FLIGHT)

    def _route(self, recording: str) -> str:
        """Begin an attempt, and return its token."""
        token = secrets.token_urlsafe(24)
        attempt = str(next(self._attempts))
        self._client.put_route(Route(token, "tiny", attempt=attempt, recording=str(self._folder / f"{recording}.sqlite3")))
        return token
