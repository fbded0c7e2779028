"""Exports: each job that has ended, at least once, also after a crash between the export and its note."""

import base64
import hashlib
import hmac
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from serving import Api

from evalrpc.cli import main
from evalrpc.client import EvalClient
from evalrpc.errors import ConfigurationError, UnavailableError
from evalrpc.exporting.follower import Follower
from evalrpc.exporting.parquet_files import ParquetTarget
from evalrpc.exporting.state import ExportState, read_state, write_state
from evalrpc.exporting.webhook import WebhookTarget
from evalrpc.v1.jobs_pb2 import JobFilter, JobInfo

SECRETS = [f"whsec_{base64.b64encode(bytes([number]) * 32).decode()}" for number in (1, 2)]
NEEDS_EXPORTERS = pytest.mark.skipif(
    "EVALRPC_TEST_EXPORTERS_PYTHON" not in os.environ,
    reason="EVALRPC_TEST_EXPORTERS_PYTHON does not name an interpreter with mlflow, wandb and what evalrpc[cli] needs",
)


class CrashError(Exception):
    """The exporter dies."""


class Recorder:
    """A target that keeps ids, and dies when it is told to."""

    part_count = 0

    def __init__(self, dies_in: str = "") -> None:
        self.taken: list[str] = []
        self._dies_in = dies_in

    def resume(self, state: ExportState | None) -> None:
        pass

    def put(self, job: JobInfo, revision: int) -> bool:
        assert revision
        self.taken.append(job.job_id)
        if self._dies_in == "put":
            raise CrashError
        return True

    def flush(self) -> None:
        if self._dies_in == "flush":
            raise CrashError


@pytest.fixture
def client(api: Api) -> Iterator[EvalClient]:
    with EvalClient(api.address) as client:
        yield client


def export(client: EvalClient, target: object, state: Path, **fields: object) -> None:
    Follower(client, target, JobFilter(**fields), state, "test").run(once=True)  # type: ignore[arg-type]


def test_each_job_is_exported_once_by_one_export_after_the_other(api: Api, client: EvalClient, tmp_path: Path) -> None:
    state, target = tmp_path / "state", Recorder()
    jobs = [api.run("good").job_id, api.run("fails").job_id]
    live = api.submit("slow").job_id
    export(client, target, state)
    assert sorted(target.taken) == sorted(jobs)
    export(client, target, state)
    assert len(target.taken) == 2
    jobs.append(api.run("good").job_id)
    export(client, target, state)
    assert sorted(target.taken) == sorted(jobs)
    assert live not in target.taken


def test_only_what_the_filter_takes_is_exported(api: Api, client: EvalClient, tmp_path: Path) -> None:
    wanted = api.run("good", labels={"team": "a"}).job_id
    api.run("good", labels={"team": "b"})
    target = Recorder()
    export(client, target, tmp_path / "state", label_selector="team in (a,c)")
    assert target.taken == [wanted]


@pytest.mark.parametrize("place", ["put", "flush"])
@pytest.mark.parametrize("is_first", [True, False])
def test_what_was_not_noted_is_exported_again(api: Api, client: EvalClient, tmp_path: Path, place: str, is_first: bool) -> None:
    state, before = tmp_path / "state", Recorder()
    if not is_first:
        api.run("good")
        export(client, before, state)
    job_id = api.run("good").job_id
    dying, after = Recorder(place), Recorder()
    with pytest.raises(CrashError):
        export(client, dying, state)
    export(client, after, state)
    assert dying.taken == after.taken == [job_id]


