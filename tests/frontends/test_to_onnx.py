"""Which models are exported, and what is said of those that are not."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest

from mlflow_lipschitz.engine.ir.ops import Elementwise
from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.errors import AuditError, UnsupportedOperator, UntrustedModel, UsageError
from mlflow_lipschitz.frontends import trace
from mlflow_lipschitz.frontends.to_onnx import to_onnx
from tests.frontends.onnx_models import make_model, node, run_onnxruntime

CASES = Path(__file__).parents[3] / "shared" / "cases"


def linear_model(sample: tuple = (3,)) -> onnx.ModelProto:
    return make_model([node("Gemm", "x w")], sample, {"w": np.arange(6, dtype=np.float32).reshape(3, 2)})


@pytest.mark.parametrize("kind", [str, Path])
def test_path_of_an_onnx_file(tmp_path: Path, kind: type) -> None:
    onnx.save(linear_model(), tmp_path / "m.onnx")
    assert trace(kind(tmp_path / "m.onnx")).output_shape == (2,)


def test_external_data_lies_beside_the_file(tmp_path: Path) -> None:
    onnx.save_model(linear_model(), tmp_path / "m.onnx", save_as_external_data=True, location="w", size_threshold=0)
    assert trace(tmp_path / "m.onnx").content_hash() == trace(linear_model()).content_hash()
    (tmp_path / "w").unlink()
    with pytest.raises(AuditError, match=r"m\.onnx"):
        trace(tmp_path / "m.onnx")


@pytest.mark.parametrize("content", [b"not a model", b"", b"\x80\x04."])
def test_files_that_are_no_models(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(AuditError):
        trace(tmp_path / "m.onnx")


@pytest.mark.parametrize("name", ["model.pth", "model.pkl", "model.pt", "model"])
def test_pickles_are_not_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(1))
    with pytest.raises(UntrustedModel, match=r"torch\.export\.save"):
        trace(tmp_path / name)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model file"):
        trace(tmp_path / "m.onnx")


def test_objects_that_are_no_models() -> None:
    for thing in (1, None, object(), np.zeros(3), len):
        with pytest.raises(UsageError, match="cannot be exported"):
            to_onnx(thing)


def test_the_example_fixes_free_axes_but_not_the_batch() -> None:
    model = make_model([node("Relu", "x")], ("n", 4))
    graph = trace(model, np.zeros((5, 3, 4)))
    assert graph.input_shape == (3, 4)
    assert not model.graph.input[0].type.tensor_type.shape.dim[1].dim_value  # the caller's model is left alone
    with pytest.raises(UsageError, match="the rows have"):
        trace(model, np.zeros((5, 3, 5)))
    with pytest.raises(UnsupportedOperator, match="3 axes, the rows have 2"):
        trace(model, np.zeros((5, 4)))


def test_choice_of_the_output() -> None:
    model = make_model([node("Relu", "x", "a"), node("Tanh", "x", "b")], (3,), outputs=["a", "b"])
    assert [n.op.curve for n in trace(model, output="b").nodes if isinstance(n.op, Elementwise)] == ["tanh"]


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared reference networks are not beside this checkout")
@pytest.mark.parametrize("path", sorted(CASES.glob("*.onnx")), ids=lambda path: path.stem)
def test_reference_networks(path: Path) -> None:
    model = onnx.load(path)
    graph = trace(path)
    points = np.random.default_rng(0).normal(size=(20, *graph.input_shape)).astype(np.float32)
    expected = run_onnxruntime(model, points)
    np.testing.assert_allclose(evaluate(graph, points).numpy(), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
