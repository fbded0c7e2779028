"""Backups of a data folder, made while its server runs, and data folders made from them.

A backup is a folder with copies of the databases and of the files of all jobs. The database is copied first, as it is at one
moment, then the files of the jobs that it has. Jobs that are deleted meanwhile are deleted in the copy, too, so that none is
there without its files. The marker is written last, once everything is on the disk: without it a folder is no backup.

No client of a restored server misses a change. A new server begins at revision 0, and a restored one at the number of
microseconds since 1970. With fewer than a million changes per second, no revision is ever larger than that number at the time
when it is handed out. So a restored server begins past all that were handed out before, by whichever server, and whoever
resumes after one of those is told that it is compacted.
"""

import json
import os
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from evalrpc import __version__
from evalrpc.clock import Clock
from evalrpc.errors import ConfigurationError, JobNotFoundError
from evalrpc.executors.local.shim import PID_FILE
from evalrpc.executors.local.traces import TRACES_DIR
from evalrpc.files.errnos import require_no_shortage
from evalrpc.files.private import create_private_file, make_private_folder
from evalrpc.files.tree_copies import copy_tree
from evalrpc.files.trees import remove_tree
from evalrpc.jobs import lifecycle
from evalrpc.jobs.paths import JOBS_DIR, attempt_dir, job_dir, output_path, results_path
from evalrpc.results.moving import move_results
from evalrpc.results.results_file import read_heads, read_metrics, write_results
from evalrpc.server.auth.token_store import FILE_NAME as TOKENS_NAME
from evalrpc.store.base import UNBOUNDED, Store
from evalrpc.store.lock import LOCK_NAME, STORE_ID_NAME, lock_data_dir
from evalrpc.store.sqlite.backup import copy_database, jobs_ended_and_gone, raise_revision
from evalrpc.store.sqlite.opening import BACKUP_MARKER, MIGRATED_SUFFIX, RESTORING_DIR
from evalrpc.store.sqlite.store import DATABASE_NAME, SqliteStore
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.results_pb2 import ModelResult

_FORMAT: Final = 1
_PAGE: Final = 500


class Copied(NamedTuple):
    """What a backup, or a restored data folder, has."""

    job_count: int
    problems: list[str]
    """For each job with files that could not be read: how many, and why."""


def make_backup(data_dir: Path, target: Path, clock: Clock) -> Copied:
    """Back up a data folder, whose server may be at work, to an empty or a new folder. Files of jobs that have ended become
    hard links where possible; others are copied as they are.

    Raises ConfigurationError, OSError; then the target is no backup.
    """
    if (data_dir / f"{DATABASE_NAME}{MIGRATED_SUFFIX}").exists() or (data_dir / STORE_ID_NAME).exists():
        raise ConfigurationError(
            f"the jobs of {data_dir} are in PostgreSQL: back them up with pg_dump, and then copy the folder, as "
            "docs/clusters.md says"
        )
    if not (data_dir / DATABASE_NAME).exists():
        raise ConfigurationError(
            f"setting data_dir: {data_dir} has no database {DATABASE_NAME}, so there is nothing to back up"
        )
    _require_apart(data_dir, target)
    make_private_folder(target)
    _require_empty(target)
    copy_database(data_dir / DATABASE_NAME, target / DATABASE_NAME, is_in_use=True)
    _copy_tokens(data_dir, target, is_in_use=True)
    with closing(SqliteStore(target, clock, UNBOUNDED)) as store:
        problems = _copy_files(store, data_dir, target)
        _delete_gone(store, data_dir, target)
        job_count = sum(store.status_counts().values())
    (target / LOCK_NAME).unlink()
    _write_marker(target, clock)
    return Copied(job_count, problems)


def restore_backup(backup: Path, data_dir: Path, clock: Clock) -> Copied:
    """Make a data folder of a backup, which stays as it is. To the next server, runs of RUNNING jobs have vanished: it tries
    these jobs again, or fails them with RUN_LOST.

    The database gets its place last, and until then no server starts there. Raises ConfigurationError, OSError.
    """
    _require_complete(backup)
    _require_apart(backup, data_dir)
    _require_empty(data_dir)
    with closing(lock_data_dir(data_dir)):
        _require_empty(data_dir)
        staging = data_dir / RESTORING_DIR
        make_private_folder(staging)
        copy_database(backup / DATABASE_NAME, staging / DATABASE_NAME, is_in_use=False)
        raise_revision(staging / DATABASE_NAME, clock.now().ToMicroseconds())
        with closing(SqliteStore(staging, clock, UNBOUNDED)) as store:
            _move_jobs(store, data_dir.absolute())
            running = [listed.job for listed in store.running_jobs()]
            job_count = sum(store.status_counts().values())
        problems = copy_tree(backup / JOBS_DIR, data_dir / JOBS_DIR, link=False)
        _move_results_files(data_dir)
        for job in running:
            _let_run_vanish(attempt_dir(data_dir, job.job_id, job.attempt))
        _copy_tokens(backup, data_dir, is_in_use=False)
        os.sync()
        (staging / DATABASE_NAME).rename(data_dir / DATABASE_NAME)
        remove_tree(staging)
        os.sync()
    return Copied(job_count, problems)


