"""A network while it is drawn: constants of several kinds, values fitted to a shape, kinks put where the audited point is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import GraphBuilder
from mlflow_lipschitz.engine.propagation.interpreter import evaluate

Rng = np.random.Generator

# Entries of one value. Exact arithmetic with a gradient per number is slow.
_MOST_ENTRIES = 8


def _normal(rng: Rng, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(size=shape)


def _sparse(rng: Rng, shape: tuple[int, ...]) -> np.ndarray:
    """Most of it exactly zero, and zeros of both signs."""
    return rng.normal(size=shape) * (rng.random(shape) < 0.4)


def _grid(rng: Rng, shape: tuple[int, ...]) -> np.ndarray:
    """Quarters and whole numbers: sums of them hit kinks exactly."""
    return rng.integers(-4, 5, shape) * rng.choice([0.25, 1.0], shape)


def _wide(rng: Rng, shape: tuple[int, ...]) -> np.ndarray:
    reach = rng.choice([1.0, 3.0, 8.0, 20.0])
    return rng.normal(size=shape) * 10.0 ** rng.uniform(-reach, reach, shape)


def _denormal(rng: Rng, shape: tuple[int, ...]) -> np.ndarray:
    tiny = rng.choice([5e-324, -5e-324, 1e-310, -3e-308, 2.0**-1040, 1e-300, 0.0], shape)
    return np.where(rng.random(shape) < 0.4, tiny, rng.normal(size=shape))


def _single(rng: Rng, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32).astype(np.float64)


def _cancelling(rng: Rng, shape: tuple[int, ...]) -> np.ndarray:
    big = 2.0 ** rng.integers(10, 50) * rng.choice([-1.0, 0.0, 1.0], shape)
    return big + rng.integers(-8, 9, shape) / 8


WEIGHTS: dict[str, Callable[[Rng, tuple[int, ...]], np.ndarray]] = {
    "normal": _normal,
    "sparse": _sparse,
    "grid": _grid,
    "wide": _wide,
    "denormal": _denormal,
    "single": _single,
    "cancelling": _cancelling,
}
# Half of the networks have weights on the grid or normal ones: the others often have no finite bound.
_SHARES = {
    "normal": 0.25,
    "sparse": 0.12,
    "grid": 0.33,
    "wide": 0.1,
    "denormal": 0.07,
    "single": 0.07,
    "cancelling": 0.06,
}


@dataclass
class Draft:
    """Collects nodes, as a `GraphBuilder` does.

    Attributes:
        rng: every choice is drawn from it.
        builder: the nodes so far.
        weights: the kind of constants, a key of WEIGHTS.
        home: a point of the input's shape at which kinks are put.
        told: what was drawn.
    """

    rng: Rng
    builder: GraphBuilder
    weights: str
    home: np.ndarray
    told: Counter[str] = field(default_factory=Counter)

    @staticmethod
    def of(rng: Rng, shape: tuple[int, ...]) -> tuple[Draft, int]:
        builder = GraphBuilder()
        x = builder.add(ops.Input(shape))
        kind = str(rng.choice(list(_SHARES), p=list(_SHARES.values())))
        draft = Draft(rng, builder, kind, rng.integers(-12, 13, shape) / 8)
        draft.told[f"weights: {kind}"] += 1
        return draft, x

    def add(self, op: ops.Op, *inputs: int) -> int:
        return self.builder.add(op, *inputs)

    def shape(self, x: int) -> tuple[int, ...]:
        return self.builder.shape(x)

    def one_of(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return int(self.rng.integers(low, high + 1))

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def constant(self, *shape: int) -> np.ndarray:
        return ops.frozen_array(WEIGHTS[self.weights](self.rng, shape))

    def linear(self, x: int, outputs: int) -> int:
        inputs = self.shape(x)[-1]
        weight = self.constant(outputs, inputs)
        if self.weights in ("normal", "single"):
            weight = ops.frozen_array(weight / math.sqrt(inputs))
        return self.add(ops.Linear(weight, self.constant(outputs) if self.chance(0.7) else None), x)

    def fitted(self, x: int, shape: tuple[int, ...]) -> int:
        """The value's entries, some of them left out or repeated, in a shape."""
        have, want = math.prod(self.shape(x)), math.prod(shape)
        if self.shape(x) == shape:
            return x
        flat = self.add(ops.Reshape((have,)), x)
        if have != want:
            start = self.one_of(0, have - 1)
            flat = self.add(ops.Select(0, tuple((start + i) % have for i in range(want))), flat)
        return self.add(ops.Reshape(shape), flat)

    def small(self, x: int) -> int:
        """The value itself, or some of its entries where there are many."""
        size = math.prod(self.shape(x))
        return x if size <= _MOST_ENTRIES else self.fitted(x, (_MOST_ENTRIES,))

    def with_kinks_at_home(self, x: int) -> int:
        """Sometimes the value minus what it is at home: there, every entry sits on a kink at zero."""
        if not self.chance(0.4):
            return x
        there = evaluate(self.builder.build(x), self.home[None])[0].numpy()
        if not np.isfinite(there).all():
            return x
        self.told["kinks at home"] += 1
        shift = np.where(self.rng.random(there.shape) < 0.8, -there, self.constant(*there.shape))
        return self.add(ops.ScaleShift(shift=ops.frozen_array(shift)), x)
