"""What a server says of served models before any engine is started: which requests it takes, and what it tells of engines."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import grpc
import pytest
from callers import add_token
from click.testing import CliRunner
from serving import COMPLETED, QUEUED, Api, ServerHere, Site, fields_of
from waiting import eventually

from evalrpc.cli import main
from evalrpc.client import EvalClient
from evalrpc.engines.holdings import EngineHolding
from evalrpc.errors import EngineNotFoundError, InvalidRequestError, PermissionDeniedError
from evalrpc.jobs import transitions
from evalrpc.secrets.masking import NO_MASK, Mask
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.engines_pb2 import ENGINE_STATE_READY, Engine, EngineKind

Serve = Callable[..., ServerHere]
SERVED = {"engine": "vllm", "model": "acme/tiny"}


@pytest.fixture
def site(site: Site) -> Site:
    """A site with the engine `vllm`, which no test here starts."""
    command = json.dumps(["no-such-program", "{model}", "--port", "{port}"])
    site.config.write_text(
        f"{site.config.read_text()}[harnesses.toy.policy]\nmodels = ['good', 'acme/*']\n"
        f"[engines.vllm]\ncommand = {command}\nargs = {{ dtype = '--dtype' }}\n"
    )
    return site


def served(**fields: object) -> pb.EvaluateRequest:
    request = pb.EvaluateRequest(harness="toy", tasks=["t"])
    request.served_model.CopyFrom(pb.ServedModel(**{**SERVED, "num_gpus": 0, **fields}))  # type: ignore[arg-type]
    return request


class Listed:
    """Engines as a server may have them, which nobody has started."""

    def __init__(self, log: Path, *engines: Engine) -> None:
        self.engines = {engine.engine_id: engine for engine in engines}
        self.stopped: list[str] = []
        self.mask = NO_MASK
        self._log = log

    def listed(self) -> Sequence[Engine]:
        return tuple(self.engines.values())

    def stop(self, engine_id: str) -> None:
        if engine_id not in self.engines:
            raise EngineNotFoundError(f"there is no engine {engine_id!r}")
        self.stopped.append(engine_id)

    def log_path(self, engine_id: str) -> Path | None:
        return self._log if engine_id in self.engines else None

    def log_mask(self, engine_id: str) -> Mask:
        return self.mask

    def holdings(self) -> Sequence[EngineHolding]:
        return [
            EngineHolding(
                *(each.engine_id, "", "", each.owner, "", "", tuple(each.gpus), frozenset()),
                *(False, True, False, 0.0, 0.0),
            )
            for each in self.engines.values()
        ]

    def key(self, served: pb.ServedModel) -> str:
        return ""

    def pin(self, request: pb.EvaluateRequest) -> None:
        """Fill in nothing."""

    def api_of(self, served: pb.ServedModel) -> tuple[str, ...]:
        return ("chat",)

    def problems(self) -> Mapping[str, str]:
        return {"vllm": "there is no program no-such-program"}


def list_engines(server: ServerHere, engines: Listed) -> Listed:
    """Have a server list these engines. Return them."""
    service = server.server._service
    service.engines = service.queue.engines = engines
    return engines


def shared_engine() -> Engine:
    engine = Engine(engine_id="e-1", state=ENGINE_STATE_READY, gpus=["1"])
    engine.served_model.CopyFrom(pb.ServedModel(**SERVED))
    return engine


def test_a_bad_served_model_is_refused_with_every_field(api: Api) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        api.SubmitJob(request=served(engine="sglang", model="-x", num_gpus=9))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    names = ("engine", "model", "num_gpus")
    assert sorted(fields_of(caught.value)) == [f"request.served_model.{name}" for name in names]
    assert "it has: vllm" in (caught.value.details() or "")


def test_the_policy_of_the_harness_judges_the_served_model(api: Api) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        api.SubmitJob(request=served(model="evil/model"))
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "request.served_model.model: 'evil/model' is not allowed" in (caught.value.details() or "")


def test_a_valid_one_says_which_gpus_it_gets(api: Api) -> None:
    request = served()
    request.served_model.ClearField("num_gpus")
    job = api.SubmitJob(request=request, validate_only=True)
    assert (job.status, job.request.num_gpus, job.request.served_model.num_gpus) == (QUEUED, 0, 1)
    assert not job.warnings


def test_clients_and_the_command_line_submit_it(api: Api) -> None:
    with EvalClient(api.address) as client:
        job = client.evaluate("", ["t"], harness="toy", served_model={**SERVED, "num_gpus": 0}, validate_only=True)
        assert job.request.served_model == pb.ServedModel(**SERVED, num_gpus=0)
        with pytest.raises(InvalidRequestError, match="engine vllm takes no such argument from requests; it takes: dtype"):
            client.evaluate("", ["t"], harness="toy", served_model={**SERVED, "args": {"tp": 2}})
    flags = ["--engine", "vllm", "--served-model", "acme/tiny", "--engine-gpus", "0", "--engine-arg", "dtype=float32"]
    result = CliRunner().invoke(main, ["submit", "--tasks", "t", *flags, "--validate-only", "--address", api.address])
    assert (result.exit_code, result.stdout) == (0, "the request is valid\n"), result.output


def test_engines_are_listed_with_what_requests_may_name(server: ServerHere, tmp_path: Path) -> None:
    kind = EngineKind(name="vllm", args=["dtype"])
    with EvalClient(server.address) as client:
        assert [each.name for each in client.list_engines().kinds] == [kind.name]
        list_engines(server, Listed(tmp_path / "log", shared_engine()))
        found = client.list_engines()
        assert list(found.engines) == [shared_engine()]
        kind.unavailable_reason = "there is no program no-such-program"
        assert list(found.kinds) == [kind]
        queue = client.get_queue_status()
    assert [(gpu.id, gpu.engine_id, gpu.held) for gpu in queue.gpus] == [("0", "", False), ("1", "e-1", True)]
    assert queue.free_gpu_count == 1


def test_where_jobs_of_others_are_hidden_so_are_their_engines_and_models(serve: Serve, tmp_path: Path) -> None:
    server = serve(visibility="own")
    alone = shared_engine()
    alone.engine_id, alone.owner, alone.gpus[:] = "e-2", "alice", ["0"]
    list_engines(server, Listed(tmp_path / "log", shared_engine(), alone))
    (engine,) = server.api.ListEngines().engines
    assert (engine.engine_id, engine.served_model) == ("e-1", pb.ServedModel(engine="vllm"))
    assert [(gpu.id, gpu.engine_id, gpu.held) for gpu in server.api.GetQueue().gpus] == [("0", "", True), ("1", "e-1", True)]


def test_operators_end_an_engine_and_nobody_else_may(serve: Serve, site: Site, tmp_path: Path) -> None:
    token = add_token(site.folder / "data", "olga", "operator")
    server = serve()
    engines = list_engines(server, Listed(tmp_path / "log", shared_engine()))
    with EvalClient(server.address) as client, pytest.raises(PermissionDeniedError):
        client.stop_engine("e-1")
    with EvalClient(server.address, token=token) as operator:
        eventually(lambda: operator.get_caller().owner == "olga", "for the server to know the token")
        operator.stop_engine("e-1")
        with pytest.raises(EngineNotFoundError):
            operator.stop_engine("e-9")
        with pytest.raises(InvalidRequestError, match="engine_id"):
            operator.stop_engine("")
    assert engines.stopped == ["e-1"]
    server.stop()
    entries = [json.loads(line) for line in (site.folder / "data" / "audit.jsonl").read_text().splitlines()]
    assert ("olga", "StopEngine", "engine e-1", "OK") in [
        (entry.get("owner"), entry["call"], entry["target"], entry["code"]) for entry in entries
    ]


def test_the_log_of_an_engine_is_read_by_the_job_that_asked_it(server: ServerHere, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"loading\n" * 100_000)
    list_engines(server, Listed(log, shared_engine()))
    job = server.api.run()
    assert job.status == COMPLETED
    with EvalClient(server.address) as client:
        assert b"".join(client.logs(job.job_id, engine=True)) == b"", "it had none"
        server.server._store.update(job.job_id, lambda each: note_engine(each, "e-1")).result()
        assert b"".join(client.logs(job.job_id, engine=True)) == log.read_bytes()
        assert b"".join(client.logs(job.job_id, engine=True, offset=8 * 99_999)) == b"loading\n"
        assert b"".join(client.logs(job.job_id)) != log.read_bytes()
        server.server._store.update(job.job_id, lambda each: note_engine(each, "e-9")).result()
        assert b"".join(client.logs(job.job_id, engine=True)) == b"", "it is forgotten"
        with pytest.raises(InvalidRequestError, match="follow: must be false with `engine`"):
            list(client.logs(job.job_id, engine=True, follow=True))


def note_engine(job: pb.JobInfo, engine_id: str) -> None:
    job.attempts[-1].engine_id = engine_id
    transitions.add_warnings(job, [f"asked {engine_id}"])
