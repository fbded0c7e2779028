"""The table of what may follow what."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalrpc.errors import IllegalTransitionError
from evalrpc.jobs import lifecycle
from evalrpc.v1 import jobs_pb2 as pb

ALL = tuple(pb.JobStatus.values())
PAIRS = [(before, after) for before in ALL for after in ALL]

ALLOWED = {
    ("UNSPECIFIED", "QUEUED"),
    ("UNSPECIFIED", "COMPLETED"),
    ("QUEUED", "RUNNING"),
    ("QUEUED", "CANCELLED"),
    ("QUEUED", "FAILED"),
    ("QUEUED", "COMPLETED"),
    ("RUNNING", "QUEUED"),
    ("RUNNING", "COMPLETED"),
    ("RUNNING", "FAILED"),
    ("RUNNING", "CANCELLED"),
}


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_a_pair_is_allowed_exactly_if_the_contract_has_it(before: int, after: int) -> None:
    names = (lifecycle.status_name(before), lifecycle.status_name(after))
    if names in ALLOWED:
        lifecycle.require_transition(before, after)
    else:
        with pytest.raises(IllegalTransitionError) as caught:
            lifecycle.require_transition(before, after)
        assert names[0] in str(caught.value)
        assert names[1] in str(caught.value)
        assert caught.value.code == "FAILED_PRECONDITION"


@pytest.mark.parametrize("status", ALL)
def test_a_status_is_terminal_exactly_if_nothing_follows_it(status: int) -> None:
    followed = any(before == status for before, _ in lifecycle.TRANSITIONS)
    assert (status in lifecycle.TERMINAL) == (not followed)


def test_every_status_but_the_unspecified_is_live_or_terminal_and_never_both() -> None:
    assert set(ALL) - {pb.JOB_STATUS_UNSPECIFIED} == lifecycle.LIVE | lifecycle.TERMINAL
    assert not lifecycle.LIVE & lifecycle.TERMINAL


def test_every_status_can_be_reached_from_a_submission() -> None:
    reached = {pb.JOB_STATUS_UNSPECIFIED}
    while grown := {after for before, after in lifecycle.TRANSITIONS if before in reached} - reached:
        reached |= grown
    assert reached == set(ALL)


@settings(deadline=None)
@given(st.lists(st.sampled_from(ALL), max_size=20))
def test_no_walk_ever_leaves_a_terminal_status(walk: list[int]) -> None:
    status = pb.JOB_STATUS_UNSPECIFIED
    for wanted in walk:
        try:
            lifecycle.require_transition(status, wanted)
        except IllegalTransitionError:
            continue
        assert status not in lifecycle.TERMINAL
        status = wanted


@settings(deadline=None)
@given(st.integers(min_value=-(2**31), max_value=2**31 - 1))
def test_a_status_of_a_later_version_has_a_name_and_no_transition(status: int) -> None:
    name = lifecycle.status_name(status)
    assert name
    if status not in ALL:
        assert name == str(status)
        with pytest.raises(IllegalTransitionError):
            lifecycle.require_transition(pb.JOB_STATUS_QUEUED, status)
