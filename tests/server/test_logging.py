"""The server's own log has no secret."""

import json
import logging
from collections.abc import Iterator

import pytest

from evalrpc.secrets.masking import Mask
from evalrpc.server.logging import set_up_logging


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Take back what a test has set up."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


def entry(capsys: pytest.CaptureFixture[str], log_format: str) -> str:
    set_up_logging(log_format, Mask(['a "secret"']).text)
    error = ValueError('no a "secret" here')
    logging.getLogger("x").error("with %s", 'a "secret"', exc_info=error, extra={"job_id": 'a "secret"', "attempt": 1})
    return capsys.readouterr().err


def test_values_are_masked_in_message_fields_and_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    text = entry(capsys, "text")
    assert "with **********" in text
    assert "job_id=**********" in text
    assert "ValueError: no ********** here" in text
    assert 'a "secret"' not in text


def test_also_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads(entry(capsys, "json"))
    assert (record["message"], record["job_id"], record["attempt"]) == ("with **********", "**********", 1)
    assert record["traceback"].endswith("ValueError: no ********** here")
