"""Networks that others trained and exported, from verification competitions: each is lowered exactly, or refused by name."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.errors import UnsupportedOperator
from mlflow_lipschitz.frontends.lowering import lower
from mlflow_lipschitz.frontends.support import support_table
from tests.frontends.onnx_models import run_onnxruntime

MODELS = Path(__file__).parents[3] / "shared" / "models"
MANIFEST = json.loads((MODELS / "manifest.json").read_text()) if MODELS.is_dir() else {"benchmarks": []}
NETWORKS = {network["file"]: network for group in MANIFEST["benchmarks"] for network in group["networks"]}
ABSENT = "the public models are not beside this project (../shared/models)"
BOUND = re.compile(r"\((<=|>=)\s+X_(\d+)\s+([-+.\deE]+)\)")

# operator, and words of the reason
REFUSED = {
    "traffic_signs/onnx/3_30_30_QConv_16_3_QConv_32_2_Dense_43_ep_30.onnx": (
        "Sign",
        "a jump has no Lipschitz constant",
    ),
}


def input_box(file: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The smallest box around the inputs of the network's first property."""
    text = gzip.decompress((MODELS / NETWORKS[file]["instances"][0]["vnnlib"]).read_bytes()).decode()
    lower_ends, upper_ends = np.full(size, np.inf), np.full(size, -np.inf)
    for relation, index, number in BOUND.findall(text):
        ends, extreme = (upper_ends, max) if relation == "<=" else (lower_ends, min)
        ends[int(index)] = extreme(ends[int(index)], float(number))
    assert np.all(np.isfinite(lower_ends)) and np.all(lower_ends <= upper_ends)
    return lower_ends, upper_ends


@pytest.mark.skipif(not NETWORKS, reason=ABSENT)
def test_at_most_three_are_refused() -> None:
    assert set(REFUSED) < set(NETWORKS) and len(REFUSED) <= 3


@pytest.mark.skipif(not NETWORKS, reason=ABSENT)
@pytest.mark.parametrize("file", NETWORKS)
def test_a_public_network_is_lowered_exactly_or_refused(file: str) -> None:
    model = onnx.load(MODELS / file)
    rows = support_table(model)
    if file in REFUSED:
        operator, words = REFUSED[file]
        with pytest.raises(UnsupportedOperator, match=words) as error:
            lower(model)
        assert error.value.operator == operator
        assert {row.op_type for row in rows if row.verdict == "unsupported"} == {operator}
        return
    graph = lower(model)
    low, high = (end.reshape(graph.input_shape) for end in input_box(file, int(np.prod(graph.input_shape))))
    points = np.random.default_rng(0).uniform(low, high, size=(20, *graph.input_shape)).astype(np.float32)
    expected, actual = run_onnxruntime(model, points), evaluate(graph, points).numpy()
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert all(row.verdict != "unsupported" for row in rows)
