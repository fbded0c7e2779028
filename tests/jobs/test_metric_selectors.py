"""How selectors are written."""

import pytest

from evalrpc.jobs.metric_selectors import parse_metric, selector_text, selector_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("acc", "a metric acc"),
        ("mme/score", "a metric mme/score"),
        ("mme/score,none", "a metric mme/score,none"),
        ("mme/", "a metric of the task mme"),
        ("mme/,none", "a metric of the task mme with the filter none"),
        ("a/b/score", "a metric a/b/score"),
    ],
)
def test_a_selector_is_written_as_it_is_read(text: str, words: str) -> None:
    selector = parse_metric(text)
    assert selector_text(selector) == text
    assert selector_words(selector) == words
