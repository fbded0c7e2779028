"""Harnesses turn a request into a command, and an output folder into results.

The names in `__all__` are the public API for harnesses in other packages; docs/harnesses.md explains how to write one.
`evalrpc.testing` has what tests them. Importing this package loads no server, no gRPC and no other harness.
"""

from evalrpc.config import HarnessSettings
from evalrpc.errors import ConfigurationError, FieldViolation, RunFailedError
from evalrpc.files.errnos import require_no_shortage
from evalrpc.files.opening import open_in, scan_folder
from evalrpc.harnesses import arguments, installation
from evalrpc.harnesses.base import (
    Command,
    Exit,
    Harness,
    JudgedHarness,
    MediaHarness,
    MediaLimits,
    ParallelHarness,
    Preload,
    ProgressWords,
    Run,
    SampleReader,
    SampleRow,
    ServedEndpoint,
    ServedHarness,
    ServedNeeds,
    StepsHarness,
    TaskArgsHarness,
    TaskReporter,
    WarningHarness,
)
from evalrpc.harnesses.failures import check_exit, failed, find_failure, shorten, strip_colours
from evalrpc.harnesses.names import device_violations, task_problem
from evalrpc.harnesses.progress_bars import Bar, advance, follow_bar, read_bar
from evalrpc.harnesses.served import pointed_at
from evalrpc.protobuf import bounds
from evalrpc.results.layout import missing_tasks, read_results
from evalrpc.results.metrics import model_result
from evalrpc.v1.catalog_pb2 import HarnessInfo
from evalrpc.v1.jobs_pb2 import EvaluateRequest, GpuMode, Progress
from evalrpc.v1.results_pb2 import ModelResult

__all__ = [
    "Bar",
    "Command",
    "ConfigurationError",
    "EvaluateRequest",
    "Exit",
    "FieldViolation",
    "GpuMode",
    "Harness",
    "HarnessInfo",
    "HarnessSettings",
    "JudgedHarness",
    "MediaHarness",
    "MediaLimits",
    "ModelResult",
    "ParallelHarness",
    "Preload",
    "Progress",
    "ProgressWords",
    "Run",
    "RunFailedError",
    "SampleReader",
    "SampleRow",
    "ServedEndpoint",
    "ServedHarness",
    "ServedNeeds",
    "StepsHarness",
    "TaskArgsHarness",
    "TaskReporter",
    "WarningHarness",
    "advance",
    "arguments",
    "bounds",
    "check_exit",
    "device_violations",
    "failed",
    "find_failure",
    "follow_bar",
    "installation",
    "missing_tasks",
    "model_result",
    "open_in",
    "pointed_at",
    "read_bar",
    "read_results",
    "require_no_shortage",
    "scan_folder",
    "shorten",
    "strip_colours",
    "task_problem",
]
