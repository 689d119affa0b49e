"""One run of the public calls, for a fresh process: prints a digest of every array they return.

`python -m tests.soundness.repeated SEED [DEVICE]`
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from mlflow_lipschitz.certify import Budget, certified_radius, certify_lipschitz, certify_monotonicity, find_violation
from mlflow_lipschitz.engine.domains.region import Box, LpBall
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder

_BUDGET = Budget(1e9, 0.0, parts_per_point=12)  # no limit of time: that is what makes it repeat


def network(rng: np.random.Generator, curve: str) -> Graph:
    builder = GraphBuilder()
    x = builder.add(ops.Input((5,)))
    for width in (8, 6):
        inputs = builder.shape(x)[0]
        layer = ops.Linear(ops.frozen_array(rng.normal(size=(width, inputs))), ops.frozen_array(rng.normal(size=width)))
        x = builder.add(ops.Elementwise(curve), builder.add(layer, x))
    return builder.build(builder.add(ops.Linear(ops.frozen_array(rng.normal(size=(3, 6)))), x))


def answers(seed: int, device: str = "cpu") -> Iterator[tuple[str, Any]]:
    """Every array, with a name."""
    rng = np.random.default_rng(seed)
    for curve in ("relu", "tanh"):
        graph, points = network(rng, curve), rng.normal(size=(4, 5))
        box, ball = Box.around(points, 0.3), LpBall(points, 0.5)
        lip = certify_lipschitz(graph, points, box, budget=_BUDGET, device=device)
        two = certify_lipschitz(
            graph, points, ball, norm="l2", outputs="margin", labels=[0, 1, 2, 0], budget=_BUDGET, device=device
        )
        mono = certify_monotonicity(graph, points, box, output=1, budget=_BUDGET, device=device)
        radius = certified_radius(graph, points, [0, 1, 2, 0], norm="l2", device=device)
        wrong = find_violation(graph, points, box, feature=1, direction="increasing")
        for result in (lip, two, mono, radius, wrong):
            held = {name: value for name, value in vars(result).items() if isinstance(value, np.ndarray)}
            for name in sorted(set(held) - {"seconds"}):
                yield f"{curve} {type(result).__name__} {result is two} {name}", held[name]


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    for name, array in answers(int(arguments[0]), *arguments[1:]):
        sys.stdout.write(f"{name} {array.dtype} {hashlib.sha256(array.tobytes()).hexdigest()}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
