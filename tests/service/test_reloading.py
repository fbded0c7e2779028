"""What an operator changes in the config file holds without a restart."""

import asyncio
import json
import logging
import signal
from collections.abc import Callable

import grpc
import pytest
from serving import COMPLETED, QUEUED, Launch, ServerHere, Site, reason_of, submission
from waiting import eventually

from evalrpc.config import ClientCertificate
from evalrpc.errors import UnauthenticatedError
from evalrpc.server.auth.client_certificates import ClientCertificates

Serve = Callable[..., ServerHere]
ONLY_GOOD = '[harnesses.toy.policy]\nmodels = ["good"]\n'


def add(site: Site, text: str) -> None:
    with site.config.open("a") as config:
        config.write(text)


def reload(server: ServerHere, site: Site) -> None:
    asyncio.run_coroutine_threadsafe(server.server.reload(site.settings), server._loop).result()


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return reason_of(caught.value)


@pytest.fixture(autouse=True)
def info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "evalrpc.server.reloading")


def test_a_policy_holds_for_the_next_submission(serve: Serve, site: Site, caplog: pytest.LogCaptureFixture) -> None:
    server = serve()
    server.start_no_more()
    server.api.submit("other")
    add(site, ONLY_GOOD)
    reload(server, site)
    assert refusal(lambda: server.api.submit("other")) == "POLICY_VIOLATION"
    assert "changed: harnesses.toy.policy" in caplog.text
    assert "restart" not in caplog.text


def test_a_job_that_a_quota_held_back_starts(serve: Serve, site: Site) -> None:
    plain = site.config.read_text()
    add(site, "[quotas.default]\nmax_running = 0\n")
    server = serve()
    job = server.api.submit()
    assert server.api.get(job.job_id).status == QUEUED
    site.config.write_text(plain)
    reload(server, site)
    server.api.wait_for(job.job_id, COMPLETED)


def test_a_secret_is_there_once_it_is_declared_and_not_once_it_is_removed(serve: Serve, site: Site) -> None:
    plain = site.config.read_text()
    server = serve()
    server.start_no_more()
    named = submission(request={"secrets": ["API_KEY"]})
    assert refusal(lambda: server.api.SubmitJob(named)) == "INVALID_REQUEST"
    (site.folder / "key").write_text("value")
    add(site, '[secrets.API_KEY]\nowners = ["*"]\nfile = "key"\n')
    reload(server, site)
    server.api.SubmitJob(named)
    assert server.server._secrets.problem("API_KEY") == ""
    site.config.write_text(plain)
    reload(server, site)
    assert refusal(lambda: server.api.SubmitJob(named)) == "INVALID_REQUEST"
    assert server.server._secrets.mask_text("the value") == "the *****"  # runs may have it still


def test_a_broken_file_changes_nothing_and_is_logged(serve: Serve, site: Site, caplog: pytest.LogCaptureFixture) -> None:
    server = serve()
    server.start_no_more()
    add(site, f"{ONLY_GOOD}[quotas.default]\nmax_running = -1\n")
    reload(server, site)
    server.api.submit("other")
    assert "the settings stay as they were" in caplog.text
    assert "quotas.default.max_running" in caplog.text
    server.stop()
    lines = (site.folder / "data" / "audit.jsonl").read_text().splitlines()
    assert [(entry["call"], entry["code"]) for entry in map(json.loads, lines)] == [
        ("reload", "INVALID_ARGUMENT"),
        ("SubmitJob", "OK"),
    ]


def test_what_takes_a_restart_is_named_and_not_taken_up(serve: Serve, site: Site, caplog: pytest.LogCaptureFixture) -> None:
    server = serve()
    server.start_no_more()
    site.set_up(max_queued=1)
    add(site, f'args = []\nworking_dir = "/"\n{ONLY_GOOD}[harnesses.more]\nkind = "command"\ncommand = ["true"]\n')
    reload(server, site)
    assert "changed: harnesses.toy.policy\n" in caplog.text
    assert "takes a restart: max_queued, harnesses.more, harnesses.toy\n" in caplog.text
    for _ in range(2):
        server.api.submit()
    reload(server, site)  # what was said is said again, since it is still so
    assert caplog.text.count("takes a restart: max_queued") == 2


def test_the_streams_end_of_whom_the_table_names_no_longer_or_as_somebody_else() -> None:
    async def change() -> None:
        lines = {name: ClientCertificate(name, "viewer") for name in ("same", "gone", "other")}
        certificates = ClientCertificates(lines)

        def sign_in(name: str) -> object:
            presented = {"x509_pem_cert": [b"-"], "x509_common_name": [name.encode()]}
            principal = certificates.principal_of(presented)
            assert principal is not None
            return principal

        def stream(name: str) -> asyncio.Task[None]:
            return asyncio.create_task(sign_in(name).sign_in.while_valid(asyncio.Event().wait()))

        streams = {name: stream(name) for name in lines}
        await asyncio.sleep(0)
        certificates.exchange({"same": lines["same"], "other": ClientCertificate("other", "operator")})
        for name in ("gone", "other"):
            with pytest.raises(UnauthenticatedError, match="changed whom"):
                await streams[name]
        assert not streams["same"].done()
        streams["same"].cancel()
        assert sign_in("other").role.value == "operator"
        with pytest.raises(UnauthenticatedError):
            sign_in("gone")

    asyncio.run(change())


def test_a_certificate_signs_in_once_the_table_names_it(serve: Serve, site: Site) -> None:
    server = serve()
    add(site, '[client_certificates]\n"ci.example.org" = { owner = "ci", role = "operator" }\n')
    assert server.server._authenticator._certificates.is_empty
    reload(server, site)
    assert not server.server._authenticator._certificates.is_empty


def test_a_server_reads_its_file_again_on_sighup(launch: Launch, site: Site) -> None:
    server = launch()
    add(site, ONLY_GOOD)
    server.process.send_signal(signal.SIGHUP)
    eventually(lambda: "changed: harnesses.toy.policy" in server.log_path.read_text(), "for the settings to be read")
    assert refusal(lambda: server.api.submit("other")) == "POLICY_VIOLATION"
    assert server.terminate() == 0
