"""The global Lipschitz constant of multi-head self-attention over tokens of bounded length, for any mask and any number of tokens.

Head h maps tokens x to yᵢ = O V Σⱼ pᵢⱼ xⱼ with pᵢ = softmaxⱼ(xᵢᵀ A xⱼ + cᵀxⱼ), A = s QᵀK, c = s Kᵀq, q the query's bias; what else
biases add is the same for all j and cancels. If every token moves by at most ε, so does their average, and the weights add a
covariance under pᵢ: of the tokens with themselves (norm ≤ R²) times ‖A‖ε for the query's move, and of the tokens (spread ≤ R)
with what the keys' moves change, at most (R‖A‖ + ‖c‖)ε each. Hence, with heads added up and not treated as one,

    Lip ≤ Σₕ ‖OₕVₕ‖ (1 + 2R²‖Aₕ‖ + R‖cₕ‖)   from max over tokens of the ℓ2 norm to the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from mlflow_lipschitz.certify.spectral import product_norm
from mlflow_lipschitz.errors import UsageError


@dataclass(frozen=True, eq=False)
class SelfAttention:
    """Weights as a linear layer stores them: (outputs, inputs); head h has the h-th equal part of the projections' outputs.

    Attributes:
        query, key: (heads · k, d).
        value: (heads · v, d).
        output: (any, heads · v).
        heads: number of heads.
        query_bias: (heads · k,) or None. The other biases do not change the constant.
        scale: what scores are multiplied with; None for 1 / √k.

    Raises:
        UsageError: the shapes do not fit, the heads do not divide them, or a number is not finite.
    """

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    output: np.ndarray
    heads: int
    query_bias: np.ndarray | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        for name in ("query", "key", "value", "output", "query_bias"):
            given = getattr(self, name)
            if given is not None:
                object.__setattr__(self, name, _checked(name, given, 1 if name == "query_bias" else 2))
        inner, width = self.query.shape[0], self.value.shape[0]
        if self.key.shape != self.query.shape or self.value.shape[1] != self.query.shape[1]:
            raise UsageError(f"query {self.query.shape}, key {self.key.shape} and value {self.value.shape} do not fit")
        if self.output.shape[1] != width or (self.query_bias is not None and self.query_bias.shape != (inner,)):
            raise UsageError("the output's columns must be the value's rows, and the bias as long as the query's rows")
        if self.heads < 1 or inner % self.heads or width % self.heads:
            raise UsageError(f"{self.heads} heads do not divide {inner} rows of the query and {width} of the value")
        if self.scale is not None and not math.isfinite(self.scale):
            raise UsageError(f"scale={self.scale!r} is not finite")


def attention_lipschitz(layer: SelfAttention, *, radius: float) -> float:
    """Certified upper bound of the layer's Lipschitz constant over all tokens with ‖x‖₂ ≤ radius.

    The norm of a sequence of tokens, in and out, is the largest ℓ2 norm of a token. Without a radius there is no such constant.

    Args:
        radius: bound of the tokens' ℓ2 norm, as from `normalized_radius` or the corner of an input box.

    Raises:
        UsageError: the radius is negative or not a number.
    """
    if not radius >= 0:
        raise UsageError(f"radius={radius!r} must not be negative")
    if radius == math.inf:
        return math.inf
    reach = Fraction(radius)
    total = Fraction(0)
    for query, key, value, output, bias in _heads(layer):
        scale = _scale(layer.scale, query.shape[0])
        bilinear = scale * product_norm(query.T, key)
        shift = Fraction(0) if bias is None else scale * product_norm(key.T, bias[:, None])
        total += product_norm(output, value) * (1 + 2 * reach**2 * bilinear + reach * shift)
    return _rounded_up(total)


def normalized_radius(scale: np.ndarray, shift: np.ndarray | None = None) -> float:
    """Upper bound of ‖x‖₂ for what LayerNorm or RMSNorm with this (d,) scale and shift put out: √d max|scale| + ‖shift‖₂.

    Raises:
        UsageError: not vectors of one length, or not finite.
    """
    gamma = _checked("scale", scale, 1)
    beta = np.zeros_like(gamma) if shift is None else _checked("shift", shift, 1)
    if beta.shape != gamma.shape:
        raise UsageError(f"scale {gamma.shape} and shift {beta.shape} do not fit")
    stretched = np.full((len(gamma), 1), np.abs(gamma).max(initial=0.0))
    one = np.ones((1, 1))
    return _rounded_up(product_norm(stretched, one) + product_norm(beta[:, None], one))


def _heads(layer: SelfAttention) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]]:
    parts = [np.split(m, layer.heads) for m in (layer.query, layer.key, layer.value)]
    outputs = np.split(layer.output, layer.heads, axis=1)
    bias = layer.query_bias
    biases = [None] * layer.heads if bias is None else np.split(bias, layer.heads)
    return list(zip(*parts, outputs, biases, strict=True))


def _scale(given: float | None, inner: int) -> Fraction:
    return Fraction(math.nextafter(1 / math.sqrt(inner), math.inf)) if given is None else abs(Fraction(given))


def _rounded_up(value: Fraction) -> float:
    try:
        rounded = float(value)
    except OverflowError:
        return math.inf
    return rounded if Fraction(rounded) >= value else math.nextafter(rounded, math.inf)


def _checked(name: str, values: np.ndarray, axes: int) -> np.ndarray:
    array = np.array(values, dtype=np.float64)
    if array.ndim != axes or array.size == 0 or not np.isfinite(array).all():
        raise UsageError(
            f"{name} must be finite and not empty, with {axes} {'axis' if axes == 1 else 'axes'}, got {array.shape}"
        )
    array.setflags(write=False)
    return array
