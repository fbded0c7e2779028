"""The engines that an earlier server has left, as their folders tell."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from evalrpc.config import EngineSettings
from evalrpc.engines.definition import EngineDefinition
from evalrpc.engines.engine import Engine, EngineDependencies, remembered
from evalrpc.errors import RunFailedError
from evalrpc.executors.base import Resources, RunAccount, RunKey
from evalrpc.files.trees import remove_tree
from evalrpc.v1.jobs_pb2 import ServedModel

_log = logging.getLogger(__name__)

AccountOf = Callable[[str], RunAccount | None]
"""Gives the account of an owner's runs."""


def restored_engines(
    folder: Path, dependencies: EngineDependencies, definitions: Mapping[str, EngineDefinition], account_of: AccountOf
) -> Iterator[Engine]:
    """Yield the engines that had not ended, replicas last, none of them begun. Raises OSError."""
    engines: dict[str, Engine] = {}
    for each, facts in _remembered(folder):
        beside = engines.get(str(facts.get("replica_of", "")))
        try:
            engine = _restored(each, facts, dependencies, definitions, account_of, beside)
        except (KeyError, TypeError, ValueError, json_format.ParseError) as error:
            _log.warning("the engine of an earlier server can't be taken up: %s", error, extra={"engine_id": each.name})
            continue
        engines[engine.engine_id] = engine
        yield engine


def end_engines(folder: Path, dependencies: EngineDependencies, account_of: AccountOf) -> None:
    """End the engines of a server that was alone on this machine, whose jobs get others. Raises OSError."""
    for left, facts in _remembered(folder):
        number = int(facts["start_count"])
        key = RunKey(left.name, number, left / f"start-{number}", (), account_of(str(facts["owner"])))
        if (handle := dependencies.executor.find(key)) is not None:
            with closing(handle), suppress(RunFailedError):  # which can't be ended, so its GPUs show that they are in use
                handle.end(dependencies.grace_seconds)
        remove_tree(left)


def _remembered(folder: Path) -> list[tuple[Path, Mapping[str, Any]]]:
    """Return what earlier servers have written down of engines that had not ended, replicas last. Raises OSError."""
    found: list[tuple[Path, Mapping[str, Any]]] = []
    for each in sorted(folder.glob("engine-*")):
        if (facts := remembered(each)) is not None:
            found.append((each, facts))
        else:
            remove_tree(each)
    return sorted(found, key=lambda each: bool(each[1].get("replica_of")))


def _restored(
    folder: Path,
    facts: Mapping[str, Any],
    dependencies: EngineDependencies,
    definitions: Mapping[str, EngineDefinition],
    account_of: AccountOf,
    beside: Engine | None,
) -> Engine:
    served = json_format.ParseDict(facts["served_model"], ServedModel())
    is_configured, owner = served.engine in definitions, str(facts["owner"])
    engine = Engine(
        dependencies,
        folder.name,
        str(facts["identity"]),
        folder,
        Resources(str(facts["node"]), tuple(facts["devices"])),
        definitions[served.engine] if is_configured else EngineDefinition(EngineSettings(served.engine, ())),
        served,
        account_of(owner),
        owner,
        str(facts["fingerprint"]),
        start_count=int(facts["start_count"]),
        restart_count=int(facts["restart_count"]),
        port=int(facts["port"]),
        start_seconds=facts.get("start_seconds"),
        first_job_id=str(facts.get("first_job_id", "")),
        warnings=tuple(map(str, facts.get("warnings", ()))),
        beside=beside,
        number=int(facts.get("number", 1)),
    )
    engine.started_at.FromNanoseconds(int(facts["started_ns"]))
    engine.state_since.CopyFrom(engine.started_at)
    if not is_configured:
        engine.stop_reason = "it is not configured any more"
    elif facts.get("replica_of") and beside is None:
        engine.stop_reason = "the engine beside which it answered is gone"
    return engine