def test_a_crash_before_the_state_is_noted_leaves_the_old_one(
    api: Api, client: EvalClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, target = tmp_path / "state", Recorder()
    api.run("good")
    export(client, target, state)
    stored = read_state(state, "test")
    api.run("good")

    def crash(*_: object) -> None:
        raise CrashError

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", crash)
        with pytest.raises(CrashError):
            export(client, target, state)
    assert read_state(state, "test") == stored
    export(client, target, state)
    assert len(target.taken) == 3


def test_a_state_is_of_one_selection(tmp_path: Path) -> None:
    write_state(tmp_path / "state", ExportState("webhook a", 7))
    assert read_state(tmp_path / "state", "webhook a") == ExportState("webhook a", 7)
    with pytest.raises(ConfigurationError, match="other filters or another target"):
        read_state(tmp_path / "state", "webhook b")
    (tmp_path / "state").write_text("{")
    with pytest.raises(ConfigurationError, match="damaged"):
        read_state(tmp_path / "state", "webhook a")


# Webhooks.


class Receiver:
    """Answers messages with these codes in turn, and then with 204."""

    def __init__(self) -> None:
        self.messages: list[tuple[dict[str, str], bytes]] = []
        self.codes: list[int] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.messages.append(({name.lower(): value for name, value in self.headers.items()}, body))
                self.send_response(receiver.codes.pop(0) if receiver.codes else 204)
                self.send_header("retry-after", "7")
                self.send_header("location", "http://127.0.0.1:9/elsewhere")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/hook"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


def test_a_webhook_is_signed_and_sent_until_it_is_taken(
    api: Api, client: EvalClient, tmp_path: Path, receiver: Receiver
) -> None:
    job, pauses = api.run("good"), list[float]()
    receiver.codes = [500, 302, 429, 404]
    export(client, WebhookTarget(receiver.url, SECRETS, pause=pauses.append), tmp_path / "state")
    assert len(receiver.messages) == 5
    assert len({headers["webhook-id"] for headers, _ in receiver.messages}) == 1
    assert all(pause >= 7 for pause in pauses)
    headers, body = receiver.messages[-1]
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = [hmac.digest(bytes([number]) * 32, signed, hashlib.sha256) for number in (1, 2)]
    assert headers["webhook-signature"].split() == [f"v1,{base64.b64encode(digest).decode()}" for digest in expected]
    message = json.loads(body)
    assert message["type"] == "job.completed"
    assert message["data"]["job"]["job_id"] == job.job_id
    assert str(message["data"]["revision"]) in headers["webhook-id"]


def test_pauses_grow_between_tries(api: Api, client: EvalClient, tmp_path: Path) -> None:
    api.run("good")
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 12:
            raise CrashError

    with pytest.raises(CrashError):
        export(client, WebhookTarget("http://127.0.0.1:9/", [], pause=pause), tmp_path / "state")
    assert pauses[0] <= 1
    assert 150 <= pauses[-1] <= 300


def test_a_message_that_is_given_up_is_sent_by_the_next_export(
    api: Api, client: EvalClient, tmp_path: Path, receiver: Receiver
) -> None:
    api.run("good")
    receiver.codes = [503]
    with pytest.raises(UnavailableError, match="it answers 503"):
        export(client, WebhookTarget(receiver.url, [], give_up_seconds=0), tmp_path / "state")
    receiver.codes = [410]
    with pytest.raises(ConfigurationError, match="wants no more"):
        export(client, WebhookTarget(receiver.url, []), tmp_path / "state")
    export(client, WebhookTarget(receiver.url, []), tmp_path / "state")
    assert len(receiver.messages) == 3


@pytest.mark.parametrize("secret", ["whsec_!", "whsec_c2hvcnQ=", "x"])
def test_a_secret_that_is_none_is_refused(secret: str) -> None:
    with pytest.raises(ConfigurationError, match="a webhook secret") as refused:
        WebhookTarget("http://127.0.0.1:9/", [secret])
    assert secret not in str(refused.value).replace("`whsec_`", "")


# Files.


def rows(folder: Path) -> list[dict[str, object]]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_parquet_has_a_row_per_metric_and_none_twice(api: Api, client: EvalClient, tmp_path: Path) -> None:
    jobs = [api.run("good", labels={"step": "5"}), api.run("fails")]
    state = tmp_path / "state"
    export(client, ParquetTarget(client, tmp_path), state)
    dying = ParquetTarget(client, tmp_path)
    late = api.run("good")
    flush = dying.flush

    def die() -> None:
        flush()
        raise CrashError

    dying.flush = die  # type: ignore[method-assign]
    with pytest.raises(CrashError):
        export(client, dying, state)
    assert len(list(tmp_path.glob("*.parquet"))) == 2
    export(client, ParquetTarget(client, tmp_path), state)
    found = rows(tmp_path)
    assert sorted(str(row["job_id"]) for row in found) == sorted(job.job_id for job in (*jobs, late))
    good = next(row for row in found if row["job_id"] == jobs[0].job_id)
    assert (good["metric"], good["value"], good["labels"], good["status"]) == ("acc", 0.5, [("step", "5")], "COMPLETED")
    failed = next(row for row in found if row["job_id"] == jobs[1].job_id)
    assert (failed["metric"], failed["error_reason"]) == (None, jobs[1].error.reason)
    state.unlink()
    with pytest.raises(ConfigurationError, match="state is lost"):
        export(client, ParquetTarget(client, tmp_path), state)


# The command line.


def run(api: Api, *arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, ["--address", api.address, "export", *arguments], env=env)


def test_the_command_exports_to_files_and_webhooks(api: Api, tmp_path: Path, receiver: Receiver) -> None:
    api.run("good", labels={"team": "a"})
    api.run("good")
    ran = run(api, "parquet", str(tmp_path / "out"), "--once", "-l", "team=a")
    assert (ran.exit_code, ran.stdout) == (0, "exported 1 jobs\n"), ran.output
    assert len(rows(tmp_path / "out")) == 1
    again = run(api, "parquet", str(tmp_path / "out"), "--once")
    assert again.exit_code == 2
    assert "other filters" in again.output
    table = pyarrow.dataset.dataset(tmp_path / "out").to_table()  # the folder as a whole
    assert table.num_rows == 1
    sent = run(
        api, "webhook", receiver.url, "--state", str(tmp_path / "s"), "--once", env={"EVALRPC_WEBHOOK_SECRET": SECRETS[0]}
    )
    assert (sent.exit_code, sent.stdout) == (0, "exported 2 jobs\n"), sent.output
    assert "webhook-signature" in receiver.messages[0][0]


def test_a_receiver_that_is_away_is_named_and_not_the_server(api: Api, tmp_path: Path) -> None:
    api.run("good")
    ran = run(api, "webhook", "http://127.0.0.1:1/x", "--state", str(tmp_path / "s"), "--once", "--give-up-after", "0s")
    assert ran.exit_code == 3
    assert "evalrpc: the receiver at http://127.0.0.1:1/x does not take message" in ran.output
    assert "can't reach the server" not in ran.output


@pytest.mark.slow
@NEEDS_EXPORTERS
def test_a_real_mlflow_server_and_offline_wandb_have_the_runs(api: Api, tmp_path: Path) -> None:
    job_id = api.run("good", labels={"step": "300", "run": "r1"}).job_id
    api.run("fails")
    folder = Path(__file__).parents[1] / "support"
    python = os.environ["EVALRPC_TEST_EXPORTERS_PYTHON"]
    code = [python, str(folder / "exporters_program.py"), api.address, str(tmp_path), job_id]
    environment = {**os.environ, "PYTHONPATH": str(folder.parents[1]), "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}
    ran = subprocess.run(code, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=800)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_only_a_target_that_is_used_loads_its_library() -> None:
    code = "import sys, evalrpc.cli.export; sys.exit(bool({'mlflow', 'wandb', 'pyarrow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
