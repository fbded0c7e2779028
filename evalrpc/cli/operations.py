"""What operators do by hand: `evalrpc pause`, `resume`, `cordon` and `uncordon`."""

import click

from evalrpc.cli.connection import address_option, connect
from evalrpc.cli.output import print_line


@click.command(short_help="Start no queued job for now (operators).")
@address_option
def pause_command(address: str | None) -> None:
    """Start no queued job until `evalrpc resume`, also after a restart. Running jobs go on. Only operators may do this."""
    with connect(address) as client:
        client.pause_queue()
    print_line("the queue is paused: running jobs go on, and no other starts")


@click.command(short_help="Start queued jobs again (operators).")
@address_option
def resume_command(address: str | None) -> None:
    """Start queued jobs again. Only operators may do this."""
    with connect(address) as client:
        client.resume_queue()
    print_line("the queue is not paused")


@click.command(short_help="Assign a GPU to no further job (operators).")
@click.argument("gpu")
@address_option
def cordon_command(gpu: str, address: str | None) -> None:
    """Assign a GPU to no further job until `evalrpc uncordon`, also after a restart. The job that holds it goes on.

    Only operators may do this. `evalrpc queue` shows the GPUs.
    """
    with connect(address) as client:
        client.cordon_gpu(gpu)
    print_line(f"GPU {gpu} is cordoned: no further job gets it")


@click.command(short_help="Assign a GPU to jobs again (operators).")
@click.argument("gpu")
@address_option
def uncordon_command(gpu: str, address: str | None) -> None:
    """Assign a GPU to jobs again. Only operators may do this."""
    with connect(address) as client:
        client.uncordon_gpu(gpu)
    print_line(f"GPU {gpu} is not cordoned")
