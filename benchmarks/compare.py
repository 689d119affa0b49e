"""Ours beside the reference method: tightness, CPU seconds a point, memory.

    python -m benchmarks.compare [--only NAME] [--device cpu|cuda]

Every row runs in a process of its own with one thread: all outputs at once, a batch of 10 points, the median of several runs after
one that warms up. `tightness` is our bound over the reference's (largest over the points; below 1 is tighter), `interval` our
bound over plain interval propagation, `speed` the reference's CPU seconds over ours.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

from tests.reference_cases import reference_cases

REPEATS = 5
HEADER = (
    f"{'network, radius':34} {'tightness':>9} {'interval':>8} {'ms/point':>9} {'reference':>9} {'speed':>6} {'MiB':>6}"
)


def measure(index: int, device: str) -> dict[str, Any]:
    """Bounds, CPU seconds a point and peak memory of one reference row, in this process."""
    import torch

    from mlflow_lipschitz.certify.execution import default_chunk_size, rigorous_arithmetic
    from mlflow_lipschitz.certify.lipschitz import DUAL_NORMS, lipschitz_upper
    from mlflow_lipschitz.engine.domains.region import Box

    torch.set_num_threads(1)
    case = reference_cases()[index]
    graph, points = case.graph, case.points
    objectives = torch.eye(graph.output_shape[0], dtype=torch.float64)[None].to(device)
    box = Box.around(points, case.radius).to(torch.device(device))
    chunk_size = default_chunk_size(torch.device(device), graph)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    with rigorous_arithmetic():
        for _ in range(REPEATS + 1):
            started = time.process_time() if device == "cpu" else time.perf_counter()
            upper = lipschitz_upper(graph, box, objectives, DUAL_NORMS["linf"], None, chunk_size).cpu()
            seconds.append((time.process_time() if device == "cpu" else time.perf_counter()) - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "upper": upper.amax(1).tolist(),
        "seconds": statistics.median(seconds[1:]) / len(points),
        "mebibytes": (peak - before) / 1024,
    }


def line(case: Any, ours: dict[str, Any]) -> str:
    reference, interval = case.values("reference_upper"), case.values("interval")
    tightness = max(u / r for u, r in zip(ours["upper"], reference, strict=True))
    against_interval = max(u / i for u, i in zip(ours["upper"], interval, strict=True))
    theirs = statistics.mean(case.row["reference_cpu_seconds"])
    return (
        f"{case.name:34} {tightness:9.5f} {against_interval:8.4f} {ours['seconds'] * 1e3:9.2f} {theirs * 1e3:9.2f}"
        f" {theirs / ours['seconds']:6.1f} {ours['mebibytes']:6.0f}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(measure(options.measure, options.device)))
        return 0
    cases = reference_cases()
    if not cases:
        print("the reference networks are not beside this checkout; nothing to compare with")
        return 2
    print(HEADER)
    for index, case in enumerate(cases):
        if options.only in case.name and case.row.get("reference_upper"):
            command = [sys.executable, "-m", "benchmarks.compare", "--measure", str(index), "--device", options.device]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            print(line(case, json.loads(done.stdout.splitlines()[-1])), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
