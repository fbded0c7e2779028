"""The audit: who has changed what, and whom the server has refused, in a file of its own.

Which calls change something is what the schema says of them. A transport reports here how each call ended, since there the
refusals of sign-in and of the handlers meet. Entries are made on the event loop and written by a thread: no call waits for the
disk, and entries that it does not take are kept, up to a bound, until it does.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import unquote

from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions

from evalrpc.clock import Clock
from evalrpc.errors import ConfigurationError, EvalrpcError
from evalrpc.files.errnos import is_shortage
from evalrpc.protobuf.wire_format import text_field
from evalrpc.server.audit_file import REFUSALS, AuditEntry, AuditFile
from evalrpc.server.call import Principal
from evalrpc.server.problems import Problems
from evalrpc.server.threads import start_pool

MAX_REFUSALS: Final = 300
"""How many refused calls that change nothing are recorded in a period: nobody can push changes out of the file with them."""

PERIOD_SECONDS: Final = 60.0

MAX_UNWRITTEN: Final = 10_000
"""How many entries are kept that could not be written yet."""

_MAX_TEXT: Final = 128  # of an id or a name, as ours are far shorter
_TARGETS: Final = {"gpu_id": "gpu", "engine_id": "engine", "suite_run_id": "suite run", "suite": "suite"}
"""The fields that name what a call concerns if it is no job."""

_NEW_TARGETS: Final = {"suite_run_id": "suite run"}
"""The fields of answers that name what a call has made."""

_log = logging.getLogger(__name__)


class Audit:
    """Records entries. Used on the event loop. `mask_text` masks secrets in what callers have named."""

    def __init__(self, file: AuditFile, clock: Clock, mask_text: Callable[[str], str] = lambda text: text) -> None:
        """Raises ConfigurationError if the file can't be written, unless only the disk is full."""
        self.clock: Final = clock
        self.mask_text: Final = mask_text
        self._file = file
        self._pending: deque[AuditEntry] = deque()
        self._unwritten: list[AuditEntry] = []  # of the thread
        self._is_scheduled = False
        self._is_closed = False
        self._left_out = 0
        self._period_ends_at = 0.0
        self._refusals = 0
        self._problems = Problems(_log, "write the audit", "audit")
        try:
            file.append(())
        except OSError as error:
            if not is_shortage(error):
                raise ConfigurationError(f"setting audit_file: can't write {file.path}: {error.strerror}") from error
        self._writing = start_pool(1, "audit")

    def record(self, entry: AuditEntry) -> None:
        """Have an entry written, after all before it."""
        if len(self._pending) + len(self._unwritten) >= MAX_UNWRITTEN:
            self._left_out += 1
            return
        self._pending.append(entry._replace(left_out=self._left_out))
        self._left_out = 0
        if not self._is_scheduled and not self._is_closed:
            self._is_scheduled = True
            self._writing.submit(self._write)

    def takes_refusal(self) -> bool:
        """Count a refused call, and return whether it is to be recorded."""
        now = self.clock.monotonic()
        if now >= self._period_ends_at:
            self._period_ends_at = now + PERIOD_SECONDS
            self._refusals = 0
        self._refusals += 1
        if self._refusals <= MAX_REFUSALS:
            return True
        self._left_out += 1
        return False

    def close(self) -> None:
        """Write what there is. Blocks. What is recorded later is lost."""
        self._is_closed = True
        self._writing.submit(self._write)
        self._writing.shutdown()

    def _write(self) -> None:
        self._is_scheduled = False
        while self._pending:
            self._unwritten.append(self._pending.popleft())
        try:
            self._file.append(self._unwritten)
        except Exception as error:  # noqa: BLE001 - the last resort: nobody else would hear of it
            self._problems.report_error("file", error)
        else:
            self._unwritten.clear()
            self._problems.solve("file")


class MethodAudit:
    """Records how the calls of one method end."""

    def __init__(self, audit: Audit, method: MethodDescriptor) -> None:
        self.changes: Final = method.GetOptions().idempotency_level != MethodOptions.NO_SIDE_EFFECTS
        """Whether its calls change something, so that all of them are recorded."""
        self._audit = audit
        self._name = method.name
        self._job_id = _number(method.input_type, "job_id")
        self._new_job_id = _number(method.output_type, "job_id")
        self._request_id = _number(method.input_type, "request_id")
        self._targets = [(kind, _number(method.input_type, name)) for name, kind in _TARGETS.items()]
        self._new_targets = [(kind, _number(method.output_type, name)) for name, kind in _NEW_TARGETS.items()]

    def answered(self, principal: Principal, peer: str, request: bytes, answer: bytes) -> None:
        """Record a call that changes something, and has."""
        self._record(principal, peer, request, "OK", answer=answer)

    def abandoned(self, principal: Principal | None, peer: str, request: bytes) -> None:
        """Record a call whose caller has left before the answer, if it changes something."""
        if self.changes and principal is not None:
            self._record(principal, peer, request, "CANCELLED")

    def failed(self, principal: Principal | None, peer: str, request: bytes, error: EvalrpcError) -> None:
        """Record a call with an error, if it is a refusal or would have changed something. None: sign-in has failed."""
        is_known_change = self.changes and principal is not None and error.code not in REFUSALS
        if is_known_change or (error.code in REFUSALS and self._audit.takes_refusal()):
            self._record(principal, peer, request, error.code, error.reason)

    def _record(
        self, principal: Principal | None, peer: str, request: bytes, code: str, reason: str = "", answer: bytes = b""
    ) -> None:
        entry = AuditEntry(
            self._audit.clock.now().ToJsonString(),
            self._name,
            code,
            reason,
            peer=unquote(peer),  # gRPC quotes the brackets of an IPv6 address
            job_id=self._text(request, self._job_id) or self._text(answer, self._new_job_id),
            target=self._named(answer, self._new_targets) or self._named(request, self._targets),
            request_id=self._text(request, self._request_id),
        )
        if principal is not None:
            sign_in = principal.sign_in
            entry = entry._replace(
                owner=principal.owner,
                role=principal.role.value,
                sign_in_method=sign_in.method.value,
                token_id=sign_in.token_id,
            )
        self._audit.record(entry)

    def _named(self, serialized: bytes, targets: Sequence[tuple[str, int]]) -> str:
        named = ((kind, self._text(serialized, number)) for kind, number in targets)
        return next((f"{kind} {name}" for kind, name in named if name), "")

    def _text(self, serialized: bytes, number: int) -> str:
        text = text_field(serialized, number)[:_MAX_TEXT] if number else ""
        return self._audit.mask_text(text) if text else ""


def _number(message: Descriptor, field: str) -> int:
    """Return the number of a field; 0 if there is none of this name."""
    return message.fields_by_name[field].number if field in message.fields_by_name else 0
