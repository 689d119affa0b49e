"""RNN, GRU and LSTM of any direction, state and activations, against onnxruntime, torch and exact numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from torch import nn

from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.errors import UnsupportedOperator
from mlflow_lipschitz.frontends import lowering_recurrent
from mlflow_lipschitz.frontends.lowering import lower
from tests.frontends.checks import assert_agrees_with_torch, assert_bounds_hold, between_layers
from tests.frontends.onnx_models import assert_lowers_exactly, make_model, node

seeds = st.integers(0, 2**32 - 1)
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
CURVES = {"RNN": 1, "GRU": 2, "LSTM": 3}
STEPS, ENTRIES, HIDDEN = 3, 2, 3


def weight(*shape: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def integers(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def weights(operator: str, directions: int, seed: int = 0) -> dict[str, np.ndarray]:
    rows = GATES[operator] * HIDDEN
    return {
        "W": weight(directions, rows, ENTRIES, seed=seed),
        "R": weight(directions, rows, HIDDEN, seed=seed + 1),
        "B": weight(directions, 2 * rows, seed=seed + 2),
        "h0": np.repeat(weight(directions, 1, HIDDEN, seed=seed + 3), 1, axis=1),
        "c0": weight(directions, 1, HIDDEN, seed=seed + 4),
        "P": weight(directions, 3 * HIDDEN, seed=seed + 5),
    }


def recurrent(
    operator: str, inputs: str = "W R B", output: str = "Y", opset: int = 15, seed: int = 0, **attributes: Any
) -> onnx.ModelProto:
    """The layer on (batch, steps, entries), the batch on axis 0 of what it gives, too; states in the inputs are repeated."""
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    constants = {
        **weights(operator, directions, seed), "first": integers(0, 1), "ones": np.float32([[0.5, -1, 2]]),
        "zero": integers(0), "one": integers(1), "dirs": integers(directions), "hidden": integers(HIDDEN),
        "axes": integers(0),
    }  # fmt: skip
    nodes = [node("Transpose", "x", "s", perm=[1, 0, 2]), node("Shape", "x", "n", start=0, end=1)]
    nodes.append(node("Concat", "dirs n hidden", "shape", axis=0))
    nodes += [node("Expand", f"{name} shape", f"{name}n") for name in ("h0", "c0")]
    given = inputs.replace("h0", "h0n").replace("c0", "c0n")
    layer = node(
        operator, f"s {given}", "Y Y_h Y_c" if operator == "LSTM" else "Y Y_h", hidden_size=HIDDEN, **attributes
    )
    order = [2, 0, 1, 3] if output == "Y" else [1, 0, 2]
    return make_model(
        [*nodes, layer, node("Transpose", output, perm=order)], (STEPS, ENTRIES), constants, opset=opset, check=False
    )


@pytest.mark.parametrize("operator", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("output", ["Y", "Y_h", "Y_c"])
@pytest.mark.parametrize("inputs", ["W R", "W R B", "W R B _ h0"])
def test_recurrent_layers(operator: str, direction: str, output: str, inputs: str) -> None:
    if output == "Y_c" and operator != "LSTM":
        return
    assert_lowers_exactly(recurrent(operator, inputs, output, direction=direction), (STEPS, ENTRIES))


@pytest.mark.parametrize("operator", GATES)
@pytest.mark.parametrize("opset", [7, 15, 22])
def test_operator_sets(operator: str, opset: int) -> None:
    if opset < 13:
        weights_of = weights(operator, 1)
        layer = node(operator, "s W R B", "Y Y_h", hidden_size=HIDDEN)
        nodes = [node("Transpose", "x", "s", perm=[1, 0, 2]), layer, node("Transpose", "Y", perm=[2, 0, 1, 3])]
        model = make_model(nodes, (STEPS, ENTRIES), weights_of, opset=opset)
    else:
        model = recurrent(operator, opset=opset)
    assert_lowers_exactly(model, (STEPS, ENTRIES))


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("inputs", ["W R B _ h0 c0", "W R B _ _ c0", "W R B _ h0 c0 P", "W R _ _ _ _ P"])
def test_states_and_peepholes_of_lstm(direction: str, inputs: str) -> None:
    for output in ("Y", "Y_c"):
        assert_lowers_exactly(recurrent("LSTM", inputs, output, direction=direction), (STEPS, ENTRIES))


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("inputs", ["W R", "W R B", "W R B _ h0"])
def test_reset_gate_of_gru_before_and_after_the_product(before: int, inputs: str) -> None:
    model = recurrent("GRU", inputs, direction="bidirectional", linear_before_reset=before)
    assert_lowers_exactly(model, (STEPS, ENTRIES))


@pytest.mark.parametrize("operator", GATES)
@pytest.mark.parametrize("output", ["Y", "Y_h"])
def test_states_that_depend_on_the_input(operator: str, output: str) -> None:
    nodes = [
        node("Transpose", "x", "s", perm=[1, 0, 2]),
        node("Slice", "x from to axis", "part"),
        node("Concat", "part part", "wide", axis=2),
        node("Slice", "wide from3 to3 axis2", "cut"),
        node("Transpose", "cut", "h", perm=[1, 0, 2]),
        node(operator, "s W R B _ h" + (" h" if operator == "LSTM" else ""), "Y Y_h", hidden_size=HIDDEN),
        node("Transpose", output, perm=[2, 0, 1, 3] if output == "Y" else [1, 0, 2]),
    ]
    constants = {
        **weights(operator, 1), "from": integers(0), "to": integers(1), "axis": integers(1), "from3": integers(0),
        "to3": integers(HIDDEN), "axis2": integers(2),
    }  # fmt: skip
    assert_lowers_exactly(make_model(nodes, (STEPS, ENTRIES), constants, check=False), (STEPS, ENTRIES))


# Names, and the constants of those that take some, in their order.
ACTIVATIONS: dict[str, tuple[list[str], list[float], list[float]]] = {
    "of a ReLU network": (["Relu", "Relu", "Relu"], [], []),
    "defaults": (["HardSigmoid", "LeakyRelu", "Elu"], [], []),
    "constants": (["HardSigmoid", "LeakyRelu", "Elu"], [0.3, 0.1, 0.7], [0.4]),
    "affine": (["Affine", "ScaledTanh", "Softsign"], [0.5, 1.5], [0.25, 0.75]),
    "softplus": (["Sigmoid", "Softplus", "Tanh"], [], []),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("operator", GATES)
def test_activations(name: str, operator: str) -> None:
    names, alphas, betas = ACTIVATIONS[name]
    names = names[: CURVES[operator]]
    attributes: dict[str, Any] = {"activations": names}
    attributes |= (
        {"activation_alpha": alphas[: sum(n not in ("Relu", "Tanh", "Sigmoid") for n in names)]} if alphas else {}
    )
    attributes |= {"activation_beta": betas} if betas else {}
    assert_lowers_exactly(recurrent(operator, **attributes), (STEPS, ENTRIES))


def test_activations_per_direction() -> None:
    names = ["Sigmoid", "Tanh", "Relu", "HardSigmoid", "LeakyRelu", "Tanh"]
    model = recurrent(
        "LSTM", direction="bidirectional", activations=names, activation_alpha=[0.3, 0.2], activation_beta=[0.6]
    )
    assert_lowers_exactly(model, (STEPS, ENTRIES))


@given(seed=seeds, operator=st.sampled_from(list(GATES)))
def test_random_layers(seed: int, operator: str) -> None:
    rng = np.random.default_rng(seed)
    attributes: dict[str, Any] = {"direction": str(rng.choice(["forward", "reverse", "bidirectional"]))}
    if operator == "GRU":
        attributes["linear_before_reset"] = int(rng.integers(0, 2))
    inputs = str(rng.choice(["W R", "W R B", "W R B _ h0", "W R _ _ h0"]))
    output = str(rng.choice(["Y", "Y_h"]))
    assert_lowers_exactly(recurrent(operator, inputs, output, seed=seed % 1000, **attributes), (STEPS, ENTRIES), seed)


@pytest.mark.parametrize("operator", GATES)
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("output", ["Y", "Y_h"])
def test_batch_first(operator: str, direction: str, output: str) -> None:
    """onnxruntime has no layout 1: it must be what layout 0 gives of the transposed sequence."""
    directions = 2 if direction == "bidirectional" else 1
    constants = weights(operator, directions)
    constants["h0"] = constants["h0"].transpose(1, 0, 2)
    layer = node(operator, "x W R B _ h0", "Y Y_h", hidden_size=HIDDEN, direction=direction, layout=1)
    model = make_model([layer, node("Identity", output)], (STEPS, ENTRIES), constants, batch=1, check=False)
    other = recurrent(operator, "W R B _ h0", output, direction=direction)
    points = weight(4, STEPS, ENTRIES)
    np.testing.assert_allclose(evaluate(lower(model), points), evaluate(lower(other), points), rtol=1e-12, atol=1e-12)


def test_batch_first_by_the_reference_of_the_standard() -> None:
    constants = weights("GRU", 1)
    layer = node("GRU", "x W R B", "Y Y_h", hidden_size=HIDDEN, layout=1)
    model = make_model([layer, node("Identity", "Y_h")], (STEPS, ENTRIES), constants, batch=1, check=False)
    point = weight(1, STEPS, ENTRIES)
    (expected,) = ReferenceEvaluator(model).run(["y"], {"x": point})
    np.testing.assert_allclose(evaluate(lower(model), point)[0], np.ravel(expected), rtol=1e-5, atol=1e-6)


def of_torch(layer: nn.Module, operator: str) -> dict[str, np.ndarray]:
    """The weights of a torch layer in the order of ONNX: torch has i f c o and r z h, ONNX i o f c and z r h."""
    order = {"RNN": [0], "GRU": [1, 0, 2], "LSTM": [0, 3, 1, 2]}[operator]
    values = {name: value.detach().numpy() for name, value in layer.named_parameters()}

    def gates(name: str) -> np.ndarray:
        parts = np.split(values[name], len(order))
        return np.concatenate([parts[i] for i in order])

    bias = np.concatenate([gates("bias_ih_l0"), gates("bias_hh_l0")])
    return {"W": gates("weight_ih_l0")[None], "R": gates("weight_hh_l0")[None], "B": bias[None]}


@pytest.mark.parametrize("operator", GATES)
def test_values_and_derivatives_are_those_of_torch(operator: str) -> None:
    torch.manual_seed(0)
    layer = getattr(nn, operator)(ENTRIES, HIDDEN, batch_first=True)
    attributes = {"linear_before_reset": 1} if operator == "GRU" else {}
    constants = of_torch(layer, operator)
    nodes = [
        node("Transpose", "x", "s", perm=[1, 0, 2]),
        node(operator, "s W R B", "Y", hidden_size=HIDDEN, **attributes),
        node("Transpose", "Y", perm=[2, 0, 1, 3]),
    ]
    layer = layer.double().requires_grad_(False)
    assert_agrees_with_torch(make_model(nodes, (STEPS, ENTRIES), constants), (STEPS, ENTRIES), lambda x: layer(x)[0])


@pytest.mark.parametrize("operator", GATES)
@given(seed=seeds, radius=st.sampled_from([0.0, 0.05, 0.5]))
def test_bounds_contain_exact_values_and_derivatives(operator: str, seed: int, radius: float) -> None:
    rows = GATES[operator]
    constants = {
        "W": np.round(weight(1, rows, 2, seed=seed) * 4) / 4, "R": np.round(weight(1, rows, 1, seed=seed + 1) * 4) / 4
    }  # fmt: skip
    nodes = [node("Transpose", "a", "s", perm=[1, 0, 2]), node(operator, "s W R", "_ h", hidden_size=1)]
    nodes.append(node("Transpose", "h", "b", perm=[1, 0, 2]))
    assert_bounds_hold(between_layers(nodes, (2, 2), constants, seed), seed, radius)


REFUSED: dict[str, tuple[onnx.ModelProto, str]] = {
    "clip": (recurrent("LSTM", clip=0.5), "clips"),
    "coupled gates": (recurrent("LSTM", input_forget=1), "couples"),
    "an activation that jumps": (
        recurrent("GRU", activations=["ThresholdedRelu", "Tanh"], activation_alpha=[1.0]), "ThresholdedRelu",
    ),
    "an activation without its constants": (recurrent("RNN", activations=["Affine"]), "activation_alpha"),
    "too few activations": (recurrent("LSTM", activations=["Tanh"]), "3 are expected"),
    "a direction that does not exist": (recurrent("RNN", direction="sideways"), "sideways"),
    "weights of another operator": (recurrent("LSTM", "R W B"), "do not fit"),
    "a state of another size": (recurrent("LSTM", "W R B _ _ W"), "initial state"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused(name: str) -> None:
    model, reason = REFUSED[name]
    with pytest.raises(UnsupportedOperator, match=reason) as error:
        lower(model)
    assert error.value.operator in GATES


def test_sequences_of_several_lengths_are_refused_and_of_one_length_are_not() -> None:
    def model(length: int) -> onnx.ModelProto:
        nodes = [
            node("Transpose", "x", "s", perm=[1, 0, 2]), node("RNN", "s W R B lengths", "_ h", hidden_size=HIDDEN),
            node("Transpose", "h", perm=[1, 0, 2]),
        ]  # fmt: skip
        constants = {**weights("RNN", 1), "lengths": np.array([length], dtype=np.int32)}
        return make_model(nodes, (STEPS, ENTRIES), constants, batch=1, check=False)

    assert_lowers_exactly(model(STEPS), (STEPS, ENTRIES))
    with pytest.raises(UnsupportedOperator, match="different steps"):
        lower(model(STEPS - 1))


def test_a_sequence_along_the_batch_is_refused() -> None:
    nodes = [node("Unsqueeze", "x axes", "s"), node("RNN", "s W R B", "Y"), node("Squeeze", "Y axes2")]
    constants = {**weights("RNN", 1), "axes": integers(1), "axes2": integers(1, 2)}
    with pytest.raises(UnsupportedOperator, match=r"rows"):
        lower(make_model(nodes, (ENTRIES,), constants, check=False))


def test_every_row_has_a_case() -> None:
    assert set(lowering_recurrent.ROWS) == set(GATES)
