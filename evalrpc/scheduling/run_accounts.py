"""The accounts of runs: one for each owner, so that no run can read what the server or another owner's run has.

The server is root, and everything in its data folder is private to it. A run can only pass through that on its way to its
output folder, which is its own while it runs, to the home of its account, and to the models that were prepared for it:

    data_dir/homes/UID/     the home of an account, which all runs of its owner share

What a preparation has made stays with the account, which so can read it, and no other one can.
"""

import grp
import logging
import os
import pwd
import stat
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from evalrpc.config import HarnessSettings, parse_uids
from evalrpc.errors import ConfigurationError, RunFailedError
from evalrpc.executors.base import RunAccount
from evalrpc.files.errnos import is_shortage, require_no_shortage
from evalrpc.files.handover import hand_over, make_passable, take_back
from evalrpc.files.output_access import OutputAccess
from evalrpc.files.private import make_private_folder
from evalrpc.harnesses.base import Run
from evalrpc.jobs.paths import HOMES_DIR, JOBS_DIR, PREPARATIONS_DIR
from evalrpc.store.base import Store

_PROBE_SECONDS: Final = 10.0
_IS_PROGRAM: Final = 'program=$(command -v "$0") && test -x "$program"'
_IS_WRITABLE: Final = 'test -d "$0" && test -w "$0" && test -x "$0"'
_FIRST_CLOSED: Final = 'for folder; do test -x "$folder" || { echo "$folder"; break; }; done'
_WRITTEN_FOLDERS: Final = frozenset({"HF_HOME", "TMPDIR"})
_RIGHTS: Final = 0o777
_OTHERS: Final = 0o077

_log = logging.getLogger(__name__)


class AccountPool(NamedTuple):
    """The accounts that a server may give to runs."""

    uids: range
    groups: tuple[int, ...]
    """The further groups of each."""


class RunAccounts:
    """Gives the runs of each owner an account of the pool. May be used from several threads. Without a pool runs have the
    server's account; what an earlier server gave to others is taken back even so.

    Raises StoreUnavailableError, and ConfigurationError if the folders of accounts can't be made.
    """

    def __init__(self, store: Store, data_dir: Path, output_access: OutputAccess, pool: AccountPool | None) -> None:
        self._store = store
        self._homes = data_dir.resolve() / HOMES_DIR
        self._output_access = output_access
        self._pool = pool
        self._owners = dict(store.run_uids())
        if pool is not None:
            _open_way(data_dir.resolve())

    def of(self, owner: str) -> RunAccount | None:
        """Return the account of an owner's runs, which may be a new one; None for the server's own.

        Never blocks for an owner who has one. Raises StoreUnavailableError, and RunFailedError if none is left.
        """
        if self._pool is None:
            return None
        uid = next((uid for uid in self._uids_of(owner) if uid in self._pool.uids), None)
        if uid is None:
            uid = self._store.assign_run_uid(owner, self._pool.uids).result()
            self._owners = {**self._owners, uid: owner}
        return RunAccount(uid, self._pool.groups, self._homes / str(uid))

    def ready_for(self, owner: str) -> RunAccount | None:
        """Do what `of` does, and see to it that the home of the account is there. Raises OSError, too."""
        account = self.of(owner)
        self.hand_over(account, ())
        return account

    def hand_over(self, account: RunAccount | None, steps: Sequence[Run]) -> None:
        """Give the output folders of steps that are about to run to their account, if they have one of their own.

        Raises OSError for a shortage, and RunFailedError.
        """
        if account is None:
            return
        try:
            make_private_folder(account.home)
            hand_over(account.home, account.uid)
            for step in steps:
                for folder in _way_to(step):
                    make_passable(folder)
                hand_over(step.output_dir, account.uid)
        except OSError as error:
            if is_shortage(error):
                raise
            problem = f"the folders of the run can't be given to its account: {error.strerror or error}"
            raise RunFailedError("START_FAILED", problem) from error

    def take_back(self, owner: str, output_dir: Path, job_id: str) -> None:
        """Take back the output folder of an ended run of an owner. What can't be taken back is logged. Raises OSError for a
        shortage."""
        folder_mode = _RIGHTS & ~self._output_access.umask_in(output_dir)
        for uid in self._uids_of(owner):
            try:
                remains = take_back(output_dir, uid, folder_mode)
            except OSError as error:
                require_no_shortage(error)
                _log.warning("can't take back the output of the run: %s", error, extra={"job_id": job_id})
                continue
            if remains is not None:
                what = f"{remains.entry_count} files of the run, the first {remains.problem}"
                _log.warning("can't take back %s", what, extra={"job_id": job_id})

    def _uids_of(self, owner: str) -> Sequence[int]:
        return [uid for uid, its_owner in self._owners.items() if its_owner == owner]


