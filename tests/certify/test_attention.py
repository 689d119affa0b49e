"""The global constant of self-attention: above everything that is attained, also where heads work against each other."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlflow_lipschitz.certify import SelfAttention, attention_lipschitz, normalized_radius
from mlflow_lipschitz.certify.spectral import product_norm
from mlflow_lipschitz.errors import UsageError


def is_semidefinite(matrix: list[list[Fraction]]) -> bool:
    """By exact elimination."""
    rows = [list(row) for row in matrix]
    while rows:
        pivot, first = rows[0][0], rows[0]
        if pivot < 0 or (pivot == 0 and any(first)):
            return False
        rest = [row[1:] for row in rows[1:]]
        if pivot:
            rest = [[v - row[0] * f / pivot for v, f in zip(row[1:], first[1:], strict=True)] for row in rows[1:]]
        rows = rest
    return True


def bounds_norm(bound: Fraction, a: np.ndarray, b: np.ndarray) -> bool:
    """Whether bound² I − (ab)ᵀ(ab) is semidefinite, exactly."""
    exact = np.vectorize(lambda v: Fraction(float(v)), otypes=[object])
    product = exact(a) @ exact(b)
    gram = product.T @ product
    rest = [[(bound**2 if i == j else 0) - gram[i, j] for j in range(len(gram))] for i in range(len(gram))]
    return is_semidefinite(rest)


sizes = st.integers(1, 4)


@given(
    seed=st.integers(0, 2**32 - 1), shape=st.tuples(sizes, sizes, sizes), scale=st.sampled_from([1.0, 1e-200, 1e200])
)
def test_a_spectral_norm_is_bounded_exactly_and_closely(seed: int, shape: tuple[int, int, int], scale: float) -> None:
    rng = np.random.default_rng(seed)
    a = rng.normal(size=shape[:2]) * scale
    b = rng.normal(size=shape[1:]) * rng.integers(0, 2, shape[1:])
    bound = product_norm(a, b)
    assert bounds_norm(bound, a, b)
    expected = np.linalg.norm(a / scale @ b, 2)
    assert float(bound / Fraction(scale)) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_the_check_of_the_bound_can_fail() -> None:
    a, b = np.diag([3.0, 1.0]), np.eye(2)
    assert bounds_norm(Fraction(3), a, b) and not bounds_norm(Fraction(3) - Fraction(1, 10**30), a, b)


def test_a_product_that_overflows_or_mixes_scales_is_bounded() -> None:
    huge = np.array([[1e300, 1e-300], [0.0, 1e300]])
    bound = product_norm(huge, huge)
    assert bounds_norm(bound, huge, huge) and bound < Fraction(10) ** 601
    assert product_norm(np.zeros((2, 3)), np.ones((3, 2))) == 0


def random_layer(seed: int, heads: int = 4, width: int = 8, size: float = 1.0, *, bias: bool = True) -> SelfAttention:
    rng = np.random.default_rng(seed)
    query, key, value, output = rng.normal(size=(4, width, width)) / width**0.5
    return SelfAttention(query * size, key, value, output, heads, query_bias=rng.normal(size=width) if bias else None)


def attend(layer: SelfAttention, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(tokens, d) to (tokens, outputs), in PyTorch, without the biases that do not matter; `mask` is added to the scores."""
    query, key, value, output = (torch.tensor(m) for m in (layer.query, layer.key, layer.value, layer.output))
    q = x @ query.T if layer.query_bias is None else x @ query.T + torch.tensor(layer.query_bias)
    q, k, v = (part.reshape(len(x), layer.heads, -1).transpose(0, 1) for part in (q, x @ key.T, x @ value.T))
    scale = layer.scale or q.shape[-1] ** -0.5
    mixed = torch.softmax(scale * q @ k.transpose(1, 2) + mask, dim=-1) @ v
    return mixed.transpose(0, 1).reshape(len(x), -1) @ output.T


def attained(layer: SelfAttention, radius: float, *, steps: int = 150, seed: int = 0) -> float:
    """A ratio of norms that a derivative at tokens of the ball reaches, climbed to by gradient ascent.

    Odd seeds let tokens see only those before them.
    """
    tokens = 2 + seed % 3
    mask = torch.full((tokens, tokens), -torch.inf).triu(1) if seed % 2 else torch.zeros(tokens, tokens)
    generator = torch.Generator().manual_seed(seed)
    width = layer.query.shape[1]
    x, move = torch.randn((2, tokens, width), generator=generator, dtype=torch.float64)
    best = 0.0
    leaves = [x.requires_grad_(), move.requires_grad_()]
    climb = torch.optim.Adam(leaves, lr=0.1)
    for _ in range(steps):
        point = radius * x / x.norm(dim=1, keepdim=True).clamp(min=1)
        unit = move / move.norm(dim=1, keepdim=True)
        _, slope = torch.func.jvp(lambda t: attend(layer, t, mask), (point,), (unit,))
        ratio = slope.norm(dim=1).max()
        best = max(best, ratio.item())
        climb.zero_grad()
        (-ratio).backward()
        climb.step()
    return best


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("radius", [0.1, 1.0, 3.0])
def test_nothing_attained_exceeds_the_bound(seed: int, radius: float) -> None:
    layer = random_layer(seed, heads=(1, 2, 4)[seed % 3], size=3.0, bias=seed % 2 == 0)
    assert attained(layer, radius, seed=seed) <= attention_lipschitz(layer, radius=radius) * (1 + 1e-9)


