"""The keys of the tables `[engines.NAME]` and `[endpoints.NAME]`, each declared once: of a server that loads a model and
answers OpenAI's API for it, and of one that is there already.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from evalrpc.config import programs
from evalrpc.config.declaration import (
    INTEGER,
    NAMES,
    NUMBER,
    POSITIVE,
    RUN_MEMORY,
    RUN_PROCESSES,
    STRING,
    STRINGS,
    VARIABLES,
    Rule,
    at_least,
    metadata,
    replacing,
    setting,
)

CHAT: Final = "chat"
COMPLETIONS: Final = "completions"
LOG_PROBABILITIES: Final = "log-probabilities"
APIS: Final = (CHAT, COMPLETIONS, LOG_PROBABILITIES)
"""What an engine may answer, as `api` says it."""

_IS_A_URL: Final = Rule(
    "be a URL such as `https://api.example.com/v1`, without a password, a query or a fragment",
    lambda url: bool(re.fullmatch(r"https?://[!-~]+", url)) and not set(url) & set("@?#"),
)
_IS_A_HEADER: Final = Rule("be the name of a header, in small letters", lambda name: bool(re.fullmatch(r"[a-z0-9-]+", name)))
_ARE_THERE: Final = Rule("have at least one name, and no name twice", lambda names: 0 < len(names) == len(set(names)))
_IS_A_PATH: Final = Rule("begin with `/`", lambda path: path.startswith("/"))
_ARE_FLAGS: Final = Rule("have flags, which begin with `-`", lambda args: all(flag.startswith("-") for flag in args.values()))
_ARE_KNOWN: Final = Rule(
    f"have at least one of {', '.join(f'`{api}`' for api in APIS)}, and nothing else",
    lambda api: bool(api) and set(api).issubset(APIS),
)


@dataclass(frozen=True)
class EngineSettings:
    """One `[engines.NAME]` table. Its name is what requests have in `served_model.engine`."""

    name: str
    command: tuple[str, ...] = field(
        metadata=metadata(
            STRINGS,
            "The command line, without a shell. In it, `{model}` is what the request names, `{port}` the port to listen on at "
            "127.0.0.1, `{name}` the name that harnesses know the model by, and `{num_gpus}` the number of its GPUs.",
            default_text="none: it is required",
        )
    )
    model_name: str = setting(
        "{name}",
        STRING,
        "The name that the engine itself knows the model by: `{model}` where it knows it by nothing else.",
    )
    ready: str = setting("/health", STRING, "A path that it answers with 200 once it has loaded the model.", rule=_IS_A_PATH)
    start_timeout_seconds: float = setting(
        1800.0,
        NUMBER,
        "How long it may take until it answers; past that it is ended, and its jobs are FAILED with `ENGINE_START_FAILED`.",
        unit="seconds",
        rule=POSITIVE,
    )
    idle_seconds: float = setting(
        600.0,
        NUMBER,
        "How long it stays without jobs. It ends before that if a job needs its GPUs. 0: it ends with its last job.",
        unit="seconds",
        rule=at_least(0),
    )
    max_run_memory_bytes: int | None = replacing("max_run_memory_bytes", "it", "bytes", RUN_MEMORY)
    max_run_processes: int | None = replacing("max_run_processes", "it", "processes", RUN_PROCESSES)
    max_in_flight: int = setting(64, INTEGER, "How many requests it gets at once.", unit="requests", rule=at_least(1))
    args: Mapping[str, str] = field(
        default_factory=dict,
        metadata=metadata(
            VARIABLES,
            "What a request may set in `served_model.args`, and the flag that it becomes, such as "
            '`max_model_len = "--max-model-len"`. A value follows its flag as an argument of its own; of a boolean, true is '
            "the flag alone, and false is nothing.",
            rule=_ARE_FLAGS,
            default_text="none",
        ),
    )
    api: tuple[str, ...] = setting(
        (CHAT,),
        NAMES,
        "What it answers: `chat`, `completions`, and `log-probabilities` (completions with `echo` and `logprobs`, which tasks "
        "need that compare likelihoods).",
        rule=_ARE_KNOWN,
        default_text="`chat`",
    )
    secrets: tuple[str, ...] = setting(
        (),
        NAMES,
        "Secrets that it gets as environment variables, by the names of their tables. Its log is masked, and only those may "
        "use it who may use all of them.",
        default_text="none",
    )
    env: Mapping[str, str] = field(default_factory=dict, metadata=programs.ENVIRONMENT)
    working_dir: Path = field(default_factory=Path.cwd, metadata=programs.WORKING_DIR)


@dataclass(frozen=True)
class EndpointSettings:
    """One `[endpoints.NAME]` table. Its name is what requests have in `served_model.engine` or `judge_model.engine`."""

    name: str
    url: str = field(
        metadata=metadata(
            STRING,
            "What `/v1` stands for there, such as `https://api.example.com/v1`. `https` takes the extra `endpoints`.",
            rule=_IS_A_URL,
            default_text="none: it is required",
        )
    )
    models: tuple[str, ...] = field(
        metadata=metadata(
            NAMES,
            "The models that requests may name, as it knows them.",
            rule=_ARE_THERE,
            default_text="none: it is required",
        )
    )
    secret: str = setting(
        "",
        STRING,
        "The secret that is its key, by the name of its table. Only the gateway sends it, and no job gets it. Whoever may not "
        "use the secret may not use the endpoint.",
        default_text="none: it is asked without a key",
    )
    key_header: str = setting(
        "authorization",
        STRING,
        "The header that carries the key: in `authorization` as a bearer token, in any other, such as `x-api-key`, as it is.",
        rule=_IS_A_HEADER,
    )
    max_in_flight: int = setting(
        16, INTEGER, "How many requests it gets at once for each of its models.", unit="requests", rule=at_least(1)
    )
    answer_seconds: float = setting(
        600.0,
        NUMBER,
        "How long it may be silent on a request before that counts as a failure.",
        unit="seconds",
        rule=POSITIVE,
    )
    api: tuple[str, ...] = setting(
        (CHAT,),
        NAMES,
        "What it answers: `chat`, `completions`, and `log-probabilities` (completions with `echo` and `logprobs`).",
        rule=_ARE_KNOWN,
        default_text="`chat`",
    )

    @property
    def secrets(self) -> tuple[str, ...]:
        """The secrets that it takes."""
        return (self.secret,) if self.secret else ()


ModelServer = EngineSettings | EndpointSettings
"""What requests may name to answer for a model."""
