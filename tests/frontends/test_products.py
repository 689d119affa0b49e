"""Matrix products of any factors, Einsum and Attention, against onnxruntime, torch and exact numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.errors import UnsupportedOperator
from mlflow_lipschitz.frontends import lowering_attention, lowering_products
from mlflow_lipschitz.frontends.lowering import lower
from tests.frontends.checks import assert_agrees_with_torch, assert_bounds_hold, between_layers
from tests.frontends.onnx_models import assert_lowers_exactly, make_model, node, run_onnxruntime

seeds = st.integers(0, 2**32 - 1)


def weight(*shape: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def integers(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


# The sample, what stands left and right ("x": the variable, "h": another one, tanh(x) in some shape), shapes of the constants.
MATMULS: dict[str, tuple[tuple[int, ...], str, dict[str, np.ndarray], list[onnx.NodeProto]]] = {
    "matrix": ((3,), "x c", {"c": weight(3, 2)}, []),
    "matrix on the last axis": ((2, 3), "x c", {"c": weight(3, 2)}, []),
    "vector": ((2, 3), "x c", {"c": weight(3)}, []),
    "vector from the left": ((2, 3), "c x", {"c": weight(2)}, []),
    "matrix from the left": ((2, 3), "c x", {"c": weight(4, 2)}, []),
    "stack of one": ((2, 3), "x c", {"c": weight(1, 3, 2)}, []),
    "stack": ((2, 4, 3), "x c", {"c": weight(2, 3, 5)}, []),
    "stack from the left": ((2, 4, 3), "c x", {"c": weight(2, 5, 4)}, []),
    "stack that grows x": ((1, 4, 3), "c x", {"c": weight(1, 2, 5, 4)}, []),
    "stack along one of two axes": ((2, 3, 4, 5), "x c", {"c": weight(2, 1, 5, 2)}, []),
    "stack along all axes": ((2, 3, 4, 5), "x c", {"c": weight(2, 3, 5, 2)}, []),
    "stack that x shares": ((1, 4, 3), "x c", {"c": weight(2, 3, 5)}, []),
    "stack of rows": ((4, 2, 3), "c x", {"c": weight(4, 1, 2)}, []),
    "variables": ((2, 3), "x h", {"p": integers(0, 3, 2)}, []),
    "variables from the left": ((2, 3), "h x", {"p": integers(0, 3, 2)}, []),
    "stacks of variables": ((2, 4, 3), "x h", {"p": integers(0, 2, 3, 4)}, []),
    "variables that broadcast": ((2, 4, 3), "x h", {"p": integers(0, 1, 3, 8)}, []),
    "variables that broadcast both ways": ((6, 4, 3), "k h", {"p": integers(0, 2, 1, 3, 12), "q": integers(0, 1, 3, 8, 3)}, []),
    "itself": ((3, 3), "x x", {}, []),
}  # fmt: skip


@pytest.mark.parametrize("name", MATMULS)
@pytest.mark.parametrize("opset", [7, 13])
def test_matrix_products(name: str, opset: int) -> None:
    sample, factors, constants, nodes = MATMULS[name]
    nodes = [node("Tanh", "x", "t")]
    nodes += [node("Reshape", "t p", "h")] if "p" in constants else []
    nodes += [node("Reshape", "x q", "k")] if "q" in constants else []
    model = make_model([*nodes, node("MatMul", factors)], sample, constants, opset=opset)
    assert_lowers_exactly(model, sample)


@pytest.mark.parametrize("factors", ["x c", "c x", "x h", "h x", "x x"])
def test_vectors_as_they_come_with_a_batch_of_one(factors: str) -> None:
    """Without a batch axis of their own: the sample of a fixed batch of one is squeezed to a vector, or less."""
    nodes = [
        node("Squeeze", "x zero", "v"),
        node("Tanh", "v", "t"),
        node("MatMul", factors.replace("x", "v").replace("h", "t")),
    ]
    constants = {"zero": integers(0), "c": weight(3)}
    model = make_model(nodes, (3,), constants, batch=1, check=False)
    points = weight(4, 3)
    np.testing.assert_allclose(evaluate(lower(model), points), run_onnxruntime(model, points), rtol=1e-5, atol=1e-6)


def test_one_matrix_stays_one_node_and_its_weights_are_kept() -> None:
    (linear,) = (n.op for n in lower(make_model([node("MatMul", "x c")], (2, 3), {"c": weight(3, 2)})).nodes[2:3])
    assert isinstance(linear, ops.Linear)
    np.testing.assert_array_equal(linear.weight, weight(3, 2).T.astype(np.float64))


def test_a_product_of_variables_is_one_node() -> None:
    nodes = [node("Reshape", "x p", "h"), node("MatMul", "x h")]
    graph = lower(make_model(nodes, (2, 3), {"p": integers(0, 3, 2)}))
    assert [type(n.op) for n in graph.nodes].count(ops.MatMul) == 1
    assert max(int(np.prod(n.shape)) for n in graph.nodes) == 2 * 3


GEMMS: dict[str, tuple[str, dict[str, Any], dict[str, np.ndarray]]] = {
    "constant": ("x w", {}, {"w": weight(4, 2)}),
    "constant, bias": ("x w b", {"alpha": 0.5, "beta": -2.0}, {"w": weight(4, 2), "b": weight(2)}),
    "constant, transposed": ("x w b", {"transB": 1}, {"w": weight(2, 4), "b": weight(1, 2)}),
    "constant, scalar bias": ("x w b", {}, {"w": weight(4, 2), "b": np.float32(2)}),
    "no bias by a factor of zero": ("x w b", {"beta": 0.0}, {"w": weight(4, 2), "b": weight(2)}),
    "variable addend": ("x w x", {"alpha": 2.0, "beta": 0.5}, {"w": weight(4, 4)}),
    "variable addend that broadcasts": ("x w m", {"beta": 0.5}, {"w": weight(4, 3)}),
}


@pytest.mark.parametrize("name", GEMMS)
@pytest.mark.parametrize("opset", [7, 9, 13])
def test_gemm(name: str, opset: int) -> None:
    inputs, attributes, constants = GEMMS[name]
    if opset < 11 and len(inputs.split()) == 2:  # the addend was not optional then
        inputs, constants = f"{inputs} zero", {**constants, "zero": np.float32(0)}
    nodes = [node("ReduceMean", "x", "m", axes=[1], keepdims=1), node("Gemm", inputs, **attributes)]
    assert_lowers_exactly(make_model(nodes, (4,), constants, opset=opset), (4,))


@pytest.mark.parametrize("left", [0, 1])
@pytest.mark.parametrize("right", [0, 1])
@pytest.mark.parametrize("factors", ["v t", "t v", "v c", "c v"])
@pytest.mark.parametrize("addend", ["", " b", " v"])
def test_gemm_of_two_axes_of_a_sample(left: int, right: int, factors: str, addend: str) -> None:
    nodes = [
        node("Squeeze", "x zero", "v"),
        node("Tanh", "v", "t"),
        node("Gemm", factors + addend, transA=left, transB=right, alpha=0.5, beta=2.0),
    ]
    constants = {"zero": integers(0), "c": weight(3, 3), "b": weight(3, 1)}
    model = make_model(nodes, (3, 3), constants, batch=1)
    points = weight(4, 3, 3)
    np.testing.assert_allclose(evaluate(lower(model), points), run_onnxruntime(model, points), rtol=1e-5, atol=1e-5)


# (equation, shape of the sample, constants); "x" is (batch, *sample), "h" tanh(x), "k" x with its last two axes exchanged.
EINSUMS: dict[str, tuple[str, str, tuple[int, ...], dict[str, np.ndarray]]] = {
    "linear": ("bi,oi->bo", "x c", (3,), {"c": weight(2, 3)}),
    "linear, implicit": ("bi,io", "x c", (3,), {"c": weight(3, 2)}),
    "on the last axis": ("...i,io->...o", "x c", (2, 3), {"c": weight(3, 2)}),
    "bilinear form": ("bi,ij,bj->b", "x c h", (3,), {"c": weight(3, 3)}),
    "scores": ("bqd,bkd->bqk", "x h", (4, 3), {}),
    "heads": ("bhqd,bhkd->bhqk", "x h", (2, 4, 3), {}),
    "mixing of tokens": ("bqk,bkd->bqd", "x k", (4, 3), {}),
    "outer product": ("bi,bj->bij", "x h", (3,), {}),
    "entry by entry": ("bi,bi->bi", "x h", (3,), {}),
    "inner product": ("bi,bi->b", "x h", (3,), {}),
    "square": ("bi,bi->b", "x x", (3,), {}),
    "per channel": ("bcs,cod->bosd", "x c", (2, 3), {"c": weight(2, 4, 2)}),
    "constant first": ("hdo,bshd->bso", "c x", (3, 2, 4), {"c": weight(2, 4, 5)}),
    "sum": ("bij->b", "x", (2, 3), {}),
    "sum, implicit": ("bij,c", "x c", (2, 3), {"c": weight(2)}),
    "transpose": ("bij->bji", "x", (2, 3), {}),
    "diagonal": ("bii->bi", "x", (3, 3), {}),
    "trace": ("bii->b", "x", (3, 3), {}),
    "diagonal of three": ("biii->bi", "x", (2, 2, 2), {}),
    "diagonal of a constant": ("bi,jj->bij", "x c", (3,), {"c": weight(2, 2)}),
    "ellipsis of two": ("b...i,b...i->b...", "x h", (2, 4, 3), {}),
    "ellipsis that broadcasts": ("b...i,...io->b...o", "x c", (2, 1, 3), {"c": weight(1, 4, 3, 2)}),
    "upper case": ("bA,Aa->ba", "x c", (3,), {"c": weight(3, 2)}),
    "three operands": ("bi,bj,jo->bio", "x h c", (3,), {"c": weight(3, 2)}),
    "summed in one operand": ("bij,bk->bk", "x c", (2, 3), {"c": weight(1, 4)}),
}


@pytest.mark.parametrize("name", EINSUMS)
def test_einsum(name: str) -> None:
    equation, operands, sample, constants = EINSUMS[name]
    nodes = [node("Tanh", "x", "h"), node("Einsum", operands, equation=equation)]
    if "k" in operands:
        nodes.insert(0, node("Transpose", "x", "k", perm=[0, 2, 1]))
    assert_lowers_exactly(make_model(nodes, sample, constants, opset=12, check=False), sample)


@given(seed=seeds)
def test_einsum_of_any_two_operands(seed: int) -> None:
    """Random equations: every letter in one operand or both, in the result or summed."""
    rng = np.random.default_rng(seed)
    lengths = {name: int(rng.integers(1, 4)) for name in "abcde"}
    where = {name: rng.choice(["left", "right", "both"]) for name in lengths}
    left = ["z", *(n for n in lengths if where[n] != "right")]
    right = [n for n in lengths if where[n] != "left"] + (["z"] if rng.random() < 0.5 else [])
    result = ["z", *(n for n in lengths if rng.random() < 0.5)]
    sample = tuple(lengths[n] for n in left[1:])
    equation = f"{''.join(left)},{''.join(rng.permutation(right))}->{''.join(rng.permutation(result))}"
    shape = [lengths.get(n, 1) for n in equation.partition(",")[2].partition("->")[0]]
    model = make_model(
        [node("Einsum", "x c", equation=equation)], sample, {"c": weight(*shape, seed=seed)}, check=False
    )
    graph_result = equation.partition("->")[2]
    if graph_result.startswith("z"):
        assert_lowers_exactly(model, sample, seed)
    else:
        with pytest.raises(UnsupportedOperator, match="row"):
            lower(model)


def attention(inputs: str = "q k v", sample: tuple[int, ...] = (3, 8), outputs: str = "y", **attributes: Any) -> Any:
    """Queries, keys and values are three functions of x; with `heads` they are (batch, heads, tokens, entries)."""
    split = node("Split", "x", "a b c", axis=-1, num_outputs=3)
    nodes = [split, node("Tanh", "a", "q"), node("Identity", "b", "k"), node("Relu", "c", "v")]
    return [*nodes, node("Attention", inputs, outputs, **attributes)], (*sample[:-1], 3 * sample[-1])


CAUSAL = np.tri(3, dtype=bool)
FLOATS = np.where(np.tri(3, 3, 1, dtype=bool), weight(3, 3), -np.inf).astype(np.float32)
ATTENTIONS: dict[str, tuple[dict[str, Any], dict[str, np.ndarray]]] = {
    "plain": ({}, {}),
    "scaled": ({"scale": 0.75}, {}),
    "capped": ({"softcap": 0.5}, {}),
    "causal": ({"is_causal": 1}, {}),
    "boolean mask": ({}, {"mask": CAUSAL}),
    "boolean mask per head": ({}, {"mask": np.stack([CAUSAL, CAUSAL.T])[None]}),
    "boolean mask, causal": ({"is_causal": 1}, {"mask": np.array([[1, 0, 1]] * 3, bool)}),
    "added mask": ({}, {"mask": weight(3, 3)}),
    "added mask with infinity": ({}, {"mask": FLOATS}),
    "added mask with the lowest number": ({}, {"mask": np.maximum(FLOATS, np.finfo(np.float32).min)}),
    "added mask, causal": ({"is_causal": 1}, {"mask": weight(1, 2, 3, 3)}),
    "soft mask": ({}, {"mask": np.where(CAUSAL, 0, -1e4).astype(np.float32)}),
}


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize("axes", [3, 4])
def test_attention(name: str, opset: int, axes: int) -> None:
    attributes, constants = ATTENTIONS[name]
    inputs = "q k v mask" if constants else "q k v"
    if axes == 3:
        heads = {"q_num_heads": 2, "kv_num_heads": 2}
        nodes, sample = attention(inputs, (3, 8), **heads, **attributes)
    else:
        nodes, sample = attention(inputs, (2, 3, 4), **attributes)
    assert_lowers_exactly(make_model(nodes, sample, constants, opset=opset), sample)


@pytest.mark.parametrize(("queries", "keys"), [(4, 2), (4, 1), (2, 2)])
def test_heads_that_share_keys_and_values(queries: int, keys: int) -> None:
    split = node("Split", "x s", "q k v", axis=-1)
    layer = node("Attention", "q k v", q_num_heads=queries, kv_num_heads=keys)
    sizes = integers(queries * 2, keys * 2, keys * 3)
    model = make_model([split, layer], (3, int(sizes.sum())), {"s": sizes}, opset=23)
    assert_lowers_exactly(model, (3, int(sizes.sum())))


@pytest.mark.parametrize("constant", ["q", "k", "v", "qk", "kv"])
def test_constant_queries_keys_or_values(constant: str) -> None:
    inputs = " ".join(f"c{name}" if name in constant else name for name in "qkv")
    nodes, sample = attention(inputs, (2, 3, 4), softcap=0.5)
    constants = {f"c{name}": weight(1, 2, 3, 4, seed=i) for i, name in enumerate("qkv") if name in constant}
    model = make_model(nodes, sample, constants, opset=23, batch=1)
    assert_lowers_exactly(model, sample)


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_scores_as_an_output(mode: int) -> None:
    nodes, sample = attention("q k v mask", (2, 3, 4), "z n1 n2 s", softcap=2.0, qk_matmul_output_mode=mode)
    model = make_model(nodes, sample, {"mask": weight(3, 3)}, opset=23, outputs=["z", "s"])
    points = weight(5, *sample)
    np.testing.assert_allclose(
        evaluate(lower(model, "s"), points), run_onnxruntime(model, points, "s"), rtol=1e-5, atol=1e-5
    )


def test_windows_of_keys() -> None:
    """onnxruntime has no attention of opset 25 yet; the definition is the standard's."""
    nodes, sample = attention("q k v", (2, 3, 4), left_window_size=1, right_window_size=0)
    model = make_model(nodes, sample, opset=25, check=False)

    def function(x: torch.Tensor) -> torch.Tensor:
        q, k, v = x.chunk(3, dim=-1)
        return F.scaled_dot_product_attention(torch.tanh(q), k, torch.relu(v), torch.ones(3, 3).tril().triu(-1).bool())

    assert_agrees_with_torch(model, sample, function)


