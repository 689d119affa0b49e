"""What the second proof costs: CPU seconds to certify and to prove again, side by side, on the reference networks.

`python -m benchmarks.recheck`: ten points, every output, one propagation pass. Ratios of CPU time of one thread.
"""

from __future__ import annotations

import time

import numpy as np
import torch

import mlflow_lipschitz as ml
from mlflow_lipschitz.checker.derivation import Subject, lipschitz_upper
from tests.reference_cases import ReferenceCase, reference_cases


def measured(case: ReferenceCase) -> tuple[float, float, float, int]:
    """CPU seconds to certify and to check all outputs, the largest ratio of the two bounds, bytes of evidence."""
    graph, points = case.graph, case.points
    region, shape = ml.Box.around(points, case.radius), points.shape[1:]
    stated = {"points": points, "radius_per_feature": np.full(shape, case.radius), "feature_scale": np.ones(shape)}
    stated |= {"domain_lower": np.full(shape, -np.inf), "domain_upper": np.full(shape, np.inf)}
    certifying = checking = 0.0
    worst, size = 0.0, 0
    for output in range(graph.output_shape[0]):
        begun = time.process_time()
        found = ml.certify_lipschitz(graph, points, region, outputs=output, device="cpu", evidence=True)
        certified = time.process_time()
        slopes = {f"lipschitz/{name}": values for name, values in found.evidence.slopes.items()}
        again = lipschitz_upper(Subject(graph, "linf", output), stated | slopes)
        certifying += certified - begun
        checking += time.process_time() - certified
        worst = max(worst, float((again / found.upper[:, 0]).max()))
        size += sum(values.nbytes for values in slopes.values())
    return certifying, checking, worst, size


def main() -> None:
    torch.set_num_threads(1)
    measured(reference_cases()[0])  # imports and caches
    print("| network | certify s | check s | check / certify | largest bound / bound | evidence |")
    print("|---|---|---|---|---|---|")
    for case in reference_cases():
        certifying, checking, worst, size = measured(case)
        ratio = checking / certifying
        print(f"| {case.name} | {certifying:.2f} | {checking:.2f} | {ratio:.2f} | {worst:.6f} | {size / 1e3:.0f} kB |")


if __name__ == "__main__":
    main()
