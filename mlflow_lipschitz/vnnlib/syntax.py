"""S-expressions with the lines they begin at, and exact decimal numbers."""

from __future__ import annotations

import re
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
    forms: list[Form] = []
    open_forms: list[tuple[int, list[Word | Form]]] = []
    line, position = 1, 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise PropertyError(f"cannot read {text[position]!r} here", line)
        token, position = match.group(), match.end()
        if match.lastgroup == "space":
            line += token.count("\n")
        elif token == "(":
            open_forms.append((line, []))
            if len(open_forms) > _DEPTH:
                raise PropertyError(f"more than {_DEPTH} brackets inside each other", line)
        elif token == ")":
            if not open_forms:
                raise PropertyError("a bracket is closed that was never opened", line)
            start, items = open_forms.pop()
            form = Form(tuple(items), start)
            if open_forms:
                open_forms[-1][1].append(form)
            else:
                forms.append(form)
        elif not open_forms:
            raise PropertyError(f"{token!r} stands outside of all brackets", line)
        else:
            open_forms[-1][1].append(Word(token, line))
    if open_forms:
        raise PropertyError("this bracket is never closed", open_forms[-1][0])
    return forms


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
