"""Label selectors, such as `run=x,step!=5,team in (a,b),!draft`: Kubernetes' grammar, with quotes for values of any characters.

    selector    = [ requirement { "," requirement } ]
    requirement = "!" KEY | KEY | KEY ( "=" | "==" | "!=" ) value | KEY ( "in" | "notin" ) "(" value { "," value } ")"
    value       = [ WORD | QUOTED ]

A WORD consists of characters from `[A-Za-z0-9_./-]`, and a KEY is one. What is QUOTED stands in double quotes, with a backslash
before a quote or a backslash. White space may stand between any of these. A value that is left out is the empty one, as in
`run=`, `run in (,x)` and `run in ()`.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple, NoReturn

from evalrpc.printable import first_unprintable, printable

MAX_CHARACTERS: Final = 4096
MAX_REQUIREMENTS: Final = 100
MAX_KEY_LENGTH: Final = 63
MAX_VALUE_LENGTH: Final = 255

_TOKEN: Final = re.compile(
    r"""[ \t\r\n]*(?:
        (?P<word>[A-Za-z0-9_./-]+)
      | "(?P<quoted>(?:[^"\\]|\\["\\])*)"
      | (?P<symbol>==|!=|[=!(),])
      | (?P<unclosed>"(?:[^"\\]|\\["\\])*)
      | (?P<other>.)
      | (?P<end>\Z)
    )""",
    re.VERBOSE | re.DOTALL,
)
_WORD: Final = re.compile(r"[A-Za-z0-9_./-]+")
_VALUE: Final = "a value (A-Z a-z 0-9 _ . / -, or anything in double quotes)"


class Requirement(NamedTuple):
    """What one part of a selector asks of a job's labels."""

    key: str
    values: frozenset[str] | None
    """The label must have one of these values. None: any value."""
    negated: bool = False
    """Whether the opposite must hold. It does for a job without the label."""

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Return whether labels are as required."""
        has_it = self.key in labels and (self.values is None or labels[self.key] in self.values)
        return has_it != self.negated

    def __str__(self) -> str:
        """The requirement as a selector."""
        if self.values is None:
            return f"!{self.key}" if self.negated else self.key
        values = sorted(map(_quoted, self.values))
        if len(values) == 1:
            return f"{self.key}{'!=' if self.negated else '='}{values[0]}"
        return f"{self.key} {'notin' if self.negated else 'in'} ({','.join(values)})"


def parse_selector(text: str) -> tuple[Requirement, ...]:
    """Return the requirements of a selector, all of which must hold; none if it is empty.

    Raises ValueError, which says at which character, counted from 1, what was expected.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"has {len(text)} characters; at most {MAX_CHARACTERS} are allowed")
    return tuple(_Parser(text).selector())


class _Token(NamedTuple):
    kind: str
    """`word`, `quoted`, `end`, `other`, or the symbol itself."""
    text: str
    place: int
    """Of its first character, counted from 1."""

    @property
    def is_value(self) -> bool:
        return self.kind in ("word", "quoted")

    def refuse(self, expected: str) -> NoReturn:
        found = "the end" if self.kind == "end" else f"`{self.text[:40]}`"
        raise ValueError(f"at character {self.place}: expected {expected}, found {found}")


class _Parser:
    """Reads a selector with one token of lookahead. A character that begins no token is one of kind `other`, never expected."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._next = next(self._tokens)

    def selector(self) -> Iterator[Requirement]:
        if self._next.kind == "end":
            return
        yield self._requirement()
        count = 1
        while self._accept(","):
            if count == MAX_REQUIREMENTS:
                raise ValueError(f"at character {self._next.place}: at most {MAX_REQUIREMENTS} requirements are allowed")
            yield self._requirement()
            count += 1

    def _requirement(self) -> Requirement:
        if self._accept("!"):
            requirement = Requirement(self._key("a key"), None, negated=True)
            self._require_end("`,` or the end")
            return requirement
        key = self._key("a key, or `!` and a key")
        operator = self._operator()
        if not operator:
            return Requirement(key, None)
        values = self._values() if operator in ("in", "notin") else self._only_value()
        return Requirement(key, values, negated=operator in ("!=", "notin"))

    def _key(self, expected: str) -> str:
        token = self._next
        if token.kind != "word":
            token.refuse(f"{expected} (A-Z a-z 0-9 _ . / -)")
        if len(token.text) > MAX_KEY_LENGTH:
            raise ValueError(f"at character {token.place}: the key must have at most {MAX_KEY_LENGTH} characters")
        self._advance()
        return token.text

    def _operator(self) -> str:
        token = self._next
        if token.kind in ("=", "==", "!=") or (token.kind == "word" and token.text in ("in", "notin")):
            self._advance()
            return token.text
        self._require_end("an operator (= == != in notin), `,` or the end")
        return ""

    def _only_value(self) -> frozenset[str]:
        value = self._value()
        self._require_end("`,` or the end" if value else f"{_VALUE}, `,` or the end")
        return frozenset((value,))

    def _values(self) -> frozenset[str]:
        if not self._accept("("):
            self._next.refuse("`(`")
        values = {last := self._value()}
        while self._accept(","):
            values.add(last := self._value())
        if not self._accept(")"):
            self._next.refuse("`,` or `)`" if last else f"{_VALUE}, `,` or `)`")
        self._require_end("`,` or the end")
        return frozenset(values)

    def _value(self) -> str:
        token = self._next
        if not token.is_value:
            return ""
        text = re.sub(r"\\(.)", r"\1", token.text) if token.kind == "quoted" else token.text
        if len(text) > MAX_VALUE_LENGTH:
            raise ValueError(f"at character {token.place}: the value must have at most {MAX_VALUE_LENGTH} characters")
        if (character := first_unprintable(text)) is not None:
            raise ValueError(f"at character {token.place}: the value must not have the character {printable(character)}")
        self._advance()
        return text

    def _require_end(self, expected: str) -> None:
        """Require that a requirement ends here."""
        if self._next.kind not in (",", "end"):
            self._next.refuse(expected)

    def _accept(self, symbol: str) -> bool:
        if self._next.kind != symbol:
            return False
        self._advance()
        return True

    def _advance(self) -> None:
        self._next = next(self._tokens)


def _tokens(text: str) -> Iterator[_Token]:
    for match in _TOKEN.finditer(text):
        kind = str(match.lastgroup)
        found = match[kind]
        if kind == "unclosed":
            missing = 'a closing `"`' if match.end() == len(text) else '`"` or `\\` after the backslash'
            raise ValueError(f"at character {match.end() + 1}: expected {missing}")
        begin = match.start(kind) - (kind == "quoted")
        yield _Token(found if kind == "symbol" else kind, found, begin + 1)


def _quoted(value: str) -> str:
    return value if _WORD.fullmatch(value) else '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'
