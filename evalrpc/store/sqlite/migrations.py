"""The database's schema, as the steps that led to it. A step that was released is never edited; a change is a new step."""

import sqlite3
from typing import Final

from evalrpc.errors import ConfigurationError

MIGRATIONS: Final = (
    """
    CREATE TABLE jobs (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,  -- the order of arrival; never reused
        job_id TEXT NOT NULL UNIQUE,
        status INTEGER NOT NULL,
        harness TEXT NOT NULL,
        model TEXT NOT NULL,
        priority INTEGER NOT NULL,
        num_gpus INTEGER NOT NULL,
        supersede_key TEXT,
        request_id TEXT UNIQUE,
        fingerprint BLOB,
        created_ns INTEGER NOT NULL,
        retry_ns INTEGER NOT NULL DEFAULT 0,
        completed_ns INTEGER,
        job BLOB NOT NULL                            -- JobInfo; the columns before it repeat what is searched for
    ) STRICT;
    CREATE INDEX jobs_by_status ON jobs (status, sequence);
    CREATE INDEX jobs_by_model ON jobs (model, sequence);
    CREATE INDEX jobs_by_harness ON jobs (harness, sequence);
    CREATE INDEX jobs_by_creation ON jobs (created_ns, sequence);
    CREATE INDEX jobs_by_completion ON jobs (completed_ns) WHERE completed_ns IS NOT NULL;
    CREATE INDEX jobs_by_supersede_key ON jobs (supersede_key, status) WHERE supersede_key IS NOT NULL;

    CREATE TABLE job_tasks (
        task TEXT NOT NULL,
        sequence INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE,
        PRIMARY KEY (task, sequence)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX job_tasks_by_job ON job_tasks (sequence);

    CREATE TABLE job_labels (
        label TEXT NOT NULL,
        value TEXT NOT NULL,
        sequence INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE,
        PRIMARY KEY (label, value, sequence)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX job_labels_by_job ON job_labels (sequence);

    CREATE TABLE journal (
        revision INTEGER PRIMARY KEY,
        job_id TEXT NOT NULL,
        created_ns INTEGER NOT NULL,
        event BLOB NOT NULL                          -- JobEvent, just as watchers get it
    ) STRICT;
    CREATE INDEX journal_by_job ON journal (job_id, revision);
    CREATE INDEX journal_by_age ON journal (created_ns);

    CREATE TABLE compaction (
        oldest_revision INTEGER NOT NULL             -- one row: every event after this revision is in the journal
    ) STRICT;
    INSERT INTO compaction VALUES (0);
    """,
    # Every submission pays for each index, and most for one with random keys: so an event names its job by the sequence.
    """
    CREATE TABLE new_jobs (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,  -- the order of arrival; never reused
        job_id TEXT NOT NULL UNIQUE,
        status INTEGER NOT NULL,
        harness TEXT NOT NULL,
        model TEXT NOT NULL,
        priority INTEGER NOT NULL,
        num_gpus INTEGER NOT NULL,
        supersede_key TEXT,
        request_id TEXT,
        fingerprint BLOB,
        created_ns INTEGER NOT NULL,
        retry_ns INTEGER NOT NULL,
        completed_ns INTEGER,
        job BLOB NOT NULL                            -- JobInfo; the columns before it repeat what is searched for
    ) STRICT;
    INSERT INTO new_jobs SELECT * FROM jobs;
    DELETE FROM sqlite_sequence WHERE name = 'new_jobs';
    INSERT INTO sqlite_sequence SELECT 'new_jobs', seq FROM sqlite_sequence WHERE name = 'jobs';

    CREATE TABLE new_journal (
        revision INTEGER PRIMARY KEY,
        sequence INTEGER NOT NULL,                   -- of the job; 0 where that was deleted before this table was made
        created_ns INTEGER NOT NULL,
        event BLOB NOT NULL                          -- JobEvent, just as watchers get it
    ) STRICT;
    INSERT INTO new_journal
        SELECT revision, ifnull(sequence, 0), journal.created_ns, event FROM journal LEFT JOIN jobs USING (job_id);
    DROP TABLE journal;
    ALTER TABLE new_journal RENAME TO journal;
    CREATE INDEX journal_by_job ON journal (sequence, revision);

    CREATE TABLE new_job_tasks (
        task TEXT NOT NULL,
        sequence INTEGER NOT NULL,
        PRIMARY KEY (task, sequence)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO new_job_tasks SELECT task, sequence FROM job_tasks;
    DROP TABLE job_tasks;
    ALTER TABLE new_job_tasks RENAME TO job_tasks;

    CREATE TABLE new_job_labels (
        label TEXT NOT NULL,
        value TEXT NOT NULL,
        sequence INTEGER NOT NULL,
        PRIMARY KEY (label, value, sequence)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO new_job_labels SELECT label, value, sequence FROM job_labels;
    DROP TABLE job_labels;
    ALTER TABLE new_job_labels RENAME TO job_labels;

    DROP TABLE jobs;
    ALTER TABLE new_jobs RENAME TO jobs;
    CREATE INDEX jobs_by_status ON jobs (status, sequence);
    CREATE INDEX jobs_by_model ON jobs (model, sequence);
    CREATE INDEX jobs_by_harness ON jobs (harness, sequence);
    CREATE INDEX jobs_by_creation ON jobs (created_ns, sequence);
    CREATE INDEX jobs_by_completion ON jobs (completed_ns) WHERE completed_ns IS NOT NULL;
    CREATE INDEX jobs_by_supersede_key ON jobs (supersede_key, status) WHERE supersede_key IS NOT NULL;
    CREATE UNIQUE INDEX jobs_by_request_id ON jobs (request_id) WHERE request_id IS NOT NULL;
    """,
    # Only jobs that may serve several submissions pay for these.
    """
    CREATE TABLE twins (
        cache_key BLOB NOT NULL,                     -- equal for identical evaluations
        sequence INTEGER NOT NULL,
        PRIMARY KEY (cache_key, sequence)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX twins_by_job ON twins (sequence);

    CREATE TABLE joined_requests (
        request_id TEXT PRIMARY KEY,                 -- of a submission that was answered with an earlier job
        fingerprint BLOB NOT NULL,
        sequence INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX joined_requests_by_job ON joined_requests (sequence);
    """,
    # The order of arrival is that of creation, but where the clock was set back. To know how far saves an index.
    """
    CREATE TABLE clock_setbacks (
        sequence INTEGER PRIMARY KEY,                -- of a job that was created, by the clock, before the one before it
        setback_ns INTEGER NOT NULL
    ) STRICT;
    INSERT INTO clock_setbacks
        SELECT sequence, previous_ns - created_ns
        FROM (SELECT sequence, created_ns, lag(created_ns) OVER (ORDER BY sequence) AS previous_ns FROM jobs)
        WHERE created_ns < previous_ns;
    DROP INDEX jobs_by_creation;
    """,
    # Selectors ask for a label whatever its value, and for jobs without it. And the labels of a job may change.
    """
    CREATE TABLE new_job_labels (
        label TEXT NOT NULL,
        sequence INTEGER NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (label, sequence)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO new_job_labels SELECT label, sequence, value FROM job_labels ORDER BY label, sequence;
    DROP TABLE job_labels;
    ALTER TABLE new_job_labels RENAME TO job_labels;
    CREATE INDEX job_labels_by_value ON job_labels (label, value, sequence);

    CREATE TABLE label_changes (
        block INTEGER PRIMARY KEY,                   -- of sequences, as bitmap_index.py divides them
        changes INTEGER NOT NULL                     -- how often a job of the block got other labels; no row: never
    ) STRICT;
    """,
    # A submission that shares a run is a job of its own. So a request_id that got an earlier job makes one when it is repeated.
    """
    ALTER TABLE jobs ADD COLUMN cache_key BLOB;      -- equal for identical evaluations
    ALTER TABLE jobs ADD COLUMN cached_from TEXT;    -- the job whose run this one shares: while QUEUED, it follows that
    UPDATE jobs SET cache_key = twins.cache_key FROM twins WHERE jobs.sequence = twins.sequence;
    DROP TABLE twins;
    DROP TABLE joined_requests;
    CREATE INDEX jobs_by_cache_key ON jobs (cache_key, status, cached_from) WHERE cache_key IS NOT NULL;
    CREATE INDEX jobs_by_source ON jobs (cached_from, status) WHERE cached_from IS NOT NULL;
    """,
    # What a job was before an event, so that a watcher can be told that the job has left its filter.
    """
    ALTER TABLE journal ADD COLUMN previous INTEGER;   -- the status; 0 of a new job, NULL where it is not known
    ALTER TABLE journal ADD COLUMN labels_before TEXT; -- the labels as JSON, where they changed
    """,
    # The size of the journal is known from its first and its last event, and where to cut it is found without adding up.
    """
    ALTER TABLE journal ADD COLUMN begin_bytes INTEGER NOT NULL DEFAULT 0; -- the sizes of all events before, when made
    UPDATE journal SET begin_bytes = sums.total - length(event) - ifnull(length(labels_before), 0) FROM (
        SELECT revision, sum(length(event) + ifnull(length(labels_before), 0)) OVER (ORDER BY revision) AS total FROM journal
    ) AS sums WHERE journal.revision = sums.revision;

    CREATE TABLE removals (
        path TEXT PRIMARY KEY,                       -- a folder outside of the data folder that is to be removed
        job_id TEXT NOT NULL                         -- the deleted job that left it
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX removals_by_job ON removals (job_id);
    """,
    # Jobs have owners. What was submitted before that has none.
    """
    ALTER TABLE jobs ADD COLUMN owner TEXT NOT NULL DEFAULT '';
    CREATE INDEX jobs_by_owner ON jobs (owner, sequence);
    DROP INDEX jobs_by_request_id;
    CREATE UNIQUE INDEX jobs_by_request_id ON jobs (request_id, owner) WHERE request_id IS NOT NULL;
    DROP INDEX jobs_by_supersede_key;
    CREATE INDEX jobs_by_supersede_key ON jobs (supersede_key, owner, status) WHERE supersede_key IS NOT NULL;
    ALTER TABLE journal ADD COLUMN owner TEXT NOT NULL DEFAULT ''; -- of the job, and of one that was deleted
    CREATE INDEX journal_by_owner ON journal (owner, revision);
    """,
    # What owners have used, also for jobs that were deleted. Before that there was only one of them.
    """
    CREATE TABLE attempt_uses (
        ended_ns INTEGER NOT NULL,
        sequence INTEGER NOT NULL,                   -- of the job
        started_ns INTEGER NOT NULL,
        width INTEGER NOT NULL,                      -- GPUs, or 1 for a slot without any
        owner TEXT NOT NULL,
        PRIMARY KEY (ended_ns, sequence)
    ) STRICT, WITHOUT ROWID;
    """,
    # The accounts of runs. No row is ever deleted, so that no owner gets the account, and with it the files, of another one.
    """
    CREATE TABLE run_uids (
        uid INTEGER PRIMARY KEY,
        owner TEXT NOT NULL                          -- has another one where the setting run_as_uids was changed
    ) STRICT;
    """,
    # What operators hold back by hand.
    """
    CREATE TABLE holds (
        name TEXT PRIMARY KEY                        -- `queue`, or `gpu ID`
    ) STRICT, WITHOUT ROWID;
    """,
    # Runs of suites. Only their jobs pay for the index.
    """
    CREATE TABLE suite_runs (
        suite_run_id TEXT PRIMARY KEY,
        owner TEXT NOT NULL,
        request_id TEXT,
        fingerprint BLOB NOT NULL,
        run BLOB NOT NULL                            -- SuiteRun; the statuses of its jobs are in their rows
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX suite_runs_by_owner ON suite_runs (owner, suite_run_id);
    CREATE UNIQUE INDEX suite_runs_by_request_id ON suite_runs (request_id, owner) WHERE request_id IS NOT NULL;
    ALTER TABLE jobs ADD COLUMN suite_run_id TEXT;
    CREATE INDEX jobs_by_suite_run ON jobs (suite_run_id, sequence) WHERE suite_run_id IS NOT NULL;
    """,
    # Jobs that may share an engine.
    """
    ALTER TABLE jobs ADD COLUMN engine TEXT NOT NULL DEFAULT '';
    """,
    # Which executor a job is for; empty: the server's own machine.
    """
    ALTER TABLE jobs ADD COLUMN executor TEXT NOT NULL DEFAULT '';
    """,
    # Runs of suites are listed, newest first.
    """
    ALTER TABLE suite_runs ADD COLUMN sequence INTEGER NOT NULL DEFAULT 0; -- of the first of its jobs
    UPDATE suite_runs SET sequence = ifnull(
        (SELECT min(sequence) FROM jobs WHERE jobs.suite_run_id = suite_runs.suite_run_id), 0
    );
    CREATE INDEX suite_runs_by_sequence ON suite_runs (sequence);
    CREATE INDEX suite_runs_of_owner_by_sequence ON suite_runs (owner, sequence);
    """,
)


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the database to this version, in one transaction: a new one is soon there.

    Raises ConfigurationError for a database of a newer version.
    """
    version = known_version(connection)
    if version < len(MIGRATIONS):
        steps = "".join(MIGRATIONS[version:])
        connection.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version = {len(MIGRATIONS)}; COMMIT;")


def known_version(connection: sqlite3.Connection) -> int:
    """Return the version of the database. Raises ConfigurationError for a newer one."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise ConfigurationError(
            f"setting data_dir: its database has version {version}, and this evalrpc knows up to {len(MIGRATIONS)}; "
            "run the newer evalrpc, or take another folder"
        )
    return version
