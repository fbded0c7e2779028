"""The tasks and models that a harness knows, as the installed harness itself reports them.

Asking takes seconds, so the answer is cached on disk until the installation or the operator's task folders change. Blocks: runs
on a thread, except `lists_all`.
"""

import difflib
import hashlib
import json
import threading
import uuid
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from heapq import nlargest
from pathlib import Path
from typing import Final

from evalrpc.errors import CatalogUnavailableError
from evalrpc.executors.base import Executor
from evalrpc.files.fingerprints import fingerprint_files
from evalrpc.harnesses.base import Command, Harness
from evalrpc.protobuf.structs import wire_text
from evalrpc.protobuf.texts import cut
from evalrpc.scheduling.asking import NoAnswerError, ask
from evalrpc.v1.catalog_pb2 import HarnessInfo

CATALOG_DIR: Final = "catalog"

_ASKING_SECONDS: Final = 300.0
_MAX_HINTS: Final = 5
_MAX_REASON_BYTES: Final = 2048
_MAX_HINT_CHARACTERS: Final = 64
_CANDIDATES: Final = 50
_MAX_NAME_LENGTH: Final = 1024  # a request can't name what is longer
_THIS_SERVER: Final = uuid.uuid4().bytes


@dataclass(frozen=True)
class Names:
    """The names that a harness knows, each list sorted."""

    tasks: tuple[str, ...]
    models: tuple[str, ...]


class Catalog:
    """The names of every harness, fetched when first needed, with a command that the executor runs. Thread-safe.

    `mask_text` masks secrets in what harnesses say.
    """

    def __init__(
        self,
        harnesses: Mapping[str, Harness],
        executor: Executor,
        data_dir: Path,
        mask_text: Callable[[str], str] = lambda text: text,
    ) -> None:
        self._harnesses = harnesses
        self._executor = executor
        self._mask_text = mask_text
        self._cache_dir = data_dir / CATALOG_DIR
        self._known: dict[str, tuple[str, Names]] = {}
        self._unavailable: dict[str, bool] = {}
        self._locks = {name: threading.Lock() for name in harnesses}

    def load(self) -> None:
        """Load what an earlier server cached on disk, so that even the first submission is checked, and whether each harness is
        available. Starts nothing."""
        for name, harness in self._harnesses.items():
            self.describe(name)
            command = harness.catalog_command()
            fingerprint = _fingerprint(harness, command) if command else ""
            names = self._from_disk(name, fingerprint)
            if names is not None:
                self._known.setdefault(name, (fingerprint, names))

    def names(self, harness_name: str) -> Names:
        """Return the names that a configured harness knows. Raises CatalogUnavailableError."""
        harness = self._harnesses[harness_name]
        command = harness.catalog_command()
        if command is None:
            raise CatalogUnavailableError(
                f"harness {harness_name} is a program of the operator's, which lists neither tasks nor models"
            )
        with self._locks[harness_name]:  # a second caller waits for the answer to the first
            fingerprint = _fingerprint(harness, command)
            known = self._known.get(harness_name)
            if known is None or known[0] != fingerprint:
                known = (fingerprint, self._from_disk(harness_name, fingerprint) or self._ask(harness, command, fingerprint))
                self._known[harness_name] = known
            return known[1]

    def lists_all(self, harness_name: str, tasks: Sequence[str]) -> bool:
        """Return whether the harness lists all these tasks, or its list is not in memory. Never blocks."""
        known = self._known.get(harness_name)
        return known is None or all(_is_listed(task, known[1].tasks) for task in tasks)

    def lists_model(self, harness_name: str, model: str) -> bool:
        """Return whether the harness lists this model type, or its list is not in memory. Never blocks."""
        known = self._known.get(harness_name)
        return known is None or _is_known_model(model, known[1].models)

    def describe(self, harness_name: str) -> HarnessInfo:
        """Return what is installed of a harness."""
        info = self._harnesses[harness_name].info()
        info.unavailable_reason = cut(self._mask_text(info.unavailable_reason), _MAX_REASON_BYTES)
        info.warm, problem = self._executor.warm_state(harness_name)
        info.cold_reason = cut(self._mask_text(problem), _MAX_REASON_BYTES)
        self._unavailable[harness_name] = not info.available
        return info

    def may_be_unavailable(self, harness_name: str) -> bool:
        """Return whether a harness was not available when it was last described. Never blocks."""
        return self._unavailable.get(harness_name, False)

    def unknown_tasks(self, harness_name: str, tasks: Sequence[str]) -> dict[int, str]:
        """Return a message for each task that the harness does not list, by index; the first few suggest the nearest names.

        Nothing is unknown while the list is not in memory, or if the harness has changed since.
        """
        known = self._names_as_installed(harness_name)
        if known is None:
            return {}
        names = known.tasks
        unknown = [(index, task) for index, task in enumerate(tasks) if not _is_listed(task, names)]
        hints = {task: _hint(task, names) for _, task in unknown[:_MAX_HINTS]}
        return {index: f"the harness lists no task {task!r}{hints.get(task, '')}" for index, task in unknown}

    def unknown_model(self, harness_name: str, model: str) -> str:
        """Return a message with the nearest names if the harness does not list this model type; empty otherwise, as above."""
        names = self._names_as_installed(harness_name)
        if names is None or _is_known_model(model, names.models):
            return ""
        return f"the harness lists no model {model!r}{_hint(model, names.models)}"

    def _names_as_installed(self, harness_name: str) -> Names | None:
        """Return the names in memory, unless the harness has changed since."""
        known = self._known.get(harness_name)
        harness = self._harnesses[harness_name]
        command = harness.catalog_command()
        if known is None or command is None or known[0] != _fingerprint(harness, command):
            return None
        return known[1]

    def _from_disk(self, harness_name: str, fingerprint: str) -> Names | None:
        try:
            document = json.loads((self._cache_dir / f"{harness_name}.json").read_text())
            return _names(document) if document["fingerprint"] == fingerprint else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _ask(self, harness: Harness, command: Command, fingerprint: str) -> Names:
        document = {"fingerprint": fingerprint, **self._run(harness.name, command)}
        try:
            names = _names(document)
        except (KeyError, TypeError, ValueError) as error:
            raise CatalogUnavailableError(f"harness {harness.name} answered with something else than names: {error}") from error
        with suppress(OSError):  # if the disk is full, the harness is asked again after the next start
            self._cache_dir.mkdir(parents=True, exist_ok=True)
            temporary = self._cache_dir / f"{harness.name}.json.new"
            temporary.write_text(json.dumps(document))
            temporary.rename(self._cache_dir / f"{harness.name}.json")
        return names

    def _run(self, harness_name: str, command: Command) -> Mapping[str, object]:
        """Run the harness's listing command."""
        try:
            return ask(self._executor, command, _ASKING_SECONDS, self._mask_text)
        except OSError as error:
            raise CatalogUnavailableError(f"harness {harness_name} can't be asked what it knows: {error}") from error
        except NoAnswerError as error:
            raise CatalogUnavailableError(f"harness {harness_name} can't say what it knows: {error}") from error


