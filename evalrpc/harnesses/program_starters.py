"""Programs that start another one, which is named after their own options and arguments: as in `timeout -s KILL 10 program`.

For each it is known which options have their value in an argument of its own; a value taken for the program would hide what is
really run.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple


class Starter(NamedTuple):
    """How such a program is called."""

    values: frozenset[str] = frozenset()
    """The options that have a value."""
    operands: int = 0
    """How many arguments that are no options come before the program."""
    flags: frozenset[str] | None = None
    """The options that have none, where all others have a value; None where `values` says it."""
    pairs: frozenset[str] = frozenset()
    """The options that have two values, such as a name and its value."""


def _of(values: str = "", operands: int = 0, flags: str | None = None, pairs: str = "") -> Starter:
    of_flags = None if flags is None else frozenset(flags.split())
    return Starter(frozenset(values.split()), operands, of_flags, frozenset(pairs.split()))


_ENVIRONMENT: Final = "-u --unset -C --chdir -S --split-string -a --argv0"
_ACCELERATE: Final = (
    "-h --help --config-help --quiet -q --cpu --multi_gpu --multi-gpu --tpu --no_tpu_cluster --tpu_use_cluster --tpu_use_sudo "
    "--use_xpu --use_deepspeed --use-deepspeed --use_fsdp --use-fsdp --use_megatron_lm --use_parallelism_config -m --module "
    "--no_python --no-python --debug --enable_cpu_affinity --downcast_bf16 --main_training_function_only"
)
_TORCHRUN: Final = "-h --help --standalone -m --module --no-python --no_python --run-path --run_path --use-env --use_env"
_SRUN: Final = (
    "-h --help -V --version -v --verbose -Q --quiet -u --unbuffered -l --label -s --oversubscribe -O --overcommit --exclusive "
    "--overlap --exact --pty -E --preserve-env -X --disable-status -H --hold -Z --no-allocate -k --no-kill --multi-prog "
    "--contiguous --spread-job --reboot --use-min-nodes --external"
)
_MPI: Final = (
    "-h --help -V --version -v --verbose -q --quiet --oversubscribe -oversubscribe --allow-run-as-root --tag-output "
    "--report-bindings --display-map --display-allocation --nooversubscribe --bind-to-none -l"
)
_MPI_PAIRS: Final = "--mca -mca --gmca -gmca --omca --prtemca --pmixmca --env -env --genv -genv"
_CONTAINER: Final = (
    "--rm --init -i -t -it -ti -d --interactive --tty --detach --privileged --read-only --no-healthcheck -P --publish-all "
    "--sig-proxy --replace --nv --rocm --containall -c --contain -C -e --cleanenv --no-home --writable --writable-tmpfs "
    "--fakeroot -f --compat --no-mount-hostfs -q --quiet --debug"
)

STARTERS: Final = {
    "env": _of(_ENVIRONMENT),
    "nice": _of("-n --adjustment"),
    "ionice": _of("-c --class -n --classdata -p --pid -P --pgid -u --uid"),
    "nohup": _of(),
    "setsid": _of(),
    "exec": _of("-a"),
    "stdbuf": _of("-i --input -o --output -e --error"),
    "time": _of("-f --format -o --output"),
    "timeout": _of("-s --signal -k --kill-after", 1),
    "taskset": _of("", 1),
    "chrt": _of("-T --sched-runtime -P --sched-period -D --sched-deadline", 1),
    "numactl": _of(
        "-i --interleave -w --weighted-interleave -N --cpunodebind -C --physcpubind -m --membind -p --preferred -P "
        "--preferred-many -L --length -o --offset -M --shmmode -f --file -S --shm"
    ),
    "prlimit": _of("-o --output -p --pid"),
    "setpriv": _of(
        "--reuid --regid --groups --inh-caps --ambient-caps --bounding-set --securebits --pdeathsig --selinux-label "
        "--apparmor-profile --ruid --euid --rgid --egid"
    ),
    "unshare": _of("-R --root -w --wd -S --setuid -G --setgid --propagation --map-user --map-group --map-users --map-groups"),
    "nsenter": _of("-t --target -S --setuid -G --setgid"),
    "chroot": _of("--userspec --groups", 1),
    "capsh": _of("--"),
    "cgexec": _of("-g"),
    "systemd-run": _of(
        "-p --property -u --unit --slice -E --setenv --uid --gid --nice --working-directory --description -M --machine -H "
        "--host --service-type --on-active --on-boot --on-calendar --timer-property --path-property --socket-property"
    ),
    "flock": _of("-w --wait --timeout -E --conflict-exit-code", 1),
    "sudo": _of(
        "-u --user -g --group -h --host -p --prompt -C --close-from -r --role -t --type -T --command-timeout -D --chdir -R "
        "--chroot -U --other-user"
    ),
    "doas": _of("-u -C -a"),
    "runuser": _of("-u --user -g --group -G --supp-group -w --whitelist-environment -s --shell -c --command"),
    "xargs": _of(
        "-I -n --max-args -P --max-procs -L --max-lines -d --delimiter -E -s --max-chars -a --arg-file --process-slot-var -S -R"
    ),
    "strace": _of("-o --output -e -E -p --attach -P -s -S -u --user -a -b -I -O -X"),
    "catchsegv": _of(),
    "unbuffer": _of(),
    "rlwrap": _of("-f -H -l -s -w -q"),
    "tini": _of("-p -e"),
    "dumb-init": _of("-r --rewrite"),
    "gosu": _of("", 1),
    "su-exec": _of("", 1),
    "busybox": _of(),
    "srun": _of(flags=_SRUN),
    "mpirun": _of(flags=_MPI, pairs=_MPI_PAIRS),
    "mpiexec": _of(flags=_MPI, pairs=_MPI_PAIRS),
    "accelerate": _of(operands=1, flags=_ACCELERATE),
    "accelerate-launch": _of(flags=_ACCELERATE),
    "torchrun": _of(flags=_TORCHRUN),
    "deepspeed": _of(flags="-h --help --module --no_python --no_local_rank --no_ssh --no_ssh_check --force_multi --save_pid"),
    "conda": _of("-n --name -p --prefix --cwd", 1),
    "mamba": _of("-n --name -p --prefix --cwd", 1),
    "micromamba": _of("-n --name -p --prefix --cwd -r --root-prefix -a --attach -e --env", 1),
    "uv": _of(
        "--with --with-editable --with-requirements -p --python --extra --group --only-group --env-file --directory --project "
        "--index --index-url --cache-dir --config-file --package --color",
        1,
    ),
    "poetry": _of("-C --directory -P --project", 1),
    "pipenv": _of("--python", 1),
    "docker": _of(operands=1, flags=_CONTAINER),
    "podman": _of(operands=1, flags=_CONTAINER),
    "singularity": _of(operands=2, flags=_CONTAINER),
    "apptainer": _of(operands=2, flags=_CONTAINER),
}
"""By the name of the program."""

MODULES: Final = {
    "accelerate.commands.launch": STARTERS["accelerate-launch"],
    "accelerate.commands.accelerate_cli": STARTERS["accelerate"],
    "torch.distributed.run": STARTERS["torchrun"],
    "torch.distributed.launch": STARTERS["torchrun"],
    "deepspeed.launcher.runner": STARTERS["deepspeed"],
}
"""By the name of the module that an interpreter runs."""


def started(starter: Starter, arguments: Sequence[str]) -> Sequence[str]:
    """Return the command line of the program that a starter with these arguments starts; empty if it names none."""
    operands, position, has_options = starter.operands, 0, True
    while position < len(arguments):
        argument = arguments[position]
        if has_options and argument == "--":
            has_options = False
        elif has_options and argument[:1] in ("-", "+") and len(argument) > 1:
            position += 2 if argument in starter.pairs else _has_value_apart(starter, argument)
        elif operands:
            operands -= 1
        elif not _is_assignment(argument):
            break
        position += 1
    return arguments[position:]


def _is_assignment(argument: str) -> bool:
    name, separator, _ = argument.partition("=")
    return bool(separator) and name.isidentifier()


def _has_value_apart(starter: Starter, option: str) -> bool:
    """Return whether the value of an option is the next argument. Long options may be abbreviated, short ones joined."""
    if "=" in option:
        return False
    if starter.flags is not None:
        return option not in starter.flags
    if option.startswith("--"):
        return any(name.startswith(option) for name in starter.values)
    values = [f"-{letter}" in starter.values for letter in option[1:]]
    return option in starter.values or (True in values and values.index(True) == len(values) - 1)
