"""The keys of a `[suites.NAME]` table and of its `entries`, each declared once: what one decision is made over."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from evalrpc.config.declaration import (
    ARGUMENTS,
    BOOLEAN,
    INTEGER,
    NUMBER,
    STRING,
    STRINGS,
    Rule,
    at_least,
    between,
    metadata,
    setting,
)

MAX_ENTRIES: Final = 100
MAX_TIER: Final = 100
MAX_NAME_LENGTH: Final = 255

_ALPHA: Final = Rule("be from 0.001 to 0.5", lambda alpha: 0.001 <= alpha <= 0.5)
_RATIO: Final = Rule("be from 0 to 1", lambda ratio: 0 <= ratio <= 1)
_TOLERANCE: Final = Rule("be finite and not negative", lambda number: 0 <= number < float("inf"))
_FINITE: Final = Rule("be finite", lambda number: abs(number) < float("inf"))
_LIMIT: Final = Rule(
    "be a fraction below 1 or a whole number, above 0",
    lambda limit: 0 < limit < 1 or (1 <= limit < float("inf") and float(limit).is_integer()),
)
_SHORT: Final = Rule(
    f"have 1 to {MAX_NAME_LENGTH} printable characters", lambda text: 0 < len(text) <= MAX_NAME_LENGTH and text.isprintable()
)
_NOT_EMPTY: Final = Rule("not be empty", bool)


@dataclass(frozen=True)
class SuiteEntrySettings:
    """One `[[suites.NAME.entries]]` table."""

    harness: str = field(
        metadata=metadata(STRING, "The harness, by the name of its table.", default_text="none: it is required")
    )
    tasks: tuple[str, ...] = field(
        metadata=metadata(STRINGS, "The tasks.", rule=_NOT_EMPTY, default_text="none: they are required")
    )
    name: str = setting(
        "",
        STRING,
        "What the entry is called in decisions, and paired by with a baseline's. No two of a suite may have the same.",
        rule=_SHORT,
        default_text="the tasks, with commas between them",
    )
    num_fewshot: int | None = setting(
        None,
        INTEGER,
        "How many examples are shown before each question.",
        unit="examples",
        rule=at_least(0),
        default_text="the task's own",
    )
    limit: float | None = setting(
        None,
        NUMBER,
        "How many documents of each task are evaluated; below 1, the share of them.",
        unit="documents",
        rule=_LIMIT,
        default_text="all",
    )
    gen_kwargs: Mapping[str, Any] = field(
        default_factory=dict,
        metadata=metadata(ARGUMENTS, "Arguments of the generation.", default_text="the task's own"),
    )
    task_args: Mapping[str, Any] = field(
        default_factory=dict,
        metadata=metadata(ARGUMENTS, "Arguments of the tasks, such as `epochs`.", default_text="the tasks' own"),
    )
    metrics: tuple[str, ...] = setting(
        (),
        STRINGS,
        "The metrics that count: `METRIC` of the tasks, or `TASK/METRIC`, with an optional `,FILTER` suffix.",
        default_text="all of the tasks",
    )
    tier: int = setting(
        1,
        INTEGER,
        "The tier, of which 1 is the most important. The p-values of one tier are corrected together (Holm).",
        rule=between(1, MAX_TIER),
    )
    required: bool = setting(
        True,
        BOOLEAN,
        "Whether the decision is only GO if the entry has numbers, and these pass. One that is not required can still fail.",
    )
    tolerance: float = setting(
        0.0,
        NUMBER,
        "The largest loss against the baseline that does not matter, in the metric's own unit.",
        rule=_TOLERANCE,
    )
    threshold: float | None = setting(
        None,
        NUMBER,
        "What the metrics must reach: the least value where higher is better, the greatest where lower is.",
        rule=_FINITE,
        default_text="none",
    )
    higher_is_better: bool | None = setting(
        None,
        BOOLEAN,
        "The direction of the metrics, where the harness gives none or another one.",
        default_text="as the harness says",
    )
    cluster_by: str = setting(
        "",
        STRING,
        "The field of the samples that says which of them belong together.",
        rule=_SHORT,
        default_text="as the harness says",
    )


@dataclass(frozen=True)
class SuiteSettings:
    """One `[suites.NAME]` table. Its name is what SubmitSuite takes."""

    name: str
    entries: tuple[SuiteEntrySettings, ...]
    """Its tables `entries`."""
    description: str = setting("", STRING, "What it is for, for people.", rule=_SHORT, default_text="none")
    alpha: float = setting(
        0.05, NUMBER, "The significance level: the accepted chance of a false alarm in each tier.", rule=_ALPHA
    )
    max_bad_answer_ratio: float = setting(
        0.02,
        NUMBER,
        "The share of truncated, empty or failed answers above which a task's metrics are VOID.",
        rule=_RATIO,
    )
