"""The unsafe set of a property: boxes of inputs, and for each the outputs that must not occur there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from mlflow_lipschitz.errors import PropertyError
from mlflow_lipschitz.vnnlib.formulas import Comparison


@dataclass(frozen=True)
class HalfSpace:
    """All outputs y with Σ coefficient · y[index] ≤ limit, or < when strict."""

    coefficients: tuple[tuple[int, Fraction], ...]
    limit: Fraction
    strict: bool
    line: int

    def contains(self, outputs: Sequence[float]) -> bool:
        """Whether these numbers, taken exactly, lie in it."""
        value = sum((factor * Fraction(float(outputs[index])) for index, factor in self.coefficients), Fraction(0))
        return value < self.limit if self.strict else value <= self.limit


Conjunction = tuple[HalfSpace, ...]


@dataclass(frozen=True)
class UnsafeCase:
    """A box of inputs, ends included, that are unsafe if their output lies in all half-spaces of one of the conjunctions."""

    lower: tuple[Fraction, ...]
    upper: tuple[Fraction, ...]
    conjunctions: tuple[Conjunction, ...]

    def is_unsafe(self, outputs: Sequence[float]) -> bool:
        """Whether an input of the box with these outputs, taken exactly, contradicts the property."""
        return any(all(half.contains(outputs) for half in conjunction) for conjunction in self.conjunctions)


@dataclass(frozen=True)
class UnsafeSet:
    """The union of the cases, over `inputs` numbers that go in and `outputs` that come out."""

    inputs: int
    outputs: int
    cases: tuple[UnsafeCase, ...]


class Bounds:
    """The tightest bounds that comparisons of single inputs give, on top of those of a base."""

    def __init__(self, base: Bounds | None = None) -> None:
        self.lower: dict[int, Fraction] = dict(base.lower) if base else {}
        self.upper: dict[int, Fraction] = dict(base.upper) if base else {}

    def add(self, comparison: Comparison) -> None:
        """Take a comparison of one input with a number.

        Raises:
            PropertyError: it compares several inputs, or inputs with outputs, or is strict.
        """
        if len(comparison.coefficients) != 1:
            raise PropertyError(
                "inputs are bounded one by one by numbers; other conditions on them are not read", comparison.line
            )
        if comparison.strict:
            raise PropertyError("an input's bound belongs to its range; write <= or >=", comparison.line)
        ((name, factor),) = comparison.coefficients
        index, end = int(name[2:]), comparison.limit / factor
        if factor > 0:
            self.upper[index] = min(end, self.upper.get(index, end))
        else:
            self.lower[index] = max(end, self.lower.get(index, end))

    def box(self, inputs: int) -> tuple[tuple[Fraction, ...], tuple[Fraction, ...]]:
        """Lower and upper ends of all inputs. Raises PropertyError where one has none."""
        for name, ends in (("lower", self.lower), ("upper", self.upper)):
            missing = next((i for i in range(inputs) if i not in ends), None)
            if missing is not None:
                raise PropertyError(f"X_{missing} has no {name} bound; every input needs both")
        everything = range(inputs)
        return tuple(self.lower[i] for i in everything), tuple(self.upper[i] for i in everything)


def unsafe_set(inputs: int, outputs: int, always: Bounds, conjunctions: Iterable[Sequence[Comparison]]) -> UnsafeSet:
    """The union of the conjunctions, those of one box together.

    Args:
        inputs: how many there are.
        outputs: how many there are.
        always: bounds that hold in every conjunction.
        conjunctions: comparisons that hold together.

    Raises:
        PropertyError: an unbounded input, a condition that is read nowhere, or no input at all is left.
    """
    found: dict[tuple[Comparison, ...], tuple[Bounds, dict[Conjunction, None]]] = {}
    for comparisons in conjunctions:
        on_outputs = tuple(c for c in comparisons if all(name.startswith("Y_") for name, _ in c.coefficients))
        on_inputs = tuple(c for c in comparisons if c not in on_outputs)
        if on_inputs not in found:
            bounds = Bounds(always)
            for comparison in on_inputs:
                bounds.add(comparison)
            found[on_inputs] = (bounds, {})
        found[on_inputs][1][tuple(_half_space(c) for c in on_outputs)] = None
    cases: dict[tuple[tuple[Fraction, ...], tuple[Fraction, ...]], dict[Conjunction, None]] = {}
    for bounds, unsafe in found.values():
        lower, upper = bounds.box(inputs)
        if all(low <= high for low, high in zip(lower, upper, strict=True)):
            cases.setdefault((lower, upper), {}).update(unsafe)
    if not cases:
        raise PropertyError("no input satisfies the conditions, so the property says nothing")
    return UnsafeSet(inputs, outputs, tuple(UnsafeCase(*box, tuple(unsafe)) for box, unsafe in cases.items()))


def _half_space(comparison: Comparison) -> HalfSpace:
    coefficients = tuple((int(name[2:]), value) for name, value in comparison.coefficients)
    return HalfSpace(coefficients, comparison.limit, comparison.strict, comparison.line)
