"""A run gets the secrets that its request names, and nobody else ever sees them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from serving import CANCELLED, COMPLETED, FAILED, RUNNING, Launch, ServerHere, ServerThere, Site, fields_of, reason_of
from used_folders import contents_below

from evalrpc.executors.local.processes import processes_of_job
from evalrpc.v1.files_pb2 import ReadLogResponse

VALUE = "toy-secret-0123456789"
STARS = "*" * len(VALUE)


@pytest.fixture
def value(site: Site) -> Path:
    """The file with the value of TOY_SECRET, which everybody may use. OTHERS is for alice only."""
    path = site.folder / "toy-secret"
    path.write_text(f"{VALUE}\n")
    with site.config.open("a") as config:
        config.write(f"[secrets.TOY_SECRET]\nowners = ['*']\nfile = {json.dumps(str(path))}\n")
        config.write("[secrets.OTHERS]\nowners = ['alice']\nvariable = 'HOME'\n")
    return path


@pytest.fixture
def server(value: Path, serve: Callable[..., ServerHere]) -> ServerHere:
    return serve()


def environment_of(server: ServerHere, site: Site, *secrets: str) -> dict[str, str]:
    assert server.api.run("environment", request={"secrets": secrets}).status == COMPLETED
    found: dict[str, str] = json.loads((site.toy_dir / "environment").read_text())
    return found


def log(server: ServerHere | ServerThere, job_id: str, offset: int = 0) -> bytes:
    return b"".join(part.data for part in server.api.ReadLog(job_id=job_id, offset=offset))


def submit_telling(server: ServerHere | ServerThere, site: Site) -> str:
    """Submit a job that tells its secret, of which it has printed the first half."""
    job_id: str = server.api.submit("tell_secret", request={"secrets": ["TOY_SECRET"]}).job_id
    site.wait_for_log(job_id)
    return job_id


def files_with_value(site: Site) -> set[str]:
    return {path.name for path, content in contents_below(site.folder / "data").items() if VALUE.encode() in content}


def test_a_run_has_the_secrets_that_its_request_names_and_no_others(server: ServerHere, site: Site) -> None:
    assert environment_of(server, site, "TOY_SECRET")["TOY_SECRET"] == VALUE
    assert "TOY_SECRET" not in environment_of(server, site)


def test_a_value_is_read_anew_for_each_run(server: ServerHere, site: Site, value: Path) -> None:
    environment_of(server, site, "TOY_SECRET")
    value.write_text("exchanged")
    assert environment_of(server, site, "TOY_SECRET")["TOY_SECRET"] == "exchanged"


def test_nobody_sees_a_value_in_log_error_or_stream_and_only_the_runs_own_file_has_it(server: ServerHere, site: Site) -> None:
    job_id = submit_telling(server, site)
    followed: Iterator[ReadLogResponse] = server.api.ReadLog(job_id=job_id, follow=True)
    received = next(followed).data
    assert received == b"ready "  # the half that is there may be the beginning of the value
    arguments = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in processes_of_job(job_id)]
    assert not any(VALUE.encode() in line for line in arguments)
    site.release()
    received += b"".join(part.data for part in followed)
    job = server.api.wait_for(job_id, FAILED)

    assert received.startswith(f"ready {STARS}\n".encode())
    assert received == log(server, job_id)
    assert log(server, job_id, offset=10) == received[10:]
    assert job.error.message == f"ValueError: {STARS} is not valid"
    assert any(STARS in line for line in job.error.log_tail)
    events = list(server.api.watch(job_id, after_revision=1))
    assert not any(VALUE.encode() in event.SerializeToString() for event in events)
    server.stop()
    assert files_with_value(site) == {"secret"}


def test_a_cancelled_run_leaves_no_value_in_its_log_either(server: ServerHere, site: Site) -> None:
    job_id = server.api.submit("tell_secret", request={"secrets": ["TOY_SECRET"], "tasks_separately": True}).job_id
    site.wait_for_log(job_id)
    server.api.CancelJob(job_id=job_id)
    server.api.wait_for(job_id, CANCELLED)
    assert files_with_value(site) == set()


def test_a_secret_that_can_not_be_read_fails_the_job_with_its_name(server: ServerHere, value: Path) -> None:
    value.unlink()
    job = server.api.run(request={"secrets": ["TOY_SECRET"]})
    assert (job.status, job.error.reason) == (FAILED, "START_FAILED")
    assert job.error.message == "secret TOY_SECRET: its file can't be read: No such file or directory"


def test_a_secret_that_there_is_not_is_named(server: ServerHere) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        server.api.submit(request={"secrets": ["TOY_SECRET", "NONE"]})
    assert fields_of(caught.value) == ["request.secrets[1]"]
    assert "may use: TOY_SECRET" in str(caught.value.details())


def test_a_secret_of_others_is_refused(server: ServerHere) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        server.api.submit(request={"secrets": ["OTHERS"]})
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert reason_of(caught.value) == "SECRET_NOT_ALLOWED"


def test_evaluations_with_other_secrets_are_not_identical_and_those_with_another_value_are(
    server: ServerHere, value: Path
) -> None:
    first = server.api.run(request={"secrets": ["TOY_SECRET"]}, cache="CACHE_MODE_ALLOW")
    value.write_text("exchanged")
    assert server.api.run(request={"secrets": ["TOY_SECRET"]}, cache="CACHE_MODE_ALLOW").cached_from == first.job_id
    assert server.api.run(cache="CACHE_MODE_ALLOW").cached_from == ""


def test_after_a_restart_the_log_of_a_run_is_masked_with_the_value_of_now(launch: Launch, site: Site, value: Path) -> None:
    server = launch()
    job_id = submit_telling(server, site)
    server.kill()

    server = launch()
    server.api.wait_for(job_id, RUNNING)
    assert log(server, job_id) == b"ready "
    site.release()
    job = server.api.wait_for(job_id, FAILED)
    assert job.error.message == f"ValueError: {STARS} is not valid"
    assert files_with_value(site) == {"secret"}
    assert VALUE not in server.log_path.read_text()


def test_after_a_restart_a_log_that_can_not_be_masked_is_withheld(launch: Launch, site: Site, value: Path) -> None:
    server = launch()
    finished = server.api.run(request={"secrets": ["TOY_SECRET"]}).job_id
    job_id = submit_telling(server, site)
    server.kill()
    value.unlink()

    server = launch()
    assert log(server, finished) == b"4/4\n"  # masked for good when it ended
    with pytest.raises(grpc.RpcError) as caught:
        log(server, job_id)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "TOY_SECRET can't be read any more" in str(caught.value.details())
    site.release()
    job = server.api.wait_for(job_id, FAILED)
    assert VALUE not in str(job)
    assert job.error.message.startswith("(withheld: the value of TOY_SECRET")

    value.write_text(VALUE)
    assert STARS.encode() in log(server, job_id)
