"""The images, sounds and videos of a sample, sent one after the other.

What they are comes from a row that a run wrote. So files are only opened below the job's output folder, where no link is
followed, and below the operator's roots, where links are that stay below the same root; and what is sent is what the descriptor
reads. Runs on the event loop; what waits for the disk or for a harness goes to a thread.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final, NamedTuple

from evalrpc.config import HarnessSettings
from evalrpc.errors import ReadLimitError
from evalrpc.files.errnos import require_no_shortage
from evalrpc.files.linked import open_below
from evalrpc.files.opening import open_in
from evalrpc.files.read_budget import ReadBudget
from evalrpc.harnesses.base import Harness
from evalrpc.protobuf import wire_format
from evalrpc.protobuf.structs import wire_text
from evalrpc.reading import page_tokens
from evalrpc.reading.disk import read_on
from evalrpc.reading.document_media import DocumentMedia
from evalrpc.reading.job_results import JobResults
from evalrpc.reading.media_types import HEAD_BYTES, media_type
from evalrpc.reading.processes import ReadingProcesses
from evalrpc.reading.sample_references import Reference
from evalrpc.reading.sample_rows import Sample, SampleSource, find_sample, find_sample_in_process
from evalrpc.reading.samples import IN_PLACE_LIMITS, PROCESS_LIMITS, PROCESS_USE, sample_place, source_of
from evalrpc.results.layout import samples_task
from evalrpc.uninterruptible import uninterruptible
from evalrpc.v1.jobs_pb2 import EvaluateRequest, JobInfo
from evalrpc.v1.samples_pb2 import ReadSampleMediaRequest, ReadSampleMediaResponse
from evalrpc.watching.feed import Feed, Reserve, Send, no_reserve

CHUNK_BYTES: Final = 1024 * 1024


class Places(NamedTuple):
    """Where files may lie."""

    data_dir: Path
    """Where the jobs' folders are, and what is too large to be kept in memory while it is sent."""
    roots: Sequence[Path]
    """The operator's folders."""


class MediaThreads(NamedTuple):
    """What waits."""

    readers: Executor
    """For the disk, shortly."""
    listers: Executor
    """For small rows."""
    askers: Executor
    """For harnesses."""


class SampleMediaReader:
    """Sends media to callers."""

    def __init__(
        self,
        feed: Feed,
        places: Places,
        harnesses: Mapping[str, Harness],
        harness_settings: Mapping[str, HarnessSettings],
        documents: DocumentMedia,
        threads: MediaThreads,
        processes: ReadingProcesses,
    ) -> None:
        self._feed = feed
        self._places = places
        self._results = JobResults(places.data_dir)
        self._harnesses = harnesses
        self._harness_settings = harness_settings
        self._documents = documents
        self._threads = threads
        self._processes = processes

    def forget_unused(self) -> None:
        """Forget what harnesses have said and nobody reads any more."""
        self._documents.forget_unused()

    async def read_sample_media(
        self,
        job_id: str,
        call: ReadSampleMediaRequest,
        owner: str,
        send: Send,
        reserve: Reserve = no_reserve,
        note_kept_bytes: Callable[[int], object] = lambda _: None,
    ) -> None:
        """Send the media of a sample as serialised ReadSampleMediaResponses. `owner`: who asks. `note_kept_bytes` hears how
        many bytes of media stay in memory until the end: those that have no file.

        Raises JobNotFoundError, SamplesNotFoundError, FileUnavailableError, FileUnreadableError, ReadLimitError,
        InvalidRequestError for a bad token.
        """
        job = await self._feed.read_job(job_id)
        offset = page_tokens.decode(call.sample_token, sample_place(job_id, call.model, call.task)) or 0
        arguments = (job, call.model, call.task, offset, self._places.data_dir, self._results, self._threads.listers)
        source = await source_of(*arguments)
        sample = await self._read_sample(source, call.sample_id, owner)
        media = await self._with_documents(job, call, source, sample)
        note_kept_bytes(sum(len(each.data or b"") for each in media))
        end = len(media) if not call.max_media else call.start_index + call.max_media
        for index, reference in list(enumerate(media))[call.start_index : end]:
            await self._send_medium(_Medium(index, reference), source.folder, send, reserve)

    async def _read_sample(self, source: SampleSource, wanted_id: str, owner: str) -> Sample:
        """Read a sample: in the server itself if it is known where a small one stands, else in a process."""
        if not wanted_id:
            budget = ReadBudget(IN_PLACE_LIMITS)
            with suppress(ReadLimitError):
                return await read_on(
                    self._threads.listers, lambda: find_sample(source, "", self._harnesses, budget), budget.stop
                )
        settings = self._harness_settings.get(source.job.request.harness)
        arguments = (source, wanted_id, settings, PROCESS_LIMITS)
        return await self._processes.call(PROCESS_USE, find_sample_in_process, *arguments, owner=owner)

    async def _with_documents(
        self, job: JobInfo, call: ReadSampleMediaRequest, source: SampleSource, sample: Sample
    ) -> Sequence[Reference]:
        """Return the media of a sample; if it has none that can be sent, those of its document."""
        known = sample.media
        if not self._documents.can_tell(job.request, sample.id):
            return known
        if await read_on(self._threads.readers, lambda: self._is_any_there(known, source.folder)):
            return known
        request = EvaluateRequest(harness=job.request.harness, model=job.request.model)
        task = call.task or samples_task(source.path) or ""
        shown = await read_on(self._threads.askers, lambda: self._documents.media_of(request, task, int(sample.id)))
        return shown or known

    def _is_any_there(self, references: Sequence[Reference], folder: Path) -> bool:
        with ExitStack() as stack:
            return any(
                each.data is not None or (not each.problem and not self._opened(stack, each, folder).problem)
                for each in references
            )

    async def _send_medium(self, medium: "_Medium", folder: Path, send: Send, reserve: Reserve) -> None:
        with ExitStack() as stack:
            opened = await read_on(self._threads.readers, lambda: self._opened(stack, medium.reference, folder))
            if opened.problem:
                await send(medium.failed(0, opened.problem))
                return
            offset = 0
            while True:
                if (room := reserve(CHUNK_BYTES)) is not None:
                    await room
                message, read_bytes = await self._next_message(medium, opened, offset)
                await send(message)
                offset += read_bytes
                if offset >= opened.size_bytes or not read_bytes:
                    return

    async def _next_message(self, medium: "_Medium", opened: "_Opened", offset: int) -> tuple[bytes, int]:
        # The descriptor must not be closed while a thread reads from it.
        return await uninterruptible(read_on(self._threads.readers, lambda: medium.message(opened, offset)))

    def _opened(self, stack: ExitStack, reference: Reference, folder: Path) -> "_Opened":
        """Open a medium until the stack is closed. Raises OSError for a shortage."""
        if reference.problem:
            return _Opened(problem=reference.problem)
        if reference.data is not None:
            return stack.enter_context(_spooled(reference.data, self._places.data_dir))
        return _open_below(folder, self._places.roots, reference.path, stack)


