"""Follows the checkpoints of a training run: submits each once, newest first, and says what becomes of it.

Nothing is kept on disk: a follower that is started again submits the same requests, with the same ids, and so finds what there
is.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Final, NamedTuple

from evalrpc.errors import (
    NotFoundError,
    PreconditionError,
    QueueFullError,
    QuotaExceededError,
    RequestIdReusedError,
    TooManyCallsError,
    TooManyStreamsError,
    TooMuchUnreadError,
    UnavailableError,
)
from evalrpc.training.checkpoints import Checkpoint, CheckpointFolder, Scan
from evalrpc.training.evaluations import Evaluation, Evaluations

MAX_OUTSTANDING: Final = 8
"""How many evaluations may wait and run at a time. All others are held back, so that the newest of them can be next."""

LATER: Final = (
    *(UnavailableError, TimeoutError, QueueFullError, QuotaExceededError),
    *(TooManyStreamsError, TooManyCallsError, TooMuchUnreadError),
)
"""The errors after which the same call may succeed later."""


class Happening(Enum):
    """What has happened."""

    SUBMITTED = auto()
    ENDED = auto()
    """The evaluation has ended, perhaps long ago."""
    LOST = auto()
    """The evaluation was deleted, or its result can't be read."""
    SKIPPED = auto()
    """A checkpoint is not to be evaluated."""
    REFUSED = auto()
    """A checkpoint is to be evaluated, and can't be."""
    REMARK = auto()
    """Something about the folder, a checkpoint or the server that people should know."""


class News(NamedTuple):
    """Something that has happened."""

    happening: Happening
    text: str = ""
    """For people, where the evaluation does not say it."""
    checkpoint: Checkpoint | None = None
    evaluation: Evaluation | None = None


@dataclass(frozen=True)
class Choice:
    """Which checkpoints are evaluated."""

    every: int = 1
    """Those whose step is a multiple of this."""
    keep_latest: int | None = None
    """Those among so many of the latest that there are. None: all."""

    def reason_against(self, checkpoint: Checkpoint, latest: Sequence[Checkpoint]) -> str:
        """Return why a checkpoint is left out; empty: it is not. `latest` are those with suitable steps, newest first."""
        if checkpoint.step % self.every:
            return f"its step is no multiple of {self.every}"
        if self.keep_latest is not None and checkpoint not in latest[: self.keep_latest]:
            return f"it is not among the latest {self.keep_latest}"
        return ""


