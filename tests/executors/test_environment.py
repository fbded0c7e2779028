"""The environment of a run."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalrpc.executors.local.environment import build_environment


def built(inherited: dict[str, str], added: dict[str, str] | None = None, gpus: tuple[str, ...] = ()) -> dict[str, str]:
    return build_environment(inherited, added or {}, gpus, "job-1", 3)


@pytest.mark.parametrize(
    "name",
    [
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "GROUP_RANK",
        "NODE_RANK",
        "MASTER_ADDR",
        "MASTER_PORT",
        "SLURM_JOB_ID",
        "SLURM_PROCID",
        "PMI_RANK",
        "PMIX_RANK",
        "OMPI_COMM_WORLD_RANK",
        "TORCHELASTIC_RUN_ID",
        "ACCELERATE_USE_FSDP",
        "PYTHONHOME",
        "PYTHONPATH",
        "VIRTUAL_ENV",
        "EVALRPC_DATA_DIR",
        "EVALRPC_LISTEN",
    ],
)
def test_what_would_mislead_a_harness_is_left_out(name: str) -> None:
    assert name not in built({name: "1"})


def test_all_else_is_inherited() -> None:
    inherited = {"PATH": "/bin", "HOME": "/root", "LANG": "C", "HF_TOKEN": "t", "RANKING": "1", "MY_RANK": "1", "SLURMY": "1"}
    assert inherited.items() <= built(inherited).items()


@pytest.mark.parametrize(
    ("gpus", "expected"), [((), ""), (("0",), "0"), (("2", "0"), "2,0"), (("GPU-ab", "GPU-cd"), "GPU-ab,GPU-cd")]
)
def test_a_run_sees_its_own_gpus_and_no_other(gpus: tuple[str, ...], expected: str) -> None:
    everywhere = {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}
    assert built(everywhere, everywhere, gpus)["CUDA_VISIBLE_DEVICES"] == expected


def test_the_operator_wins_over_what_is_inherited_but_not_over_the_marks() -> None:
    environment = built({"A": "inherited"}, {"A": "operator", "RANK": "0", "PYTHONUNBUFFERED": "", "EVALRPC_JOB_ID": "x"})
    assert environment["A"] == "operator"
    assert environment["RANK"] == "0"
    assert environment["PYTHONUNBUFFERED"] == ""
    assert environment["EVALRPC_JOB_ID"] == "job-1"
    assert environment["EVALRPC_ATTEMPT"] == "3"


def test_gpu_indices_mean_the_same_as_to_the_driver() -> None:
    assert built({})["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


@settings(deadline=None)
@given(st.dictionaries(st.text(min_size=1), st.text()), st.dictionaries(st.text(min_size=1), st.text()))
def test_neither_source_is_changed_and_the_operators_values_are_all_there(
    inherited: dict[str, str], added: dict[str, str]
) -> None:
    before = (dict(inherited), dict(added))
    environment = built(inherited, added)
    assert (inherited, added) == before
    marks = {"CUDA_VISIBLE_DEVICES", "EVALRPC_JOB_ID", "EVALRPC_ATTEMPT"}
    assert all(environment[name] == value for name, value in added.items() if name not in marks)
