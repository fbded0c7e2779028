"""The commands that show what a server offers."""

from collections.abc import Iterable

import click

from evalrpc.cli import wording
from evalrpc.cli.connection import SLOW_CALL_SECONDS, client_options, connect
from evalrpc.cli.output import print_json, print_table
from evalrpc.v1.catalog_pb2 import GetServerInfoResponse, ListHarnessesResponse, ListModelsResponse, ListTasksResponse


@click.command()
@click.argument("query", default="")
@click.option("--harness", default="", help="The harness. Default: the server's.")
@client_options
def tasks_command(query: str, harness: str, address: str | None, as_json: bool) -> None:
    """List the tasks whose names contain QUERY."""
    with connect(address, SLOW_CALL_SECONDS) as client:
        names = client.list_tasks(query, harness)
        if as_json:
            print_json(ListTasksResponse(tasks=names))
        else:
            _print_names(names)


@click.command()
@click.argument("query", default="")
@click.option("--harness", default="", help="The harness. Default: the server's.")
@client_options
def models_command(query: str, harness: str, address: str | None, as_json: bool) -> None:
    """List the model types whose names contain QUERY."""
    with connect(address, SLOW_CALL_SECONDS) as client:
        names = client.list_models(query, harness)
        if as_json:
            print_json(ListModelsResponse(models=names))
        else:
            _print_names(names)


@click.command()
@client_options
def harnesses_command(address: str | None, as_json: bool) -> None:
    """List the harnesses that are configured on the server."""
    with connect(address) as client:
        harnesses = client.list_harnesses()
    if as_json:
        print_json(ListHarnessesResponse(harnesses=harnesses))
        return
    rows = [(h.name, h.kind, h.version, "yes" if h.available else h.unavailable_reason or "no") for h in harnesses]
    print_table(("harness", "kind", "version", "available"), rows)


@click.command()
@client_options
def info_command(address: str | None, as_json: bool) -> None:
    """Show the server's version, limits and capabilities."""
    with connect(address) as client:
        info = client.get_server_info()
    if as_json:
        print_json(info)
    else:
        print_table(("server", ""), _facts(info))


def _print_names(names: Iterable[str]) -> None:
    for name in names:
        click.echo(name)


def _facts(info: GetServerInfoResponse) -> list[tuple[str, str]]:
    return [
        ("version", info.version),
        ("started", wording.time_text(info.started_at)),
        ("GPUs", str(info.gpu_count)),
        ("running at most", str(info.max_running)),
        ("queued at most", str(info.max_queued)),
        ("request at most", f"{info.max_request_bytes} bytes"),
        ("revisions", f"{info.oldest_revision} to {info.head_revision}"),
        ("capabilities", ", ".join(info.capabilities)),
    ]
