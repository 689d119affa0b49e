"""torch models that answer otherwise than their export, that depend on the length of a batch, or that change while they answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.errors import FidelityError, UnsupportedOperator
from mlflow_lipschitz.frontends import trace
from mlflow_lipschitz.frontends.to_onnx import to_onnx

ROWS = torch.rand(8, 4) + 0.1


class Given(nn.Module):
    """A linear layer and a function of it and the rows."""

    def __init__(self, function: Callable[[nn.Module, torch.Tensor], Any]) -> None:
        super().__init__()
        self.function, self.layer = function, nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self.layer, x)


@pytest.mark.parametrize(
    "function",
    [
        lambda layer, x: layer(x) if x.shape[0] > 100 else x,
        lambda layer, x: layer(x) + int(x.shape[0] * 0.1),
        lambda layer, x: torch.cat([layer(x[:100]), x[100:]]),
    ],
    ids=["a branch", "a number", "the first hundred"],
)
def test_code_that_asks_how_many_rows_there_are(function: Any) -> None:
    with pytest.raises(UnsupportedOperator, match=r"how many rows|place"):
        trace(Given(function), ROWS)


def test_options_that_are_dropped_beside_a_large_output() -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool, self.layer = nn.AvgPool2d(2, divisor_override=3), nn.Linear(16, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.layer(x.flatten(1)) * 1e4, self.pool(x).flatten(1)], 1)

    with pytest.raises(FidelityError, match="output 1"):
        trace(Beside(), torch.randn(3, 1, 4, 4))


def pool() -> nn.Module:
    return nn.Sequential(nn.AvgPool2d(2, divisor_override=3), nn.Flatten())


def test_options_that_are_dropped_of_an_output_chosen_by_name() -> None:
    image = torch.randn(3, 1, 4, 4)
    with pytest.raises(FidelityError, match="another function"):
        trace(pool(), image, output=to_onnx(pool(), image).graph.output[0].name)


@pytest.mark.parametrize("kind", ["program", "file", "file without an example"])
def test_options_that_are_dropped_of_an_exported_program(kind: str, tmp_path: Any) -> None:
    image = torch.randn(3, 1, 4, 4)
    program: Any = torch.export.export(pool(), (image,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    if kind != "program":
        torch.export.save(program, tmp_path / "model.pt2")
        program = tmp_path / "model.pt2"
    with pytest.raises(FidelityError, match="another function"):
        trace(program, None if "without" in kind else image)


@pytest.mark.parametrize("batch", [None, 3])
def test_an_exported_program_that_answers_as_its_graph(batch: int | None) -> None:
    free = None if batch else ({0: torch.export.Dim("batch", max=64)},)
    program = torch.export.export(nn.Sequential(nn.Linear(4, 3), nn.Tanh()), (ROWS[:3],), dynamic_shapes=free)
    graph = trace(program)
    np.testing.assert_allclose(
        evaluate(graph, ROWS[:3].numpy()), program.module()(ROWS[:3]).detach(), rtol=1e-4, atol=1e-6
    )


def test_an_exported_program_in_training_mode() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train()
    program = torch.export.export(module, (ROWS,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    with pytest.raises(UnsupportedOperator, match="training mode") as error:
        trace(program)
    assert "eval" in error.value.remedy


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.ones(1))
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count.add_(1)
        return self.layer(x) * self.count


def test_a_module_that_changes_a_buffer() -> None:
    module = Counts().train()
    with pytest.raises(UnsupportedOperator, match=r"changes its buffer 'count'"):
        trace(module, ROWS)
    assert module.count.item() == 1.0
    assert module.training


def doubled(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return 2 * layer(x)


PACKED = {
    "a dict": (lambda layer, x: {"a": layer(x), "b": doubled(layer, x)}, 1),
    "a nested tuple": (lambda layer, x: (layer(x), (doubled(layer, x), x)), 1),
    "None first": (lambda layer, x: (None, doubled(layer, x)), 0),
    "a list": (lambda layer, x: [layer(x), doubled(layer, x)], -1),
}


@pytest.mark.parametrize("name", PACKED)
def test_how_outputs_are_packed(name: str) -> None:
    function, output = PACKED[name]
    module = Given(function)
    graph = trace(module, ROWS, output=output)
    np.testing.assert_allclose(
        evaluate(graph, ROWS.numpy()), doubled(module.layer, ROWS).detach(), rtol=1e-4, atol=1e-5
    )
