"""How selectors are written."""

import pytest

from evalrpc.jobs.metric_selectors import Selection, parse_metric, selector_text, selector_words
from evalrpc.v1.results_pb2 import Metric


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


@pytest.mark.parametrize(("task", "metric"), [("t", "pass/1"), ("a/b", "score"), ("a/b", "pass/1"), ("t", "acc")])
def test_a_metric_is_selected_by_its_text(task: str, metric: str) -> None:
    found = Metric(task=task, metric=metric, filter="none")
    for text in (f"{task}/{metric}", f"{task}/{metric},none", f"{task}/"):
        assert Selection([parse_metric(text)]).takes(found)
    assert not Selection([parse_metric(f"{task}/other")]).takes(found)
