"""Arguments as text, which are read as lmms-eval reads them: as recorded from it, and as an installed one reads them now."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from evalrpc.client.arguments import parse_arguments

REAL_PYTHON: Final = "EVALRPC_TEST_LMMS_PYTHON"
RECORDED: Final = Path(__file__).parents[1] / "data" / "lmms_eval" / "argument_texts.json"
"""What `simple_parse_args_string` of lmms-eval 0.7 makes of each text, as Python code; null where it raises ValueError."""

PAIRS: Final[dict[str, str | None]] = json.loads(RECORDED.read_text())

READER: Final = """
import json, sys
from lmms_eval.utils import simple_parse_args_string

def read(text):
    try:
        return repr(simple_parse_args_string(text))
    except ValueError:
        return None

json.dump({text: read(text) for text in json.load(sys.stdin)}, open(sys.argv[1], "w"))
"""


def read_here(text: str) -> str | None:
    try:
        return repr(parse_arguments(text))
    except ValueError:
        return None


@pytest.mark.parametrize("text", PAIRS)
def test_text_is_read_as_lmms_eval_has_read_it(text: str) -> None:
    assert read_here(text) == PAIRS[text]


@pytest.mark.skipif(not os.environ.get(REAL_PYTHON), reason=f"no real lmms-eval: set {REAL_PYTHON}, or run `make test`")
def test_text_is_read_as_the_installed_lmms_eval_reads_it(tmp_path: Path) -> None:
    answers = tmp_path / "answers.json"
    command = (os.environ[REAL_PYTHON], "-c", READER, str(answers))
    subprocess.run(command, input=json.dumps(list(PAIRS)), text=True, check=True)

    assert json.loads(answers.read_text()) == {text: read_here(text) for text in PAIRS}


@pytest.mark.parametrize(
    ("text", "value"),
    [('{"a": {"b": [1, null]}}', {"a": {"b": [1, None]}}), (' {"until": "a,b"}', {"until": "a,b"}), ("{}", {})],
)
def test_a_json_object_says_what_the_notation_can_not(text: str, value: dict[str, Any]) -> None:
    assert parse_arguments(text) == value


@pytest.mark.parametrize("text", ["a", "=1", "a=1,b", '{"a": ', '{"a": 1} b', "a=²"])
def test_bad_text_is_refused_with_what_is_wrong(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no valid JSON|is not of the form key=value|neither text nor a number"):
        parse_arguments(text)
