"""Submissions and results that are as large as they may be, and pages of what they come to."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from serving import Site, submission

from evalrpc.jobs.size_limits import MAX_ARGS_BYTES, MAX_PAGE_BYTES
from evalrpc.v1 import jobs_pb2 as pb

STAMP = "20260101_000000"


def prepare(site: Site, document: object, samples: dict[str, str] | None = None, model: str = "toy") -> None:
    """Prepare what the next run with the model `prepared` leaves."""
    folder = site.toy_dir / "prepared" / model
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{STAMP}_results.json").write_text(json.dumps(document))
    for task, text in (samples or {}).items():
        (folder / f"{STAMP}_samples_{task}.jsonl").write_text(text)


def table(count: int) -> dict[str, Any]:
    """A document with so many metrics, of a task each."""
    return {"results": {f"task {number:06}": {"acc,none": number / 2} for number in range(count)}}


def wide(count: int) -> dict[str, Any]:
    """A document with so many metrics, each of 280 bytes as a message: a small file, and more than a job carries."""
    return {"results": {"t" * 255: {f"m{number:06}": number for number in range(count)}}}


def pages(call: Callable[..., Any], **fields: Any) -> Iterator[Any]:
    """Yield all pages of a listing."""
    token = ""
    while True:
        page = call(page_token=token, **fields)
        assert page.ByteSize() <= MAX_PAGE_BYTES + 8192, "the token comes on top"
        yield page
        token = page.next_page_token
        if not token:
            return


def largest_submission(**fields: Any) -> pb.SubmitJobRequest:
    """A submission of which every part is as large as it may be."""
    names = [f"{number:03}" + "t" * 119 for number in range(1000)]
    call = submission(
        "prepared",
        labels={f"{number:02}" + "k" * 61: "😀" * 255 for number in range(64)},
        supersede_key="😀" * 255,
        request_id="r" * 128,
        max_attempts=10,
        **fields,
    )
    call.request.tasks[:] = names
    for struct in (call.request.model_args, call.request.gen_kwargs, call.request.task_args):
        struct["text"] = ""
        struct["text"] = "x" * (MAX_ARGS_BYTES - struct.ByteSize() - 9)
        struct["text"] += "x" * (MAX_ARGS_BYTES - struct.ByteSize())
        assert struct.ByteSize() == MAX_ARGS_BYTES
    return call
