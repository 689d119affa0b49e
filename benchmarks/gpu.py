"""On a GPU: milliseconds a point of many points at once, and one image through a convolutional network.

    python -m benchmarks.gpu

The points are digits of scikit-learn, the convolutional network has random weights. Differences are to the CPU's bounds.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tests.reference_cases import ReferenceCase, reference_cases

MODELS = ("digits_mlp3x50", "digits_mlp5x100", "digits_tanh3x50", "digits_cnn2c2f")
COUNT, REPEATS = 500, 5


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result, the median seconds after one run that warms up, and the peak MiB."""
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(REPEATS + 1):
        torch.cuda.synchronize()
        began = time.perf_counter()
        result = work()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return result, statistics.median(seconds[1:]), torch.cuda.max_memory_allocated() / 2**20


def upper(graph: Any, points: np.ndarray, radius: float, outputs: int, device: str) -> torch.Tensor:
    """(points, outputs) bounds by one propagation pass."""
    from mlflow_lipschitz.certify.execution import default_chunk_size, rigorous_arithmetic
    from mlflow_lipschitz.certify.lipschitz import DUAL_NORMS, lipschitz_upper
    from mlflow_lipschitz.engine.domains.region import Box

    place = torch.device(device)
    objectives = torch.eye(graph.output_shape[0], dtype=torch.float64)[None, :outputs].to(place)
    region = Box.around(points, radius).to(place)
    with rigorous_arithmetic():
        chunk_size = default_chunk_size(place, graph)
        return lipschitz_upper(graph, region, objectives, DUAL_NORMS["linf"], None, chunk_size).cpu()


def many_points(case: ReferenceCase) -> str:
    from sklearn.datasets import load_digits

    more = load_digits().data[: COUNT - len(case.points)].reshape(-1, *case.shape) / 16
    points, graph = np.concatenate([case.points, more]), case.graph
    found, seconds, mebibytes = timed(lambda: upper(graph, points, case.radius, 10, "cuda"))
    expected = upper(graph, case.points, case.radius, 10, "cpu")
    difference = float(((found[: len(expected)] - expected) / expected).abs().max())
    return f"{case.name:28} {seconds / COUNT * 1e3:8.4f} ms a point {mebibytes:6.0f} MiB, differs by {difference:.1e}"


def one_image(stride: int) -> str:
    from mlflow_lipschitz import trace

    torch.manual_seed(0)
    side = 32 // stride**2
    first, second = (torch.nn.Conv2d(n, 32, 3, stride=stride, padding=1) for n in (3, 32))
    last = [torch.nn.Linear(32 * side**2, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10)]
    model = torch.nn.Sequential(first, torch.nn.ReLU(), second, torch.nn.ReLU(), torch.nn.Flatten(), *last)
    points = np.random.default_rng(0).uniform(size=(1, 3, 32, 32))
    graph = trace(model, torch.tensor(points, dtype=torch.float32))
    found, seconds, mebibytes = timed(lambda: upper(graph, points, 1 / 255, 1, "cuda"))
    return f"CNN 3x32x32, stride {stride}: {float(found):.4f} in {seconds:.3f} s, {mebibytes:.0f} MiB"


def main() -> int:
    if not torch.cuda.is_available():
        print("this machine has no GPU")
        return 2
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    for case in reference_cases():
        if case.model in MODELS and abs(case.radius - 8 / 255) < 1e-6:
            print(many_points(case), flush=True)
    for stride in (1, 2):
        print(one_image(stride), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