class _Opened(NamedTuple):
    """An open medium, or why there is none."""

    descriptor: int = -1
    size_bytes: int = 0
    media_type: str = ""
    problem: str = ""


class _Medium(NamedTuple):
    number: int
    reference: Reference

    def failed(self, offset: int, problem: str) -> bytes:
        """Return the message that says why it can't be sent, or not any further."""
        source = wire_text(self.reference.source)
        return ReadSampleMediaResponse(
            index=self.number, source="" if offset else source, offset=offset, problem=wire_text(problem)
        ).SerializeToString()

    def message(self, opened: _Opened, offset: int) -> tuple[bytes, int]:
        """Return the next message, and how many bytes of the medium it has. Raises OSError."""
        head = ReadSampleMediaResponse(index=self.number, size_bytes=opened.size_bytes, offset=offset)
        if not offset:
            head.source, head.media_type = wire_text(self.reference.source), opened.media_type
        wanted_bytes = min(CHUNK_BYTES, opened.size_bytes - offset)
        if not wanted_bytes:
            return head.SerializeToString(), 0
        number = ReadSampleMediaResponse.DATA_FIELD_NUMBER
        found = wire_format.file_chunk(number, head.SerializeToString(), opened.descriptor, offset, wanted_bytes)
        return found if found[1] else (self.failed(offset, "it has become shorter while it was read"), 0)


@contextmanager
def _spooled(data: bytes, folder: Path) -> Iterator[_Opened]:
    """Put bytes where they take no memory for as long as a client does not read them. The file has no name."""
    with TemporaryFile(dir=folder) as file:
        file.write(data)
        file.flush()
        yield _Opened(file.fileno(), len(data), media_type(data[:HEAD_BYTES]))


def _open_below(folder: Path, roots: Sequence[Path], path: str, stack: ExitStack) -> _Opened:
    """Open a file below the job's folder, or else the first of the roots that has it. Raises OSError for a shortage."""
    problem = "it lies outside of the job's folder and of the server's media_roots"
    wanted = Path(path)
    for place in (folder, *roots):
        if wanted.is_absolute() and not wanted.is_relative_to(place):
            continue
        try:
            descriptor = stack.enter_context(_open_own(place, wanted) if place is folder else open_below(place, wanted))
            return _Opened(descriptor, os.fstat(descriptor).st_size, media_type(os.pread(descriptor, HEAD_BYTES, 0)))
        except OSError as error:
            require_no_shortage(error)
            problem = f"it can't be read: {error.strerror}"
        except ValueError:  # a NUL
            problem = "its path is none"
    return _Opened(problem=problem)


@contextmanager
def _open_own(folder: Path, path: Path) -> Iterator[int]:
    with open_in(folder, path) as file:
        yield file.fileno()
