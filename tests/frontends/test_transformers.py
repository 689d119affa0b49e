"""Attention, transformers, recurrent layers and reparametrized weights of torch: values and derivatives of the module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.errors import UnsupportedOperator
from mlflow_lipschitz.frontends import trace
from mlflow_lipschitz.frontends.to_onnx import to_onnx
from tests.frontends.checks import jacobian
from tests.frontends.onnx_models import run_onnxruntime

TOKENS, WIDTH = 5, 8
CAUSAL = torch.ones(TOKENS, TOKENS).tril().bool()
FLOATS = torch.zeros(TOKENS, TOKENS).masked_fill(~CAUSAL, float("-inf"))


class Attention(nn.Module):
    """F.scaled_dot_product_attention with its arguments; masks are buffers, as in users' modules."""

    def __init__(self, heads: int = 2, keys: int = 2, **arguments: Any) -> None:
        super().__init__()
        self.heads, self.keys = heads, keys
        self.project = nn.Linear(WIDTH, (heads + 2 * keys) * WIDTH // heads)
        self.register_buffer("mask", arguments.pop("attn_mask", None))
        self.arguments = arguments

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.project(x).unflatten(-1, (-1, WIDTH // self.heads)).transpose(1, 2).split(
            [self.heads, self.keys, self.keys], dim=1
        )  # fmt: skip
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, **self.arguments)
        return y.transpose(1, 2).flatten(2)


class OneHead(nn.Module):
    """Without an axis for heads."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.query, self.key, self.arguments = nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 3), arguments

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(self.query(x[:, :3]), self.key(x), x, **self.arguments)


class SelfAttention(nn.Module):
    """nn.MultiheadAttention on one input."""

    def __init__(self, mask: torch.Tensor | None = None, weights: bool = False, **options: Any) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(WIDTH, 2, **{"batch_first": True, **options})
        self.weights = weights
        self.register_buffer("mask", mask)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if self.layer.batch_first else x.transpose(0, 1)
        y = self.layer(x, x, x, attn_mask=self.mask, need_weights=self.weights)[0]
        return y if self.layer.batch_first else y.transpose(0, 1)


class WrittenOut(nn.Module):
    """Attention as papers write it, with an einsum, a scale and a mask that is far below but finite."""

    def __init__(self, low: float) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.register_buffer("mask", CAUSAL)
        self.low = low

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = torch.einsum("bqd,bkd->bqk", self.query(x), self.key(x)) / WIDTH**0.5
        return scores.masked_fill(~self.mask, self.low).softmax(-1) @ self.value(x)


class Encoder(nn.Module):
    """A BERT-style encoder on embeddings: a class token, positions, blocks, a head."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 12, **{"batch_first": True, "activation": "gelu", **options})
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.position = nn.Parameter(torch.zeros(1, TOKENS + 1, WIDTH))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.blocks(tokens)[:, 0])


class CausalEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 2, 12, batch_first=True), 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x, mask=FLOATS.to(x.dtype), is_causal=True)


