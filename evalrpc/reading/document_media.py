"""What documents show, as their harness says in its own environment: what it has left out of its samples.

Asking takes a harness seconds, so it is asked for some documents at once, and what it answers is remembered for a while.
Blocks: runs on a thread.
"""

import base64
import binascii
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from evalrpc.executors.base import Executor
from evalrpc.harnesses.base import Harness, MediaHarness, MediaLimits
from evalrpc.protobuf.structs import wire_text
from evalrpc.reading.remembered import Remembered
from evalrpc.reading.sample_references import MAX_REFERENCES, Reference, path_reference
from evalrpc.results.metrics import mapping
from evalrpc.scheduling.asking import NoAnswerError, ask
from evalrpc.v1.jobs_pb2 import EvaluateRequest

LIMITS: Final = MediaLimits(
    max_bytes=4 * 1024**2, max_total_bytes=12 * 1024**2, memory_bytes=8 * 1024**3, processor_seconds=120
)
"""What an answer may take. One process for each of two askers at a time."""

_ASKED_AT_ONCE: Final = 16
_TIMEOUT_SECONDS: Final = 180.0
_REMEMBERED_BYTES: Final = 32 * 1024**2
_ENTRY_BYTES: Final = 200
_LOCKS: Final = 16
_MAX_DOC_ID_DIGITS: Final = 12


class _Answer(NamedTuple):
    media: Sequence[Reference]
    size_bytes: int


class DocumentMedia:
    """Asks harnesses. Thread-safe. `mask_text` masks secrets in what they say."""

    def __init__(self, harnesses: Mapping[str, Harness], executor: Executor, mask_text: Callable[[str], str]) -> None:
        self._harnesses = harnesses
        self._executor = executor
        self._mask_text = mask_text
        self._answers = Remembered[_Answer](_REMEMBERED_BYTES, lambda answer: answer.size_bytes)
        self._locks = [threading.Lock() for _ in range(_LOCKS)]

    def forget_unused(self) -> None:
        """Forget what nobody has asked for since the last time."""
        self._answers.forget_unused()

    def can_tell(self, request: EvaluateRequest, sample_id: str) -> bool:
        """Return whether the harness of a request can say what the document of a sample shows."""
        is_number = sample_id.isascii() and sample_id.isdigit() and len(sample_id) <= _MAX_DOC_ID_DIGITS
        return is_number and isinstance(self._harnesses.get(request.harness), MediaHarness)

    def media_of(self, request: EvaluateRequest, task: str, doc_id: int) -> Sequence[Reference]:
        """Return what a document of a task shows, or one medium with the problem that kept the harness from saying so."""
        key = (request.harness, request.model, task)
        with self._locks[hash(key) % _LOCKS]:  # whoever asks for the next document waits for this answer, which may have it
            known = self._answers.get(key) or self._answers.get((*key, doc_id))
            if known is None:
                self._ask(request, task, doc_id)
                known = self._answers.get(key) or self._answers.get((*key, doc_id))
        return known.media if known is not None else [_problem("the harness does not say what this document shows")]

    def _ask(self, request: EvaluateRequest, task: str, doc_id: int) -> None:
        """Ask for a document and those that follow it, and remember the answer, also where there is none."""
        key = (request.harness, request.model, task)
        harness = self._harnesses[request.harness]
        if not isinstance(harness, MediaHarness):
            return
        command = harness.media_command(request, task, range(doc_id, doc_id + _ASKED_AT_ONCE), LIMITS)
        try:
            answer = ask(self._executor, command, _TIMEOUT_SECONDS, self._mask_text)
        except (NoAnswerError, OSError) as error:
            self._answers.put((*key, doc_id), _remembered([_problem(f"{request.harness} can't show it: {error}")]))
            return
        if answer.get("has_media") is False:
            self._answers.put(key, _remembered([]))
        for number, media in mapping(answer.get("documents")).items():
            if number.isascii() and number.isdigit() and isinstance(media, list):
                self._answers.put((*key, int(number)), _remembered(list(_references(media))))


def _references(media: Sequence[object]) -> Iterator[Reference]:
    for place, medium in enumerate(map(mapping, media[:MAX_REFERENCES])):
        source = f"document[{place}]"
        data, path, problem = (medium.get(name) for name in ("data", "path", "problem"))
        if isinstance(data, str):
            try:
                yield Reference(source, data=base64.b64decode(data, validate=True))
            except (binascii.Error, ValueError):
                yield Reference(source, problem="the harness gives no base64")
        elif isinstance(path, str):
            yield path_reference(source, path)
        else:
            yield Reference(source, problem=wire_text(str(problem or "the harness gives nothing"))[:500])


def _problem(text: str) -> Reference:
    return Reference("document", problem=wire_text(text))


def _remembered(media: Sequence[Reference]) -> _Answer:
    return _Answer(media, sum(_ENTRY_BYTES + len(each.data or b"") for each in media) + _ENTRY_BYTES)
