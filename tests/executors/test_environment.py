"""The environment of a run."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalrpc.config.settings import INHERITED_VARIABLES
from evalrpc.executors.local.environment import build_environment, inherited_variables

SECRETS = [
    *("HF_TOKEN", "HUGGINGFACE_HUB_TOKEN", "NVIDIA_API_KEY", "VLLM_API_KEY", "CUDA_SECRET_NAME", "HF_PASSWORD", "hf_password"),
    *("HF_PASSWD", "HF_APIKEY", "INSPECT_CREDENTIALS", "TORCH_ACCESS_KEY_ID", "TORCH_SECRETS"),
]


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


def test_all_else_of_what_is_inherited_is_there() -> None:
    inherited = {"PATH": "/bin", "HOME": "/root", "LANG": "C", "HF_TOKEN": "t", "RANKING": "1", "MY_RANK": "1", "SLURMY": "1"}
    assert inherited.items() <= built(inherited).items()


@pytest.mark.parametrize(
    "name",
    [
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH"),
        *("CUDA_HOME", "CUDA_MODULE_LOADING", "NVIDIA_VISIBLE_DEVICES", "NCCL_DEBUG", "OMP_NUM_THREADS", "MKL_NUM_THREADS"),
        *(
            "HF_HOME",
            "HF_HUB_OFFLINE",
            "HF_TOKEN_PATH",
            "HUGGINGFACE_HUB_CACHE",
            "TRANSFORMERS_CACHE",
            "TORCH_HOME",
            "TORCHDYNAMO",
        ),
        *(
            "TOKENIZERS_PARALLELISM",
            "XDG_CACHE_HOME",
            "XDG_DATA_HOME",
            "https_proxy",
            "no_proxy",
            "HTTPS_PROXY",
            "SSL_CERT_FILE",
        ),
        *("REQUESTS_CA_BUNDLE", "VLLM_WORKER_MULTIPROC_METHOD", "LMMS_EVAL_HOME", "INSPECT_CACHE_DIR"),
    ],
)
def test_what_harnesses_and_cuda_read_is_inherited_by_default(name: str) -> None:
    assert inherited_variables({name: "1"}, INHERITED_VARIABLES) == {name: "1"}


@pytest.mark.parametrize(
    "name", ["OPENAI_API_KEY", "AWS_SESSION_TOKEN", "DATABASE_URL", "EDITOR", "LD_PRELOAD", "path", *SECRETS]
)
def test_nothing_else_is_inherited_by_default(name: str) -> None:
    assert inherited_variables({name: "1"}, INHERITED_VARIABLES) == {}


@pytest.mark.parametrize("name", SECRETS)
def test_what_looks_like_a_secret_is_inherited_only_if_it_is_named_exactly(name: str) -> None:
    assert inherited_variables({name: "1"}, ["*", "HF_*", f"{name[:-1]}?"]) == {}
    assert inherited_variables({name: "1"}, [name]) == {name: "1"}


def test_the_operator_decides_what_is_inherited() -> None:
    assert inherited_variables({"PATH": "/bin", "TEAM_A": "1", "TEAM_B": "2"}, ["TEAM_*"]) == {"TEAM_A": "1", "TEAM_B": "2"}


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
