"""The operator's suites, as clients get them."""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Final

from evalrpc.config import SuiteEntrySettings, SuiteSettings
from evalrpc.errors import ConfigurationError, FieldViolation
from evalrpc.jobs.metric_selectors import parse_metric
from evalrpc.jobs.size_limits import MAX_SUITE_BYTES
from evalrpc.server import validation
from evalrpc.v1.jobs_pb2 import EvaluateRequest
from evalrpc.v1.suites_pb2 import Suite, SuiteEntry

_REQUEST_KEYS: Final = ("harness", "tasks", "num_fewshot", "limit")
_ARGUMENTS: Final = ("gen_kwargs", "task_args")
_ENTRY_KEYS: Final = ("name", "tier", "required", "tolerance", "threshold", "higher_is_better", "cluster_by")


def build_suites(settings: Mapping[str, SuiteSettings]) -> Mapping[str, Suite]:
    """Return the suites by name, sorted. Raises ConfigurationError for one that no job could be made of."""
    return {name: _suite(settings[name]) for name in sorted(settings)}


def _suite(settings: SuiteSettings) -> Suite:
    where = f"suites.{settings.name}"
    suite = Suite(
        name=settings.name,
        description=settings.description,
        alpha=settings.alpha,
        max_bad_answer_ratio=settings.max_bad_answer_ratio,
        entries=[_entry(entry, f"{where}.entries[{index}]") for index, entry in enumerate(settings.entries)],
    )
    if suite.ByteSize() > MAX_SUITE_BYTES:
        raise ConfigurationError(f"setting {where}: takes {suite.ByteSize()} bytes; at most {MAX_SUITE_BYTES} are allowed")
    return suite


def _entry(settings: SuiteEntrySettings, where: str) -> SuiteEntry:
    request = EvaluateRequest(**{key: getattr(settings, key) for key in _REQUEST_KEYS})
    for name in _ARGUMENTS:
        if values := getattr(settings, name):
            getattr(request, name).update(values)
    entry = SuiteEntry(
        request=request,
        metrics=map(parse_metric, settings.metrics),
        **{key: getattr(settings, key) for key in _ENTRY_KEYS},
    )
    for field, problem in _violations(entry):
        raise ConfigurationError(f"setting {where}.{field}: {problem}")
    return entry


def _violations(entry: SuiteEntry) -> Iterator[FieldViolation]:
    return chain(validation.suite_request(entry.request), validation.metric_selectors("metrics", entry.metrics))
