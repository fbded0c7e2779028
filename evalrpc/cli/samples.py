"""The commands that read the samples of a job, and what these refer to."""

import json
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import click

from evalrpc.cli.connection import SLOW_CALL_SECONDS, client_options, connect
from evalrpc.cli.exit_codes import ExitCode, fail
from evalrpc.cli.job_ids import job_argument, resolve
from evalrpc.cli.output import print_json_line, print_json_text, print_line, warn_of_cut_rows
from evalrpc.client import values
from evalrpc.protobuf.file_names import medium_name
from evalrpc.v1.samples_pb2 import ReadSampleMediaResponse, SampleFilter


@click.command(short_help="Print the predictions of a job.")
@job_argument()
@click.option("--model", default="", metavar="NAME", help="Print those of this model of the results. Default: the only one.")
@click.option("--task", default="", metavar="NAME", help="Print those of this task. Default: the only one.")
@click.option("--limit", type=click.IntRange(0), default=0, metavar="N", help="Print at most this many. Default: all.")
@click.option("--text", default="", metavar="TEXT", help="Print only those that contain this text anywhere, in any case.")
@click.option(
    "--metric", default="", metavar="NAME", help="Print only those with a value of this metric, METRIC or METRIC,FILTER."
)
@click.option("--min", "least", type=float, metavar="NUMBER", help="Print only those whose value of --metric is at least this.")
@click.option("--max", "most", type=float, metavar="NUMBER", help="Print only those whose value of --metric is at most this.")
@click.option("--id", "ids", multiple=True, metavar="ID", help="Print only the sample with this id. May be repeated.")
@client_options
def samples_command(
    job_id: str,
    model: str,
    task: str,
    limit: int,
    text: str,
    metric: str,
    least: float | None,
    most: float | None,
    ids: tuple[str, ...],
    address: str | None,
    as_json: bool,
) -> None:
    """Print the prediction for each sample, one JSON object per line with or without --json."""
    del as_json
    with connect(address) as client:
        wanted = values.build(SampleFilter, text=text, metric=metric, min_value=least, max_value=most, sample_ids=ids)
        warn = partial(warn_of_cut_rows, 2)
        samples = client.samples(
            *(resolve(client, job_id), model, task, min(limit, 1000)),
            filter=wanted if wanted.ByteSize() else None,
            on_truncated=warn,
        )
        for row in islice(samples, limit or None):
            print_json_text(json.dumps(row, ensure_ascii=False, sort_keys=True))


@click.command(short_help="Download the images, sounds and videos of a sample.")
@job_argument()
@click.argument("sample_id", metavar="SAMPLE")
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--model", default="", metavar="NAME", help="The model of the results. Default: the only one.")
@click.option("--task", default="", metavar="NAME", help="The task. Default: the only one.")
@client_options
def media_command(
    job_id: str, sample_id: str, directory: Path, model: str, task: str, address: str | None, as_json: bool
) -> None:
    """Download the images, sounds and videos that a sample refers to, or that its document shows, and print their paths.
    SAMPLE is its doc_id.

    One that can't be had is named on stderr with the reason, and the command exits with 1.
    """
    directory.mkdir(parents=True, exist_ok=True)
    problems: list[str] = []
    with connect(address, SLOW_CALL_SECONDS) as client:
        pieces = client.read_sample_media(resolve(client, job_id), sample_id, model, task)
        for medium, path in _written(pieces, directory):
            if medium.problem:
                problems.append(f"{medium.index} is missing: {medium.source or path.name}: {medium.problem}")
            elif as_json:
                print_json_line(medium)
            else:
                print_line(str(path))
    if problems:
        fail(ExitCode.NOT_PASSED, *problems)


def _written(pieces: Iterable[ReadSampleMediaResponse], directory: Path) -> Iterator[tuple[ReadSampleMediaResponse, Path]]:
    """Write media into files, named by their number and type, and yield each once it is whole, without its bytes."""
    first, path = ReadSampleMediaResponse(), directory
    for piece in pieces:
        if not piece.offset:
            first, path = piece, directory / medium_name(piece.index, piece.media_type)
        if not piece.problem:
            with path.open("ab" if piece.offset else "wb") as file:
                file.write(piece.data)
        if piece.problem or piece.offset + len(piece.data) >= piece.size_bytes:
            first.problem, first.data = piece.problem, b""
            yield first, path
