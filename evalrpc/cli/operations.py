"""What operators do by hand: `evalrpc pause`, `resume`, `cordon` and `uncordon`."""

import json

import click

from evalrpc.cli.connection import client_options, connect
from evalrpc.cli.output import print_json_text, print_line


@click.command(short_help="Start no queued job for now (operators).")
@client_options
def pause_command(address: str | None, as_json: bool) -> None:
    """Start no queued job until `evalrpc resume`, also after a restart. Running jobs go on. Only operators may do this."""
    with connect(address) as client:
        client.pause_queue()
    _print("the queue is paused: running jobs go on, and no other starts", as_json=as_json, paused=True)


@click.command(short_help="Start queued jobs again (operators).")
@client_options
def resume_command(address: str | None, as_json: bool) -> None:
    """Start queued jobs again. Only operators may do this."""
    with connect(address) as client:
        client.resume_queue()
    _print("the queue is not paused", as_json=as_json, paused=False)


@click.command(short_help="Assign a GPU to no further job (operators).")
@click.argument("gpu")
@client_options
def cordon_command(gpu: str, address: str | None, as_json: bool) -> None:
    """Assign a GPU to no further job until `evalrpc uncordon`, also after a restart. The job that holds it goes on.

    Only operators may do this. `evalrpc queue` shows the GPUs.
    """
    with connect(address) as client:
        client.cordon_gpu(gpu)
    _print(f"GPU {gpu} is cordoned: no further job gets it", as_json=as_json, gpu_id=gpu, cordoned=True)


@click.command(short_help="Assign a GPU to jobs again (operators).")
@click.argument("gpu")
@client_options
def uncordon_command(gpu: str, address: str | None, as_json: bool) -> None:
    """Assign a GPU to jobs again. Only operators may do this."""
    with connect(address) as client:
        client.uncordon_gpu(gpu)
    _print(f"GPU {gpu} is not cordoned", as_json=as_json, gpu_id=gpu, cordoned=False)


def _print(text: str, *, as_json: bool, **facts: str | bool) -> None:
    if as_json:
        print_json_text(json.dumps(facts))
    else:
        print_line(text)
