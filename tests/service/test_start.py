"""How a server starts: it says what it is and what it lacks, or why it can't start."""

import subprocess
import sys

import pytest
from serving import SECONDS, Launch, Site
from waiting import eventually

import evalrpc


def test_it_says_what_it_is_where_it_is_and_what_its_harnesses_lack(site: Site, launch: Launch) -> None:
    with site.config.open("a") as config:
        config.write('[harnesses.lm-eval]\npython = "/none/python"\n')
    server = launch()
    eventually(lambda: server.log_path.read_text().count("harness ") >= 2, "for the harnesses in the log")

    log = server.log_path.read_text()
    for text in (
        f"INFO    evalrpc {evalrpc.__version__} listens on {server.api.address}\n",
        f"INFO    config file: {site.config}\n",
        f"INFO    data folder: {site.folder / 'data'}\n",
        "WARNING harness lm-eval (lm-eval) is not available: there is no program /none/python: set harnesses.lm-eval.python",
        "INFO    harness toy: command\n",
    ):
        assert text in log


def refusal_to_start(site: Site, *flags: str, max_descriptors: int = 256) -> str:
    """Return what a server that can't start prints on standard error, without standard output, and with exit code 2."""
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({max_descriptors}, {max_descriptors}))"
    program = f"{limited}; from evalrpc.cli import main; main()"
    result = subprocess.run(
        (sys.executable, "-c", program, "serve", "--config", str(site.config), *flags),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (result.returncode, result.stdout) == (2, "")
    return result.stderr


def test_a_port_that_is_taken_is_one_line(site: Site, launch: Launch) -> None:
    address = launch().api.address
    stderr = refusal_to_start(site, "--listen", address, "--data-dir", str(site.folder / "other"))
    problem = "is not free: another program listens there; port 0 takes a free one"
    assert stderr == f"evalrpc: setting listen (--listen): {address} {problem}\n"


@pytest.mark.parametrize("max_descriptors", [20, 30])
def test_a_lack_of_descriptors_is_one_line_and_is_not_taken_for_a_port_in_use(
    site: Site, launch: Launch, max_descriptors: int
) -> None:
    stderr = refusal_to_start(site, "--listen", launch().api.address, max_descriptors=max_descriptors)
    assert stderr.startswith("evalrpc: Too many open files: ")
    assert stderr.count("\n") == 1


def test_a_data_folder_in_use_is_one_line(site: Site, launch: Launch) -> None:
    launch()
    stderr = refusal_to_start(site)
    assert "another evalrpc server works on" in stderr
    assert stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--default-harness", "nope"),
            "setting default_harness (--default-harness): there is no harness nope; configured are: toy",
        ),
        (
            ("--default-num-gpus", "3"),
            "setting default_num_gpus (--default-num-gpus): 3 is more than the 2 GPUs of this server",
        ),
        (("--default-num-gpus", "-1"), "setting default_num_gpus: must be at least 0 (from --default-num-gpus)"),
        (("--default-num-gpus", "one"), "setting default_num_gpus: must be an integer, not 'one' (from --default-num-gpus)"),
    ],
)
def test_a_default_that_the_server_does_not_have_is_one_line(site: Site, flags: tuple[str, ...], message: str) -> None:
    assert refusal_to_start(site, *flags) == f"evalrpc: {message}\n"
    assert not (site.folder / "data").exists()
