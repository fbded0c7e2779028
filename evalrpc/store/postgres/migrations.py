"""The schema in PostgreSQL, as the steps that led to it. A step that was released is never edited; a change is a new step."""

from typing import Any, Final, LiteralString

import psycopg

from evalrpc.errors import ConfigurationError

MIGRATIONS: Final[tuple[LiteralString, ...]] = (
    """
    CREATE TABLE head (                              -- one row; whoever commits has locked it
        id boolean PRIMARY KEY DEFAULT true CHECK (id),
        revision bigint NOT NULL DEFAULT 0,          -- the newest
        number bigint NOT NULL DEFAULT 0,            -- of the latest change, also of those without a revision
        sequence bigint NOT NULL DEFAULT 0,          -- of the latest job
        created_ns bigint NOT NULL DEFAULT 0,        -- when that was created
        journal_bytes bigint NOT NULL DEFAULT 0,     -- the sizes of all events that there ever were
        oldest_revision bigint NOT NULL DEFAULT 0,   -- every event after this revision is in the journal
        holds text[] NOT NULL DEFAULT '{}',          -- what operators hold back
        data_id text NOT NULL DEFAULT '',            -- of the data folder that belongs to the database
        migrated_from text NOT NULL DEFAULT ''       -- the SQLite database that the jobs come from
    );
    INSERT INTO head DEFAULT VALUES;

    CREATE TABLE commits (                           -- the latest commit of each server, to look up what has come of it
        server_id text PRIMARY KEY,
        commit_id bigint NOT NULL,
        committed_at timestamptz NOT NULL
    );

    CREATE TABLE counts (                            -- how many jobs an owner has in each status
        owner text COLLATE "C" NOT NULL,
        status smallint NOT NULL,
        jobs bigint NOT NULL,
        number bigint NOT NULL,                      -- of the latest change when it was counted
        PRIMARY KEY (owner, status)
    );
    CREATE INDEX counts_by_number ON counts (number);

    CREATE TABLE jobs (
        sequence bigint PRIMARY KEY,                 -- the order of arrival; never reused
        status smallint NOT NULL,
        priority integer NOT NULL,
        retry_ns bigint NOT NULL,
        completed_ns bigint,
        cached_from text COLLATE "C",                -- the job whose run this one shares: while QUEUED, it follows that
        job bytea NOT NULL,                          -- JobInfo; the other columns repeat what is searched for
        job_id text COLLATE "C" NOT NULL UNIQUE,
        harness text COLLATE "C" NOT NULL,
        model text COLLATE "C" NOT NULL,
        num_gpus integer NOT NULL,
        supersede_key text COLLATE "C",
        request_id text COLLATE "C",
        fingerprint bytea NOT NULL,
        cache_key bytea,                             -- equal for identical evaluations
        created_ns bigint NOT NULL,
        owner text COLLATE "C" NOT NULL,
        engine text COLLATE "C" NOT NULL,
        suite_run_id text COLLATE "C",
        executor text COLLATE "C" NOT NULL           -- which one it is for; empty: the server's own machine
    );
    CREATE INDEX jobs_by_status ON jobs (status, sequence);
    CREATE INDEX jobs_by_owner ON jobs (owner, sequence);
    CREATE INDEX jobs_by_model ON jobs (left(model, 250), sequence);   -- an index takes no longer texts
    CREATE INDEX jobs_by_harness ON jobs (harness, sequence);
    CREATE INDEX jobs_by_completion ON jobs (completed_ns) WHERE completed_ns IS NOT NULL;
    CREATE INDEX jobs_by_supersede_key ON jobs (supersede_key, owner, status) WHERE supersede_key IS NOT NULL;
    CREATE UNIQUE INDEX jobs_by_request_id ON jobs (request_id, owner) WHERE request_id IS NOT NULL;
    CREATE INDEX jobs_by_cache_key ON jobs (cache_key, status, cached_from) WHERE cache_key IS NOT NULL;
    CREATE INDEX jobs_by_source ON jobs (cached_from, status) WHERE cached_from IS NOT NULL;
    CREATE INDEX jobs_by_suite_run ON jobs (suite_run_id, sequence) WHERE suite_run_id IS NOT NULL;

    CREATE TABLE job_tasks (
        task text COLLATE "C" NOT NULL,
        sequence bigint NOT NULL,
        PRIMARY KEY (task, sequence)
    );
    CREATE TABLE job_labels (
        label text COLLATE "C" NOT NULL,
        sequence bigint NOT NULL,
        value text COLLATE "C" NOT NULL,
        PRIMARY KEY (label, sequence)
    );
    CREATE INDEX job_labels_by_value ON job_labels (label, left(value, 250), sequence);

    CREATE TABLE clock_setbacks (                    -- jobs that were created, by the clock, before the one before them
        sequence bigint PRIMARY KEY,
        setback_ns bigint NOT NULL
    );

    CREATE TABLE journal (
        revision bigint PRIMARY KEY,
        sequence bigint NOT NULL,                    -- of the job
        created_ns bigint NOT NULL,
        event bytea NOT NULL,                        -- JobEvent, just as watchers get it
        previous smallint,                           -- the status before; 0 of a new job, NULL where it is not known
        labels_before text,                          -- as JSON, where they changed
        owner text COLLATE "C" NOT NULL,             -- of the job, and of one that was deleted
        begin_bytes bigint NOT NULL,                 -- the sizes of all events before, when made
        number bigint NOT NULL                       -- of the change
    );
    CREATE INDEX journal_by_job ON journal (sequence, revision);
    CREATE INDEX journal_by_owner ON journal (owner, revision);

    CREATE TABLE quiet_changes (                     -- changes without an event, for the other servers
        number bigint PRIMARY KEY,
        sequence bigint NOT NULL
    );

    CREATE TABLE removals (                          -- folders outside of the data folder that are to be removed
        path text COLLATE "C" PRIMARY KEY,
        job_id text NOT NULL                         -- the deleted job that left it
    );
    CREATE TABLE attempt_uses (                      -- what owners have used, also for jobs that were deleted
        ended_ns bigint NOT NULL,
        sequence bigint NOT NULL,
        started_ns bigint NOT NULL,
        width integer NOT NULL,                      -- GPUs, or 1 for a slot without any
        owner text NOT NULL,
        PRIMARY KEY (ended_ns, sequence)
    );
    CREATE TABLE run_uids (                          -- the accounts of runs; no row is ever deleted
        uid bigint PRIMARY KEY,
        owner text NOT NULL
    );
    CREATE TABLE suite_runs (
        suite_run_id text COLLATE "C" PRIMARY KEY,
        owner text COLLATE "C" NOT NULL,
        request_id text COLLATE "C",
        fingerprint bytea NOT NULL,
        run bytea NOT NULL                           -- SuiteRun; the statuses of its jobs are in their rows
    );
    CREATE INDEX suite_runs_by_owner ON suite_runs (owner, suite_run_id);
    CREATE UNIQUE INDEX suite_runs_by_request_id ON suite_runs (request_id, owner) WHERE request_id IS NOT NULL;
    """,
    # Runs of suites are listed, newest first.
    """
    ALTER TABLE suite_runs ADD COLUMN sequence bigint NOT NULL DEFAULT 0; -- of the first of its jobs
    UPDATE suite_runs SET sequence = coalesce(
        (SELECT min(sequence) FROM jobs WHERE jobs.suite_run_id = suite_runs.suite_run_id), 0
    );
    CREATE INDEX suite_runs_by_sequence ON suite_runs (sequence);
    CREATE INDEX suite_runs_of_owner_by_sequence ON suite_runs (owner, sequence);
    """,
    # Which of several servers runs the jobs.
    """
    ALTER TABLE head
        ADD COLUMN runner text NOT NULL DEFAULT '',          -- the server that has the lease, or had it last
        ADD COLUMN runner_host text NOT NULL DEFAULT '',     -- its machine, to which its runs belong
        ADD COLUMN fence bigint NOT NULL DEFAULT 0,          -- grows whenever another server gets the lease
        ADD COLUMN lease_until timestamptz NOT NULL DEFAULT 'epoch';
    """,
    # Who sees to the runs of each machine, and who places jobs on all of them.
    """
    CREATE TABLE leases (
        name text COLLATE "C" PRIMARY KEY,           -- the machine; empty: of the scheduler
        server text NOT NULL,                        -- that has it, or had it last
        fence bigint NOT NULL,                       -- of that server; no two have had the same
        expires_at timestamptz NOT NULL,
        description text NOT NULL DEFAULT ''         -- what the machine has, as its server has said
    );
    ALTER TABLE head DROP COLUMN runner, DROP COLUMN runner_host, DROP COLUMN lease_until;
    -- head.fence now grows with any change of these leases that other servers have to know.

    CREATE UNLOGGED TABLE progress (                 -- how far running jobs have come, for the other servers
        job_id text COLLATE "C" PRIMARY KEY,
        fence bigint NOT NULL,                       -- of the server that says so
        version bigint NOT NULL,                     -- grows with all that this one says
        attempt integer NOT NULL,
        job bytea NOT NULL                           -- a JobInfo with nothing but progress, wait_reason and usage
    );
    CREATE INDEX progress_by_version ON progress (fence, version);
    """,
)

_LOCK: Final = 0x6576616C  # "eval", of the locks that the applications of a database agree on


def migrate(connection: "psycopg.Connection[Any]") -> None:
    """Bring the database to this version, in one transaction, while no other server does.

    Raises ConfigurationError for a database of a newer version, psycopg.Error.
    """
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        connection.execute("CREATE TABLE IF NOT EXISTS schema_version (version integer NOT NULL)")
        row = connection.execute("SELECT version FROM schema_version").fetchone()
        version = row[0] if row else 0
        if version > len(MIGRATIONS):
            raise ConfigurationError(
                f"setting store: the database has version {version}, and this evalrpc knows up to {len(MIGRATIONS)}; "
                "run the newer evalrpc, or take another database"
            )
        for script in MIGRATIONS[version:]:
            connection.execute(script)
        if version < len(MIGRATIONS):
            connection.execute("DELETE FROM schema_version")
            connection.execute("INSERT INTO schema_version VALUES (%s)", (len(MIGRATIONS),))
