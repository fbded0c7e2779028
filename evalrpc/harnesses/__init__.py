"""Harnesses turn a request into a command, and an output folder into results.

The names below are the API for harnesses in other packages; docs/harnesses.md explains how to write one.
"""

from evalrpc.harnesses.base import Command, Exit, Harness, Run, SampleReader, SampleRow, StepsHarness, TaskReporter

__all__ = ["Command", "Exit", "Harness", "Run", "SampleReader", "SampleRow", "StepsHarness", "TaskReporter"]
