"""Transformers and recurrent networks trained on digits: certified constants are finite, sound and better than intervals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from mlflow_lipschitz.certify import certify_lipschitz
from mlflow_lipschitz.engine.domains.region import Box
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.propagation.pre_activation import bound_nodes
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.transforms.objectives import gradient_graph, summed
from mlflow_lipschitz.frontends import trace

RADIUS = 1e-3
SAMPLES = 20


class Block(nn.Module):
    """A block of a vision transformer: attention of four heads, then a GELU network, both on normalized tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.second(x))


class Vision(nn.Module):
    """In the manner of a vision transformer: patches, positions, two blocks, the mean of the tokens."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, stride=4)
        self.position = nn.Parameter(torch.randn(1, 4, width) / 10)
        self.blocks = nn.Sequential(Block(width), Block(width), nn.LayerNorm(width))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x[:, None]).flatten(2).transpose(1, 2) + self.position
        return self.head(self.blocks(tokens).mean(1))


class Embedded(nn.Module):
    """In the manner of BERT: the rows of a picture are embeddings of tokens, normalized after each part of a block."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x)[:, 0])


class Recurrent(nn.Module):
    """The rows of a picture, one after the other."""

    def __init__(self, layer: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.layer, self.head = layer(8, 8, batch_first=True), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vision transformer": Vision,
    "encoder of embeddings": Embedded,
    "LSTM": lambda: Recurrent(nn.LSTM),
    "GRU": lambda: Recurrent(nn.GRU),
}


def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    return torch.tensor(data.images / 16, dtype=torch.float32), torch.tensor(data.target)


def trained(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    module, (images, labels) = build(), digits()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(120):
        rows = torch.randint(len(images), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(images[rows]), labels[rows]).backward()
        optimizer.step()
    return module.eval().double().requires_grad_(False)


def by_intervals(graph: Graph, box: Box) -> float:
    """The constant of the first output by plain interval propagation of the same Jacobian."""
    objective = torch.eye(10, dtype=torch.float64)[None, :1]
    problem = Problem.of(summed(gradient_graph(graph, None), "abs"), box, objective)
    with torch.no_grad():
        return float(bound_nodes(problem, None)[problem.graph.output].interval.upper)


@pytest.mark.parametrize("name", NETWORKS)
def test_between_sampled_gradients_and_intervals(name: str) -> None:
    module = trained(NETWORKS[name])
    point = digits()[0][-1:].double()
    graph = trace(module, point)
    box = Box.around(point.numpy(), RADIUS)
    certificate = certify_lipschitz(graph, point.numpy(), box, outputs=0, device="cpu")
    upper, lower = float(certificate.upper[0, 0]), float(certificate.lower[0, 0])
    samples = point + RADIUS * (2 * torch.rand(SAMPLES, *point.shape[1:], dtype=torch.float64) - 1)
    samples.requires_grad_()
    (gradients,) = torch.autograd.grad(module(samples)[:, 0].sum(), samples)
    steepest = float(gradients.abs().flatten(1).sum(1).max())
    assert np.isfinite(upper)
    assert max(steepest, lower) <= upper < by_intervals(graph, box)
