"""A run with an account of its own can do nothing to the server, nor to the runs of other owners, and all the rest works."""

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from accounts import FIRST_UID, PYTHON, UIDS, needs_accounts
from processes_of_tests import is_alive, read_pid
from serving import CANCELLED, COMPLETED, FAILED, RUNNING, TERMINAL, Launch, ServerHere, Site, copy_toy
from serving import PROGRAM as TOY
from waiting import DEADLINE_SECONDS as SECONDS
from waiting import eventually

from evalrpc.errors import ConfigurationError
from evalrpc.executors.local.cgroups import find_cgroups
from evalrpc.store.base import Submission
from evalrpc.v1 import jobs_pb2 as pb

pytestmark = needs_accounts

REAL = find_cgroups("auto").cgroups
needs_cgroups = pytest.mark.skipif(REAL is None, reason="this account can't make cgroups of version 2")

WARM = """
import json, os, pathlib, sys
output_dir, request = sys.argv[1:]
json.load(open(request))
folder = pathlib.Path(output_dir) / "model"
folder.mkdir()
(folder / "20260214_103045_results.json").write_text(json.dumps({"results": {"t": {"acc,none": 0.25}}}))
print(os.getuid(), open(f"/proc/{os.getppid()}/stat").read().rpartition(")")[2].split()[1])
"""

HOSTILE = Path(__file__).parents[1] / "support" / "hostile_run.py"