def test_derivative_of_attention_is_that_of_torch() -> None:
    for name, masked in (("plain", None), ("causal", torch.from_numpy(CAUSAL))):
        nodes, sample = attention("q k v", (2, 3, 4), **ATTENTIONS[name][0])

        def function(x: torch.Tensor, mask: torch.Tensor | None = masked) -> torch.Tensor:
            q, k, v = x.chunk(3, dim=-1)
            return F.scaled_dot_product_attention(torch.tanh(q), k, torch.relu(v), mask)

        assert_agrees_with_torch(make_model(nodes, sample, opset=23), sample, function)


def test_derivative_of_products_is_that_of_torch() -> None:
    nodes = [node("Tanh", "x", "h"), node("Einsum", "x h", "g", equation="bqd,bkd->bqk"), node("MatMul", "g x")]
    assert_agrees_with_torch(make_model(nodes, (3, 2)), (3, 2), lambda x: x @ torch.tanh(x).mT @ x)


BOUNDED: dict[str, tuple[list[onnx.NodeProto], dict[str, np.ndarray], tuple[int, ...]]] = {
    "MatMul": ([node("MatMul", "a a", "b")], {}, (2, 2)),
    "MatMul of a stack": ([node("MatMul", "a c", "b")], {"c": np.float32([[[1, 2]], [[-1, 0.5]]])}, (2, 1, 1)),
    "Einsum": ([node("Einsum", "a a", "b", equation="bij,bkj->bik")], {}, (2, 2)),
    "Attention": ([node("Attention", "a a a", "b", q_num_heads=1, kv_num_heads=1)], {}, (2, 2)),
}


