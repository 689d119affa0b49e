"""What the second proof costs: CPU seconds to certify and to prove again, side by side, on the reference networks.

`python -m benchmarks.recheck`: ten points, the margins of the decision (of a single output, the output), one propagation pass.
Ratios of CPU time of one thread, the least of some runs each.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

import mlflow_lipschitz as ml
from mlflow_lipschitz.checker.derivation import Subject, lipschitz_upper
from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from tests.reference_cases import ReferenceCase, reference_cases

_RUNS = 5


def measured(case: ReferenceCase) -> tuple[float, float, float, int]:
    """CPU seconds to certify and to check, the largest ratio of the two bounds, bytes of evidence."""
    graph, points = case.graph, case.points
    region, shape = ml.Box.around(points, case.radius), points.shape[1:]
    stated = {"points": points, "radius_per_feature": np.full(shape, case.radius), "feature_scale": np.ones(shape)}
    stated |= {"domain_lower": np.full(shape, -np.inf), "domain_upper": np.full(shape, np.inf)}
    output: int | str = 0
    asked: dict[str, Any] = {"outputs": 0}
    if graph.output_shape[0] > 1:
        output, stated["labels"] = "margin", evaluate(graph, points).argmax(1).numpy()
        asked = {"outputs": "margin", "labels": stated["labels"]}
    begun = time.process_time()
    found = ml.certify_lipschitz(graph, points, region, device="cpu", evidence=True, **asked)
    certified = time.process_time()
    slopes = {f"lipschitz/{name}": values for name, values in found.evidence.slopes.items()}
    again = lipschitz_upper(Subject(graph, "linf", output), stated | slopes)
    checked = time.process_time()
    worst = float((again / found.upper.max(1)).max())
    return certified - begun, checked - certified, worst, sum(values.nbytes for values in slopes.values())


def main() -> None:
    torch.set_num_threads(1)
    for case in reference_cases()[:1]:
        measured(case)  # imports and caches
    print("| network | certify s | check s | check / certify | largest bound / bound | evidence |")
    print("|---|---|---|---|---|---|")
    for case in reference_cases():
        runs = [measured(case) for _ in range(_RUNS)]
        certifying, checking = (min(run[k] for run in runs) for k in (0, 1))
        worst, size = runs[0][2:]
        ratio = checking / certifying
        print(f"| {case.name} | {certifying:.2f} | {checking:.2f} | {ratio:.2f} | {worst:.6f} | {size / 1e3:.0f} kB |")


if __name__ == "__main__":
    main()
