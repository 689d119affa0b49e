"""Convolutional networks trained on digits, from torch module to certified constant: finite, sound, and better than intervals."""

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
from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.engine.propagation.pre_activation import bound_nodes
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.transforms.objectives import gradient_graph, summed
from mlflow_lipschitz.frontends import trace

RADIUS = 1e-3
EPSILON = 2.0**-17  # a float32, so that ONNX's attribute and torch's number in float64 are the same


class Residual(nn.Module):
    """Two convolutions with batch normalization around a shortcut that changes shape."""

    def __init__(self, channels: int, width: int, activation: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width, EPSILON),
            activation,
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width, EPSILON),
        )
        self.shortcut = nn.Conv2d(channels, width, 1, stride=2)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.body(x) + self.shortcut(x))


def residual_network(activation: nn.Module) -> nn.Module:
    """In the manner of a ResNet: stem, overlapping max pool, residual block, adaptive average pool, classifier."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6, EPSILON),
        activation,
        nn.MaxPool2d(3, stride=2, padding=1),
        Residual(6, 8, activation),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )


def plain_network() -> nn.Module:
    """In the manner of older networks: several activations, both kinds of pool, partial windows, a pool over what is left."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6, EPSILON),
        nn.Softplus(),
        nn.AvgPool2d(2, ceil_mode=True, padding=1),
        nn.Conv2d(6, 8, 2, groups=2),
        nn.ELU(),
        nn.MaxPool2d(2, stride=1),
        nn.Hardswish(),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )


def decoder_network() -> nn.Module:
    """Down and up again: reflected padding, transposed convolution, bilinear upsampling, a classifier at the end."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1, padding_mode="reflect"),
        nn.Tanh(),
        nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1),
        nn.BatchNorm2d(3, EPSILON),
        nn.SiLU(),
        nn.AvgPool2d(4),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.PixelUnshuffle(2),
        nn.Flatten(),
        nn.Linear(48, 10),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual, ReLU": lambda: residual_network(nn.ReLU()),
    "residual, LeakyReLU": lambda: residual_network(nn.LeakyReLU(0.125)),
    "residual, GELU": lambda: residual_network(nn.GELU()),
    "plain": plain_network,
    "decoder": decoder_network,
}


def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    return torch.tensor(data.images / 16, dtype=torch.float32)[:, None], torch.tensor(data.target)


def trained(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    module, (images, labels) = build(), digits()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(120):
        rows = torch.randint(len(images), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(images[rows]), labels[rows]).backward()
        optimizer.step()
    return module.eval()


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> tuple[nn.Module, Graph]:
    """A trained network in float64, and the graph of what was trained."""
    module = trained(NETWORKS[request.param])
    graph = trace(module, digits()[0][:2])
    return module.double(), graph


def rows_of(count: int) -> np.ndarray:
    return digits()[0][-count:].double().numpy()


def test_the_graph_is_the_trained_module(network: tuple[nn.Module, Graph]) -> None:
    module, graph = network
    images, labels = (part[-200:] for part in digits())
    with torch.no_grad():
        expected = module(images.double())
    assert (expected.argmax(1) == labels).double().mean() > 0.4
    np.testing.assert_allclose(evaluate(graph, images.double()), expected, rtol=1e-9, atol=1e-9)


def sampled_norms(module: nn.Module, points: np.ndarray, outputs: list[int]) -> np.ndarray:
    """Largest ℓ1 norm of the gradient over random points of the box around each point; (points, outputs)."""
    random = np.random.default_rng(0)
    largest = np.zeros((len(points), len(outputs)))
    for _ in range(25):
        x = torch.tensor(points + random.uniform(-RADIUS, RADIUS, size=points.shape), requires_grad=True)
        values = module(x)
        for column, output in enumerate(outputs):
            (gradient,) = torch.autograd.grad(values[:, output].sum(), x, retain_graph=True)
            largest[:, column] = np.maximum(largest[:, column], gradient.abs().flatten(1).sum(1).numpy())
    return largest


def plain_bounds(graph: Graph, box: Box, outputs: list[int]) -> np.ndarray:
    """What interval propagation says of the same gradient; (points, outputs)."""
    objectives = torch.eye(graph.output_shape[0], dtype=torch.float64)[None, outputs]
    problem = Problem.of(summed(gradient_graph(graph), "abs"), box, objectives)
    with torch.no_grad():
        return bound_nodes(problem, None)[-1].interval.upper[..., 0].numpy()


def test_constants_lie_between_samples_and_intervals(network: tuple[nn.Module, Graph]) -> None:
    module, graph = network
    points, outputs = rows_of(2), [0, 7]
    box = Box.around(points, RADIUS)
    certificate = certify_lipschitz(graph, points, box, outputs=outputs, device="cpu")
    sampled = sampled_norms(module, points, outputs)
    assert np.all(np.isfinite(certificate.upper))
    assert np.all(certificate.lower <= certificate.upper)
    assert np.all(sampled <= certificate.upper)
    assert np.all(certificate.upper < plain_bounds(graph, box, outputs))
