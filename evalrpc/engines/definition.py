"""What an operator's engine runs for a model."""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from evalrpc.config.engines import EngineSettings
from evalrpc.engines import hub_cache
from evalrpc.engines.soundness import require_sound
from evalrpc.engines.weights import Weights
from evalrpc.files.fingerprints import fingerprint_files
from evalrpc.harnesses.arguments import number_text, plain_arguments
from evalrpc.harnesses.base import Command
from evalrpc.harnesses.placeholders import filled_in
from evalrpc.harnesses.programs import missing_program, program_of
from evalrpc.jobs.served_models import is_folder, model_name, without_replicas
from evalrpc.v1.jobs_pb2 import ServedModel

HOST: Final = "127.0.0.1"
"""Where engines listen."""


def build_engines(
    settings: Mapping[str, EngineSettings], inherited: Mapping[str, str] = MappingProxyType({})
) -> dict[str, "EngineDefinition"]:
    """Return the operator's engines. `inherited`: what their programs have in their environment anyway. Raises
    ConfigurationError for a command that can't be one."""
    for engine in settings.values():
        require_sound(engine)
    return {name: EngineDefinition(engine, inherited) for name, engine in settings.items()}


class EngineDefinition:
    """One of the operator's engines."""

    def __init__(self, settings: EngineSettings, inherited: Mapping[str, str] = MappingProxyType({})) -> None:
        self.name: Final = settings.name
        self.settings: Final = settings
        self._hub_cache: Final = hub_cache.cache_folder({**inherited, **settings.env})

    def command(self, served: ServedModel, port: int) -> Command:
        """Build the command that serves a model at a port of HOST. No shell is involved."""
        values = {"model": self.source(served), "port": str(port), "name": model_name(served), "num_gpus": str(served.num_gpus)}
        argv = (*filled_in(self.settings.command, values), *_flags(served, self.settings.args))
        return Command(argv=argv, env=self.settings.env, cwd=self.settings.working_dir)

    def asked_name(self, served: ServedModel) -> str:
        """Return the name that the engine itself knows the model by."""
        return filled_in([self.settings.model_name], {"model": self.source(served), "name": model_name(served)})[0]

    def commit(self, served: ServedModel) -> str:
        """Return the commit of a model of the hub that the engine has in its cache as a whole; empty: it has none, or the model
        is a folder. Blocks on the disk."""
        return "" if is_folder(served) else hub_cache.commit_of(self._hub_cache, served.model, served.revision)

    def folder(self, served: ServedModel) -> Path | None:
        """Return where the files of a model are; None: only the engine knows."""
        if is_folder(served):
            return Path(served.model)
        return hub_cache.snapshot(self._hub_cache, served.model, served.revision) if served.revision else None

    def source(self, served: ServedModel) -> str:
        """Return what the engine loads a model from: a folder, or a name that it knows."""
        return str(self.folder(served) or served.model)

    def problem(self) -> str:
        """Say why it can't run; nothing if its program is there. Looks at the disk."""
        return missing_program(self.settings.command, self.settings.working_dir, f"engines.{self.name}.command")

    def fingerprint(self, served: ServedModel) -> str:
        """Return what is equal as long as an engine that was started now would give the same answers: the engine's settings,
        what the request says, and the names, sizes, times and inodes of the model's files. Blocks on the disk.

        Empty if it can't be told: the model is neither a folder nor a commit, there are too many files, or some can't be read.
        """
        folder = self.folder(served)
        files = fingerprint_files([folder], with_inodes=True) if folder is not None else None
        return self._digest(without_replicas(served), files.hex()) if files is not None else ""

    def key(self, served: ServedModel, weights: Weights) -> str:
        """Return the same, but by the content of the files as far as that is known, or by the commit: also equal for a copy of
        the folder. Blocks on the disk."""
        folder = self.folder(served)
        if folder is None:
            return ""
        alike = without_replicas(served)
        if is_folder(served):
            alike.model = model_name(served)  # wherever it lies
        of_files = served.revision if not is_folder(served) else weights.key(folder)
        return self._digest(alike, of_files) if of_files else ""

    def _digest(self, served: ServedModel, of_files: str) -> str:
        """Return what is equal for the same program, settings, request and files; empty if the program can't be looked at."""
        settings = self.settings
        name = program_of(settings.command, settings.working_dir)
        program = fingerprint_files([Path(shutil.which(name) or name)], with_inodes=True)
        if program is None:
            return ""
        environment, request = sorted(settings.env.items()), served.SerializeToString(deterministic=True)
        command = (*settings.command, *_flags(served, settings.args))
        facts = (command, environment, settings.secrets, str(settings.working_dir), request, program, of_files)
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
