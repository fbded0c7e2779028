"""What the runs of each harness may take, and what is said of how that is enforced."""

import pytest

from evalrpc.config import HarnessSettings, Settings
from evalrpc.executors.base import RunLimits
from evalrpc.scheduling.run_limits import RunLimitsPolicy, describe_limits

OWN = HarnessSettings("own", "command", max_run_memory_bytes=3, max_run_processes=0)
HARNESSES = {"own": OWN, "plain": HarnessSettings("plain", "command")}
SETTINGS = Settings(max_run_memory_bytes=5, max_run_processes=6, harnesses=HARNESSES)
LIMITED = ("at most 3 bytes (own), at most 5 bytes (plain),", "not limited (own), at most 6 at once (plain),")
UNLIMITED = (
    "not limited (setting max_run_memory_bytes); a limit would be",
    "not limited (setting max_run_processes); a limit would be",
)
BY_ADDRESS_SPACE = "enforced by rlimits (address space of each process)"


def test_what_a_harness_says_wins_over_the_server_and_0_is_no_limit() -> None:
    policy = RunLimitsPolicy(SETTINGS)
    assert (policy.of("own"), policy.of("plain"), policy.of("gone")) == (RunLimits(3, 0), RunLimits(5, 6), RunLimits(5, 6))
    policy.settings = Settings()
    assert policy.of("own") == RunLimits()


@pytest.mark.parametrize(
    ("controllers", "has_gpus", "uids", "means", "holds"),
    [
        ({"memory", "pids"}, True, "", ("enforced by cgroup", "enforced by cgroup"), (True, True)),
        (set(), False, "7-8", (BY_ADDRESS_SPACE, "enforced by rlimits (all runs of an owner together)"), (True, True)),
        (set(), False, "", (BY_ADDRESS_SPACE, "enforced by nothing: that takes cgroups or run_as_uids"), (True, False)),
        (
            {"pids"},
            True,
            "",
            (f"{BY_ADDRESS_SPACE}, and not at all for runs with GPUs: that takes cgroups", "enforced by cgroup"),
            (False, True),
        ),
    ],
    ids=["cgroups", "accounts", "nothing", "GPUs"],
)
def test_it_is_said_by_what_each_limit_is_enforced_and_whether_that_holds(
    controllers: set[str], uids: str, means: tuple[str, str], holds: tuple[bool, bool], *, has_gpus: bool
) -> None:
    for limits, settings, expected in (
        (LIMITED, Settings(**{**vars(SETTINGS), "run_as_uids": uids}), holds),
        (UNLIMITED, Settings(run_as_uids=uids), (True, True)),
    ):
        memory, processes = describe_limits(settings, controllers, has_gpus=has_gpus)
        assert (memory.subject, processes.subject) == ("memory of runs", "processes of runs")
        assert (memory.detail, processes.detail) == tuple(f"{a} {b}" for a, b in zip(limits, means, strict=True))
        assert (memory.holds, processes.holds) == expected
