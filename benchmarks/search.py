"""What a budget buys: bounds after branch and bound beside exact values and the reference's, one thread.

    python -m benchmarks.search [--only NAME] [--seconds 30] [--parts N] [--points 1]

Rows with an exact value are asked for that point and output; the others for all outputs of the first points. With `--parts 0`
nothing is cut: what remains are ranges tightened with slopes of their own.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

from tests.reference_cases import ReferenceCase, reference_cases

HEADER = f"{'network, radius, point, output':40} {'upper':>12} {'attained':>12} {'exact':>12} {'reference':>10} {'seconds':>8}"


def bounded(case: ReferenceCase, point: int, output: int | None, budget: Any) -> tuple[float, float, float]:
    """(upper, attained, seconds), the largest over the outputs."""
    from mlflow_lipschitz.certify import certify_lipschitz
    from mlflow_lipschitz.engine.domains.region import Box

    x = case.points[point : point + 1]
    region, began = Box.around(x, case.radius), time.perf_counter()
    found = certify_lipschitz(case.graph, x, region, outputs=output, budget=budget, device="cpu")
    return float(found.upper.max()), float(found.lower.max()), time.perf_counter() - began


def line(name: str, found: tuple[float, float, float], exact: float | None, reference: float | None) -> str:
    upper, attained, seconds = found
    shown = [f"{value:12.5f}" if value is not None else f"{'':12}" for value in (upper, attained, exact)]
    return f"{name:40} {' '.join(shown)} {reference if reference is None else round(reference, 2)!s:>10} {seconds:8.1f}"


def rows(case: ReferenceCase, points: int) -> list[tuple[int, int | None, float | None, float | None]]:
    """(point, output, exact value, reference) of what is asked."""
    solved = [(e["point"], e["cls"], e["upper"], None) for e in case.exact if e["status"] == 0]
    if not case.row.get("reference_upper"):
        return solved
    reference = case.values("reference_upper")
    return [*solved, *((point, None, None, float(reference[point])) for point in range(points))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--seconds", type=float, default=30.0, help="a point")
    parser.add_argument("--parts", type=int, help="stop after about so many parts a point")
    parser.add_argument("--points", type=int, default=1)
    options = parser.parse_args()
    import torch

    from mlflow_lipschitz.certify import Budget

    torch.set_num_threads(1)
    budget = Budget(options.seconds, 0.0, None, options.parts)
    cases = [case for case in reference_cases() if options.only in case.name]
    if not cases:
        print("the reference networks are not beside this checkout; nothing to compare with")
        return 2
    print(HEADER)
    for case in cases:
        bounds = []
        for point, output, exact, reference in rows(case, options.points):
            found = bounded(case, point, output, budget)
            bounds += [found[0]] if exact is None else []
            name = f"{case.name} {point} {'all' if output is None else output}"
            print(line(name, found, exact, reference), flush=True)
        if len(bounds) > 1:
            print(f"{case.name} mean {statistics.mean(bounds):.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
