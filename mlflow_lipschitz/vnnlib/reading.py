"""From a property file to its unsafe set. What is not understood is refused with its line; nothing is skipped."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Sequence
from itertools import chain, product
from pathlib import Path

from mlflow_lipschitz.errors import PropertyError, UsageError
from mlflow_lipschitz.vnnlib.formulas import Comparison, Formula, Junction, alternatives, read_formula
from mlflow_lipschitz.vnnlib.syntax import Form, Word, parse
from mlflow_lipschitz.vnnlib.unsafe_set import Bounds, UnsafeSet, unsafe_set

_NAME = re.compile(r"[XY]_(0|[1-9]\d{0,8})")
_MOST = 200_000  # conjunctions of one property
_VERSION_2 = "this is VNN-LIB 2; version 1 is read (declare-const X_0 Real, …)"


def read_property(path: Path) -> UnsafeSet:
    """The unsafe set of a .vnnlib file, or of one compressed as .gz.

    Raises:
        UsageError: the file cannot be read. PropertyError: its text is not understood; names the line.
    """
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UsageError(f"the property {path} cannot be read: {error}") from error
    return parse_property(text)


def parse_property(text: str) -> UnsafeSet:
    """The unsafe set that the text of a property describes.

    Raises:
        PropertyError: as `read_property`.
    """
    variables: dict[str, int] = {}
    asserted: list[Formula] = []
    for form in parse(text):
        if form.head == "declare-const":
            _declare(form, variables)
        elif form.head == "assert":
            if len(form.items) != 2:
                raise PropertyError("assert takes one condition", form.line)
            asserted.append(read_formula(form.items[1], variables))
        elif form.head in ("vnnlib-version", "declare-network"):
            raise PropertyError(_VERSION_2, form.line)
        else:
            raise PropertyError(f"unknown command {form.head or '(…)'!r}; declare-const and assert are read", form.line)
    inputs, outputs = _count(variables, "X"), _count(variables, "Y")
    if not asserted:
        raise PropertyError("the file asserts nothing")
    return _unsafe_set(inputs, outputs, asserted)


def _declare(form: Form, variables: dict[str, int]) -> None:
    words = [item.text for item in form.items if isinstance(item, Word)]
    if len(words) != 3 or len(form.items) != 3 or words[2] != "Real":
        raise PropertyError("expected (declare-const NAME Real)", form.line)
    if not _NAME.fullmatch(words[1]):
        raise PropertyError(f"{words[1]!r} is no input X_0, X_1, … and no output Y_0, Y_1, …", form.line)
    if words[1] in variables:
        raise PropertyError(f"{words[1]} is declared twice, first in line {variables[words[1]]}", form.line)
    variables[words[1]] = form.line


def _count(variables: dict[str, int], letter: str) -> int:
    """How many there are of a kind; every number up to the last must be declared."""
    indices = sorted(int(name[2:]) for name in variables if name.startswith(letter))
    if not indices:
        raise PropertyError(f"no {letter}_0 is declared")
    if indices[-1] != len(indices) - 1:
        missing = next(i for i, index in enumerate(indices) if i != index)
        raise PropertyError(f"{letter}_{missing} is not declared, and {letter}_{indices[-1]} is")
    return len(indices)


def _unsafe_set(inputs: int, outputs: int, asserted: Sequence[Formula]) -> UnsafeSet:
    """What is asserted holds together. Bounds that always hold are kept apart: they may be thousands."""
    always, alone, choices = Bounds(), [], []
    for formula in chain.from_iterable(_conjuncts(formula) for formula in asserted):
        if not isinstance(formula, Comparison):
            choices.append(list(alternatives(formula, _MOST)))
        elif any(name.startswith("X_") for name, _ in formula.coefficients):
            always.add(formula)
        else:
            alone.append(formula)
    if math.prod(len(choice) for choice in choices) > _MOST:
        raise PropertyError(f"more than {_MOST} alternatives; split the property into several files")
    conjunctions = ([*alone, *chain.from_iterable(picked)] for picked in product(*choices))
    return unsafe_set(inputs, outputs, always, conjunctions)


def _conjuncts(formula: Formula) -> list[Formula]:
    if isinstance(formula, Junction) and formula.every:
        return list(chain.from_iterable(_conjuncts(part) for part in formula.parts))
    return [formula]
