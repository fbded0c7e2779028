"""Request ids are UUIDs of version 7, which sort by time."""

import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from itertools import count
from operator import and_, or_

import pytest

from evalrpc.client import core
from evalrpc.client.request_ids import new_request_id

MILLISECOND_NS = 1_000_000
EXAMPLE = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"
"""The example of RFC 9562, appendix A.6."""
EXAMPLE_NS = 0x017F22E279B0 * MILLISECOND_NS


@pytest.mark.parametrize("overwritten", ["0cc3 18c4", "fcc3 d8c4"], ids=["zeros", "ones"])
def test_an_id_is_laid_out_as_in_the_example_of_the_rfc(overwritten: str, monkeypatch: pytest.MonkeyPatch) -> None:
    random = bytes.fromhex(f"{overwritten} dc0c 0c07 398f")
    monkeypatch.setattr(os, "urandom", lambda size: random[:size])

    assert new_request_id(lambda: EXAMPLE_NS + MILLISECOND_NS - 1) == EXAMPLE


def test_every_random_bit_is_used() -> None:
    ids = [uuid.UUID(new_request_id(lambda: 0)).int for _ in range(1000)]

    varying = reduce(or_, ids) ^ reduce(and_, ids)
    assert varying.bit_count() == 74


def test_ids_sort_by_time() -> None:
    times_ns = count(EXAMPLE_NS, MILLISECOND_NS)

    ids = [new_request_id(lambda: next(times_ns)) for _ in range(1000)]

    assert ids == sorted(ids)


def test_ids_of_one_millisecond_differ_also_across_threads() -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(lambda _: new_request_id(lambda: EXAMPLE_NS), range(20_000)))

    assert len(ids) == 20_000


def test_a_submission_without_an_id_gets_one_of_these() -> None:
    made = uuid.UUID(core.submit_request(core.evaluate_request("m", ["t"])).request_id)

    assert (made.version, made.variant) == (7, uuid.RFC_4122)
