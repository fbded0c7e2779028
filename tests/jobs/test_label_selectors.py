"""A selector means what Kubernetes' grammar says, and what is none is refused with the place and what was expected there."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from example_count import example_count
from hypothesis import example, given, settings
from hypothesis import strategies as st
from selector_cases import Selector, selectors

from evalrpc.jobs.label_selectors import MAX_CHARACTERS, MAX_REQUIREMENTS, Requirement, parse_selector
from evalrpc.printable import first_unprintable
from evalrpc.server import validation
from evalrpc.v1.jobs_pb2 import JobFilter

WORDS = "ABCXYZabcxyz0123456789_./-"
keys = st.sampled_from(["in", "notin", "a", "b", "x/y.z"]) | st.text(WORDS, min_size=1, max_size=63)
values = st.sampled_from(["", "a", "b", "in", "notin", "x y", '"', "\\", "\\\\", '\\"', ",", "ü"]) | st.text(
    st.characters(exclude_categories=["Cc", "Cs"]).filter(lambda character: first_unprintable(character) is None), max_size=255
)


def has(key: str, *values: str) -> Requirement:
    return Requirement(key, frozenset(values) if values else None)


def lacks(key: str, *values: str) -> Requirement:
    return Requirement(key, frozenset(values) if values else None, negated=True)


@pytest.mark.parametrize(
    ("text", "requirements"),
    [
        ("", []),
        (" \t\r\n", []),
        ("run=x,step!=5,team in (a,b),!draft", [has("run", "x"), lacks("step", "5"), has("team", "a", "b"), lacks("draft")]),
        ("x=a,y=b,z=c", [has("x", "a"), has("y", "b"), has("z", "c")]),
        ("x==a", [has("x", "a")]),
        ("x=", [has("x", "")]),
        ("x= ", [has("x", "")]),
        ("x=,z= ", [has("x", ""), has("z", "")]),
        ("x!=", [lacks("x", "")]),
        ('x=""', [has("x", "")]),
        ("!x", [lacks("x")]),
        ("! x", [lacks("x")]),
        ("\rx", [has("x")]),
        ("dns.domain.com/key-with-dash in (so,what)", [has("dns.domain.com/key-with-dash", "so", "what")]),
        ("0.1.2.domain/99 notin (10.10.100.1, tick.tack.clock)", [lacks("0.1.2.domain/99", "10.10.100.1", "tick.tack.clock")]),
        ("x  notin\t\t(abc,def)", [lacks("x", "abc", "def")]),
        ("x notin\n (abc)", [lacks("x", "abc")]),
        ("x in(a)", [has("x", "a")]),
        ("x in (abc,)", [has("x", "abc", "")]),
        ("x in (,a)", [has("x", "", "a")]),
        ("x in ()", [has("x", "")]),
        ("x in (,,)", [has("x", "")]),
        ("x in (a,a)", [has("x", "a")]),
        ("x notin (abc,,def),bar,z in (),w", [lacks("x", "abc", "", "def"), has("bar"), has("z", ""), has("w")]),
        ("a in (x,y,notin, z,in)", [has("a", "x", "y", "notin", "z", "in")]),
        ("in in (in),notin notin (notin)", [has("in", "in"), lacks("notin", "notin")]),
        ("in", [has("in")]),
        ("notin=in", [has("notin", "in")]),
        ("x=a,x!=b,x", [has("x", "a"), lacks("x", "b"), has("x")]),
        (r'x="a \"b\" \\ c, (d)"', [has("x", r'a "b" \ c, (d)')]),
        ('x in ("ü 1","=!")', [has("x", "ü 1", "=!")]),
    ],
)
def test_a_selector_asks_for_what_is_written(text: str, requirements: list[Requirement]) -> None:
    assert list(parse_selector(text)) == requirements


A_VALUE = "a value (A-Z a-z 0-9 _ . / -, or anything in double quotes)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x=a||y=b", "at character 4: expected `,` or the end, found `|`"),
        ("x==a==b", "at character 5: expected `,` or the end, found `==`"),
        ("!x=a", "at character 3: expected `,` or the end, found `=`"),
        ("!x in (a)", "at character 4: expected `,` or the end, found `in`"),
        ("x<a", "at character 2: expected an operator (= == != in notin), `,` or the end, found `<`"),
        ("x a", "at character 3: expected an operator (= == != in notin), `,` or the end, found `a`"),
        ("x ! = a", "at character 3: expected an operator (= == != in notin), `,` or the end, found `!`"),
        ("x,,y", "at character 3: expected a key, or `!` and a key (A-Z a-z 0-9 _ . / -), found `,`"),
        (",x,y", "at character 1: expected a key, or `!` and a key (A-Z a-z 0-9 _ . / -), found `,`"),
        ("x,", "at character 3: expected a key, or `!` and a key (A-Z a-z 0-9 _ . / -), found the end"),
        ("!", "at character 2: expected a key (A-Z a-z 0-9 _ . / -), found the end"),
        ("!!x", "at character 2: expected a key (A-Z a-z 0-9 _ . / -), found `!`"),
        ("ü=a", "at character 1: expected a key, or `!` and a key (A-Z a-z 0-9 _ . / -), found `ü`"),
        ('"x"=a', "at character 1: expected a key, or `!` and a key (A-Z a-z 0-9 _ . / -), found `x`"),
        ("x in a", "at character 6: expected `(`, found `a`"),
        ("x in (a b)", "at character 9: expected `,` or `)`, found `b`"),
        ("x in (a", "at character 8: expected `,` or `)`, found the end"),
        ("x in (", f"at character 7: expected {A_VALUE}, `,` or `)`, found the end"),
        ("x in (a)b", "at character 9: expected `,` or the end, found `b`"),
        ("x=(", f"at character 3: expected {A_VALUE}, `,` or the end, found `(`"),
        ("x=ü", f"at character 3: expected {A_VALUE}, `,` or the end, found `ü`"),
        ("x\0", "at character 2: expected an operator (= == != in notin), `,` or the end, found `\0`"),
        ('x="a', 'at character 5: expected a closing `"`'),
        (r'x="a\b"', 'at character 5: expected `"` or `\\` after the backslash'),
        (r'x="a\"', 'at character 7: expected a closing `"`'),
        ('y,x="a\nb"', "at character 5: the value must not have the character \\x0a"),
        (f"y,{'x' * 64}", "at character 3: the key must have at most 63 characters"),
        (f"y,x={'v' * 256}", "at character 5: the value must have at most 255 characters"),
    ],
)
def test_what_is_no_selector_is_refused_with_the_place_and_what_was_expected(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        parse_selector(text)
    assert str(caught.value) == message


def test_a_selector_has_at_most_4096_characters_and_100_requirements() -> None:
    assert len(parse_selector(",".join(["x"] * MAX_REQUIREMENTS))) == 100
    assert parse_selector("x".ljust(MAX_CHARACTERS)) == (has("x"),)
    with pytest.raises(ValueError, match="at character 201: at most 100 requirements are allowed"):
        parse_selector(",".join(["x"] * 101))
    with pytest.raises(ValueError, match="has 4097 characters; at most 4096 are allowed"):
        parse_selector("x".ljust(MAX_CHARACTERS + 1))


@settings(max_examples=example_count(500), deadline=None)
@given(selector=selectors(keys, values), labels=st.dictionaries(keys, values, max_size=4), data=st.data())
def test_a_selector_takes_the_labels_that_meet_all_its_parts(selector: Selector, labels: dict[str, str], data: Any) -> None:
    for key, _, wanted in selector.parts:  # random labels alone would hardly ever be those of a part
        if data.draw(st.booleans()):
            labels[key] = data.draw(st.sampled_from([*wanted, "other"]))
    requirements = parse_selector(selector.text)
    assert all(requirement.matches(labels) for requirement in requirements) == selector.holds(labels)


@settings(max_examples=example_count(500), deadline=None)
@given(selector=selectors(keys, values))
def test_requirements_are_written_as_a_selector_that_asks_for_the_same(selector: Selector) -> None:
    requirements = parse_selector(selector.text)
    assert parse_selector(",".join(map(str, requirements))) == requirements


WORD = r"[A-Za-z0-9_./-]+(?![A-Za-z0-9_./-])"
VALUE = rf'(?:{WORD}|"(?:[^"\\\x00-\x1f\x7f]|\\["\\])*")?'
REQUIREMENT = (
    rf"(?:!\s*{WORD}\s*"
    rf"|{WORD}\s*(?:(?:==?|!=)\s*{VALUE}\s*|(?:not)?in\s*\(\s*{VALUE}\s*(?:,\s*{VALUE}\s*)*\)\s*)?)"
)
GRAMMAR = re.compile(rf"\s*(?:{REQUIREMENT}(?:,\s*{REQUIREMENT})*)?")


@settings(max_examples=example_count(2000), deadline=None)
@given(st.lists(st.sampled_from([*'a(),=!" \\|', "in", "notin", "==", "!=", "(a)", '"b"', "ü"]), max_size=12).map("".join))
@example('a="\\\\"')
@example("ain (a)")
def test_just_what_the_grammar_has_is_a_selector(text: str) -> None:
    assert accepted(lambda: parse_selector(text)) == bool(GRAMMAR.fullmatch(text))


@settings(max_examples=example_count(500), deadline=None)
@given(key=keys | st.text(max_size=70))
def test_the_keys_are_those_that_a_job_may_have(key: str) -> None:
    is_valid = not list(validation.job_filter(JobFilter(labels={key: ""})))
    assert (accepted(lambda: parse_selector(key)) and parse_selector(key) == (has(key),)) == is_valid


@settings(max_examples=example_count(500), deadline=None)
@given(value=values | st.text(max_size=5) | st.text("x\ny", min_size=254, max_size=257))
def test_the_values_are_those_that_a_job_may_have(value: str) -> None:
    is_valid = not list(validation.job_filter(JobFilter(labels={"k": value})))
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    assert accepted(lambda: parse_selector(f'k="{quoted}"')) == is_valid


def accepted(parse: Callable[[], object]) -> bool:
    try:
        parse()
    except ValueError:
        return False
    return True
