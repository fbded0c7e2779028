"""The server's own log on standard error: one line per event, for people or for machines."""

import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from evalrpc.jobs.trace_context import current_trace

_STANDARD_FIELDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def set_up_logging(log_format: str, mask_text: Callable[[str], str] = lambda text: text) -> None:
    """Send the log to standard error, as `text` or `json`. `mask_text` masks secrets in each entry."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_add_trace)
    handler.setFormatter((_JsonFormatter if log_format == "json" else _TextFormatter)(mask_text))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def _add_trace(record: logging.LogRecord) -> bool:
    """Add the ids of the span that is worked for, if there is one."""
    if (trace := current_trace()) is not None:
        record.trace_id, record.span_id = trace.trace_id, trace.span_id
    return True


class _MaskingFormatter(logging.Formatter):
    def __init__(self, mask_text: Callable[[str], str]) -> None:
        super().__init__()
        self._mask_text = mask_text


class _TextFormatter(_MaskingFormatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{name}={value}" for name, value in _extra_fields(record).items())
        line = f"{_time(record)} {record.levelname:<7} {record.getMessage()}{'  ' if fields else ''}{fields}"
        return self._mask_text(f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line)


class _JsonFormatter(_MaskingFormatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_extra_fields(record),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        masked = {name: self._mask_text(value) if isinstance(value, str) else value for name, value in fields.items()}
        return json.dumps(masked, default=str)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _extra_fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD_FIELDS}
