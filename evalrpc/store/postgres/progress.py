"""How far running jobs have come, as their servers say, for the other servers to show. Written and read by one thread.

It is news, and no truth: it is lost with a crash of the database, and whatever can't be written is replaced by what comes after
it. So the table is unlogged, and its rows are written about twice a second, all that is new together.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final, NamedTuple

import psycopg

from evalrpc.store.base import parse_job
from evalrpc.store.postgres.connecting import Connection, brief, connect_writer, is_cut
from evalrpc.store.postgres.listening import PROGRESS_CHANNEL
from evalrpc.v1.jobs_pb2 import JobInfo

WRITE_SECONDS: Final = 0.5
"""How long news is collected before it is written."""

_RETRY_SECONDS: Final = 2.0
_TRIES: Final = 5

_LAST: Final = "SELECT coalesce(max(version), 0) FROM progress WHERE fence = %s"
_WRITE: Final = """
INSERT INTO progress SELECT job_id, %b, %b, attempt, job
FROM unnest(%b::text[], %b::integer[], %b::bytea[]) AS new (job_id, attempt, job)
ON CONFLICT (job_id) DO UPDATE SET fence = EXCLUDED.fence, version = EXCLUDED.version, attempt = EXCLUDED.attempt,
    job = EXCLUDED.job
"""
_DELETE_ENDED: Final = "DELETE FROM progress WHERE job_id = ANY(%s)"
_DELETE_OLD: Final = "DELETE FROM progress WHERE NOT fence IN (SELECT fence FROM leases)"
_READ: Final = """
SELECT progress.fence, progress.version, job_id, attempt, job FROM progress
LEFT JOIN unnest(%s::bigint[], %s::bigint[]) AS seen (fence, version) ON seen.fence = progress.fence
WHERE progress.fence <> %s AND progress.version > coalesce(seen.version, 0) ORDER BY progress.fence, progress.version
"""

_log = logging.getLogger(__name__)


class JobProgress(NamedTuple):
    """How far an attempt of a job has come."""

    job_id: str
    attempt: int
    unstored: JobInfo
    """With nothing but progress, wait reason and usage."""


class SharedProgress:
    """Passes on what this server says, and hands what others say to `hear`, on a thread of its own. That returns whether this
    server knows of the attempt: the news may come before its beginning, and is handed over again for a while.

    `fence` returns that of this server's lease; None while it has none.
    """

    def __init__(self, conninfo: str, fence: Callable[[], int | None], hear: Callable[[JobProgress], bool]) -> None:
        self._conninfo = conninfo
        self._fence = fence
        self._hear = hear
        self._lock = threading.Lock()
        self._news: dict[str, JobProgress | None] = {}  # None: of a job that runs no more
        self._may_be_news_of_others = True
        self._version = 0
        self._version_fence: int | None = None
        self._seen: dict[int, int] = {}  # the latest version by fence
        self._unheard: dict[str, tuple[JobProgress, int]] = {}  # by job, and how often it is handed over still
        self._connection: Connection | None = None
        self._is_stopped = False
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._woken.set()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._thread.start()

    def say(self, progress: JobProgress) -> None:
        """Pass on how far a job of this server has come. Never blocks."""
        with self._lock:
            self._news[progress.job_id] = progress
        self._woken.set()

    def forget(self, job_id: str) -> None:
        """Note that a job of this server runs no more. Never blocks."""
        with self._lock:
            self._news[job_id] = None
        self._woken.set()

    def wake(self) -> None:
        """Read what others have said."""
        self._may_be_news_of_others = True
        self._woken.set()

    def close(self) -> None:
        """Stop, and wait for that."""
        self._is_stopped = True
        self._stopping.set()
        self._woken.set()
        self._thread.join()
        self._disconnect()

    def _run(self) -> None:
        while not self._is_stopped:
            self._woken.wait()
            self._woken.clear()
            try:
                self._read()
                self._write()
            except psycopg.Error as error:
                self._disconnect()
                if not is_cut(error):  # or else the thread that listens says so
                    _log.warning("progress can't be shared with the other servers: %s", brief(error))
                self._stopping.wait(_RETRY_SECONDS)
                self.wake()
            else:
                self._stopping.wait(WRITE_SECONDS)

    def _read(self) -> None:
        if not self._may_be_news_of_others:
            return
        self._may_be_news_of_others = False
        unheard, self._unheard = self._unheard, {}
        for progress, tries_left in unheard.values():
            self._hand_over(progress, tries_left)
        seen, own = self._seen, self._fence()
        rows = self._connected().execute(_READ, (list(seen), list(seen.values()), -1 if own is None else own)).fetchall()
        for fence, version, job_id, attempt, job in rows:
            seen[fence] = version
            self._hand_over(JobProgress(job_id, attempt, parse_job(job)), _TRIES)

    def _hand_over(self, progress: JobProgress, tries_left: int) -> None:
        self._unheard.pop(progress.job_id, None)
        if not self._hear(progress) and tries_left:
            self._unheard[progress.job_id] = progress, tries_left - 1

    def _write(self) -> None:
        fence = self._fence()
        with self._lock:
            news, self._news = self._news, {}
        if not news or fence is None:
            return
        try:
            self._write_news(self._connected(), fence, news)
        except psycopg.Error:
            with self._lock:
                self._news = news | self._news
            raise

    def _write_news(self, connection: Connection, fence: int, news: Mapping[str, JobProgress | None]) -> None:
        ended = [job_id for job_id, each in news.items() if each is None]
        said = [each for each in news.values() if each is not None]
        with connection.transaction():
            if self._version_fence != fence:
                ((last,),) = connection.execute(_LAST, (fence,)).fetchall()
                self._version, self._version_fence = max(self._version, last), fence
                connection.execute(_DELETE_OLD)
            if ended:
                connection.execute(_DELETE_ENDED, (ended,))
            if said:
                self._version += 1
                ids, attempts = [each.job_id for each in said], [each.attempt for each in said]
                jobs = [each.unstored.SerializeToString() for each in said]
                connection.execute(_WRITE, (fence, self._version, ids, attempts, jobs))
                connection.execute("SELECT pg_notify(%s, '')", (PROGRESS_CHANNEL,))

    def _connected(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = connect_writer(self._conninfo)
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error):
                connection.close()