@pytest.fixture
def site() -> Iterator[Site]:
    """A site that every account can get to, with a harness for the toy program and one for the hostile one."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o711)
    site = Site(folder)
    toy = site.config.read_text().replace(json.dumps(sys.executable), json.dumps(PYTHON))
    program = shutil.copy(HOSTILE, folder / "hostile.py")
    hostile = [PYTHON, "-S", str(program), str(folder / "targets.json"), "{output_dir}", "{model}"]
    site.config.write_text(f'{toy}[harnesses.hostile]\nkind = "command"\ncommand = {json.dumps(hostile)}\n')
    site.config.write_text(site.config.read_text().replace(str(TOY), str(copy_toy(folder))))
    for path in (site.toy_dir, site.toy_dir / "release"):
        path.chmod(0o777)
    site.set_up(run_as_uids=UIDS)
    yield site
    site.kill_runs()
    shutil.rmtree(folder)


def submit(server: ServerHere, owner: str, model: str = "good", harness: str = "toy", **fields: Any) -> str:
    """Submit a job of an owner."""
    request = pb.EvaluateRequest(harness=harness, model=model, tasks=["t"], num_gpus=0)
    request.MergeFrom(pb.EvaluateRequest(**fields))
    job = pb.JobInfo(job_id=str(uuid.uuid4()), owner=owner, request=request, max_attempts=1)
    return server.server._store.submit(Submission(job)).result(SECONDS).job_id


def attempt_of(site: Site, job_id: str, number: int = 1) -> Path:
    return site.folder / "data" / "jobs" / job_id / f"attempt-{number}"


def program_of(site: Site, job_id: str) -> int:
    """Wait for the program of a job of the toy harness, and return its process id."""
    path = site.toy_dir / "starts" / job_id
    return int(eventually(lambda: path.exists() and path.read_text().endswith("\n") and path.read_text(), "a start").split()[0])


def owners_of(folder: Path) -> set[tuple[int, int]]:
    """Return the accounts and groups of a folder and all in it."""
    return {(path.lstat().st_uid, path.lstat().st_gid) for path in (folder, *folder.rglob("*"))}


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("cgroups", ["off", "auto"])
def test_a_run_can_do_nothing_to_the_server_and_to_other_owners(
    serve: Callable[..., ServerHere], site: Site, cgroups: str
) -> None:
    data_dir = site.folder / "data"
    data_dir.mkdir()
    (data_dir / "tokens").write_text("secret")
    (data_dir / "tokens").chmod(0o644)  # as it may be after a copy
    server = serve(cgroups=cgroups)
    victim = submit(server, "bob", "slow")
    neighbour = program_of(site, victim)
    cgroup = REAL.find(victim, 1) if REAL is not None and cgroups == "auto" else None
    others = attempt_of(site, victim)
    shim = read_pid(others / "run")
    assert shim is not None
    targets = {
        "files": {
            "the database": str(data_dir / "evalrpc.sqlite3"),
            "its journal": str(data_dir / "evalrpc.sqlite3-wal"),
            "the tokens": str(data_dir / "tokens"),
            "another's log": str(others / "log"),
            "another's traces": str(others / "run" / "exit"),
            "another's request": str(others / "request.json"),
        },
        "folders": {
            "the data folder": str(data_dir),
            "the jobs": str(data_dir / "jobs"),
            "another's attempt": str(others),
            "another's output": str(others / "output"),
            "another's home": str(data_dir / "homes" / str(FIRST_UID)),
        },
        "processes": {"the server": os.getpid(), "another's run": neighbour, "another's shim": shim[0]},
        "cgroup": str(cgroup.path if cgroup else ""),
    }
    (site.folder / "targets.json").write_text(json.dumps(targets))
    (site.folder / "targets.json").chmod(0o644)

    job_id = submit(server, "alice", harness="hostile")
    job = server.api.wait_for(job_id, *TERMINAL)
    assert job.status == COMPLETED, (job.error, site.log_of(job_id))
    outcomes, identity, through, *_ = site.log_of(job_id).splitlines()
    succeeded = {attack: outcome for attack, outcome in json.loads(outcomes).items() if outcome not in ("EACCES", "EPERM")}
    assert succeeded == {}
    assert through == "through /dev/stderr"
    uid = FIRST_UID + 1
    home = data_dir / "homes" / str(uid)
    assert json.loads(identity) == {"uid": [uid] * 3, "gid": [uid] * 3, "groups": [], "home": str(home)}
    assert mode_of(home) == 0o700

    assert is_alive(neighbour)
    site.release(victim)
    assert server.api.wait_for(victim, *TERMINAL).status == COMPLETED


@needs_cgroups
def test_runs_of_each_owner_are_forked_from_a_parent_of_their_own(serve: Callable[..., ServerHere], site: Site) -> None:
    code = site.folder / "code"
    code.mkdir(mode=0o755)
    (code / "warm.py").write_text(WARM)
    config = f'{site.config.read_text()}[harnesses.warm]\nkind = "command"\npreload = ["json"]\nworking_dir = "{code}"\n'
    site.config.write_text(config + f'command = ["{PYTHON}", "-m", "warm", "{{output_dir}}", "{{request_json}}"]\n')
    server = serve(cgroups="auto")
    told = []
    for owner in ("alice", "bob", "alice", "bob"):
        job = server.api.wait_for(submit(server, owner, harness="warm"), *TERMINAL)
        assert (job.status, job.attempts[-1].warm) == (COMPLETED, True), server.server._executor.warm_state("warm")
        told.append(site.log_of(job.job_id).split())
        attempt = attempt_of(site, job.job_id)
        assert owners_of(attempt) <= {(os.geteuid(), os.getegid()), (os.geteuid(), int(told[-1][0]))}
        assert {mode_of(attempt / name) for name in ("log", "run/exit")} == {0o600}
    assert [uid for uid, _ in told] == [str(FIRST_UID), str(FIRST_UID + 1)] * 2
    assert len({parent for _, parent in told}) == 2
    assert not server.server._executor.warm_state("warm").problem


def test_what_a_run_leaves_belongs_to_the_server_again(serve: Callable[..., ServerHere], site: Site) -> None:
    server = serve()
    (site.folder / "targets.json").write_text(json.dumps({"files": {}, "folders": {}, "processes": {}, "cgroup": ""}))
    (site.folder / "targets.json").chmod(0o644)
    job_id = submit(server, "alice", harness="hostile")
    assert server.api.wait_for(job_id, *TERMINAL).status == COMPLETED
    attempt = attempt_of(site, job_id)
    assert owners_of(attempt / "output") == {(0, 0)}
    assert mode_of(attempt / "output") == 0o700
    assert mode_of(attempt / "output" / "good" / "deep") == 0o700
    assert not mode_of(attempt / "output" / "program") & 0o6000, "a program keeps no right to the account that it is given to"
    assert mode_of(attempt / "log") == 0o600
    assert Path("/etc/passwd").stat().st_uid == 0
    assert [artifact.name for artifact in server.api.ListArtifacts(job_id=job_id).artifacts]


def test_a_model_is_prepared_with_the_account_of_the_owner_who_alone_gets_it(
    serve: Callable[..., ServerHere], site: Site
) -> None:
    program = shutil.copy(HOSTILE.with_name("preparation_program.py"), site.folder / "prepare.py")
    command = [PYTHON, "-S", str(program), "{model}", "{output}"]
    text = f"{site.config.read_text()}\n[preparations.toy]\ncommand = {json.dumps(command)}\n"
    site.config.write_text(f"{text}env = {{ TOY_DIR = {json.dumps(str(site.toy_dir))} }}\n")
    model = site.folder / "checkpoint"
    model.mkdir(0o700)
    (model / "how").write_text("prepare")
    (model / "value").write_text("0.25")
    for path in (model, *model.iterdir()):
        os.chown(path, FIRST_UID, FIRST_UID)
    server = serve()
    arguments: dict[str, Any] = {"preparation": "toy", "model_args": {"pretrained": str(model)}}
    of_alice = [submit(server, "alice", "weighs", **arguments) for _ in range(2)]
    jobs = [server.api.wait_for(job_id, *TERMINAL) for job_id in of_alice]
    assert [job.status for job in jobs] == [COMPLETED] * 2, jobs[0].error
    (kept,) = (site.folder / "data" / "preparations").iterdir()
    assert {uid for uid, _ in owners_of(kept / site.folder.name / "checkpoint")} == {FIRST_UID}
    assert [mode_of(kept / site.folder.name / "checkpoint"), mode_of(kept.parent)] == [0o700, 0o711]
    assert (site.toy_dir / "preparations").read_text().splitlines() == [str(model)], "once for both"

    job = server.api.wait_for(submit(server, "bob", "weighs", **arguments), *TERMINAL)
    assert (job.status, job.error.reason) == (FAILED, "PREPARATION_FAILED")
    assert "PermissionError" in job.error.message


def test_an_owner_has_the_same_account_after_a_restart(launch: Launch, site: Site) -> None:
    server = launch()
    assert server.api.run("good").status == COMPLETED
    server.terminate()
    server = launch()
    job_id = server.api.submit("slow").job_id
    program_of(site, job_id)
    assert (attempt_of(site, job_id) / "output").stat().st_uid == FIRST_UID


def test_the_output_comes_back_though_the_server_was_killed(launch: Launch, site: Site) -> None:
    server = launch()
    job_id = server.api.submit("slow").job_id
    program = program_of(site, job_id)
    output = attempt_of(site, job_id) / "output"
    assert (output.stat().st_uid, mode_of(output)) == (FIRST_UID, 0o700)
    server.kill()
    site.release(job_id)
    eventually(lambda: not is_alive(program), "for the run to end")
    assert FIRST_UID in {uid for uid, _ in owners_of(output)}
    server = launch()
    assert server.api.wait_for(job_id, *TERMINAL).status == COMPLETED
    assert owners_of(output) == {(0, 0)}


def test_a_run_that_is_found_again_can_be_cancelled(launch: Launch, site: Site) -> None:
    server = launch()
    job_id = server.api.submit("slow").job_id
    program = program_of(site, job_id)
    server.kill()
    server = launch()
    server.api.CancelJob(job_id=job_id)
    assert server.api.wait_for(job_id, *TERMINAL).status == CANCELLED
    assert not is_alive(program)
    assert owners_of(attempt_of(site, job_id) / "output") == {(0, 0)}


def test_the_output_comes_back_to_a_server_without_accounts_too(launch: Launch, site: Site) -> None:
    server = launch()
    job_id = server.api.submit("slow").job_id
    program_of(site, job_id)
    server.kill()
    site.set_up(run_as_uids="")
    site.release(job_id)
    server = launch()
    assert server.api.wait_for(job_id, *TERMINAL).status == COMPLETED
    assert owners_of(attempt_of(site, job_id) / "output") == {(0, 0)}


def test_kept_steps_and_an_output_root_work_with_accounts(serve: Callable[..., ServerHere], site: Site) -> None:
    root = site.folder / "results"
    root.mkdir()
    root.chmod(0o711)
    group = 54_321
    server = serve(output_root=str(root), output_mode="0640", output_group=str(group))
    tasks = ["good", "flaky"]
    request = {"tasks": tasks, "tasks_separately": True, "output_dir": "team/nightly"}
    job = server.api.wait_for(server.api.submit("each", request=request, max_attempts=2).job_id, *TERMINAL)
    assert job.status == COMPLETED, job.error
    assert [attempt.number for attempt in job.attempts] == [1, 2]
    folder = root / "team" / "nightly" / job.job_id
    assert [mode_of(path) for path in (root / "team", folder)] == [0o2751, 0o2751]
    for path in (folder / "attempt-1", folder / "attempt-2"):
        assert owners_of(path) == {(0, group)}
        assert {mode_of(each) & 0o007 for each in path.rglob("*") if each.is_dir() and not each.name.startswith("task-")} == {0}
    results = list((folder / "attempt-2").rglob("*_results.json"))
    assert len(results) == 2
    assert {mode_of(path) for path in results} == {0o640}
    assert (folder / "attempt-2" / "task-1" / "toy").exists(), "the first task was kept"


def test_a_program_that_the_account_may_not_run_says_so(serve: Callable[..., ServerHere], site: Site) -> None:
    private = site.folder / "private"
    private.mkdir(mode=0o700)
    shutil.copy("/bin/true", private / "program")
    text = site.config.read_text()
    site.config.write_text(f'{text}[harnesses.closed]\nkind = "command"\ncommand = ["{private}/program"]\n')
    server = serve()
    job = server.api.wait_for(submit(server, "alice", harness="closed"), *TERMINAL)
    assert (job.status, job.error.reason) == (FAILED, "START_FAILED")
    assert "Permission denied" in job.error.message
    assert owners_of(attempt_of(site, job.job_id) / "output") == {(0, 0)}


def test_a_job_fails_with_a_word_where_all_accounts_have_been_given_away(serve: Callable[..., ServerHere], site: Site) -> None:
    site.release()
    server = serve(run_as_uids=f"{FIRST_UID}-{FIRST_UID}")
    assert server.api.wait_for(submit(server, "alice"), *TERMINAL).status == COMPLETED
    job = server.api.wait_for(submit(server, "bob"), *TERMINAL)
    assert (job.status, job.error.reason) == (FAILED, "START_FAILED")
    assert "all 1 accounts for runs have been given away (setting run_as_uids)" in job.error.message
    assert server.api.wait_for(submit(server, "alice"), *TERMINAL).status == COMPLETED


def test_a_process_of_another_owner_that_carries_the_id_of_a_job_is_not_taken_for_its_run(
    serve: Callable[..., ServerHere], site: Site
) -> None:
    server = serve()
    job_id = server.api.submit("slow").job_id
    program_of(site, job_id)
    forger = subprocess.Popen(
        (PYTHON, "-S", "-c", "import time; time.sleep(1000)"),
        env={"EVALRPC_JOB_ID": job_id},
        user=FIRST_UID + 500,
        group=FIRST_UID + 500,
        extra_groups=(),
        cwd="/",
    )
    try:
        server.api.CancelJob(job_id=job_id)
        assert server.api.wait_for(job_id, *TERMINAL).status == CANCELLED
        assert forger.poll() is None
    finally:
        forger.kill()
        forger.wait()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"run_as_uids": "1-10"}, "of this machine already"),
        ({"run_as_uids": "0-10"}, "must be empty or FIRST-LAST"),
        ({"run_as_uids": "20-10"}, "must be empty or FIRST-LAST"),
        ({"run_as_uids": "200000"}, "must be empty or FIRST-LAST"),
        ({"run_as_uids": UIDS, "run_as_groups": "no-such-group"}, "no group 'no-such-group'"),
    ],
)
def test_a_server_does_not_start_with_accounts_that_it_can_not_give(
    serve: Callable[..., ServerHere], settings: dict[str, str], problem: str
) -> None:
    with pytest.raises(ConfigurationError, match="setting run_as_") as refused:
        serve(**settings)
    assert problem in refused.value.message


def test_a_server_does_not_start_where_its_accounts_can_not_get_to(serve: Callable[..., ServerHere], site: Site) -> None:
    closed = site.folder / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(ConfigurationError, match=f"setting data_dir: .* can't pass through {closed} to .*`chmod o\\+x` on it"):
        serve(data_dir=closed / "data")
    closed.chmod(0o711)
    serve(data_dir=closed / "data")


def test_runs_have_the_further_groups(serve: Callable[..., ServerHere], site: Site) -> None:
    server = serve(run_as_groups="root, 54321")
    job_id = submit(server, "alice", "slow")
    status = Path(f"/proc/{program_of(site, job_id)}/status").read_text()
    assert sorted(status.partition("Groups:")[2].splitlines()[0].split()) == ["0", "54321"]
    assert "NoNewPrivs:\t1" in status
    assert server.api.get(job_id).status == RUNNING


def test_the_output_comes_back_where_the_run_could_not_be_started(
    serve: Callable[..., ServerHere], site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EACCES, "no")

    server = serve()
    monkeypatch.setattr(server.server._executor, "_order", refuse)
    job = server.api.run("good")
    assert (job.status, job.error.reason) == (FAILED, "START_FAILED")
    assert owners_of(attempt_of(site, job.job_id) / "output") == {(0, 0)}


def test_the_data_folder_may_be_a_link(serve: Callable[..., ServerHere], site: Site) -> None:
    real = site.folder / "disk" / "evalrpc"
    real.mkdir(parents=True)
    real.parent.chmod(0o711)
    (site.folder / "data").symlink_to(real)
    job = serve().api.run("good")
    assert job.status == COMPLETED, job.error
    assert owners_of(real / "jobs" / job.job_id / "attempt-1" / "output") == {(0, 0)}
