"""Monotonicity, one feature moving over [0, 1] at a time: how many pairs of point and feature are decided, CPU milliseconds a pair.

python -m benchmarks.signs
"""

from __future__ import annotations

import sys
import time

import numpy as np

from tests.reference_cases import reference_cases

REPEATS = 3


def main() -> int:
    import torch

    from mlflow_lipschitz.certify import certify_monotonicity
    from mlflow_lipschitz.engine.domains.region import Box

    torch.set_num_threads(1)
    cases = [case for case in reference_cases() if case.model == "bc_mlp2x32"]
    if not cases:
        print("the reference networks are not beside this checkout; nothing to measure")
        return 2
    case = cases[0]
    count, features = case.points.shape
    x, moving = case.points.repeat(features, axis=0), np.tile(np.arange(features), count)
    pairs = np.arange(len(x)), moving
    lower, upper = x.copy(), x.copy()
    lower[pairs], upper[pairs] = 0.0, 1.0
    for output in range(case.graph.output_shape[0]):
        seconds = []
        for _ in range(REPEATS):
            began = time.process_time()
            found = certify_monotonicity(case.graph, x, Box(lower, upper), output=output, device="cpu")
            seconds.append(time.process_time() - began)
        certified = found.sign[pairs] != 0
        violated = ~certified & (found.attained_lower[pairs] < 0) & (found.attained_upper[pairs] > 0)
        print(
            f"output {output}: {certified.sum()} certified, {violated.sum()} violated,"
            f" {len(x) - certified.sum() - violated.sum()} undecided, {min(seconds) / len(x) * 1e3:.2f} ms a pair"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
