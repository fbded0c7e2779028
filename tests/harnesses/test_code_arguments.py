"""No client's text is read as code by a shell or an interpreter."""

import pytest

from evalrpc.config import HarnessSettings
from evalrpc.errors import ConfigurationError
from evalrpc.harnesses.code_arguments import code_arguments
from evalrpc.harnesses.command import CommandHarness
from evalrpc.v1.jobs_pb2 import EvaluateRequest


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["sh", "-c", "CODE", "sh", "argument"], ["CODE"]),
        (["/bin/bash", "-eu", "-o", "pipefail", "-c", "CODE"], ["CODE"]),
        (["bash", "-ec", "CODE"], ["CODE"]),
        (["bash", "-c", "-x", "CODE", "argument"], ["CODE"]),
        (["env", "A=b", "timeout", "-s", "KILL", "10", "bash", "-lc", "CODE"], ["timeout", "bash", "CODE"]),
        (["python3.11", "-X", "dev", "-c", "CODE", "-c", "argument"], ["CODE"]),
        (["perl", "-ne", "CODE"], ["CODE"]),
        (["node", "--eval=CODE"], ["CODE"]),
        (["ssh", "host", "eval", "argument"], ["host", "eval", "argument"]),
        (["su", "user", "-c", "CODE"], ["CODE"]),
        (["timeout", "-s", "KILL", "10", "PROGRAM", "argument"], ["PROGRAM"]),
        (["timeout", "--signal=KILL", "--kill-after", "5", "10", "PROGRAM"], ["PROGRAM"]),
        (["timeout", "-vk", "5s", "10", "PROGRAM"], ["PROGRAM"]),
        (["timeout", "-sKILL", "--foreground", "10", "PROGRAM"], ["PROGRAM"]),
        (["nice", "-n10", "PROGRAM", "argument"], ["PROGRAM"]),
        (["nice", "--adj", "10", "PROGRAM"], ["PROGRAM"]),
        (["env", "-u", "HOME", "-C", "/srv", "A=b", "PROGRAM"], ["PROGRAM"]),
        (["env", "-i", "A=b", "nice", "-n", "1", "PROGRAM"], ["nice", "PROGRAM"]),
        (["ionice", "-c", "3", "PROGRAM"], ["PROGRAM"]),
        (["ionice", "-c2", "-n", "7", "PROGRAM"], ["PROGRAM"]),
        (["taskset", "-c", "0-3", "PROGRAM"], ["PROGRAM"]),
        (["taskset", "0x3", "PROGRAM"], ["PROGRAM"]),
        (["chrt", "-r", "1", "PROGRAM"], ["PROGRAM"]),
        (["numactl", "-N", "0", "--membind", "0", "PROGRAM"], ["PROGRAM"]),
        (["setsid", "-w", "PROGRAM", "argument"], ["PROGRAM"]),
        (["stdbuf", "-o", "L", "-eL", "PROGRAM"], ["PROGRAM"]),
        (["nohup", "--", "PROGRAM"], ["PROGRAM"]),
        (["xargs", "-I", "{}", "-P4", "-n", "1", "PROGRAM", "{}"], ["PROGRAM"]),
        (["sudo", "-nu", "user", "-g", "group", "A=b", "PROGRAM"], ["PROGRAM"]),
        (["doas", "-u", "user", "PROGRAM"], ["PROGRAM"]),
        (["runuser", "-u", "user", "--", "PROGRAM"], ["PROGRAM"]),
        (["flock", "-w", "10", "/lock", "PROGRAM"], ["PROGRAM"]),
        (["systemd-run", "--user", "-p", "MemoryMax=1G", "PROGRAM"], ["PROGRAM"]),
        (["srun", "-n", "1", "--gres", "gpu:1", "--pty", "PROGRAM"], ["PROGRAM"]),
        (["srun", "--gres=gpu:1", "-l", "PROGRAM", "argument"], ["PROGRAM"]),
        (["mpirun", "-np", "2", "--allow-run-as-root", "PROGRAM"], ["PROGRAM"]),
        (["mpirun", "--mca", "btl", "self", "-x", "A=b", "-n", "2", "PROGRAM", "argument"], ["PROGRAM"]),
        (["mpiexec", "-genv", "A", "b", "-n", "2", "PROGRAM"], ["PROGRAM"]),
        (["conda", "run", "-n", "base", "PROGRAM", "argument"], ["PROGRAM"]),
        (["uv", "run", "--with", "torch", "PROGRAM"], ["PROGRAM"]),
        (["docker", "run", "--rm", "--gpus", "all", "IMAGE", "argument"], ["IMAGE"]),
        (["accelerate", "launch", "--num_processes", "4", "--multi_gpu", "SCRIPT", "argument"], ["SCRIPT"]),
        (["accelerate", "launch", "--num_processes=4", "-m", "MODULE", "--model", "argument"], ["MODULE"]),
        (
            ["python3", "-m", "accelerate.commands.launch", "--main_process_port", "0", "-m", "MODULE", "argument"],
            ["accelerate.commands.launch", "MODULE"],
        ),
        (["torchrun", "--standalone", "--nproc_per_node", "2", "SCRIPT", "argument"], ["SCRIPT"]),
        (["python3", "-m", "torch.distributed.run", "--nnodes", "1", "SCRIPT"], ["torch.distributed.run", "SCRIPT"]),
        (["deepspeed", "--num_gpus", "2", "SCRIPT", "argument"], ["SCRIPT"]),
        (["timeout", "10"], []),
        (["flock", "/lock", "--command=CODE"], ["CODE"]),
        (["sbatch", "--wait", "--wrap", "CODE"], ["CODE"]),
        (["env", "-S", "CODE"], ["CODE"]),
        (["nice", "-n", "10", "PROGRAM", "argument"], ["PROGRAM"]),
        (["deno", "eval", "CODE"], ["CODE"]),
        (["php", "-r", "CODE"], ["CODE"]),
        (["ksh93", "-c", "CODE"], ["CODE"]),
        (["xonsh", "-c", "CODE"], ["CODE"]),
        (["pypy3", "-c", "CODE"], ["CODE"]),
        (["nodejs", "-p", "CODE"], ["CODE"]),
        (["julia", "-e", "CODE"], ["CODE"]),
        (["script", "-qc", "CODE"], ["CODE"]),
        (["sg", "group", "-c", "CODE"], ["CODE"]),
        (["psql", "--command=CODE"], ["CODE"]),
        (["gdb", "-ex", "CODE"], ["CODE"]),
        (["sqlite3", "file", "CODE"], ["file", "CODE"]),
        (["flock", "-e", "/lock", "program", "argument"], ["program", "/lock"]),
        (["pwsh", "-NoProfile", "-Command", "CODE"], ["CODE"]),
        (["watch", "-n", "5", "CODE"], ["-n", "5", "CODE"]),
        (["make", "MODEL=CODE"], ["MODEL=CODE"]),
        (["awk", "CODE", "file"], ["CODE", "file"]),
        (["flock", "/lock", "eval", "argument"], ["eval"]),
        (["bash", "-e", "script.sh", "-c", "argument"], ["script.sh"]),
        (["python3", "eval.py", "-c", "argument"], ["eval.py"]),
        (["python3", "-m", "eval", "-c", "argument"], ["eval"]),
        (["eval", "-c", "argument"], []),
        (["sh", "-c"], []),
    ],
)
def test_code_is_told_from_arguments(argv: list[str], code: list[str]) -> None:
    assert list(code_arguments(argv)) == [argv[0], *code]


