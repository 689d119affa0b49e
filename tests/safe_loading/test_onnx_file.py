"""ONNX files: honest ones are read, larger ones than any model are refused before they are parsed, none leaves its folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mlflow_lipschitz.errors import UntrustedModel
from mlflow_lipschitz.frontends.to_onnx import to_onnx
from mlflow_lipschitz.safe_loading.onnx_file import LIMITS, Limits, read_onnx
from mlflow_lipschitz.safe_loading.structure import Unexpected
from tests.registry.stores import onnx_model


def saved(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def with_external(location: str, offset: int | None = None) -> onnx.ModelProto:
    """The network with its first weights in the file `location`."""
    model = onnx_model()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    if offset is not None:
        tensor.external_data.add(key="offset", value=str(offset))
    return model


def first_weights() -> np.ndarray:
    return numpy_helper.to_array(onnx_model().graph.initializer[0])


def test_an_honest_model_is_the_one_in_the_file(tmp_path: Path) -> None:
    assert read_onnx(saved(tmp_path / "model.onnx", onnx_model())) == onnx_model()


def test_weights_beside_the_model_are_read(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "first.bin").write_bytes(first_weights().tobytes())
    model = read_onnx(saved(tmp_path / "model.onnx", with_external("parts/first.bin")))
    assert np.array_equal(numpy_helper.to_array(model.graph.initializer[0]), first_weights())


def _outside(folder: Path) -> list[str]:
    (folder / "secret.bin").write_bytes(first_weights().tobytes())
    inside = folder / "model"
    inside.mkdir()
    (inside / "link.bin").symlink_to(folder / "secret.bin")
    (inside / "folder").symlink_to(folder)
    (inside / "same.bin").write_bytes(b"")
    (inside / "link-inside.bin").symlink_to(inside / "same.bin")
    absolute = str(folder / "secret.bin")
    inner = ["link.bin", "folder/secret.bin", "link-inside.bin", "a/../../secret.bin"]
    return [absolute, "../secret.bin", "./../secret.bin", *inner, "", ".", "..", "x\0y", "/dev/zero", "y" * 2000]


@pytest.mark.skipif(sys.platform == "win32", reason="makes symbolic links")
def test_weights_anywhere_else_are_refused(tmp_path: Path) -> None:
    for location in _outside(tmp_path):
        path = saved(tmp_path / "model" / "model.onnx", with_external(location))
        with pytest.raises(Unexpected, match="outside the model's folder"):
            read_onnx(path)
        with pytest.raises(UntrustedModel, match="outside the model's folder"):
            to_onnx(path)


def _attribute(tensor: TensorProto) -> onnx.ModelProto:
    model = onnx_model()
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))
    return model


def _subgraph(tensor: TensorProto) -> onnx.ModelProto:
    model, inner = onnx_model(), helper.make_graph([], "inner", [], [], [tensor])
    model.graph.node.append(helper.make_node("If", ["x"], ["c"], then_branch=inner, else_branch=inner))
    return model


def _function(tensor: TensorProto) -> onnx.ModelProto:
    model = onnx_model()
    body = [helper.make_node("Constant", [], ["c"], value=tensor)]
    model.functions.append(helper.make_function("mine", "f", [], ["c"], body, [helper.make_opsetid("", 17)]))
    return model


def _sparse(tensor: TensorProto) -> onnx.ModelProto:
    model = onnx_model()
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(tensor, indices, [3]))
    return model


@pytest.mark.parametrize("place", [_attribute, _subgraph, _function, _sparse], ids=lambda f: f.__name__[1:])
def test_no_tensor_is_overlooked(tmp_path: Path, place: Callable[[TensorProto], onnx.ModelProto]) -> None:
    tensor = helper.make_tensor("t", TensorProto.FLOAT, [1], [0.0])
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.bin")
    with pytest.raises(Unexpected, match="outside the model's folder"):
        read_onnx(saved(tmp_path / "model.onnx", place(tensor)))


def test_a_place_given_twice_is_looked_at_twice(tmp_path: Path) -> None:
    model = with_external("../secret.bin")
    model.graph.initializer[0].external_data.add(key="location", value="model.onnx")
    with pytest.raises(Unexpected, match="outside"):
        read_onnx(saved(tmp_path / "model.onnx", model))


def test_too_many_nodes_are_refused_before_they_are_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx_model()
    model.graph.node.extend([helper.make_node("Relu", ["x"], ["y"])] * 300)
    path = saved(tmp_path / "model.onnx", model)
    assert len(read_onnx(path).graph.node) == 303
    monkeypatch.setattr(onnx, "load", lambda *_, **__: pytest.fail("it was parsed"))
    with pytest.raises(Unexpected, match="more than 302 nodes"):
        read_onnx(path, Limits(nodes=302))
    with pytest.raises(Unexpected, match="more than 1000 parts"):
        read_onnx(path, Limits(fields=1000))
    with pytest.raises(Unexpected, match="bytes, where 100 are allowed"):
        read_onnx(path, Limits(size=100))


def test_nodes_hidden_in_functions_and_subgraphs_count(tmp_path: Path) -> None:
    inner = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])] * 50, "inner", [], [])
    model = onnx_model()
    model.graph.node.append(helper.make_node("If", ["x"], ["c"], then_branch=inner, else_branch=inner))
    body = [helper.make_node("Relu", ["x"], ["y"])] * 50
    model.functions.append(helper.make_function("mine", "f", ["x"], ["y"], body, [helper.make_opsetid("", 17)]))
    with pytest.raises(Unexpected, match="more than 150 nodes"):
        read_onnx(saved(tmp_path / "model.onnx", model), Limits(nodes=150))


def test_nesting_without_end_is_refused(tmp_path: Path) -> None:
    graph = helper.make_graph([], "innermost", [], [])
    for _ in range(25):
        graph = helper.make_graph([helper.make_node("If", ["x"], ["y"], then_branch=graph)], "g", [], [])
    model = onnx_model()
    model.graph.CopyFrom(graph)
    with pytest.raises(Unexpected, match="levels deep"):
        read_onnx(saved(tmp_path / "model.onnx", model))


def test_tiny_parts_are_counted(tmp_path: Path) -> None:
    """Two bytes each in the file, an object each in memory: a hundred times their size."""
    assert LIMITS.fields <= 2_000_000
    node = b"\x0a\x00" * 10_000
    graph = b"\x0a" + _varint(len(node)) + node
    (tmp_path / "model.onnx").write_bytes(b"\x08\x09\x3a" + _varint(len(graph)) + graph)
    with pytest.raises(Unexpected, match="parts"):
        read_onnx(tmp_path / "model.onnx", Limits(fields=10_000))


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


@pytest.mark.skipif(sys.platform == "win32", reason="a file of two gigabytes without content needs holes")
def test_two_gigabytes_are_refused_at_once(tmp_path: Path) -> None:
    with (tmp_path / "model.onnx").open("wb") as stream:
        os.ftruncate(stream.fileno(), 2**31)
    with pytest.raises(Unexpected, match="2147483648 bytes"):
        read_onnx(tmp_path / "model.onnx")


def test_the_name_of_a_file_does_not_choose_how_it_is_read(tmp_path: Path) -> None:
    assert read_onnx(saved(tmp_path / "model.json", onnx_model())) == onnx_model()
    (tmp_path / "model.textproto").write_text(str(onnx_model()))
    with pytest.raises(ValueError, match="ONNX"):
        read_onnx(tmp_path / "model.textproto")


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"\x3a\xff\xff\xff\x7f", b"\x0b\x00", b"\x3a\x7f" + bytes(3)])
def test_what_is_no_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=r"ONNX|empty"):
        read_onnx(tmp_path / "model.onnx")
