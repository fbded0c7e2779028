"""What a preparation runs, and for which folder of a request."""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Final

from evalrpc.config import PreparationSettings
from evalrpc.errors import ConfigurationError
from evalrpc.files.fingerprints import fingerprint_files
from evalrpc.harnesses.base import Command
from evalrpc.harnesses.code_arguments import code_arguments
from evalrpc.harnesses.placeholders import filled_in, placeholders_in, require_known
from evalrpc.harnesses.programs import missing_program
from evalrpc.jobs.model_arguments import model_argument
from evalrpc.v1.jobs_pb2 import EvaluateRequest

PROGRAMS: Final = {"merge_fsdp2": Path(__file__).with_name("merge_fsdp2.py")}
"""The programs that come with evalrpc, by placeholder. They run without its package, with the interpreter of a harness."""

_PLACEHOLDERS: Final = ("model", "output", *PROGRAMS)
_NO_NAME: Final = re.compile(r"[^A-Za-z0-9._-]")
_MAX_NAME_LENGTH: Final = 100


class Preparation:
    """One of the operator's preparations. Raises ConfigurationError for a command that can't be one."""

    def __init__(self, settings: PreparationSettings) -> None:
        self.name: Final = settings.name
        self.timeout_seconds: Final = settings.timeout_seconds
        self._settings = settings
        _require_sound(settings)

    @property
    def definition(self) -> tuple[object, ...]:
        """What it does, as a value to compare."""
        settings = self._settings
        return (settings.name, settings.command, sorted(settings.env.items()), os.fspath(settings.working_dir))

    def command(self, model: Path, output: Path) -> Command:
        """Build the command that prepares a model's folder into another one. No shell is involved."""
        values = {"model": str(model), "output": str(output), **{name: str(path) for name, path in PROGRAMS.items()}}
        return Command(argv=filled_in(self._settings.command, values), env=self._settings.env, cwd=self._settings.working_dir)

    def problem(self) -> str:
        """Say why it can't run; nothing if its program is there. Looks at the disk."""
        return missing_program(self._settings.command, self._settings.working_dir, f"preparations.{self.name}.command")

    def fingerprint(self, model: Path, uid: int | None) -> str | None:
        """Return what is equal as long as preparing a folder again would come to the same, for runs with this account; None if
        it can't be told, since there are too many files or some can't be read. Blocks."""
        files = fingerprint_files([model, *self._programs(model)], with_inodes=True)
        return None if files is None else hashlib.sha256(repr((self.definition, files, uid)).encode()).hexdigest()

    def _programs(self, model: Path) -> Iterator[Path]:
        """Yield the files that the command line names, such as the interpreter or a script."""
        command = self.command(model, model)
        paths = (Path(os.path.join(command.cwd or "", argument)) for argument in command.argv)  # noqa: PTH118 - of any text
        return (path for path in paths if path.is_file())


def build_preparations(settings: Mapping[str, PreparationSettings]) -> dict[str, Preparation]:
    """Build every configured preparation, by name. Raises ConfigurationError."""
    return {name: Preparation(preparation) for name, preparation in settings.items()}


def model_folder(request: EvaluateRequest, working_dir: Path) -> Path | None:
    """Return the folder that the request names for the model, as a run in `working_dir` would find it. Does not look whether it
    is there."""
    name = model_argument(request)
    if name is None:
        return None
    return Path(os.path.abspath(os.path.join(working_dir, request.model_args.fields[name].string_value)))  # noqa: PTH118


def with_model(request: EvaluateRequest, folder: Path) -> EvaluateRequest:
    """Return the request with another folder for the model."""
    changed, name = EvaluateRequest(), model_argument(request)
    changed.CopyFrom(request)
    if name is not None:
        changed.model_args.fields[name].string_value = str(folder)
    return changed


def place_of(fingerprint: str, model: Path) -> PurePath:
    """Return where a prepared model lies among others. The last two parts are named after the folder that it was made of, since
    harnesses name results after them; only by characters with which no path means anything else to a harness."""
    names = [_NO_NAME.sub("_", name)[:_MAX_NAME_LENGTH] for name in (model.parent.name, model.name)]
    return PurePath(fingerprint, *(name if name.strip(".") else "model" for name in names))


def _require_sound(settings: PreparationSettings) -> None:
    where = f"setting preparations.{settings.name}.command"
    if not settings.command:
        raise ConfigurationError(f"{where}: must not be empty")
    require_known(where, settings.command, _PLACEHOLDERS)
    for name in ("model", "output"):
        if name not in placeholders_in(settings.command):
            raise ConfigurationError(f"{where}: must have {{{name}}}")
    if placeholders_in(code_arguments(settings.command)) & {"model", "output"}:
        raise ConfigurationError(
            f"{where}: {{model}} or {{output}} would be read as code, which any client could write: make them arguments of "
            f"""the code, as in ["sh", "-c", "program \\"$1\\" \\"$2\\"", "sh", "{{model}}", "{{output}}"]"""
        )
