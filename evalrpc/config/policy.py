"""The keys of a `[harnesses.NAME.policy]` table, each declared once: what requests may ask of a harness."""

from dataclasses import dataclass
from typing import Final

from evalrpc.config.declaration import INTEGER, NUMBER, STRINGS, Rule, at_least, setting

REFUSED_ARGUMENTS: Final = (
    "trust_remote_code",
    *("base_url", "*_base_url", "api_base", "api_url", "server_url", "*_server_url", "endpoint_url", "azure_endpoint"),
)
"""The arguments that are refused by default. The first has code from the weights' repository executed; the others, names of one
thing in different harnesses, send prompts and credentials to any address that the server reaches."""

_TIMEOUT: Final = Rule("be above 0 and at most 366 days", lambda seconds: 0 < seconds <= 366 * 24 * 3600)


def _globs(description: str) -> tuple[str, ...] | None:
    return setting(None, STRINGS, description, default_text="any")


@dataclass(frozen=True)
class PolicySettings:
    """One `[harnesses.NAME.policy]` table. A glob is compared with the whole text, in which `*` also matches `/`, and capitals
    count."""

    models: tuple[str, ...] | None = _globs(
        "Globs: the `model` of a request must match one, such as `hf` or `openai/gpt-4o*`; with `served_model`, the model "
        "that the engine loads, such as `/models/*`."
    )
    tasks: tuple[str, ...] | None = _globs(
        "Globs: each task of a request must match one, such as `mmlu_*`. A group or tag counts by its own name."
    )
    pretrained: tuple[str, ...] | None = _globs(
        "Globs, such as `acme/*` or `/models/*`: all arguments that name weights, adapters or a tokenizer must match one "
        "(`pretrained`, `peft`, `delta`, `model`, `model_version`, `model_path`, `tokenizer` and the like), with "
        "inspect-ai what follows the provider in `model`, and with `served_model` the model that the engine loads. A value "
        "with a part `..` matches none. Weights that a model type loads by itself are its own: `models` limits the types."
    )
    model_args_allowed: tuple[str, ...] | None = _globs("Globs: the name of every argument in `model_args` must match one.")
    gen_kwargs_allowed: tuple[str, ...] | None = _globs("Globs: the name of every argument in `gen_kwargs` must match one.")
    task_args_allowed: tuple[str, ...] | None = _globs("Globs: the name of every argument in `task_args` must match one.")
    arguments_refused: tuple[str, ...] = setting(
        REFUSED_ARGUMENTS,
        STRINGS,
        "Globs of arguments that are refused in `model_args`, `gen_kwargs`, `task_args` and `served_model.args`: at any depth, "
        "in JSON that is given as text, and in text such as `base_url=...`. `trust_remote_code` may be false. Refused even if "
        "also allowed: to allow an argument, list the others here.",
        default_text=", ".join(f"`{name}`" for name in REFUSED_ARGUMENTS),
    )
    max_num_gpus: int | None = setting(
        None, INTEGER, "The most GPUs that a job may hold.", unit="GPUs", rule=at_least(0), default_text="all of a node"
    )
    max_timeout_seconds: float | None = setting(
        None, NUMBER, "The longest timeout that a job may have.", unit="seconds", rule=_TIMEOUT, default_text="none"
    )
    default_timeout_seconds: float | None = setting(
        None,
        NUMBER,
        "The timeout of a job that has none.",
        unit="seconds",
        rule=_TIMEOUT,
        default_text="`max_timeout_seconds`",
    )