class Follower:
    """Follows a folder. `round()` does what there is to do, and never waits."""

    def __init__(
        self, folder: CheckpointFolder, evaluations: Evaluations, choice: Choice, max_outstanding: int = MAX_OUTSTANDING
    ) -> None:
        self._folder = folder
        self._evaluations = evaluations
        self._choice = choice
        self._max_outstanding = max_outstanding
        self._handled: dict[Path, str] = {}  # by path, the fingerprint that was submitted or left out
        self._pending: list[Checkpoint] = []
        self._outstanding: dict[str, Checkpoint] = {}  # by the id of the evaluation
        self._outdated: set[str] = set()  # of these, the evaluations of checkpoints that are not there any more
        self._troubles: set[str] = set()  # what was to be tried again in this round
        self._said_troubles: set[str] = set()  # and in the round before
        self.is_readable = False
        """Whether the folder could be looked at in the last round."""
        self.unfinished: frozenset[tuple[Path, str | None]] = frozenset()
        """The checkpoints that were not complete in the last scan, with their fingerprints."""
        self.newest_step = -1
        """The largest step of a complete checkpoint so far."""

    @property
    def is_idle(self) -> bool:
        """Whether, after a round, all complete checkpoints have been dealt with."""
        return not (self._pending or self._outstanding)

    def round(self) -> Iterator[News]:
        """Look at the evaluations and into the folder, submit what is next, and yield what has happened.

        What can't be done now stops nothing else. Raises what the server says of a request that will never do.
        """
        self._said_troubles, self._troubles = self._troubles, set()
        yield from self._look_at_evaluations()
        scan = self._folder.scan()
        yield from (News(Happening.REMARK, text) for text in scan.remarks)
        self.is_readable = scan.is_readable
        if scan.is_readable:
            yield from self._take(scan)
        yield from self._submit()

    def _try_again(self, error: Exception) -> Iterator[News]:
        """Say that something will be tried again, unless it was so in the round before."""
        text = str(error)
        if text not in self._troubles | self._said_troubles:
            yield News(Happening.REMARK, f"{text}; trying again")
        self._troubles.add(text)

    def _look_at_evaluations(self) -> Iterator[News]:
        for evaluation_id, checkpoint in list(self._outstanding.items()):
            try:
                evaluation = self._evaluations.look(evaluation_id)
            except (NotFoundError, PreconditionError) as error:
                del self._outstanding[evaluation_id]
                yield News(Happening.LOST, f"{checkpoint.path.name}: {error.message}", checkpoint)
                continue
            except LATER as error:
                yield from self._try_again(error)
                continue
            if evaluation.has_ended:
                del self._outstanding[evaluation_id]
                yield News(Happening.ENDED, "", checkpoint, evaluation)

    def _take(self, scan: Scan) -> Iterator[News]:
        """Choose from the checkpoints that there are, and give up those that there are no more."""
        present = {checkpoint.path: checkpoint for checkpoint in scan.complete}
        if present or scan.unfinished:  # else it may be a file system that is not mounted
            yield from self._give_up(present)
        self.unfinished = scan.unfinished
        self.newest_step = max((self.newest_step, *(checkpoint.step for checkpoint in scan.complete)))
        suitable = [checkpoint for checkpoint in scan.complete if checkpoint.step % self._choice.every == 0]
        self._pending = []
        for checkpoint in scan.complete:
            if self._handled.get(checkpoint.path) == checkpoint.fingerprint:
                continue
            if reason := self._choice.reason_against(checkpoint, suitable):
                self._handled[checkpoint.path] = checkpoint.fingerprint
                yield News(Happening.SKIPPED, reason, checkpoint)
            else:
                self._pending.append(checkpoint)

    def _give_up(self, present: Mapping[Path, Checkpoint]) -> Iterator[News]:
        for checkpoint in self._pending:
            if checkpoint.path not in present and not os.path.lexists(checkpoint.path):
                yield News(Happening.SKIPPED, "it was deleted before it could be evaluated", checkpoint)
        for evaluation_id, checkpoint in self._outstanding.items():
            change = _change(checkpoint, present)
            if change and evaluation_id not in self._outdated:
                try:
                    is_cancelled = self._evaluations.give_up(evaluation_id, f"the checkpoint {change}")
                except LATER as error:
                    yield from self._try_again(error)
                    continue
                self._outdated.add(evaluation_id)
                fate = "cancelled, as it has not started" if is_cancelled else "going on"
                yield News(Happening.REMARK, f"{checkpoint.path.name} {change}; its evaluation {evaluation_id} is {fate}")

    def _submit(self) -> Iterator[News]:
        """Submit the newest ones, as many as may be outstanding."""
        while self._pending and len(self._outstanding) < self._max_outstanding:
            checkpoint = self._pending[0]
            try:
                evaluation = self._evaluations.submit(checkpoint)
            except LATER as error:
                yield from self._try_again(error)
                return
            except RequestIdReusedError:
                yield News(Happening.REFUSED, "it was submitted before, with other options", checkpoint)
            except NotFoundError as error:  # such as a baseline that was deleted
                yield News(Happening.REFUSED, error.message, checkpoint)
            else:
                if not evaluation.has_ended:
                    self._outstanding[evaluation.id] = checkpoint
                happening = Happening.ENDED if evaluation.has_ended else Happening.SUBMITTED
                yield News(happening, "", checkpoint, evaluation)
            self._handled[checkpoint.path] = checkpoint.fingerprint
            del self._pending[0]


def _change(checkpoint: Checkpoint, present: Mapping[Path, Checkpoint]) -> str:
    """Say what has become of a checkpoint; empty: it is as it was, or just being written."""
    now = present.get(checkpoint.path)
    if now is not None:
        return "" if now.fingerprint == checkpoint.fingerprint else "was written anew"
    return "" if os.path.lexists(checkpoint.path) else "was deleted"
