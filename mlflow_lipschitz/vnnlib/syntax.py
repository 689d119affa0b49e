"""S-expressions with the lines they begin at, and exact decimal numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from mlflow_lipschitz.errors import PropertyError

_TOKEN = re.compile(r"(?P<space>[ \t\r\f\n]+|;[^\n]*)|(?P<bracket>[()])|(?P<word>[^\s();|\"]+)")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?")
_DIGITS = 1000  # of one number; float64 has 17, and some writers print all of a float's decimal places
_DEPTH = 64  # of brackets; the competition's files have 5


@dataclass(frozen=True)
class Word:
    text: str
    line: int


@dataclass(frozen=True)
class Form:
    """What stands between two brackets."""

    items: tuple[Word | Form, ...]
    line: int

    @property
    def head(self) -> str:
        """The word a form begins with; empty where it begins with something else."""
        first = self.items[0] if self.items else None
        return first.text if isinstance(first, Word) else ""


def parse(text: str) -> list[Form]:
    """The forms of a file.

    Raises:
        PropertyError: brackets do not match, or there is text between the forms; names the line.
    """
    forms: list[Word | Form] = []
    levels, starts = [forms], [0]  # what is open: the items so far, and the lines of the brackets
    for token, line in _tokens(text):
        if token == "(":
            levels.append([])
            starts.append(line)
            if len(levels) > _DEPTH:
                raise PropertyError(f"more than {_DEPTH} brackets inside each other", line)
        elif len(levels) == 1:
            problem = (
                "a bracket is closed that was never opened" if token == ")" else f"{token!r} is outside of brackets"
            )
            raise PropertyError(problem, line)
        elif token == ")":
            items, start = levels.pop(), starts.pop()
            levels[-1].append(Form(tuple(items), start))
        else:
            levels[-1].append(Word(token, line))
    if len(levels) > 1:
        raise PropertyError("this bracket is never closed", starts[-1])
    return [form for form in forms if isinstance(form, Form)]


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    """Brackets and words with their lines; comments and space are left out."""
    line, position = 1, 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise PropertyError(f"cannot read {text[position]!r} here", line)
        token, position = match.group(), match.end()
        if match.lastgroup == "space":
            line += token.count("\n")
        else:
            yield token, line


def number(word: Word) -> Fraction | None:
    """The exact value of a decimal number; None for any other word.

    Raises:
        PropertyError: a number too long to be meant.
    """
    if not _NUMBER.fullmatch(word.text):
        return None
    if len(word.text) > _DIGITS:
        raise PropertyError(f"a number of {len(word.text)} characters", word.line)
    return Fraction(word.text)