def _require_apart(source: Path, target: Path) -> None:
    if target.resolve().is_relative_to(source.resolve()):
        raise ConfigurationError(f"{target} lies in {source}: take a folder outside of it")


def _require_empty(folder: Path) -> None:
    """Refuse what is there already, but for the lock."""
    try:
        found = sorted({path.name for path in folder.iterdir()} - {LOCK_NAME})
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigurationError(f"{folder} can't be used: {error.strerror}") from error
    if found:
        raise ConfigurationError(f"{folder} is not empty: it has {found[0]}; take a new folder")


def _copy_tokens(source: Path, target: Path, *, is_in_use: bool) -> None:
    if (source / TOKENS_NAME).exists():
        copy_database(source / TOKENS_NAME, target / TOKENS_NAME, is_in_use=is_in_use)


def _copy_files(store: Store, data_dir: Path, target: Path) -> list[str]:
    """Copy the files of the jobs that the store knows. Return what could not be read."""
    make_private_folder(target / JOBS_DIR)
    problems = []
    for names in _folder_names(data_dir / JOBS_DIR):
        for job_id in sorted(store.jobs_with_files(names)):
            unread = copy_tree(job_dir(data_dir, job_id), job_dir(target, job_id), link=_has_ended(store, job_id))
            if unread:
                problems.append(f"job {job_id}: {len(unread)} files can't be read, such as {unread[0]}")
    return problems


def _folder_names(folder: Path) -> Iterator[list[str]]:
    if not folder.exists():
        return
    with os.scandir(folder) as entries:
        while page := [entry.name for entry in islice(entries, _PAGE)]:
            yield page


def _has_ended(store: Store, job_id: str) -> bool:
    """Whether nobody changes the files of a job any more. Other jobs may share those of one that was deleted."""
    try:
        return store.job(job_id).status in lifecycle.TERMINAL
    except JobNotFoundError:
        return True


def _delete_gone(store: Store, data_dir: Path, target: Path) -> None:
    """Delete the jobs of which files may be missing, since they were deleted meanwhile."""
    for job_id in jobs_ended_and_gone(target / DATABASE_NAME, data_dir / DATABASE_NAME):
        if files_of := store.delete(job_id).result().files_of:
            remove_tree(job_dir(target, files_of))


def _write_marker(target: Path, clock: Clock) -> None:
    os.sync()
    unfinished = target / f"{BACKUP_MARKER}.unfinished"
    with create_private_file(unfinished) as file:
        marker = {"format": _FORMAT, "version": __version__, "created_at": clock.now().ToJsonString()}
        file.write(json.dumps(marker).encode())
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(target / BACKUP_MARKER)
    os.sync()


def _require_complete(backup: Path) -> None:
    """Raise ConfigurationError unless a backup was finished, and is one of those that this evalrpc knows."""
    try:
        marker = json.loads((backup / BACKUP_MARKER).read_bytes())
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"{backup} has no {BACKUP_MARKER}, which is written last: it is no backup, or one that was broken off"
        ) from error
    except ValueError as error:
        raise ConfigurationError(f"{backup / BACKUP_MARKER} is damaged") from error
    if not isinstance(marker, dict) or marker.get("format") != _FORMAT:
        raise ConfigurationError(f"{backup} is no backup that evalrpc {__version__} knows: run a newer evalrpc")


def _move_jobs(store: Store, data_dir: Path) -> None:
    """Let every job name the new data folder."""
    move = partial(_move, data_dir=data_dir)
    before: int | None = None
    while page := store.list_jobs(pb.JobFilter(), before, _PAGE):
        for update in [store.update(job.job_id, move) for _, job in page if job.attempts or job.results]:
            update.result()
        before = page[-1].sequence


def _move(job: pb.JobInfo, data_dir: Path) -> None:
    if not job.request.output_dir:
        for attempt in job.attempts:
            attempt.output_dir = str(output_path(attempt_dir(data_dir, job.job_id, attempt.number)))
        move_results(job.results.values(), data_dir)


def _let_run_vanish(attempt_folder: Path) -> None:
    """Leave the traces of a run that has begun, and of which nobody knows how it ended. Its files were copied at different
    moments, so that some may be older than a recorded end."""
    traces = attempt_folder / TRACES_DIR
    remove_tree(traces)
    make_private_folder(traces)
    create_private_file(traces / PID_FILE).close()


def _move_results_files(data_dir: Path) -> None:
    """Let the files with all results name the new data folder, too. What is no such file is left as it is."""
    for attempt in (data_dir / JOBS_DIR).glob("*/attempt-*"):
        path = results_path(attempt)
        try:
            results = read_heads(path)
            for row in read_metrics(path):
                results.setdefault(row.metric.model, ModelResult()).metrics.append(row.metric.metric)
            move_results(results.values(), data_dir.absolute())
            write_results(path, results)
        except OSError as error:
            require_no_shortage(error)
        except ValueError:
            continue