def harness(*command: str) -> CommandHarness:
    return CommandHarness(HarnessSettings("nightly", "command", command=command))


@pytest.mark.parametrize("name", ["model", "tasks"])
def test_a_command_in_which_a_client_could_write_code_is_refused_with_what_to_write_instead(name: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        harness("sh", "-c", f"program --{name} '{{{name}}}'")
    assert str(raised.value) == (
        f"setting harnesses.nightly.command: {{{name}}} would be read as code, which any client could write: make it an "
        f"""argument of the code, as in ["sh", "-c", "program --{name} \\"$1\\"", "sh", "{{{name}}}"]"""
    )
    harness("sh", "-c", f'program --{name} "$1"', "sh", f"{{{name}}}")


@pytest.mark.parametrize(
    "command",
    [
        ["{model}"],
        ["sh", "{model}"],
        ["python3", "-u", "-m", "{model}"],
        ["nice", "{model}"],
        ["timeout", "-s", "KILL", "10", "{model}"],
    ],
)
def test_nor_may_a_client_say_which_program_is_run(command: list[str]) -> None:
    with pytest.raises(ConfigurationError, match=r"\{model\} would be read as code, which any client could write"):
        harness(*command)


def test_a_client_can_not_name_a_folder_that_a_shell_reads_as_code() -> None:
    request = EvaluateRequest(model="m", tasks=["t"], output_dir="$(reboot)")
    (violation,) = harness("sh", "-c", "program > {output_dir}/log").violations(request)
    assert violation.field == "output_dir"
    assert violation.description == "must be empty: the command of harness nightly has it in a shell's code"
    assert not list(harness("sh", "-c", 'program > "$1"/log', "sh", "{output_dir}").violations(request))
    assert not list(harness("sh", "-c", "program > {output_dir}/log").violations(EvaluateRequest(model="m", tasks=["t"])))


def test_the_operators_own_values_may_stand_in_code() -> None:
    assert harness("sh", "-c", "program < {request_json} > {output_dir}/{job_id}-{attempt}").info().available
