"""torch modules, exported programs and .pt2 files: the graph computes what the module computes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.errors import FidelityError, UnsupportedOperator, UsageError
from mlflow_lipschitz.frontends import trace
from mlflow_lipschitz.frontends.to_onnx import to_onnx
from tests.frontends.onnx_models import run_onnxruntime


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2)
        self.shortcut = nn.Conv2d(3, 4, 1, stride=2, bias=False)
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.first(x)))
        y = nn.functional.leaky_relu(self.second(y) + self.shortcut(x), 0.2)
        return self.head(self.pool(y).view(x.shape[0], -1))


class Mixer(nn.Module):
    """Linear on the last axis, transposes, chunks, products: the shape operators the exporter writes."""

    def __init__(self) -> None:
        super().__init__()
        self.along, self.across = nn.Linear(6, 6), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.across(torch.tanh(self.along(x)).transpose(1, 2)).transpose(1, 2)
        left, right = y.chunk(2, dim=-1)
        return torch.cat([left * torch.sigmoid(right), x[:, ::2, :3].repeat_interleave(2, dim=1)], dim=-1).mean(1)


def randomized(module: nn.Module) -> nn.Module:
    """Every parameter and running statistic random, so that no mistake hides behind a zero or a one."""
    generator = torch.Generator().manual_seed(1)
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.5)
            if "running_var" in name:
                value.copy_(value.abs() + 0.1)
    return module


def sequential(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*layers)


MODULES = {
    "MLP": (
        sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.LeakyReLU(0.1), nn.Linear(8, 3)),
        (5,),
    ),
    "smooth MLP": (
        sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 3)),
        (5,),
    ),
    "normalized MLP": (
        sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 1)),
        (5,),
    ),
    "CNN": (
        sequential(
            nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Conv2d(4, 6, (2, 3), dilation=(1, 2), padding="same"), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2),
        ),
        (1, 9, 9),
    ),
    "CNN 1d": (
        sequential(
            nn.BatchNorm1d(2), nn.Conv1d(2, 4, 3, padding=1), nn.BatchNorm1d(4), nn.ReLU(),
            nn.AvgPool1d(2), nn.Flatten(), nn.Linear(16, 2),
        ),
        (2, 8),
    ),
    "residual": (Residual, (3, 8, 8)),
    "mixer": (Mixer, (4, 6)),
}  # fmt: skip


def assert_same(graph, module: nn.Module, sample: tuple[int, ...]) -> None:
    points = np.random.default_rng(0).normal(size=(5, *sample)).astype(np.float32)
    expected = module.eval()(torch.from_numpy(points)).detach().numpy().reshape(5, -1)
    np.testing.assert_allclose(evaluate(graph, points).numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODULES)
def test_module(name: str) -> None:
    make, sample = MODULES[name]
    module = randomized(make())
    assert_same(trace(module, torch.zeros(3, *sample)), module, sample)


@pytest.mark.parametrize("name", ["MLP", "residual"])
@pytest.mark.parametrize("batch", [1, 4, None], ids=["one", "four", "free"])
def test_exported_program_and_its_archive(name: str, batch: int | None, tmp_path) -> None:
    make, sample = MODULES[name]
    module = randomized(make()).eval()
    shapes = None if batch else ({0: torch.export.Dim.AUTO},)
    program = torch.export.export(module, (torch.zeros(batch or 2, *sample),), dynamic_shapes=shapes)
    path = tmp_path / "model.pt2"
    torch.export.save(program, path)
    direct, loaded = trace(program), trace(path)
    assert_same(direct, module, sample)
    assert direct.content_hash() == loaded.content_hash()


def test_weights_are_those_of_the_module() -> None:
    module = randomized(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)))
    graph = trace(module, np.zeros((1, 5)))
    weights = [n.op.weight for n in graph.nodes if isinstance(n.op, ops.Linear)]
    for found, layer in zip(weights, (module[0], module[2]), strict=True):
        np.testing.assert_array_equal(found, layer.weight.detach().double().numpy())


def test_double_precision_module() -> None:
    module = randomized(nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double())
    points = np.random.default_rng(0).normal(size=(4, 5))
    expected = module(torch.from_numpy(points)).detach().numpy()
    np.testing.assert_allclose(evaluate(trace(module, points), points).numpy(), expected, rtol=1e-12)


def test_module_is_left_as_it_was_and_nothing_is_said(capfd) -> None:
    module = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 1))
    module[2].eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trace(module, torch.zeros(2, 5))
    assert [part.training for part in module] == [True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert capfd.readouterr() == ("", "")


def test_onnx_agrees_with_torch() -> None:
    module = randomized(Residual()).eval()
    model = to_onnx(module, torch.zeros(1, 3, 8, 8))
    points = torch.randn(7, 3, 8, 8)
    np.testing.assert_allclose(
        run_onnxruntime(model, points.numpy()), module(points).detach().numpy(), rtol=1e-4, atol=1e-5
    )


class Signs(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sign(x)


class Jumps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(5, 3)
        self.last = Signs()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.body(x))


def test_refusal_names_the_layer_and_the_line_of_the_users_code() -> None:
    with pytest.raises(UnsupportedOperator) as error:
        trace(Jumps(), torch.zeros(2, 5))
    assert error.value.operator == "Sign"
    assert "layer 'last'" in error.value.origin
    assert "test_torch.py" in error.value.origin
    assert "jump" in error.value.remedy


def test_module_that_mixes_rows() -> None:
    class Centered(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - x.mean(0, keepdim=True)

    with pytest.raises(UnsupportedOperator, match="batch"):
        trace(Centered(), torch.zeros(2, 5))


def test_module_that_fixes_its_batch() -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(1, -1)

    with pytest.raises(UnsupportedOperator):
        trace(Fixed(), torch.zeros(2, 5))


def test_module_that_fails() -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise KeyError("no such layer")

    with pytest.raises(UnsupportedOperator, match="no such layer"):
        trace(Broken(), torch.zeros(2, 5))


def test_an_example_is_needed() -> None:
    with pytest.raises(UsageError, match="example"):
        trace(nn.Linear(5, 2))
    with pytest.raises(UsageError, match="no rows"):
        trace(nn.Linear(5, 2), np.zeros((0, 5)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused_with_a_hint() -> None:
    script = torch.jit.trace(nn.Linear(5, 2), torch.zeros(1, 5))
    with pytest.raises(UsageError, match=r"TorchScript.*torch\.export"):
        trace(script, torch.zeros(2, 5))


def test_exporter_writes_valid_onnx_with_a_free_batch() -> None:
    model = to_onnx(nn.Linear(5, 2), torch.zeros(1, 5))
    onnx.checker.check_model(model, full_check=True)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 0


@pytest.mark.parametrize("bias", [True, False])
def test_convolutions_in_three_axes(bias: bool) -> None:
    """Without a bias torch's exporter writes one of two axes, which no runtime takes."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv3d(2, 4, (1, 2, 2), (1, 2, 1), (0, 1, 1), groups=2, bias=bias), nn.Flatten())
    points = torch.randn(3, 2, 2, 3, 3)
    graph = trace(module, points)
    np.testing.assert_allclose(evaluate(graph, points.numpy()), module(points).detach(), rtol=1e-5, atol=1e-6)


def test_an_option_that_the_exporter_drops_is_noticed() -> None:
    rows = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    tail = [torch.nn.Flatten(), torch.nn.Linear(4, 2)]
    with pytest.raises(FidelityError, match="another function than the module: row 0"):
        trace(torch.nn.Sequential(torch.nn.AvgPool2d(2, divisor_override=3), *tail), rows)
    assert trace(torch.nn.Sequential(torch.nn.AvgPool2d(2), *tail), rows).output_shape == (2,)
