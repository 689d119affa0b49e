"""`verify-property` from the command line: answers, exit codes, files."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.certify.properties import ABSOLUTE, IDENTITY, property_text, random_network, relu_network
from tests.cli.conftest import Answer
from tests.frontends.onnx_models import make_model, node, run_onnxruntime

SQUARE = ([-1, -1], [1, 1])
Command = Callable[..., Answer]


@pytest.fixture
def network(tmp_path: Path) -> Path:
    path = tmp_path / "network.onnx"
    onnx.save(relu_network(ABSOLUTE, batch=1), path)
    return path


def written(directory: Path, *conditions: str, outputs: int = 1) -> Path:
    path = directory / "property.vnnlib"
    path.write_text(property_text(*SQUARE, outputs, *conditions))
    return path


def test_a_property_that_holds_is_certified(command: Command, network: Path, tmp_path: Path) -> None:
    answer = command("verify-property", network, written(tmp_path, "(>= Y_0 2.5)"), "--out", tmp_path / "result")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith("certified: property.vnnlib: no input has an unsafe output")
    assert (tmp_path / "result").read_text() == "unsat\n"


def test_a_property_that_does_not_hold_is_violated_by_what_is_printed(
    command: Command, network: Path, tmp_path: Path
) -> None:
    answer = command("verify-property", network, written(tmp_path, "(>= Y_0 2)"), "--out", tmp_path / "result")
    assert answer.code == 1 and answer.out.startswith("violated: ")
    shown = {name: float(value) for name, value in re.findall(r"^  ([XY]_\d) = (\S+)$", answer.out, re.MULTILINE)}
    assert set(shown) == {"X_0", "X_1", "Y_0"}
    point = np.array([[shown["X_0"], shown["X_1"]]], dtype=np.float32)
    assert point.tolist() == [[shown["X_0"], shown["X_1"]]]  # what is printed is the float32 number itself
    assert run_onnxruntime(onnx.load(network), point).tolist() == [[shown["Y_0"]]] and shown["Y_0"] >= 2
    first, *rest = (tmp_path / "result").read_text().splitlines()
    assert first == "sat"
    values = re.fullmatch(r"\(\(X_0 (\S+)\) \(X_1 (\S+)\) \(Y_0 (\S+)\)\)", " ".join(line.strip() for line in rest))
    assert values is not None and [float(v) for v in values.groups()] == list(shown.values())


def test_json_holds_everything(command: Command, network: Path, tmp_path: Path) -> None:
    answer = command("verify-property", network, written(tmp_path, "(>= Y_0 2)"), "--format", "json")
    found = json.loads(answer.out)
    assert answer.code == 1 and found["status"] == "violated" and found["arithmetic"] is None
    assert [abs(value) for value in found["inputs"]] == [1, 1] and found["outputs"] == [2]
    answer = command("verify-property", network, written(tmp_path, "(>= Y_0 2.5)"), "--format", "json")
    found = json.loads(answer.out)
    assert answer.code == 0 and found["status"] == "certified" and found["arithmetic"] == "real"
    assert found["boxes"] >= 1 and found["inputs"] == found["outputs"] == []


def test_without_time_it_is_undecided_and_says_what_to_do(command: Command, tmp_path: Path) -> None:
    onnx.save(relu_network(random_network(0, (2, 64, 64, 64, 1))), tmp_path / "wide.onnx")
    text = written(tmp_path, "(>= Y_0 1000)")
    answer = command(
        "verify-property", tmp_path / "wide.onnx", text, "--timeout", "0.001", "--out", tmp_path / "result"
    )
    assert answer.code == 3 and answer.out.startswith("undecided: ") and "--timeout" in answer.out
    assert (tmp_path / "result").read_text() == "unknown\n"


def test_many_values_are_shown_in_part_and_written_in_full(command: Command, tmp_path: Path) -> None:
    onnx.save(relu_network([(np.ones((1, 100)), np.zeros(1))]), tmp_path / "sum.onnx")
    (tmp_path / "p.vnnlib").write_text(property_text([0] * 100, [1] * 100, 1, "(>= Y_0 99)"))
    answer = command("verify-property", tmp_path / "sum.onnx", tmp_path / "p.vnnlib", "--out", tmp_path / "result")
    assert answer.code == 1 and "… 36 more" in answer.out and "X_64" not in answer.out and "  Y_0 = " in answer.out
    assert len(re.findall(r"\(X_\d+ ", (tmp_path / "result").read_text())) == 100


def test_a_compressed_property_is_read(command: Command, network: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.vnnlib.gz"
    path.write_bytes(gzip.compress(property_text(*SQUARE, 1, "(>= Y_0 2.5)").encode()))
    assert command("verify-property", network, path).code == 0


def test_a_float64_model_is_asked_in_float64(command: Command, tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], name="relu")],
        "double",
        [value("x", onnx.TensorProto.DOUBLE, ["batch", 2])],
        [value("y", onnx.TensorProto.DOUBLE, ["batch", 2])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), tmp_path / "d.onnx")
    between = written(tmp_path, "(>= X_0 0.1)", "(<= X_0 0.1000000001)", "(<= Y_0 0.10000000005)", outputs=2)
    answer = command("verify-property", tmp_path / "d.onnx", between, "--format", "json")
    found = json.loads(answer.out)
    assert answer.code == 1 and found["inputs"][0] == found["outputs"][0]
    assert Fraction("0.1") <= Fraction(found["inputs"][0]) <= Fraction("0.10000000005")


@pytest.mark.parametrize(
    ("conditions", "words"),
    [(["(<= Y_3 1)"], "line 9: 'Y_3' is neither"), (["(<= X_0 X_1)"], "line 9: inputs are bounded one by one")],
)
def test_a_malformed_property_is_a_usage_error(
    command: Command, network: Path, tmp_path: Path, conditions: list[str], words: str
) -> None:
    answer = command("verify-property", network, written(tmp_path, "(<= Y_0 -1)", *conditions))
    assert answer.code == 2 and answer.out == ""
    assert words in answer.err


def test_files_that_are_absent_or_no_model_never_pass(command: Command, network: Path, tmp_path: Path) -> None:
    property_file = written(tmp_path, "(>= Y_0 2.5)")
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x09 no model")
    assert command("verify-property", tmp_path / "absent.onnx", property_file).code == 2
    assert command("verify-property", network, tmp_path / "absent.vnnlib").code == 2
    assert command("verify-property", tmp_path / "broken.onnx", property_file).code == 3
    refused = command("verify-property", property_file, property_file)
    assert refused.code == 2 and "is no .onnx file" in refused.err
    assert command("verify-property", network).code == 2
    assert command("verify-property", network, property_file, "--timeout", "0").code == 2
    assert command("verify-property", network, property_file, "--out", tmp_path / "no" / "folder").code == 2


def test_another_number_of_inputs_is_a_usage_error(command: Command, network: Path, tmp_path: Path) -> None:
    (tmp_path / "p.vnnlib").write_text(property_text([0], [1], 1, "(>= Y_0 1)"))
    answer = command("verify-property", network, tmp_path / "p.vnnlib")
    assert answer.code == 2 and "1 inputs and 1 outputs, the model 2 and 1" in answer.err


def test_an_operator_without_a_rule_fails_and_is_named(command: Command, tmp_path: Path) -> None:
    onnx.save(make_model([node("Sign", "x")], (2,)), tmp_path / "sign.onnx")
    answer = command("verify-property", tmp_path / "sign.onnx", written(tmp_path, "(>= Y_0 2)", outputs=2))
    assert answer.code == 3 and "Sign" in answer.err and answer.out == ""


def test_a_model_with_two_outputs_is_refused(command: Command, tmp_path: Path) -> None:
    model = make_model([node("Relu", "x"), node("Neg", "x", "z")], (2,), outputs=("y", "z"))
    onnx.save(model, tmp_path / "two.onnx")
    answer = command("verify-property", tmp_path / "two.onnx", written(tmp_path, "(>= Y_0 2)", outputs=2))
    assert answer.code == 2 and "2 outputs (y, z)" in answer.err


def test_a_graph_that_is_not_the_file_is_not_certified(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one replaced part is the lowering: a wrong graph is what a wrong lowering would give."""
    from mlflow_lipschitz.frontends.lowering import lower
    from mlflow_lipschitz.pipeline import property_check

    onnx.save(relu_network(IDENTITY), tmp_path / "network.onnx")
    wrong = lower(relu_network([(np.eye(2), np.array([0.0, 0.25]))]))
    monkeypatch.setattr(property_check, "lower", lambda model: wrong)
    answer = command("verify-property", tmp_path / "network.onnx", written(tmp_path, "(>= Y_0 2)", outputs=2))
    assert answer.code == 3 and answer.out == "" and "graph and onnxruntime differ by 0.25 in output 1" in answer.err