def opposed_heads() -> SelfAttention:
    """Four heads of width 2 on 8 entries: two that attend alike or not at all to the same entries, with opposite signs."""
    query, value = np.zeros((8, 8)), np.zeros((8, 8))
    output = np.zeros((8, 8))
    for head, sign in enumerate((1.0, -1.0)):
        query[2 * head : 2 * head + 2, :2] = 2 * sign * np.eye(2)
        value[2 * head : 2 * head + 2, :2] = np.eye(2)
        output[:2, 2 * head : 2 * head + 2] = sign * np.eye(2)
    value[4, 4], output[4, 4] = 1.0, 0.5
    return SelfAttention(query, np.abs(query), value, output, 4)


def as_if_one_head(layer: SelfAttention, radius: float) -> float:
    """The published per-layer formula, which multiplies the whole matrices."""
    bilinear = np.linalg.norm(layer.query.T @ layer.key, 2) / math.sqrt(layer.query.shape[0] / layer.heads)
    return float(np.linalg.norm(layer.output @ layer.value, 2) * (1 + 2 * radius**2 * bilinear))


def test_heads_that_work_against_each_other_are_counted_each() -> None:
    layer, radius = opposed_heads(), 1.5
    reached = max(attained(layer, radius, seed=seed) for seed in range(3))
    assert reached > 2 * as_if_one_head(layer, radius)
    assert reached <= attention_lipschitz(layer, radius=radius)


def test_tokens_at_the_origin_leave_the_average() -> None:
    layer = random_layer(3, heads=1, bias=False)
    expected = np.linalg.norm(layer.output @ layer.value, 2)
    assert attention_lipschitz(layer, radius=0.0) == pytest.approx(expected, rel=1e-9)
    assert attained(layer, 0.0) == pytest.approx(expected, rel=1e-3)


def test_the_formula() -> None:
    one = np.array([[3.0]])
    layer = SelfAttention(2 * one, one, one, one, 1, query_bias=np.array([5.0]), scale=-0.5)
    # 9 (1 + 2 R² · 9 + R · 7.5) with A = −0.5 · 6 · 3 and c = −0.5 · 3 · 5, at R = 2.
    assert attention_lipschitz(layer, radius=2.0) == pytest.approx(9 * (1 + 2 * 4 * 9 + 2 * 7.5), rel=1e-9)
    assert attention_lipschitz(layer, radius=2.0) >= 9 * (1 + 2 * 4 * 9 + 2 * 7.5)


def test_no_radius_no_constant() -> None:
    assert attention_lipschitz(random_layer(0), radius=math.inf) == math.inf


def test_the_largest_numbers_overflow_upwards() -> None:
    huge = np.full((2, 2), 1e200)
    assert attention_lipschitz(SelfAttention(huge, huge, huge, huge, 1), radius=1.0) == math.inf
    fine = attention_lipschitz(SelfAttention(huge, huge, huge / 1e300, huge / 1e300, 1), radius=1e-100)
    assert 0 < fine < math.inf


def test_the_length_of_what_a_layer_norm_puts_out() -> None:
    rng = np.random.default_rng(0)
    gamma, beta = rng.normal(size=(2, 8))
    radius = normalized_radius(gamma, beta)
    norm = torch.nn.functional.layer_norm
    x = torch.tensor(rng.normal(size=(500, 8)) ** 5)
    outputs = norm(x, (8,), torch.tensor(gamma), torch.tensor(beta))
    assert float(outputs.norm(dim=1).max()) <= radius
    assert radius == pytest.approx(8**0.5 * np.abs(gamma).max() + np.linalg.norm(beta), rel=1e-9)


eye = np.eye(4)
WRONG: dict[str, dict[str, Any]] = {
    "heads": {"heads": 3},
    "no heads": {"heads": 0},
    "key": {"key": np.eye(5)},
    "value": {"value": np.ones((4, 3))},
    "output": {"output": np.eye(3)},
    "bias": {"query_bias": np.ones(3)},
    "not finite": {"query": eye * np.nan},
    "empty": {"query": np.zeros((0, 4)), "key": np.zeros((0, 4))},
    "scale": {"scale": np.inf},
}


@pytest.mark.parametrize("name", WRONG)
def test_weights_that_do_not_fit_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        SelfAttention(**{"query": eye, "key": eye, "value": eye, "output": eye, "heads": 2, **WRONG[name]})


@pytest.mark.parametrize("radius", [-1.0, math.nan])
def test_a_radius_that_is_none_is_refused(radius: float) -> None:
    with pytest.raises(UsageError, match="radius"):
        attention_lipschitz(random_layer(0), radius=radius)
