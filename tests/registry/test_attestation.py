"""The statement is canonical, strict JSON, bound to files, identity, policy and time."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import mlflow
import pytest

from mlflow_lipschitz.errors import AuditError
from mlflow_lipschitz.gate.verdict import Verdict
from mlflow_lipschitz.policy import load_policy
from mlflow_lipschitz.registry.attestation import Attestation, Evidence, make_attestation
from mlflow_lipschitz.registry.checking import check_attestation
from mlflow_lipschitz.registry.pull import PulledModel, pull
from mlflow_lipschitz.registry.strict_json import canonical_json
from tests.registry.evidence import POLICY, outcome, verdict
from tests.registry.stores import onnx_model

NOW = datetime(2030, 1, 1, tzinfo=timezone.utc)
IDENTITY = {"name": "scorer", "version": "7", "model_id": "m-1"}


@pytest.fixture(scope="module")
def pulled(tmp_path_factory: pytest.TempPathFactory) -> PulledModel:
    folder = tmp_path_factory.mktemp("model") / "m"
    mlflow.onnx.save_model(onnx_model(), folder, pip_requirements=["onnxruntime"])
    return replace(pull(str(folder)), **IDENTITY)


def _attestation(pulled: PulledModel, result: Verdict | None = None, **evidence: object) -> Attestation:
    settings = {
        "metrics": {"lipschitz/upper_max": 2.5},
        "artifacts": {"policy.yaml": "0" * 64},
        "created": NOW,
        **evidence,
    }
    return make_attestation(pulled, load_policy(POLICY), result or verdict(), Evidence(**settings))


def test_it_is_an_in_toto_statement_about_every_file(pulled: PulledModel) -> None:
    statement = _attestation(pulled).statement
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    files = {row["name"]: row["digest"]["sha256"] for row in statement["subject"]}
    assert files["model.onnx"] == hashlib.sha256(pulled.model_file.read_bytes()).hexdigest()
    assert set(files) == {f.path for f in pulled.manifest.files}
    predicate = statement["predicate"]
    assert predicate["policy"]["digest"] == load_policy(POLICY).digest
    assert predicate["arithmetic"] == "real" == predicate["arithmetic_of"]["radius"]
    assert predicate["signature"] == "none"
    assert predicate["packages"]["mlflow"] == mlflow.__version__


def test_one_audit_has_one_digest_and_json_keeps_it(pulled: PulledModel) -> None:
    first, second = _attestation(pulled), _attestation(pulled)
    assert first.digest == second.digest
    assert Attestation.from_json(first.to_json()).digest == first.digest
    assert (
        first.payload == json.dumps(first.statement, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    )
    assert _attestation(pulled, verdict("blocked")).digest != first.digest


def test_infinite_figures_stay_strict_json(pulled: PulledModel) -> None:
    loose = Verdict("blocked", (replace(outcome(passed=False), observed=float("inf")),), {}, {})
    text = _attestation(pulled, loose, metrics={"lipschitz/upper_max": float("inf"), "x": 1.0}).to_json()
    predicate = json.loads(text, parse_constant=lambda token: pytest.fail(f"{token} is not JSON"))["predicate"]
    assert predicate["bounds"] == {"x": 1.0}
    assert predicate["verdict"]["checks"][0]["observed"] == "Infinity"


def test_the_encoding_a_dsse_signature_covers(pulled: PulledModel) -> None:
    attestation = _attestation(pulled)
    head = b"DSSEv1 28 application/vnd.in-toto+json %d " % len(attestation.payload)
    assert attestation.pre_authentication_encoding() == head + attestation.payload
    assert attestation.signature == "UNSIGNED"


def test_an_honest_one_vouches(pulled: PulledModel) -> None:
    assert check_attestation(_attestation(pulled), pulled.manifest, IDENTITY, now=NOW) == ()


@pytest.mark.parametrize("key", ["name", "version", "model_id"])
def test_it_vouches_for_one_identity(pulled: PulledModel, key: str) -> None:
    for other in ("other", None):
        problems = check_attestation(_attestation(pulled), pulled.manifest, {**IDENTITY, key: other}, now=NOW)
        assert len(problems) == 1
        assert f"written for {key}" in problems[0]


@pytest.mark.parametrize("days", [-1, 90, 1000])
def test_it_vouches_for_a_time(pulled: PulledModel, days: int) -> None:
    problems = check_attestation(_attestation(pulled), pulled.manifest, IDENTITY, now=NOW + timedelta(days=days))
    assert any("valid from" in problem for problem in problems)


def test_it_vouches_for_the_last_day(pulled: PulledModel) -> None:
    late = NOW + timedelta(days=90) - timedelta(seconds=1)
    assert check_attestation(_attestation(pulled), pulled.manifest, IDENTITY, now=late) == ()


def test_times_that_cannot_be_read_are_never_valid(pulled: PulledModel) -> None:
    for edit in ({"expires": "never"}, {"expires": "2099-01-01"}, {"created": None}):
        statement = _attestation(pulled).statement
        statement["predicate"].update(edit)
        forged = Attestation.from_json(canonical_json(statement))
        assert any("valid from" in p for p in check_attestation(forged, pulled.manifest, IDENTITY, now=NOW))


def test_every_changed_file_is_named(pulled: PulledModel) -> None:
    files = pulled.manifest.files
    changed = replace(pulled.manifest, files=(replace(files[0], sha256="0" * 64), *files[1:]))
    missing = replace(pulled.manifest, files=files[1:])
    for manifest in (changed, missing):
        problems = check_attestation(_attestation(pulled), manifest, IDENTITY, now=NOW)
        assert any(files[0].path in problem for problem in problems)


@pytest.mark.parametrize("text", ["", "null", "{}", "[]", '{"_type": "x", "predicateType": "y", "predicate": {}}'])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(AuditError, match="in-toto"):
        Attestation.from_json(text)
