"""`evalrpc engines`: the servers that have a model loaded, and how operators end one."""

import json
from collections.abc import Iterator
from typing import Final

import click

from evalrpc.cli import wording
from evalrpc.cli.connection import client_options, connect, table_options
from evalrpc.cli.job_ids import Match, is_whole, only
from evalrpc.cli.output import Form, print_items, print_json_text, print_line
from evalrpc.cli.suggestions import SuggestingGroup
from evalrpc.cli.tables import Cell, Column, Kind
from evalrpc.client import EvalClient
from evalrpc.jobs.filters import canonical_prefix
from evalrpc.v1.engines_pb2 import Engine, EngineKind, EngineState

_PREFIX: Final = "engine-"

_COLUMNS: Final = (
    Column("name"),
    Column("state", Kind.WHOLE),
    Column("model"),
    Column("engine", Kind.WHOLE),
    Column("jobs", Kind.NUMBER),
    Column("gpus"),
    Column("since", Kind.WHOLE),
    Column("detail"),
    Column("node", only_wide=True),
    Column("owner", only_wide=True),
    Column("started", Kind.WHOLE, only_wide=True),
    Column("restarts", Kind.NUMBER, only_wide=True),
)


@click.group(cls=SuggestingGroup, invoke_without_command=True, short_help="List the engines that have a model loaded.")
@table_options
@click.pass_context
def engines_command(context: click.Context, address: str | None, form: Form) -> None:
    """List the engines that have a model loaded, the oldest first, then those that have ended lately, then what else requests
    may name: engines that have not been started, and endpoints with their models."""
    if context.invoked_subcommand is not None:
        return
    with connect(address) as client:
        found = client.list_engines()
    started = {engine.served_model.engine for engine in found.engines}
    idle = [kind for kind in found.kinds if kind.name not in started]
    print_items(form, _COLUMNS, [*map(_row, found.engines), *map(_kind_row, idle)], [*found.engines, *idle], found)


@engines_command.command("stop", short_help="End an engine (operators).")
@click.argument("engine_id", metavar="ENGINE")
@client_options
def stop_command(engine_id: str, address: str | None, as_json: bool) -> None:
    """End an engine, given by its id or the first 4 characters of its number or more; its jobs get another one. Only operators
    may do this. `evalrpc engines` shows the ids."""
    with connect(address) as client:
        engine_id = _whole_id(client, engine_id)
        client.stop_engine(engine_id)
    if as_json:
        print_json_text(json.dumps({"engine_id": engine_id}))
    else:
        print_line(f"{engine_id} is being ended")


class _Engines:
    noun, listed_by = "engine", "evalrpc engines"


def _whole_id(client: EvalClient, text: str) -> str:
    """Return the id of the engine whose id begins so, without a call if it is whole; what is no such beginning is left to the
    server. Exits with 2 if that is not one."""
    try:
        number = canonical_prefix(text.removeprefix(_PREFIX))
    except ValueError:
        number = ""
    if not number:
        return text
    if is_whole(number):
        return _PREFIX + number
    found = [each for each in client.list_engines().engines if each.engine_id.startswith(_PREFIX + number)]
    return only(_Engines(), text, [Match(each.engine_id, (_state(each), each.served_model.model)) for each in found])


def _row(engine: Engine) -> tuple[Cell, ...]:
    served = engine.served_model
    return (
        served.engine,
        _state(engine),
        served.model,
        engine.engine_id,
        engine.job_count,
        ",".join(engine.gpus),
        wording.time_text(engine.state_since),
        ", ".join(_details(engine)),
        engine.node,
        engine.owner,
        wording.time_text(engine.started_at),
        engine.restart_count,
    )


def _state(engine: Engine) -> str:
    state = engine.state
    return EngineState.Name(state).removeprefix("ENGINE_STATE_") if state in EngineState.values() else str(state)


def _details(engine: Engine) -> Iterator[str]:
    if engine.error:
        yield engine.error
    yield from engine.warnings
    if engine.replica_of:
        yield f"replica of {engine.replica_of}"
    if engine.HasField("start_duration"):
        yield f"started in {wording.duration_text(engine.start_duration)}"
    for name, value in sorted(engine.served_model.args.items()):
        yield f"{name}={value}"


def _kind_row(kind: EngineKind) -> tuple[Cell, ...]:
    state = "UNAVAILABLE" if kind.unavailable_reason else "ENDPOINT" if kind.endpoint else "NOT UP"
    detail = kind.unavailable_reason or (f"takes {', '.join(kind.args)}" if kind.args else "")
    return (kind.name, state, ", ".join(kind.models), "", None, "", "", detail, "", "", "", None)
