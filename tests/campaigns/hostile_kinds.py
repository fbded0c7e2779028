"""What hostile runs do, and how their jobs must end. `hostile_program.py` runs the code, after it has left good results."""

import os
import random
from collections.abc import Sequence
from typing import Final, NamedTuple


class Kind(NamedTuple):
    """One kind of hostile run."""

    name: str
    code: str
    ends: str = "COMPLETED"
    """How its job ends: the status, and the reason where it is FAILED. Several, where it depends on who is first: `|`."""
    harness: str = "trial"
    timeout_seconds: int = 0
    output_dir: str = ""
    is_cancelled: bool = False
    engine: str = ""
    """How the engine behaves that answers for its model. Empty: its model is not served."""


_INVALID: Final = "FAILED RESULTS_INVALID"
_MISSING: Final = "FAILED RESULTS_MISSING"
_LOST: Final = "FAILED RUN_LOST"
_FAILED: Final = "FAILED HARNESS_FAILED"
_SIGNALLED: Final = "FAILED PROCESS_SIGNALLED"
_LATE: Final = "FAILED TIMED_OUT"

KINDS: Final[Sequence[Kind]] = (
    # Something else in the place of a file or a folder.
    Kind("log-fifo", "put('fifo', LOG)"),
    Kind("log-link", "put('link', LOG)"),
    Kind("log-device", "put('device', LOG)"),
    Kind("log-folder", "put('folder', LOG)"),
    Kind("exit-fifo", "put('fifo', RUN / 'exit')", _LOST),
    Kind("exit-device", "put('device', RUN / 'exit')", _LOST),
    Kind("pid-socket", "put('socket', RUN / 'pid')"),
    Kind("run-folder-link", "put('link', RUN)", f"{_LOST}|COMPLETED"),
    Kind("output-link", "put('link', OUTPUT)", _INVALID),
    Kind("output-fifo", "put('fifo', OUTPUT)", _INVALID),
    Kind("results-fifo", "put('fifo', RESULTS)", _MISSING),
    Kind("results-socket", "put('socket', RESULTS)", _MISSING),
    Kind("samples-device", "put('device', SAMPLES)"),
    Kind("samples-and-log-fifo", "put('fifo', SAMPLES); put('fifo', LOG)"),
    # Cheap to make, dear to read.
    Kind("sparse-log", "sparse(LOG)"),
    Kind("sparse-samples", "sparse(SAMPLES)"),
    Kind("sparse-artifacts", "[sparse(OUTPUT / f'{number}.bin') for number in range(8)]"),
    Kind("sparse-results", "sparse(RESULTS)", _INVALID),
    Kind("sparse-results-below-the-bound", "sparse(RESULTS, 100 * MIB)", _INVALID),
    Kind("large-artifact", "os.posix_fallocate(os.open(OUTPUT / 'large', 66, 0o600), 0, 600 * MIB)", "FAILED OUTPUT_TOO_LARGE"),
    Kind("120-mb-of-lists", "repeat(RESULTS, b'{\"results\":{},\"a\":[', b'[],', 120 * MIB, b'[]]}')", _INVALID),
    Kind("60-mb-of-tables", "repeat(RESULTS, b'{\"results\":{},\"a\":[', b'[[{}]],', 60 * MIB, b'[]]}')", _INVALID),
    Kind("row-of-30-mb", "row(text='x' * 30 * MIB)"),
    Kind("row-of-lists", "repeat(SAMPLES, b'{\"acc\":1,\"a\":[', b'[],', 30 * MIB, b'[]]}')"),
    Kind("row-without-end", "repeat(SAMPLES, b'', b'x', 60 * MIB, b'')"),
    # Deep, many, odd.
    Kind("1000-deep", "deep(1_000)"),
    Kind("10000-deep", "deep(10_000)"),
    Kind("100000-files", "many_files(100_000)"),
    Kind("odd-names", "odd_names(OUTPUT); odd_names(OUTPUT / 'm')"),
    Kind("odd-names-of-samples", "[(OUTPUT / 'm' / f'{STAMP}_samples_{name}.jsonl'[-255:]).touch() for name in ODD]"),
    Kind("no-rights", "odd_names(OUTPUT); [path.chmod(0) for path in OUTPUT.iterdir() if path.name != 'm']"),
    Kind("odd-times", "[os.utime(SAMPLES, (2**33 * sign, 2**33 * sign)) for sign in (1, -1)]"),
    # Numbers and texts.
    Kind("odd-numbers", "metrics(nan=float('nan'), inf=float('-inf'), big=10**400, true=True, none=None, deep=nested(60))"),
    Kind(
        "odd-samples",
        "row(acc=float('nan')); row(acc=10**400); row(a=nested(60)); row(text='\\ud800\\0'); row(acc=nested(900))",
    ),
    Kind("odd-names-of-metrics", "metrics(**{name * 30: 0.5 for name in ('\\ud800', '\\0', '\\n', ',', '\\x1b[31m', 'ä')})"),
    Kind("200000-metrics", "metrics(**{f'm{number},none': number for number in range(200_000)})"),
    Kind("no-table", "RESULTS.write_text('[' * 100_000)", _INVALID),
    Kind("not-text", "RESULTS.write_bytes(b'\\xff\\xfe' * 1000)", _INVALID),
    Kind("many-models", "[shutil.copytree(RESULTS.parent, OUTPUT / f'm{number}') for number in range(70)]", _INVALID),
    # Logs.
    Kind("log-flood", "flood(10_000 * MIB, b'line\\n' * 200_000)", "FAILED LOG_TOO_LARGE"),
    Kind("log-of-one-line", "flood(100 * MIB)"),
    Kind("control-characters", "flood(MIB, bytes(range(256)) * 100)"),
    Kind("lying-progress", "[print(f'{number}/{total}') for number in (-1, 5, 10**30) for total in (0, 3, 10**400, 'nan')]"),
    Kind("progress-flood", "[print(f'{number}/100000', end='\\r') for number in range(100_000)]"),
    Kind("log-rewritten", "[LOG.write_bytes(b'%d\\n' % number * 10_000) for number in range(200)]"),
    Kind("log-truncated", "[(print('x' * 100_000, flush=True), os.truncate(LOG, 0)) for _ in range(200)]"),
    Kind("closed-output", "os.close(1); os.close(2); os.close(0)"),
    # Processes.
    Kind("daemons", "[daemon('sleep', '1000') for _ in range(5)]"),
    Kind("stubborn", "signal.signal(signal.SIGTERM, signal.SIG_IGN); stay()", "CANCELLED", is_cancelled=True),
    Kind("stubborn-daemons", "forks(5); daemon('sleep', '1000'); stay()", _LATE, timeout_seconds=2),
    Kind("stops-itself", "os.kill(0, signal.SIGSTOP)", _LATE, timeout_seconds=2),
    Kind("stops-its-shim", "os.kill(os.getppid(), signal.SIGSTOP)", _LATE, timeout_seconds=3),
    Kind("kills-its-shim", "os.kill(os.getppid(), signal.SIGKILL); stay()", f"{_LOST}|{_SIGNALLED}"),
    Kind("fork-bomb", "forks(200)"),
    Kind("memory-hog", "resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29)); bytes(2**30)", "FAILED OUT_OF_MEMORY"),
    Kind("exit-code", "sys.exit(77)", _FAILED),
    Kind("exit-code-137", "sys.exit(137)", _SIGNALLED),
    Kind("segmentation-fault", "os.chdir(OUTPUT); os.kill(os.getpid(), signal.SIGSEGV)", _SIGNALLED),
    Kind("core-dump", "os.chdir(OUTPUT); resource.setrlimit(resource.RLIMIT_CORE, (2**30, 2**30)); os.abort()", _SIGNALLED),
    Kind("many-descriptors", "files = [os.open(SAMPLES, 0) for _ in range(900)]; forks(2)"),
    Kind(
        "descriptors-for-a-daemon", "[os.set_inheritable(f, True) for f in (0, 1, 2)]; daemon('sh', '-c', 'yes | sleep 1000')"
    ),
    Kind("deep-cgroups", "deep_cgroups(40)"),
    Kind("freezes-itself", "freeze(); stay()", _LATE, timeout_seconds=2),
    Kind("not-dumpable", "ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0); daemon('sleep', '1000')"),
    # Its own folder.
    Kind("deletes-its-folder", "shutil.rmtree(ATTEMPT)", f"{_LOST}|{_MISSING}"),
    Kind("renames-its-folder", "ATTEMPT.rename(ATTEMPT.with_name('attempt-2'))", f"{_LOST}|{_MISSING}"),
    Kind("locks-its-folder", "[path.chmod(0) for path in (RESULTS, SAMPLES, OUTPUT, LOG, RUN, ATTEMPT)]", "COMPLETED|FAILED"),
    Kind("swaps-its-folder", "again_and_again('put(\"link\", OUTPUT); remove(OUTPUT); leave_results()')", "COMPLETED|FAILED"),
    Kind("forges-traces", "[(RUN / name).write_text('1 1') for name in ('pid', 'exit', 'devices.json')]", f"{_LOST}|COMPLETED"),
    Kind("forges-many-steps", "(RUN / 'exit').write_bytes(b'1 code 0\\n' * 450_000); time.sleep(2)", f"{_LOST}|COMPLETED"),
    Kind("forges-results", "(ATTEMPT / 'complete-results').write_bytes(os.urandom(100_000))"),
    Kind(
        "links-to-itself", "(OUTPUT / 'loop').symlink_to('.'); os.link(RESULTS, OUTPUT / 'm' / '20990101_000000_results.json')"
    ),
    # With the others' harness.
    Kind("inspect-20000-files", "many_files(20_000, OUTPUT); time.sleep(2)", harness="inspect"),
    Kind("inspect-sparse", "sparse(INSPECT_LOG)", _INVALID, "inspect"),
    Kind("inspect-fifo", "put('fifo', INSPECT_LOG)", _MISSING, "inspect"),
    Kind("inspect-sparse-samples", "leave_inspect_log('[', ''); sparse(INSPECT_LOG)", _INVALID, "inspect"),
    Kind(
        "inspect-10-mb-of-lists",
        "repeat(INSPECT_LOG, b'{\"a\":[', b'[],', 10 * MIB, b'[]]}')",
        "FAILED TASKS_MISSING",
        "inspect",
    ),
    # With a served model.
    Kind("engine-dies", "", "FAILED ENGINE_START_FAILED", "served", engine="dies"),
    Kind("engine-answers-rubbish", "", "FAILED ENGINE_INCOMPATIBLE", "served", engine="rubbish"),
    Kind("engine-is-stubborn", "print(ask(question()))", harness="served", engine="stubborn"),
    Kind("gateway-garbage", "[ask(os.urandom(10_000)) for _ in range(20)]", harness="served", engine="good"),
    Kind("gateway-half-questions", "kept = [begin(question()[:-9]) for _ in range(200)]", harness="served", engine="good"),
    Kind("gateway-deep-questions", "[ask(question('[' * 100_000)) for _ in range(5)]", harness="served", engine="good"),
    Kind("gateway-large-question", "ask(question('\"' + 'x' * 70 * MIB + '\"'))", harness="served", engine="good"),
    Kind("gateway-unread", "kept = [begin(question()) for _ in range(200)]", harness="served", engine="good"),
)

