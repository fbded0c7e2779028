"""What clients learn of the engines."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Protocol

from evalrpc.config import Settings
from evalrpc.engines.holdings import EngineHolding
from evalrpc.jobs.size_limits import MAX_PAGE_BYTES
from evalrpc.protobuf.copies import without
from evalrpc.reading.page_bound import PageBound
from evalrpc.secrets.masking import Mask
from evalrpc.v1.engines_pb2 import Engine, EngineKind, ListEnginesResponse
from evalrpc.v1.jobs_pb2 import EvaluateRequest, ServedModel


class Engines(Protocol):
    """The engines of a server, as the calls need them. Used on the event loop, but for `problems`."""

    def listed(self) -> Sequence[Engine]:
        """Return those that are there, the oldest first, then those that have ended lately, the latest first."""

    def stop(self, engine_id: str) -> None:
        """Have an engine ended. Raises EngineNotFoundError."""

    def log_path(self, engine_id: str) -> Path | None:
        """Return where the log of an engine is; None if it is forgotten."""

    def log_mask(self, engine_id: str) -> Mask:
        """Return with what the log of an engine is masked. Blocks."""

    def holdings(self) -> Sequence[EngineHolding]:
        """Return what engines hold."""

    def key(self, served: ServedModel) -> str:
        """Return what is equal as long as the answers of a model are; empty if that can't be told. Blocks."""

    def pin(self, request: EvaluateRequest) -> None:
        """Fill in the revisions of served models, as far as they are known. Blocks. Raises InvalidRequestError."""

    def api_of(self, served: ServedModel) -> tuple[str, ...]:
        """Return what answers for a model can answer. Raises RunFailedError."""

    def problems(self) -> Mapping[str, str]:
        """Return why each engine that is configured can't be started, and each endpoint not asked, by its name; empty if
        nothing is missing. Looks at the disk."""


def listing(
    engines: Sequence[Engine], settings: Settings, problems: Mapping[str, str], owner: str | None
) -> ListEnginesResponse:
    """Describe the engines, and what may be named, endpoints last. With `owner`, the engines of other owners are left out, and
    of those that everybody shares it is not said which model they have, since a job of another owner may have named it."""
    kinds = [
        EngineKind(name=name, args=sorted(engine.args), unavailable_reason=problems.get(name, ""))
        for name, engine in sorted(settings.engines.items())
    ]
    kinds += [
        EngineKind(name=name, endpoint=True, models=endpoint.models, unavailable_reason=problems.get(name, ""))
        for name, endpoint in sorted(settings.endpoints.items())
    ]
    visible = engines if owner is None else [_as_shared(each) for each in engines if each.owner in ("", owner)]
    answer = ListEnginesResponse(kinds=kinds)
    answer.engines.extend(_that_fit(visible, MAX_PAGE_BYTES - answer.ByteSize()))
    return answer


def _that_fit(engines: Sequence[Engine], max_bytes: int) -> Iterable[Engine]:
    """Return the engines, without their arguments where these take too much. Then, too, there may be too many: those that ended
    first, which come last, are left out."""
    whole, bare = (PageBound(len(engines), max_bytes) for _ in range(2))
    if all(map(whole.takes, engines)):
        return engines
    return takewhile(bare.takes, (without(engine, "served_model.args") for engine in engines))


def _as_shared(engine: Engine) -> Engine:
    """Return an engine without its model, unless it is one owner's."""
    return engine if engine.owner else without(engine, "served_model.model", "served_model.args", "error")