@pytest.mark.parametrize("name", BOUNDED)
@given(seed=seeds, radius=st.sampled_from([0.0, 0.05, 0.5]))
def test_bounds_contain_exact_values_and_derivatives(name: str, seed: int, radius: float) -> None:
    nodes, constants, shape = BOUNDED[name]
    assert_bounds_hold(between_layers(nodes, shape, constants, seed, opset=23), seed, radius)


REFUSED: dict[str, tuple[Any, tuple[int, ...], dict[str, np.ndarray], str]] = {
    "MatMul of lengths that differ": (node("MatMul", "x c"), (3,), {"c": weight(2, 2)}, "3 and 2 entries"),
    "MatMul of a number": (node("MatMul", "x c"), (3,), {"c": np.float32(1)}, "no axes"),
    "Gemm of three axes": (node("Gemm", "x c"), (2, 3), {"c": weight(3, 2)}, "two axes"),
    "Gemm with an addend that grows": (node("Gemm", "x c b"), (3,), {"c": weight(3, 1), "b": weight(2)}, "addend"),
    "Einsum of a missing axis": (node("Einsum", "x", equation="bi->bij"), (3,), {}, "no operand has"),
    "Einsum of two lengths": (node("Einsum", "x c", equation="bi,bi->b"), (3,), {"c": weight(1, 2)}, "one name"),
    "Einsum of too few axes": (node("Einsum", "x", equation="bij->b"), (3,), {}, "does not fit"),
    "Einsum of two ellipses": (node("Einsum", "x c", equation="...i,...i->..."), (2, 3), {"c": weight(3)}, "ellipsis"),
    "Einsum of too many terms": (node("Einsum", "x", equation="bi,bi->b"), (3,), {}, "2 terms for 1"),
    "Attention with a cache": (
        node("Attention", "x x x _ p p", q_num_heads=1, kv_num_heads=1), (3, 4), {"p": weight(1, 1, 2, 4)}, "cache",
    ),
    "Attention of heads that do not divide": (
        node("Attention", "x x x", q_num_heads=3, kv_num_heads=3), (3, 4), {}, "3 heads",
    ),
    "Attention of heads that do not share": (
        node("Attention", "x x x", q_num_heads=2, kv_num_heads=4), (3, 4), {}, "cannot share",
    ),
    "Attention with a row of its own mask empty": (
        node("Attention", "x x x m", q_num_heads=1, kv_num_heads=1), (2, 4), {"m": np.array([[True, True], [False, False]])},
        "masked altogether",
    ),
    "Attention with a mask that grows": (
        node("Attention", "x x x m", q_num_heads=1, kv_num_heads=1), (2, 4), {"m": weight(3, 2, 2)}, "mask of shape",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused(name: str) -> None:
    layer, sample, constants, reason = REFUSED[name]
    with pytest.raises(UnsupportedOperator, match=reason) as error:
        lower(make_model([layer], sample, constants, opset=23, check=False))
    assert error.value.node == "make_y"


def test_rows_that_attend_to_each_other_are_refused() -> None:
    nodes = [
        node("Reshape", "x s", "a"),
        node("Attention", "a a a", "b", q_num_heads=1, kv_num_heads=1),
        node("Reshape", "b t"),
    ]
    model = make_model(nodes, (4,), {"s": integers(1, -1, 4), "t": integers(-1, 4)}, opset=23, check=False)
    with pytest.raises(UnsupportedOperator, match=r"Attention.*mixes the rows"):
        lower(model)


def test_every_row_has_a_case() -> None:
    assert set(lowering_products.ROWS) | set(lowering_attention.ROWS) == {"MatMul", "Gemm", "Einsum", "Attention"}
