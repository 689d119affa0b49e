"""VNN-LIB 1 properties, the subset the verification competitions use: text in, exact boxes and half-spaces out.

    (declare-const X_0 Real) (declare-const Y_0 Real)
    (assert (and (<= X_0 0.5) (>= X_0 -0.5)))       what the inputs are
    (assert (or (<= Y_0 1.25) (>= Y_0 2)))          which outputs are unsafe

A file describes the unsafe set; the property holds when that set is empty. Numbers are rationals here, so that what a text says
is not rounded before it is known in which direction rounding would be safe. (The `vnnlib` package reads version 2 only, and its
linear terms hold float64.)
"""

from mlflow_lipschitz.vnnlib.reading import read_property
from mlflow_lipschitz.vnnlib.unsafe_set import HalfSpace, UnsafeCase, UnsafeSet

__all__ = ["HalfSpace", "UnsafeCase", "UnsafeSet", "read_property"]
