"""Certified Lipschitz bounds, derivative signs and decision radii of a torch module. No MLflow involved."""

from __future__ import annotations

import numpy as np
import torch

import mlflow_lipschitz as ml


def main() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)).eval()
    points = np.random.default_rng(0).normal(size=(5, 4))

    graph = ml.trace(model, points.astype(np.float32))
    region = ml.Box.around(points, 0.05)

    bound = ml.certify_lipschitz(graph, points, region, norm="linf", outputs=0)
    for row, (low, high) in enumerate(zip(bound.lower[:, 0], bound.upper[:, 0], strict=True)):
        print(f"point {row}: the steepest slope of output 0 is between {low:.4f} and {high:.4f}")

    slopes = ml.certify_monotonicity(graph, points, region, output=0)
    print("certified signs of the derivatives:")
    print(slopes.sign)

    with torch.no_grad():
        decided = model(torch.tensor(points, dtype=torch.float32)).argmax(dim=1).numpy()
    radius = ml.certified_radius(graph, points, decided, norm="linf", max_radius=0.5)
    print("no perturbation below these radii changes the decision:", np.round(radius.radius, 4))


if __name__ == "__main__":
    main()