IN_SUITES: Final = frozenset(
    (
        *("sparse-samples", "row-of-lists", "row-without-end", "60-mb-of-tables", "odd-numbers", "odd-samples"),
        *("200000-metrics", "odd-names-of-metrics", "odd-names-of-samples", "many-models", "stubborn", "exit-code"),
        *("log-flood", "deletes-its-folder"),
    )
)
"""Those that are submitted as a suite."""

LARGE: Final = Kind("1000000-files", "many_files(1_000_000)")
"""For `make campaign`: making it takes a minute or more."""

DISK: Final = Kind("fills-a-small-disk", "flood(0); repeat(OUTPUT / 'full', b'', b'x', 64 * MIB, b'')", _FAILED, output_dir="a")
"""For a server whose output root is a small disk."""

_COMBINED: Final = 3


def combinations(count: int, seed: int) -> list[Kind]:
    """Return runs that do several things, one after the other. All that is known of them is that they end."""
    dice = random.Random(seed)
    acts = [kind for kind in KINDS if kind.harness == "trial" and "stay" not in kind.code and "flood" not in kind.code]
    chosen = [dice.sample(acts, _COMBINED) for _ in range(count)]
    return [
        Kind(
            name=f"combination-{number}-{'+'.join(each.name for each in some)}",
            code="\n".join(f"try:\n    {each.code}\nexcept OSError as error:\n    print(error)" for each in some),
            ends="COMPLETED|FAILED",
            timeout_seconds=20,
        )
        for number, some in enumerate(chosen)
    ]


def kinds_here() -> list[Kind]:
    """Return the kinds that this account can make."""
    return [*KINDS, DISK] if os.geteuid() == 0 else list(KINDS)
