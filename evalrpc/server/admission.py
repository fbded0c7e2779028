"""Decides whether a submission is accepted: fills in the operator's defaults, then has every rule judge the whole of it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from evalrpc.config import Settings
from evalrpc.errors import (
    ExecutorUnsuitableError,
    FieldsError,
    InvalidRequestError,
    PolicyViolationError,
    SecretNotAllowedError,
)
from evalrpc.executors.base import Node
from evalrpc.harnesses.base import Harness
from evalrpc.jobs.defaults import RequestDefaults, executor_of
from evalrpc.server import executor_use, policy, preparation_use, secret_use, validation
from evalrpc.server.argument_values import argument_values
from evalrpc.v1.jobs_pb2 import SubmitJobRequest

GpuCounts = Mapping[str, Sequence[int]]
"""How many GPUs each node has, since a job runs on one: by the executor of the nodes."""


def gpu_counts(nodes: Iterable[Node]) -> GpuCounts:
    """Return how many GPUs each of these nodes has."""
    counts: dict[str, list[int]] = {}
    for node in nodes:
        counts.setdefault(node.executor, []).append(len(node.devices))
    return counts


@dataclass(frozen=True)
class Admission:
    """The rules of one server."""

    settings: Settings
    harnesses: Mapping[str, Harness]
    defaults: RequestDefaults

    def admit(self, call: SubmitJobRequest, owner: str, gpu_counts: GpuCounts, max_gpus: int | None = None) -> None:
        """Fill in what the call leaves out, and raise the first error of `judge`, if there is one."""
        for error in self.judge(call, owner, gpu_counts, max_gpus):
            raise error

    def judge(
        self, call: SubmitJobRequest, owner: str, gpu_counts: GpuCounts, max_gpus: int | None = None
    ) -> Iterator[FieldsError]:
        """Fill in what the call leaves out. `owner`: whose job it will be. `gpu_counts`: how many GPUs the nodes have.
        `max_gpus`: how many the owner may hold, None for any number.

        Yields InvalidRequestError with every bad field; ExecutorUnsuitableError with what the executor lacks;
        SecretNotAllowedError with every secret that is not for the owner; PolicyViolationError with every field that the
        harness's policy does not allow, or the executor's.
        """
        if call.HasField("request"):
            self.defaults.fill_in(call.request)
        harness = self.settings.harnesses.get(call.request.harness)
        if harness is not None:
            policy.fill_in_timeout(call, harness.policy)
        settings = self.settings
        of_executor = executor_use.violations(call.request, settings)
        own_counts = gpu_counts.get(executor_of(call.request), gpu_counts.get("", ()))
        servers = settings.model_servers
        invalid = validation.submission(call, self.harnesses, own_counts, settings.output_root, max_gpus, servers)
        arguments = list(argument_values(call.request))  # once for all rules, since there may be very many
        of_preparation = preparation_use.violations(call.request, self.settings.preparations)
        of_secrets = secret_use.violations(call.request, arguments, self.settings.secrets, owner)
        if bad := tuple(chain(invalid, of_executor, of_preparation, of_secrets)):
            yield InvalidRequestError(violations=bad)
        if unsuitable := tuple(executor_use.unsuitable(call.request)):
            yield ExecutorUnsuitableError(violations=unsuitable)
        if withheld := tuple(secret_use.not_allowed(call.request, settings.secrets, servers, owner)):
            yield SecretNotAllowedError(violations=withheld)
        refused = list(executor_use.not_allowed(call.request, settings, owner))
        if harness is not None:
            refused += policy.violations(call, arguments, harness)
        if refused:
            yield PolicyViolationError(violations=refused, metadata={"harness": call.request.harness})