def _is_listed(name: str, names: tuple[str, ...]) -> bool:
    position = bisect_left(names, name)
    return position < len(names) and names[position] == name


def _is_known_model(model: str, names: tuple[str, ...]) -> bool:
    """inspect-ai lists the providers that stand before the slash of a model. A harness that lists none says nothing of any."""
    return not names or _is_listed(model, names) or _is_listed(model.partition("/")[0], names)


def _hint(word: str, names: tuple[str, ...]) -> str:
    """Suggest the nearest names. difflib takes most of a second for thousands of names, so it only gets those that share most
    pairs of characters with the word."""
    text = word[:_MAX_HINT_CHARACTERS]
    pairs = {text[start : start + 2] for start in range(len(text) - 1)}
    candidates = nlargest(_CANDIDATES, names, lambda name: sum([pair in name for pair in pairs]) / (len(text) + len(name)))
    nearest = difflib.get_close_matches(text, candidates, n=3, cutoff=0.6)
    return f"; did you mean {', '.join(nearest)}?" if nearest else ""


def _names(document: Mapping[str, object]) -> Names:
    return Names(_sorted(document["tasks"]), _sorted(document["models"]))


def _sorted(names: object) -> tuple[str, ...]:
    if not isinstance(names, list):
        raise TypeError("no list")
    return tuple(sorted({wire_text(str(name)) for name in names if len(str(name)) <= _MAX_NAME_LENGTH}))


def _fingerprint(harness: Harness, command: Command) -> str:
    """Return a digest that changes when the installation, the command or one of the operator's task files does. If the files
    are too many or unreadable, it changes with every start of the server."""
    facts = (harness.info().version, command.argv, fingerprint_files(command.watched_dirs) or _THIS_SERVER)
    return hashlib.sha256(repr(facts).encode()).hexdigest()
