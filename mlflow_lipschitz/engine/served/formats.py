"""Number formats that models are served in, and what rounding to them does at most.

For numbers between the smallest normal and the largest one: fl(a ∘ b) = (a ∘ b)(1 + δ), |δ| ≤ u, also for a result that is rounded
twice or kept longer in a wider format. Whatever is smaller may be flushed to zero, operands included, as fast kernels do; whatever
may exceed the largest number is given up on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mlflow_lipschitz.errors import UsageError

# On top of every rounding: results that pass through a wider format first, and constants that the graph joined in float64, which
# are off by some 2⁻⁵². Both are below 2⁻¹⁸ of a rounding to float32, and of the coarser formats still less.
_SLACK = 1.0 + 2.0**-10


@dataclass(frozen=True)
class Format:
    """`unit` is the unit roundoff u, `tiny` the smallest normal number, `largest` the largest finite one."""

    name: str
    unit: float
    tiny: float
    largest: float

    def roundings(self, count: int) -> float:
        """γ_n = n u / (1 − n u): what n roundings, one after another, make of 1 at most; +inf where that says nothing."""
        total = count * self.unit * _SLACK
        return total / (1.0 - total) * _SLACK if total < 0.5 else math.inf

    def holds(self, number: float) -> bool:
        """Whether this is a number of the format, other than a denormal one."""
        significand, _ = math.frexp(number)
        digits = significand / self.unit
        return number == 0 or (digits == int(digits) and self.tiny <= abs(number) <= self.largest)


FORMATS: dict[str, Format] = {
    "float32": Format("float32", 2.0**-24, 2.0**-126, (2.0 - 2.0**-23) * 2.0**127),
    "bfloat16": Format("bfloat16", 2.0**-8, 2.0**-126, (2.0 - 2.0**-7) * 2.0**127),
    "float16": Format("float16", 2.0**-11, 2.0**-14, 65504.0),
}


def format_named(name: str) -> Format:
    """Raises UsageError for a format there is none of."""
    if name not in FORMATS:
        raise UsageError(f"format={name!r}: choose one of {', '.join(FORMATS)}")
    return FORMATS[name]
