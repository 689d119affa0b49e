"""What is asserted: comparisons of linear terms, joined by and / or."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from fractions import Fraction

from mlflow_lipschitz.errors import PropertyError
from mlflow_lipschitz.vnnlib.syntax import Form, Word, number

Term = dict[str, Fraction]  # coefficient per variable; the constant under CONSTANT
CONSTANT = ""

_COMPARISONS = ("<=", ">=", "<", ">", "=")


@dataclass(frozen=True)
class Comparison:
    """Σ coefficient · variable ≤ limit, or < when strict. `coefficients` holds no zeros."""

    coefficients: tuple[tuple[str, Fraction], ...]
    limit: Fraction
    strict: bool
    line: int


@dataclass(frozen=True)
class Junction:
    """All (`every`) or any of the parts hold."""

    every: bool
    parts: tuple[Formula, ...]


Formula = Comparison | Junction


def read_formula(expression: Word | Form, variables: Container[str]) -> Formula:
    """The formula an expression stands for.

    Raises:
        PropertyError: anything but and, or, <=, >=, <, >, = and linear terms of the declared variables; names the line.
    """
    if isinstance(expression, Word):
        raise PropertyError(f"a condition is expected, not {expression.text!r}", expression.line)
    operands, line = expression.items[1:], expression.line
    if expression.head in ("and", "or"):
        if not operands:
            raise PropertyError(f"({expression.head}) joins nothing", line)
        return Junction(expression.head == "and", tuple(read_formula(part, variables) for part in operands))
    if expression.head not in _COMPARISONS:
        raise PropertyError(f"unknown condition {expression.head or '(…)'!r}; and, or and comparisons are read", line)
    if len(operands) != 2:
        raise PropertyError(f"{expression.head} compares two terms, here are {len(operands)}", line)
    left, right = (read_term(operand, variables) for operand in operands)
    return _comparison(expression.head, left, right, line)


def _comparison(relation: str, left: Term, right: Term, line: int) -> Formula:
    if relation in (">=", ">"):
        left, right = right, left
    if relation == "=":
        return Junction(True, (_at_most(left, right, line), _at_most(right, left, line)))
    return _at_most(left, right, line, strict=relation in ("<", ">"))


def _at_most(left: Term, right: Term, line: int, *, strict: bool = False) -> Comparison:
    difference = _sum(left, right, Fraction(-1))
    limit = -difference.pop(CONSTANT, Fraction(0))
    coefficients = tuple((name, value) for name, value in difference.items() if value)
    if not coefficients:
        raise PropertyError("this comparison says nothing about the network", line)
    return Comparison(coefficients, limit, strict, line)


def read_term(expression: Word | Form, variables: Container[str]) -> Term:
    """The linear term an expression stands for.

    Raises:
        PropertyError: an undeclared variable, or a term that is not linear; names the line.
    """
    if isinstance(expression, Word):
        value = number(expression)
        if value is not None:
            return {CONSTANT: value}
        if expression.text not in variables:
            raise PropertyError(f"{expression.text!r} is neither a number nor declared", expression.line)
        return {expression.text: Fraction(1)}
    operands = [read_term(operand, variables) for operand in expression.items[1:]]
    if not operands or expression.head not in ("+", "-", "*", "/"):
        raise PropertyError(f"unknown term {expression.head or '(…)'!r}; + - * / are read", expression.line)
    if expression.head in ("*", "/"):
        return _scaled(expression.head, operands, expression.line)
    if expression.head == "-" and len(operands) == 1:
        return _sum({}, operands[0], Fraction(-1))
    total = operands[0]
    for operand in operands[1:]:
        total = _sum(total, operand, Fraction(-1 if expression.head == "-" else 1))
    return total


def _scaled(operation: str, operands: list[Term], line: int) -> Term:
    product = operands[0]
    for operand in operands[1:]:
        if operation == "*" and set(product) <= {CONSTANT}:
            product, operand = operand, product
        if not set(operand) <= {CONSTANT}:
            raise PropertyError(f"{operation} of two terms that vary is not linear", line)
        factor = operand.get(CONSTANT, Fraction(0))
        if operation == "/" and not factor:
            raise PropertyError("division by zero", line)
        product = _sum({}, product, 1 / factor if operation == "/" else factor)
    return product


def _sum(left: Term, right: Term, factor: Fraction) -> Term:
    """left + factor · right."""
    total = dict(left)
    for name, value in right.items():
        total[name] = total.get(name, Fraction(0)) + factor * value
    return total


def alternatives(formula: Formula, most: int) -> Iterator[tuple[Comparison, ...]]:
    """Conjunctions one of which must hold: the disjunctive normal form.

    Raises:
        PropertyError: more than `most` of them.
    """
    if isinstance(formula, Comparison):
        yield (formula,)
    elif not formula.every:
        for part in formula.parts:
            yield from alternatives(part, most)
    else:
        conjunctions: list[tuple[Comparison, ...]] = [()]
        for part in formula.parts:
            found = list(alternatives(part, most))
            if len(found) * len(conjunctions) > most:
                raise PropertyError(f"more than {most} alternatives; split the property into several files")
            # One alternative adds to all, without a copy of what is a product of nothing.
            conjunctions = [(*known, *new) for known in conjunctions for new in found]
        yield from conjunctions
