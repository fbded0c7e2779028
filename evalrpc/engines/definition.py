"""What an operator's engine runs for a model."""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from evalrpc.config.engines import EngineSettings
from evalrpc.engines.soundness import require_sound
from evalrpc.files.fingerprints import fingerprint_files
from evalrpc.harnesses.arguments import number_text, plain_arguments
from evalrpc.harnesses.base import Command
from evalrpc.harnesses.placeholders import filled_in
from evalrpc.harnesses.programs import missing_program, program_of
from evalrpc.jobs.served_models import is_folder, model_name
from evalrpc.v1.jobs_pb2 import ServedModel

HOST: Final = "127.0.0.1"
"""Where engines listen."""


def build_engines(settings: Mapping[str, EngineSettings]) -> dict[str, "EngineDefinition"]:
    """Return the operator's engines. Raises ConfigurationError for a command that can't be one."""
    for engine in settings.values():
        require_sound(engine)
    return {name: EngineDefinition(engine) for name, engine in settings.items()}


class EngineDefinition:
    """One of the operator's engines."""

    def __init__(self, settings: EngineSettings) -> None:
        self.name: Final = settings.name
        self.settings: Final = settings

    def command(self, served: ServedModel, port: int) -> Command:
        """Build the command that serves a model at a port of HOST. No shell is involved."""
        values = {"model": served.model, "port": str(port), "name": model_name(served), "num_gpus": str(served.num_gpus)}
        argv = (*filled_in(self.settings.command, values), *_flags(served, self.settings.args))
        return Command(argv=argv, env=self.settings.env, cwd=self.settings.working_dir)

    def asked_name(self, served: ServedModel) -> str:
        """Return the name that the engine itself knows the model by."""
        return filled_in([self.settings.model_name], {"model": served.model, "name": model_name(served)})[0]

    def problem(self) -> str:
        """Say why it can't run; nothing if its program is there. Looks at the disk."""
        return missing_program(self.settings.command, self.settings.working_dir, f"engines.{self.name}.command")

    def fingerprint(self, served: ServedModel) -> str:
        """Return what is equal as long as an engine that was started now would give the same answers: the engine's settings,
        what the request says, and the names, sizes, times and inodes of the model's files. Blocks on the disk.

        Empty if it can't be told: the model is no folder, there are too many files, or some can't be read.
        """
        settings = self.settings
        program = program_of(settings.command, settings.working_dir)
        files = fingerprint_files([Path(shutil.which(program) or program), Path(served.model)], with_inodes=True)
        if files is None or not is_folder(served):
            return ""
        environment = sorted(settings.env.items())
        facts = (
            settings.command,
            environment,
            settings.secrets,
            str(settings.working_dir),
            served.SerializeToString(deterministic=True),
            files,
        )
        return hashlib.sha256(repr(facts).encode()).hexdigest()


def _flags(served: ServedModel, known: Mapping[str, str]) -> list[str]:
    """Return the arguments that the request sets as arguments of the command line, in the order of the settings."""
    given, flags = plain_arguments(served.args), list[str]()
    for name, flag in known.items():
        match given.get(name):
            case None | False:
                continue
            case True:
                flags.append(flag)
            case str(text):
                flags += (flag, text)
            case number:
                flags += (flag, number_text(number))
    return flags
