"""How a harness is pointed at a server that has loaded the model."""

from collections.abc import Mapping
from typing import Final

from evalrpc.harnesses.base import JudgedHarness, ServedEndpoint, ServedNeeds
from evalrpc.protobuf.copies import without
from evalrpc.v1.jobs_pb2 import EvaluateRequest

API_KEY: Final = "evalrpc"
"""What harnesses send as a key where they have none, since their clients refuse to send none. It is no secret: the address is
what gives access."""

_LOOPBACK: Final = ("127.0.0.1", "localhost")
_NO_PROXY: Final = ("NO_PROXY", "no_proxy")


def pointed_at(request: EvaluateRequest, model: str, /, **model_args: str | bool) -> EvaluateRequest:
    """Return the request with this `model`, with these arguments besides its own, and without a served model."""
    changed = without(request, "served_model")
    changed.model = model
    changed.model_args.update(model_args)
    return changed


def served_environment(needs: ServedNeeds, served: ServedEndpoint, others: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a harness gets so that it can ask the server. `others`: those that it has otherwise, whose
    lists of hosts that are reached without a proxy are kept, and extended by this machine.

    The address is only in the variables that the harness needs: a scorer that asks another model with the same library would
    ask the one that is evaluated.
    """
    return {**_common(others), **dict.fromkeys(needs.variables, served.url)}


def judge_environment(harness: object, judge: ServedEndpoint, others: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a harness gets so that its tasks can ask a judge; none, if it asks none."""
    return {**_common(others), **harness.judge_variables(judge)} if isinstance(harness, JudgedHarness) else {}


def _common(others: Mapping[str, str]) -> dict[str, str]:
    direct = {name: ",".join(filter(None, (others.get(name), *_LOOPBACK))) for name in _NO_PROXY}
    return {**direct, "OPENAI_API_KEY": others.get("OPENAI_API_KEY", API_KEY)}
