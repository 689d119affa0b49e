"""Tokens and categories do not move: what is certified begins where they are looked up as real numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from mlflow_lipschitz.certify import certified_radius, certify_lipschitz
from mlflow_lipschitz.engine.domains.region import Box
from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.errors import InvalidData, UnsupportedOperator, UsageError
from mlflow_lipschitz.frontends import encode, trace
from mlflow_lipschitz.frontends.discrete import DividedModel, divide
from mlflow_lipschitz.frontends.discrete_columns import COLUMNS_KEY
from mlflow_lipschitz.frontends.discrete_support import support_of_all
from mlflow_lipschitz.frontends.lowering import lower
from mlflow_lipschitz.frontends.row_layout import row_layout
from mlflow_lipschitz.frontends.to_onnx import to_onnx

WORDS, LENGTH, WIDTH = 20, 5, 8


class Bag(nn.Module):
    """Mean of embeddings, then a multi-layer perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.head = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, 3))

    def behind(self, embedded: torch.Tensor) -> torch.Tensor:
        return self.head(embedded.mean(1))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.behind(self.embedding(tokens))


class Attention(Bag):
    """Learned positions and a transformer layer before the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Embedding(LENGTH, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True, activation="gelu")

    def behind(self, embedded: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(embedded.shape[1], device=embedded.device)
        return self.head(self.layer(embedded + self.position(positions)).mean(1))


class Padded(Bag):
    """Token 0 is padding: it has no weight in the mean. The weights follow the tokens, and so do not move."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        rows, length = tokens.shape
        weights = (tokens != 0).float().unsqueeze(-1)
        embedded = self.embedding(tokens).reshape(rows, length, 2, WIDTH // 2).reshape(rows, length, WIDTH)
        return self.head((embedded * weights).sum(1) / weights.sum(1).clamp(min=1.0))


class Tabular(Bag):
    """Embedded codes beside nothing else, each column by a table of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Embedding(WORDS, 2)
        self.both = nn.Linear(WIDTH + 2, 2)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        return self.both(torch.cat([self.embedding(codes[:, 0]), self.second(codes[:, 1])], 1))


def network(kind: type[Bag]) -> Bag:
    torch.manual_seed(0)
    return kind().eval()


def tokens(rows: int = 4) -> torch.Tensor:
    found = torch.randint(0, WORDS, (rows, LENGTH), generator=torch.Generator().manual_seed(1))
    found[0, 3:] = 0
    return found


@pytest.mark.parametrize("kind", [Bag, Attention, Padded, Tabular])
def test_the_graph_at_the_points_of_a_row_is_the_model_on_the_row(kind: type[Bag]) -> None:
    model, rows = network(kind), tokens()
    graph, points = trace(model, rows), encode(model, rows)
    expected = model(rows).detach().numpy()
    np.testing.assert_allclose(evaluate(graph, points).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_what_moves_is_the_embedding() -> None:
    model, rows = network(Bag), tokens()
    assert trace(model, rows).input_shape == (LENGTH, WIDTH)
    np.testing.assert_array_equal(encode(model, rows), model.embedding(rows).detach().numpy().astype(np.float64))


@pytest.mark.parametrize("kind", [Bag, Attention])
def test_bounds_in_the_space_of_embeddings(kind: type[Bag]) -> None:
    model, rows, radius = network(kind), tokens(), 1e-3
    points = encode(model, rows)
    found = certify_lipschitz(trace(model, rows), points, Box.around(points, radius), norm="linf")
    behind = model.double().behind
    steepest = np.zeros(found.upper.shape)
    for seed in range(5):
        shift = radius * (2 * torch.rand(points.shape, generator=torch.Generator().manual_seed(seed)).double() - 1)
        moved = (torch.from_numpy(points) + shift).requires_grad_()
        for output in range(3):
            (gradient,) = torch.autograd.grad(behind(moved)[:, output].sum(), moved)
            steepest[:, output] = np.maximum(steepest[:, output], gradient.abs().flatten(1).sum(1).numpy())
    assert (found.upper >= steepest * (1 - 1e-12)).all()
    assert (found.upper <= 1.05 * steepest + 1e-6).all()


def test_a_decision_in_the_space_of_embeddings() -> None:
    model, rows = network(Bag), tokens()
    graph, points = trace(model, rows), encode(model, rows)
    labels = model(rows).argmax(1).numpy()
    found = certified_radius(graph, points, labels, norm="linf", max_radius=1.0)
    assert (found.radius > 0).all()
    signs = np.sign(np.random.default_rng(0).normal(size=(50, *points.shape)))
    for sign in signs:
        moved = points + 0.999 * found.radius[:, None, None] * sign
        assert (evaluate(graph, moved).argmax(1).numpy() == labels).all()


def test_weights_that_follow_the_tokens_do_not_move() -> None:
    model, rows = network(Padded), tokens()
    divided = divide(to_onnx(model, rows), rows.numpy())
    assert [(part.shape, part.moves) for part in divided.parts] == [
        ((LENGTH, WIDTH), True),
        ((LENGTH, 1), False),
        ((1,), False),
    ]
    assert divided.sources == ("tokens",)
    assert divided.names[0] == "tokens.embedding[0,0]"
    assert divided.fixed.sum() == LENGTH + 1
    padded = divided.points(rows.numpy())[0, divided.fixed]
    np.testing.assert_array_equal(padded, [1, 1, 1, 0, 0, 3])


def test_from_numpy_and_from_a_pt2_archive(tmp_path: Path) -> None:
    model, rows = network(Bag), tokens()
    expected = trace(model, rows).content_hash()
    assert trace(model, rows.numpy()).content_hash() == expected
    assert trace(model, rows.numpy().astype(float)).content_hash() == expected
    program = torch.export.export(model, (rows,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "model.pt2")
    assert trace(tmp_path / "model.pt2").content_hash() == expected
    np.testing.assert_array_equal(encode(tmp_path / "model.pt2", rows), encode(model, rows))


def test_a_module_of_real_numbers_is_not_taken_for_one_of_tokens() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    rows = np.arange(12).reshape(3, 4)
    assert trace(model, rows).input_shape == (4,)
    np.testing.assert_array_equal(encode(model, rows), rows.astype(float))


def onnx_model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[Any]]],
    constants: dict[str, np.ndarray],
    **options: Any,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info("y", options.get("kind", TensorProto.FLOAT), options.get("shape", ["n", "m"]))],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    opsets = [helper.make_opsetid("", options.get("opset", 17)), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    domain = "ai.onnx.ml" if kind in ("OneHotEncoder", "LabelEncoder") else ""
    return helper.make_node(kind, inputs, [output], name=output, domain=domain, **attributes)


def credit() -> onnx.ModelProto:
    """Columns of three types: age (real), region (text), grade (whole), of which the last two are looked up."""
    weight = np.arange(1.0, 13.0, dtype=np.float32).reshape(6, 2)
    return onnx_model(
        [
            node("OneHotEncoder", ["region"], "one", cats_strings=["east", "west"], zeros=0),
            node("Reshape", ["one", "row"], "two"),
            node("OneHotEncoder", ["grade"], "three", cats_int64s=[1, 2, 5], zeros=0),
            node("Reshape", ["three", "row"], "four"),
            node("Concat", ["age", "two", "four"], "all", axis=1),
            node("MatMul", ["all", "weight"], "y"),
        ],
        {
            "age": (TensorProto.FLOAT, ["n", 1]),
            "region": (TensorProto.STRING, ["n", 1]),
            "grade": (TensorProto.INT64, ["n", 1]),
        },
        {"weight": weight, "row": np.array([0, -1])},
        shape=["n", 2],
    )


def people() -> pd.DataFrame:
    return pd.DataFrame({"age": [30.0, 41.5, 60.0], "region": ["west", "east", "west"], "grade": [5, 1, 2]})


def values_of(divided: DividedModel, rows: Any) -> np.ndarray:
    return evaluate(lower(divided.body), divided.points(rows)).numpy()


def test_columns_of_an_onnx_model() -> None:
    divided = divide(credit(), people())
    assert divided.names == ("age", "region=east", "region=west", "grade=1", "grade=2", "grade=5")
    assert divided.fixed.tolist() == [False, *[True] * 5]
    assert divided.sources == ("region", "grade")
    assert [c.kind for c in divided.columns.categories] == ["text", "whole"]
    weight = np.arange(1.0, 13.0).reshape(6, 2)
    one_hot = np.array([[0, 1, 0, 0, 1], [1, 0, 1, 0, 0], [0, 1, 0, 1, 0]])
    expected = np.column_stack([people()["age"], one_hot]) @ weight
    np.testing.assert_allclose(values_of(divided, people()), expected)


@pytest.mark.parametrize(
    ("row", "column", "value", "shown"),
    [(1, "region", "south", "row 1, column 'region'.*'south'"), (2, "grade", 3, "row 2, column 'grade'.*3")],
)
def test_a_lookup_that_refuses_names_row_and_column(row: int, column: str, value: Any, shown: str) -> None:
    divided, rows = divide(credit(), people()), people()
    rows.loc[row, column] = value
    with pytest.raises(InvalidData, match=shown):
        divided.points(rows)


def test_a_whole_number_is_one() -> None:
    divided = divide(credit(), people())
    with pytest.raises(InvalidData, match=r"row 1: 1\.5 is no int64.*'grade'"):
        divided.points(people().assign(grade=[1, 1.5, 2]))


def test_text_needs_an_example() -> None:
    with pytest.raises(UsageError, match="'region': give an example"):
        divide(credit())


def test_real_columns_that_are_inputs_of_their_own_become_one_tensor() -> None:
    model = onnx_model(
        [node("Concat", ["b", "a"], "all", axis=1), node("MatMul", ["all", "weight"], "y")],
        {"a": (TensorProto.DOUBLE, ["n", 1]), "b": (TensorProto.DOUBLE, ["n", 1])},
        {"weight": np.array([[10.0], [1.0]])},
        kind=TensorProto.DOUBLE,
        shape=["n", 1],
    )
    divided = divide(model)
    assert divided.names == ("a", "b") and not divided.fixed.any() and divided.sources == ()
    rows = np.array([[1.0, 2.0], [3.0, 4.0]])
    np.testing.assert_array_equal(values_of(divided, rows), [[21.0], [43.0]])
    frame = pd.DataFrame(rows, columns=["a", "b"])
    np.testing.assert_array_equal(values_of(divided, frame), [[21.0], [43.0]])


def test_a_file_cannot_call_its_inputs_by_other_names() -> None:
    model = credit()
    note = {"names": ["region", "age", "grade"], "inputs": {"age": [1], "region": [0], "grade": [2]}, "unread": []}
    model.metadata_props.add(key=COLUMNS_KEY, value=json.dumps(note))
    model.metadata_props.add(key="author", value="someone")
    assert row_layout(model).names == ("age", "region", "grade")
    taken = to_onnx(model, people())
    assert [entry.key for entry in taken.metadata_props] == ["author"]
    assert len(model.metadata_props) == 2


@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_of_fixed_length(batch: int) -> None:
    table = np.random.default_rng(0).normal(size=(WORDS, 2)).astype(np.float32)
    model = onnx_model(
        [node("Gather", ["table", "ids"], "rows"), node("ReduceMean", ["rows"], "y", axes=[1], keepdims=0)],
        {"ids": (TensorProto.INT64, [batch, 4])},
        {"table": table},
        shape=[batch, 2],
    )
    rows = np.random.default_rng(1).integers(0, WORDS, size=(5, 4))
    divided = divide(model)
    assert divided.points(rows).shape == (5, 4, 2)
    np.testing.assert_allclose(values_of(divided, rows), table[rows].mean(axis=1), rtol=1e-6)


def test_the_shape_of_a_discrete_input_is_asked_of_the_points() -> None:
    table = np.random.default_rng(0).normal(size=(WORDS, 6)).astype(np.float32)
    for opset, bounds in ((13, {}), (17, {"start": 0, "end": 2})):
        model = onnx_model(
            [
                node("Shape", ["ids"], "shape", **bounds),
                node("Concat", ["shape", "split"], "target", axis=0),
                node("Gather", ["table", "ids"], "rows"),
                node("Reshape", ["rows", "target"], "apart"),
                node("ReduceMean", ["apart"], "y", axes=[1, 2], keepdims=0),
            ],
            {"ids": (TensorProto.INT64, ["n", 4])},
            {"table": table, "split": np.array([2, 3])},
            shape=["n", 3],
            opset=opset,
        )
        rows = np.random.default_rng(1).integers(0, WORDS, size=(3, 4))
        expected = table[rows].reshape(3, 4, 2, 3).mean(axis=(1, 2))
        np.testing.assert_allclose(values_of(divide(model), rows), expected, rtol=1e-5, atol=1e-7)


def test_the_table_of_nodes_has_lookups_first() -> None:
    nodes = support_of_all(credit(), people())
    assert [(row.op_type, row.verdict) for row in nodes[:4]] == [("OneHotEncoder", "exact"), ("Reshape", "exact")] * 2
    assert all("before the perturbation" in row.note for row in nodes[:4])
    assert {row.op_type for row in nodes[4:]} == {"Gather", "Identity", "Concat", "MatMul"}
    (refused,) = support_of_all(REFUSED["do not move"])
    assert refused.verdict == "unsupported" and "do not move" in refused.note


def test_a_model_of_one_real_tensor_is_left_as_it_is() -> None:
    model = onnx_model([node("Relu", ["x"], "y")], {"x": (TensorProto.FLOAT, ["n", 3])}, {}, shape=["n", 3])
    divided = divide(model)
    assert divided.body is model and divided.parts == ()


REFUSED = {
    "do not move": onnx_model(
        [node("Cast", ["ids"], "y", to=TensorProto.FLOAT)], {"ids": (TensorProto.INT64, ["n", 4])}, {}, shape=["n", 4]
    ),
    "decides what it computes": onnx_model(
        [
            node("Gather", ["table", "ids"], "rows"),
            node("Equal", ["ids", "nothing"], "padding"),
            node("Unsqueeze", ["padding", "last"], "mask"),
            node("Where", ["mask", "far", "rows"], "y"),
        ],
        {"ids": (TensorProto.INT64, ["n", 4])},
        {
            "table": np.ones((WORDS, 2), np.float32),
            "nothing": np.array(0),
            "last": np.array([2]),
            "far": np.array(-9.0, np.float32),
        },
        shape=["n", 4, 2],
    ),
    "axis 0 of it is not the batch": onnx_model(
        [
            node("Transpose", ["ids"], "turned", perm=[1, 0]),
            node("Gather", ["table", "turned"], "rows"),
            node("ReduceMean", ["rows"], "y", axes=[0], keepdims=0),
        ],
        {"ids": (TensorProto.INT64, ["n", 4])},
        {"table": np.ones((WORDS, 2), np.float32)},
        shape=["n", 2],
    ),
    "partly float32 and partly float64": onnx_model(
        [
            node("Gather", ["table", "id"], "rows"),
            node("Cast", ["rows"], "double", to=TensorProto.DOUBLE),
            node("Flatten", ["double"], "flat"),
            node("Concat", ["x", "flat"], "y", axis=1),
        ],
        {"x": (TensorProto.DOUBLE, ["n", 1]), "id": (TensorProto.INT64, ["n", 1])},
        {"table": np.ones((WORDS, 2), np.float32)},
        kind=TensorProto.DOUBLE,
        shape=["n", 3],
    ),
    "depends on the other rows": onnx_model(
        [
            node("Cast", ["code"], "real", to=TensorProto.FLOAT),
            node("ReduceSum", ["real", "rows"], "all"),
            node("Div", ["real", "all"], "share"),
            node("Concat", ["x", "share"], "y", axis=1),
        ],
        {"x": (TensorProto.FLOAT, ["n", 1]), "code": (TensorProto.INT64, ["n", 1])},
        {"rows": np.array([0])},
    ),
    "takes samples of shape": onnx_model(
        [node("Gather", ["table", "ids"], "rows"), node("Add", ["rows", "shift"], "y")],
        {"ids": (TensorProto.INT64, ["n", 4]), "shift": (TensorProto.FLOAT, ["n", 4, 2])},
        {"table": np.ones((WORDS, 2), np.float32)},
        shape=["n", 4, 2],
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_divided_is_refused(reason: str) -> None:
    with pytest.raises(UnsupportedOperator, match=reason) as refusal:
        divide(REFUSED[reason], np.ones((2, 2)) if "rows" in reason else None)
    assert refusal.value.remedy
