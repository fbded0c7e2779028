"""Endpoints: servers that are there already, such as a judge or a vendor's API. Nothing of ours runs for one.

The gateway knows an endpoint, and its key, only while jobs use it: once for each of its models, since a request that carries a
key may name no other model than the operator's.
"""

import hashlib
import http.client
import json
import socket
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final
from urllib.parse import urlsplit

from evalrpc.config import EndpointSettings
from evalrpc.engines.engine import INCOMPATIBLE, LOST
from evalrpc.engines.gateway.contract import Engine as GatewayEngine
from evalrpc.engines.gateway.contract import Replica
from evalrpc.engines.gateway.upstream import parse_address
from evalrpc.engines.gateway_keeper import GatewayKeeper
from evalrpc.errors import GatewayError, RunFailedError
from evalrpc.extras import install_command
from evalrpc.jobs.served_models import served_models
from evalrpc.secrets.registry import Secrets
from evalrpc.v1.jobs_pb2 import JobInfo, ServedModel

_PROBE_SECONDS: Final = 15.0
_CONNECT_SECONDS: Final = 5.0
_MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
_REFUSALS: Final = (401, 403)
_SHOWN: Final = 200


@dataclass(frozen=True)
class EndpointUse:
    """A model of an endpoint, as jobs use it."""

    settings: EndpointSettings
    model: str

    @property
    def engine_id(self) -> str:
        """Empty: no engine answers."""
        return ""

    @property
    def gateway_name(self) -> str:
        """What the gateway knows it by."""
        return f"endpoint-{self.settings.name}-{hashlib.sha256(self.model.encode()).hexdigest()[:16]}"

    @property
    def fingerprint(self) -> str:
        """What is equal as long as it is the same model at the same address. Whether its weights are, nobody can tell."""
        return hashlib.sha256(f"{self.settings.url}\0{self.model}".encode()).hexdigest()

    def for_gateway(self, key: str) -> GatewayEngine:
        """Return how the gateway asks it."""
        settings = self.settings
        return GatewayEngine(
            self.gateway_name,
            (Replica(settings.url, settings.max_in_flight),),
            model=self.model,
            key=key,
            key_header=settings.key_header,
            answer_seconds=settings.answer_seconds,
        )


class Endpoints:
    """The endpoints of a server. May be used from several threads."""

    def __init__(self, declared: Mapping[str, EndpointSettings], secrets: Secrets, gateway: GatewayKeeper) -> None:
        self._declared = declared
        self._secrets = secrets
        self._gateway = gateway
        self._lock = threading.Lock()  # held while the gateway is called, so that it forgets nothing that a job has just got
        self._users: dict[str, set[str]] = {}  # the jobs that use each, by what the gateway knows it by

    def __contains__(self, name: str) -> bool:
        return name in self._declared

    def lease(self, job: JobInfo, served: ServedModel) -> EndpointUse:
        """Let a job use an endpoint, until `release`. Blocks: its key is read anew. Raises RunFailedError."""
        use = EndpointUse(self._declared[served.engine], served.model)
        engine = use.for_gateway(self._key(use, job.owner))
        with self._lock:
            self._users.setdefault(use.gateway_name, set()).add(job.job_id)
            try:
                self._gateway.put_engine(engine)
            except GatewayError as error:
                raise RunFailedError(LOST, error.message) from error
        return use

    def release(self, job_id: str) -> None:
        """Let a job use its endpoints no more. The gateway forgets those that no other job uses. Raises GatewayError."""
        if not any(job_id in jobs for jobs in list(self._users.values())):
            return
        with self._lock:
            for name in [name for name, jobs in self._users.items() if job_id in jobs]:
                self._users[name].discard(job_id)
                if not self._users[name]:
                    del self._users[name]
                    self._gateway.remove_engine(name)

    def restore(self, jobs: Iterable[JobInfo]) -> list[GatewayEngine]:
        """Take up which running jobs of an earlier server use endpoints. Return how the gateway asks these: without its key, if
        that can't be read now; then the job's own lease will tell. Blocks."""
        engines = {}
        for job in jobs:
            for served in served_models(job.request):
                if served.engine in self:
                    use = EndpointUse(self._declared[served.engine], served.model)
                    self._users.setdefault(use.gateway_name, set()).add(job.job_id)
                    engines[use.gateway_name] = use.for_gateway(self._key_or_none(use, job.owner))
        return list(engines.values())

    def _key(self, use: EndpointUse, owner: str) -> str:
        name = use.settings.secret
        return self._secrets.read([name], owner)[name] if name else ""

    def _key_or_none(self, use: EndpointUse, owner: str) -> str:
        try:
            return self._key(use, owner)
        except RunFailedError:
            return ""


def endpoint_problem(settings: EndpointSettings) -> str:
    """Say why an endpoint can't be asked; nothing if the libraries are there. Asks nobody."""
    if find_spec("httptools") is None:
        return f"takes a library; install it: {install_command('engines')}"
    if settings.url.startswith("https:") and find_spec("aiohttp") is None:
        return f"https takes a library; install it: {install_command('endpoints')}"
    return ""


def require_usable(use: EndpointUse, url: str) -> None:
    """Ask an endpoint, through the gateway, for its list of models, which costs nothing. `url`: what stands for its `/v1`.

    Raises RunFailedError: ENGINE_INCOMPATIBLE if it refuses the key, or has a list without the model; ENGINE_LOST if it gives
    no answer at all. One that has no such list passes.
    """
    name = f"endpoint {use.settings.name}"
    try:
        status, body = _get(f"{url}/models")
    except (OSError, http.client.HTTPException) as error:
        why = _why_out_of_reach(use.settings.url) or str(error) or type(error).__name__
        raise RunFailedError(LOST, f"{name} gives no answer: {why}") from error
    if status in _REFUSALS:
        key = f"the secret {use.settings.secret}" if use.settings.secret else "a request without a key"
        raise RunFailedError(INCOMPATIBLE, f"{name} refuses {key}: {status} {body[:_SHOWN].decode(errors='replace')}")
    names = _names(body) if status == http.client.OK else []
    if names and use.model not in names:
        has = ", ".join(names)[:_SHOWN]
        raise RunFailedError(INCOMPATIBLE, f"{name} has no model {use.model}; it has: {has}")


def _get(url: str) -> tuple[int, bytes]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=_PROBE_SECONDS)
    try:
        connection.request("GET", parts.path)
        response = connection.getresponse()
        return response.status, response.read(_MAX_ANSWER_BYTES)
    finally:
        connection.close()


def _why_out_of_reach(url: str) -> str:
    """Say why nobody can connect to a server; empty if that is possible. The gateway tries on, so it has no reason to give."""
    address = parse_address(url)
    try:
        socket.create_connection((address.host, address.port), _CONNECT_SECONDS).close()
    except OSError as error:
        return f"no connection to {address.host}:{address.port}: {error.strerror or error}"
    return ""


def _names(body: bytes) -> list[str]:
    """Return the names in a list of models; none if it is no such list."""
    try:
        document: Any = json.loads(body)
        return [str(each["id"]) for each in document["data"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
