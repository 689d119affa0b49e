"""Properties of networks that others trained and asked about, from verification competitions: no answer contradicts theirs."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from mlflow_lipschitz.pipeline.property_check import PropertyOptions, check_property
from mlflow_lipschitz.vnnlib import read_property
from tests.frontends.onnx_models import run_onnxruntime

MODELS = Path(__file__).parents[3] / "shared" / "models"
MANIFEST = json.loads((MODELS / "manifest.json").read_text()) if MODELS.is_dir() else {"benchmarks": []}
EXPECTED = {
    (Path(network["file"]).name, Path(row["vnnlib"]).name): (network["file"], row["vnnlib"], row["expected"])
    for group in MANIFEST["benchmarks"]
    for network in group["networks"]
    for row in network["instances"]
}
ABSENT = "the public models are not beside this project (../shared/models)"
STATUS = {"unsat": "certified", "sat": "violated"}
# Of every kind of property a few that take no search to speak of; the others are for benchmarks/properties.py.
CHOSEN = [
    ("ACASXU_run2a_1_1_batch_2000.onnx", "prop_1.vnnlib.gz"),
    ("ACASXU_run2a_2_1_batch_2000.onnx", "prop_2.vnnlib.gz"),
    ("ACASXU_run2a_1_9_batch_2000.onnx", "prop_3.vnnlib.gz"),
    ("ACASXU_run2a_2_1_batch_2000.onnx", "prop_4.vnnlib.gz"),
    ("cartpole.onnx", "cartpole_case_safe_9.vnnlib.gz"),
    ("robot.onnx", "robot_1.vnnlib.gz"),
    ("lindex.onnx", "lindex_1.vnnlib.gz"),
    ("tllBench_n=2_N=M=8_m=1_instance_0_0.onnx", "property_N=8_0.vnnlib.gz"),
    ("medical.onnx", "medical_hyperrectangle_1056.vnnlib.gz"),
    ("medical.onnx", "medical_hyperrectangle_1835.vnnlib.gz"),
    ("14_ieee_ml4acopf.onnx", "14_ieee_prop10.vnnlib.gz"),
]


@pytest.mark.skipif(not EXPECTED, reason=ABSENT)
@pytest.mark.parametrize(("network", "name"), CHOSEN)
def test_a_public_property_is_answered_as_others_answer_it(network: str, name: str) -> None:
    key = (network, name)
    if key not in EXPECTED:
        pytest.skip(f"{network} with {name} is not among the public models")
    model, property_file, expected = EXPECTED[key]
    report = check_property(MODELS / model, MODELS / property_file, PropertyOptions(timeout=60.0, device="cpu"))
    assert report.status == STATUS[expected], report.message
    if report.counterexample is not None:
        point = report.counterexample.point
        outputs = run_onnxruntime(onnx.load(MODELS / model), point[None])[0]
        entries = [float(value) for value in point.flatten()]
        inside = [
            case
            for case in read_property(MODELS / property_file).cases
            if all(low <= x <= high for low, x, high in zip(case.lower, entries, case.upper, strict=True))
        ]
        assert any(case.is_unsafe(outputs.tolist()) for case in inside)
