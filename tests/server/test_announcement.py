"""What a server says when it has started."""

import logging
from datetime import UTC, datetime
from pathlib import Path

import pytest

from evalrpc.config import HarnessSettings
from evalrpc.harnesses.command import CommandHarness
from evalrpc.server.announcement import announce
from evalrpc.v1.catalog_pb2 import HarnessInfo

NOW = datetime(2026, 6, 1, tzinfo=UTC)


class BrokenHarness(CommandHarness):
    def info(self) -> HarnessInfo:
        raise ZeroDivisionError("broken")


def test_a_harness_that_can_not_describe_itself_does_not_hide_the_others(caplog: pytest.LogCaptureFixture) -> None:
    settings = HarnessSettings("x", "command", command=("true",))
    with caplog.at_level(logging.INFO):
        announce(
            [], NOW, None, Path("/d"), {"cgroups": "none"}, [], {"a": BrokenHarness(settings), "b": CommandHarness(settings)}
        )

    assert caplog.messages[-2:] == [
        "harness a (command) can't say whether it is available: ZeroDivisionError: broken",
        "harness b: command",
    ]