class Decoder(nn.Module):
    """Cross attention to a part of the same input."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerDecoderLayer(WIDTH, 2, 12, batch_first=True, norm_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x[:, :2], x)


class Picture(nn.Module):
    """A vision transformer: patches by a convolution, blocks written out, the mean of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, 2, stride=2)
        self.position = nn.Parameter(torch.zeros(1, 4, WIDTH))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.project, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 12), nn.GELU(), nn.Linear(12, WIDTH))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        batch, tokens, _ = x.shape
        q, k, v = self.project(self.norms[0](x)).reshape(batch, tokens, 3, 4, WIDTH // 4).permute(2, 0, 3, 1, 4)
        shares = (q @ k.transpose(-2, -1) * (WIDTH // 4) ** -0.5).softmax(dim=-1)
        x = x + self.out((shares @ v).transpose(1, 2).reshape(batch, tokens, WIDTH))
        x = x + self.mlp(self.norms[1](x))
        return self.head(self.norms[2](x).mean(1))


class First(nn.Module):
    """A part of what a recurrent layer answers."""

    def __init__(self, layer: nn.Module, pick: Callable[[Any], torch.Tensor], first: bool = True) -> None:
        super().__init__()
        self.layer, self.pick, self.first = layer, pick, first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pick(self.layer(x if self.first else x.transpose(0, 1)))


class StandardizedConv(nn.Conv2d):
    """Weight standardization: the weight that is trained is normalized wherever it is used."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        weight = weight / (weight.std(dim=(1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class PowerNorm(nn.Module):
    """PowerNorm at inference (Shen et al., 2020): groups scaled by their root mean square, then by a running quadratic mean."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight, self.bias = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.zeros(WIDTH))
        self.register_buffer("running_psi2", torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grouped = x.reshape(*x.shape[:-1], self.groups, -1)
        x = (grouped * torch.rsqrt(grouped.square().mean(-1, keepdim=True) + 1e-5)).reshape(x.shape)
        return self.weight * x / (self.running_psi2 + 1e-5).sqrt() + self.bias


def image(*layers: nn.Module) -> nn.Module:
    """Layers on the tokens as a picture of one channel."""
    return nn.Sequential(nn.Unflatten(1, (1, TOKENS)), *layers)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "attention": Attention,
    "attention, causal": lambda: Attention(is_causal=True),
    "attention, boolean mask": lambda: Attention(attn_mask=CAUSAL),
    "attention, bias per head": lambda: Attention(attn_mask=torch.arange(2.0 * TOKENS**2).reshape(2, TOKENS, TOKENS) / 25),
    "attention, scale": lambda: Attention(scale=0.3),
    "attention, shared keys": lambda: Attention(4, 2, enable_gqa=True),
    "attention without heads": OneHead,
    "attention without heads, causal": lambda: OneHead(is_causal=True),
    "multi-head": SelfAttention,
    "multi-head, weights and mask": lambda: SelfAttention(FLOATS, weights=True),
    "multi-head, tokens first": lambda: SelfAttention(batch_first=False),
    "multi-head, more keys": lambda: SelfAttention(add_bias_kv=True, add_zero_attn=True),
    "written out, -inf": lambda: WrittenOut(float("-inf")),
    "written out, -10000": lambda: WrittenOut(-10000.0),
    "encoder": Encoder,
    "encoder, norm first": lambda: Encoder(norm_first=True),
    "encoder, causal": CausalEncoder,
    "decoder": Decoder,
    "picture": Picture,
    "LSTM": lambda: First(nn.LSTM(WIDTH, 3, batch_first=True), lambda y: y[0][:, -1]),
    "LSTM, two layers of two directions": lambda: First(
        nn.LSTM(WIDTH, 2, 2, batch_first=True, bidirectional=True), lambda y: y[0][:, -1]
    ),
    "LSTM, states": lambda: First(nn.LSTM(WIDTH, 3, batch_first=True), lambda y: torch.cat([y[1][0][-1], y[1][1][-1]], 1)),
    "GRU": lambda: First(nn.GRU(WIDTH, 3, batch_first=True), lambda y: y[0].mean(1)),
    "GRU, two directions": lambda: First(nn.GRU(WIDTH, 2, bidirectional=True, batch_first=True), lambda y: y[1].transpose(0, 1)),
    "RNN": lambda: First(nn.RNN(WIDTH, 3, batch_first=True), lambda y: y[0]),
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "RMS norm": lambda: nn.RMSNorm(WIDTH),
    "group norm": lambda: image(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4)),
    "instance norm": lambda: nn.InstanceNorm1d(TOKENS, affine=True),
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(WIDTH, 4)),
    "weight norm of old": lambda: nn.utils.weight_norm(nn.Linear(WIDTH, 4), dim=None),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(WIDTH, 4)),
    "spectral norm of old": lambda: nn.utils.spectral_norm(nn.Linear(WIDTH, 4)),
    "weight standardization": lambda: image(StandardizedConv(1, 4, 3, padding=1), nn.GroupNorm(2, 4)),
    "batch-channel normalization": lambda: image(StandardizedConv(1, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.ReLU()),
    "power norm": lambda: PowerNorm(2),
}  # fmt: skip
# torch changes what a spectral norm divides by whenever the module runs in training mode, never in evaluation mode.


def made(name: str, seed: int = 1) -> nn.Module:
    """The module in double precision, its parameters random, in evaluation mode."""
    torch.manual_seed(seed)
    module = MODULES[name]()
    module.eval()
    for part, value in module.named_parameters():
        if "parametrizations" not in part and not isinstance(module, nn.Linear):
            value.data = torch.randn(value.shape) * 0.5
    for part, value in module.named_buffers():
        if part.endswith(("running_mean", "running_var", "running_psi2")):
            value.copy_(torch.rand(value.shape) + 0.5)
    return module.double().requires_grad_(False)


def sample(name: str) -> tuple[int, ...]:
    return (1, 4, 4) if name == "picture" else (TOKENS, WIDTH)


@pytest.mark.parametrize("name", MODULES)
def test_values_and_derivatives_are_those_of_the_module(name: str) -> None:
    module, shape = made(name), sample(name)
    graph = trace(module, torch.zeros(2, *shape))
    points = torch.randn(3, *shape, dtype=torch.float64)
    expected = module(points).flatten(1).numpy()
    np.testing.assert_allclose(evaluate(graph, points), expected, rtol=1e-9, atol=1e-9)
    slopes = torch.autograd.functional.jacobian(lambda x: module(x).flatten(), points[:1])[:, 0].numpy()
    np.testing.assert_allclose(jacobian(graph, points[0].numpy()), slopes, rtol=1e-9, atol=1e-9)


FOLDED = ["weight norm", "weight norm of old", "spectral norm", "spectral norm of old"]


@pytest.mark.parametrize("name", FOLDED)
def test_weights_that_are_computed_are_folded(name: str) -> None:
    """The transformation of the weight is run once, as the module runs it, and one linear layer is left."""
    module = made(name)
    (layer,) = (n.op for n in trace(module, torch.zeros(2, TOKENS, WIDTH)).nodes if isinstance(n.op, ops.Linear))
    module(torch.zeros(1, TOKENS, WIDTH, dtype=torch.float64))  # older reparametrizations set the weight when they run
    np.testing.assert_allclose(layer.weight, module.weight, rtol=1e-12, atol=1e-14)


def test_what_normalizes_by_constants_folds_and_what_does_not_stays() -> None:
    graph = trace(made("batch-channel normalization"), torch.zeros(2, TOKENS, WIDTH))
    convolutions = [n.op for n in graph.nodes if isinstance(n.op, ops.Conv)]
    assert len(convolutions) == 1 and convolutions[0].bias is not None  # with the batch normalization in it
    assert any(isinstance(n.op, ops.Normalized) for n in graph.nodes)


@pytest.mark.parametrize("name", ["attention, shared keys", "encoder", "picture", "LSTM", "GRU, two directions"])
def test_the_exported_model_runs_in_onnxruntime_in_single_precision(name: str) -> None:
    module, shape = made(name).float(), sample(name)
    points = torch.randn(3, *shape)
    answers = run_onnxruntime(to_onnx(module, points), points.numpy())
    np.testing.assert_allclose(answers, module(points).flatten(1).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["attention, boolean mask", "multi-head", "encoder", "picture", "GRU", "weight standardization"]
)
def test_exported_programs(name: str, tmp_path: Path) -> None:
    module, shape = made(name), sample(name)
    example = torch.randn(2, *shape, dtype=torch.float64)
    program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    torch.export.save(program, tmp_path / "model.pt2")
    for source in (program, tmp_path / "model.pt2"):
        np.testing.assert_allclose(evaluate(trace(source), example), module(example).flatten(1), rtol=1e-9, atol=1e-9)


def test_a_program_with_an_lstm_that_was_written_out(tmp_path: Path) -> None:
    module = made("LSTM")
    example = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    torch.export.save(program.run_decompositions(), tmp_path / "model.pt2")
    np.testing.assert_allclose(evaluate(trace(tmp_path / "model.pt2"), example), module(example), rtol=1e-9, atol=1e-9)


def test_the_module_keeps_its_weights_and_mode() -> None:
    module = made("spectral norm").train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    trace(module, torch.zeros(2, TOKENS, WIDTH))
    assert module.training
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


class Dropping(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x, x, dropout_p=0.1)


def test_attention_that_drops_entries_at_random_is_refused() -> None:
    with pytest.raises(UnsupportedOperator, match="at random"):
        trace(Dropping(), torch.zeros(2, TOKENS, WIDTH))


def test_an_lstm_with_projections_is_refused_by_name() -> None:
    module = First(nn.LSTM(WIDTH, 4, batch_first=True, proj_size=2), lambda y: y[0])
    with pytest.raises(UnsupportedOperator, match=r"LSTM.*proj_size"):
        trace(module, torch.zeros(2, TOKENS, WIDTH))


class AcrossRows(nn.Module):
    """Attention among the rows of a batch, which a batch axis in the wrong place makes of self-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(WIDTH, 2, batch_first=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x, x, x, need_weights=False)[0]


def test_attention_among_rows_is_refused() -> None:
    with pytest.raises(UnsupportedOperator, match="rows"):
        trace(AcrossRows(), torch.zeros(2, TOKENS, WIDTH))