def account_pool(run_as_uids: str, run_as_groups: str) -> AccountPool | None:
    """Build it from the settings; None if runs are to have the server's account. Blocks.

    Raises ConfigurationError if this account can't start processes with others, for numbers that accounts of this machine have,
    and for groups that it does not have.
    """
    uids, groups = parse_uids(run_as_uids), tuple(map(_group_id, filter(None, run_as_groups.split(","))))
    if not uids:
        return None
    if os.geteuid():
        raise ConfigurationError("setting run_as_uids: only a server that runs as root can start runs with other accounts")
    known = {
        **{group.gr_gid: group.gr_name for group in grp.getgrall()},
        **{user.pw_uid: user.pw_name for user in pwd.getpwall()},
    }
    if taken := next((number for number in known if number in uids), None):
        raise ConfigurationError(f"setting run_as_uids: {taken} is {known[taken]!r} of this machine already")
    try:
        run_as(uids[0], groups, ["/bin/sh", "-c", ":"])
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigurationError(
            f"setting run_as_uids: this server can't start processes with other accounts: {error}"
        ) from error
    return AccountPool(uids, groups)


def describe_accounts(pool: AccountPool | None) -> str:
    """Say for people which accounts runs have."""
    if pool is None:
        return "that of the server, whose rights every run has (setting run_as_uids)"
    return f"one for each owner, of {pool.uids[0]}-{pool.uids[-1]}"


def find_lacks(pool: AccountPool, harness: HarnessSettings, environment: Mapping[str, str]) -> Sequence[str]:
    """Return what a process with an account of the pool can't do of what runs of a harness need; nothing if it can do all.
    `environment` is what runs inherit some of. Blocks. Raises SubprocessError."""
    uid, variables, lacks = pool.uids[0], {**environment, **harness.env}, []

    def can(*argv: str) -> bool:
        with suppress(OSError):
            return run_as(uid, pool.groups, argv, harness.working_dir).returncode == 0
        return False

    program = harness.command[0] if harness.command else str(harness.python)
    if not (can("/bin/sh", "-c", _IS_PROGRAM, program) if harness.command else can(program, "-c", "")):
        lacks.append(f"{program} can't be run with the account {uid}: open it to every account, with all folders above")
    closed = [
        name for name in sorted(_WRITTEN_FOLDERS & variables.keys()) if not can("/bin/sh", "-c", _IS_WRITABLE, variables[name])
    ]
    lacks += (f"{name}={variables[name]} can't be written with the account {uid}: open it to every account" for name in closed)
    return lacks


def require_way(pool: AccountPool | None, data_dir: Path) -> None:
    """Raise ConfigurationError unless the accounts of the pool can pass through all folders above the data folder. Blocks."""
    if pool is None:
        return
    above = [str(folder) for folder in reversed(data_dir.resolve().parents) if folder.exists()]
    try:
        closed = run_as(pool.uids[0], pool.groups, ["/bin/sh", "-c", _FIRST_CLOSED, "sh", *above]).stdout.rstrip("\n")
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigurationError(f"setting run_as_uids: can't try out the account {pool.uids[0]}: {error}") from error
    if closed:
        raise ConfigurationError(
            f"setting data_dir: runs have accounts of their own (setting run_as_uids), and the account {pool.uids[0]} can't "
            f"pass through {closed} to {data_dir}: run `chmod o+x` on it, or choose another data_dir"
        )


def run_as(uid: int, groups: Sequence[int], argv: Sequence[str], cwd: Path = Path("/")) -> "subprocess.CompletedProcess[str]":
    """Run a short program with an account of runs. Raises OSError, SubprocessError."""
    return subprocess.run(
        argv,
        user=uid,
        group=uid,
        extra_groups=groups,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_PROBE_SECONDS,
        check=False,
    )


def _group_id(group: str) -> int:
    name = group.strip()
    try:
        return int(name) if name.isascii() and name.isdecimal() else grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise ConfigurationError(f"setting run_as_groups: this machine has no group {name!r}") from error


def _open_way(data_dir: Path) -> None:
    """Let the accounts of runs pass through the folders of the server. What else lies there is closed to them, also where it
    was copied without its permissions. Raises ConfigurationError."""
    ways = data_dir / JOBS_DIR, data_dir / HOMES_DIR, data_dir / PREPARATIONS_DIR
    try:
        for entry in data_dir.iterdir():
            if entry not in ways and not entry.is_symlink():
                entry.chmod(stat.S_IMODE(entry.stat().st_mode) & ~_OTHERS)
        for folder in (*ways, data_dir):
            make_private_folder(folder)
            make_passable(folder)
    except OSError as error:
        raise ConfigurationError(f"setting data_dir: runs can't be let through {data_dir}: {error.strerror}") from error


def _way_to(step: Run) -> Sequence[Path]:
    """Return the folders of the job in which those of a step lie."""
    folders = (step.attempt_dir, *step.attempt_dir.parents, *step.output_dir.parents)
    return [folder for folder in dict.fromkeys(folders) if step.job_id in folder.parts]
