"""Promotion believes bytes and digests, never names and tags; a refusal leaves every alias where it was."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from mlflow_lipschitz.errors import PolicyError, PromotionRefused, RegistryError, UsageError
from mlflow_lipschitz.policy import load_policy
from mlflow_lipschitz.registry import tags
from mlflow_lipschitz.registry.promotion import PromotionOptions, promote
from tests.registry.evidence import POLICY, record
from tests.registry.stores import artifact_folder, fresh_name, log_onnx, onnx_model


def _aliases(name: str) -> dict[str, str]:
    return {alias: str(version) for alias, version in MlflowClient().get_registered_model(name).aliases.items()}


def _refused(name: str, match: str, version: str = "1") -> None:
    """Promotion of the version is refused for this reason, names the next command, and moves no alias."""
    client = MlflowClient()
    client.set_registered_model_alias(name, "champion", "2" if version == "1" else "1")
    before = _aliases(name)
    with pytest.raises(PromotionRefused, match=match) as refusal:
        promote(f"models:/{name}/{version}", alias="champion")
    assert f"mlflow-lipschitz audit models:/{name}/{version} --policy" in str(refusal.value)
    assert _aliases(name) == before
    assert tags.PROMOTION not in client.get_model_version(name, version).tags


@pytest.fixture
def name(store: str) -> str:
    """A registered model with two versions of different weights."""
    fresh = fresh_name()
    log_onnx(fresh, seed=0)
    log_onnx(fresh, seed=1)
    return fresh


def test_a_passed_version_gets_the_alias_and_a_record(name: str, tmp_path: Path) -> None:
    audited = record(name, tmp_path / "e")
    result = promote(f"models:/{name}/1", alias="champion")
    assert _aliases(name) == {"champion": "1"}
    assert (result.name, result.version, result.attestation) == (name, "1", audited.attestation.digest)
    assert "UNSIGNED" in str(result)
    written = json.loads(MlflowClient().get_model_version(name, "1").tags[tags.PROMOTION])
    assert written["alias"] == "champion"
    assert written["by"]
    assert written["attestation"] == audited.attestation.digest
    assert written["signature"] == "UNSIGNED"


def test_a_dry_run_changes_nothing(name: str, tmp_path: Path) -> None:
    record(name, tmp_path / "e")
    result = promote(f"models:/{name}/1", alias="champion", options=PromotionOptions(dry_run=True))
    assert result.dry_run
    assert "would be" in str(result)
    assert _aliases(name) == {}
    assert tags.PROMOTION not in MlflowClient().get_model_version(name, "1").tags


@pytest.mark.filterwarnings("ignore:.*stages.*:FutureWarning")
def test_a_stage(name: str, tmp_path: Path) -> None:
    record(name, tmp_path / "e")
    promote(f"models:/{name}/1", stage="Production")
    assert MlflowClient().get_model_version(name, "1").current_stage == "Production"


def test_a_copy_takes_the_alias_and_is_not_itself_evidence(name: str, tmp_path: Path) -> None:
    record(name, tmp_path / "e")
    target = fresh_name("prod")
    result = promote(f"models:/{name}/1", to=target, alias="champion")
    assert (result.name, result.version) == (target, "1")
    assert _aliases(target) == {"champion": "1"}
    # MLflow copied the audit's tags too; the copy has another name, and nobody audited it under that name.
    assert MlflowClient().get_model_version(target, "1").tags[tags.VERDICT] == "passed"
    with pytest.raises(PromotionRefused, match="written for name"):
        promote(f"models:/{target}/1", alias="other")
    assert _aliases(target) == {"champion": "1"}


def test_without_an_audit(name: str) -> None:
    _refused(name, "no audit is on record")


def test_tags_alone_prove_nothing(name: str) -> None:
    client = MlflowClient()
    with mlflow.start_run() as run:
        pass
    client.set_model_version_tag(name, "1", tags.VERDICT, "passed")
    client.set_model_version_tag(name, "1", tags.RUN_ID, run.info.run_id)
    _refused(name, "holds no attestation.json")
    client.set_model_version_tag(name, "1", tags.RUN_ID, "no-such-run")
    _refused(name, "no-such-run holds no attestation.json")


def test_tags_copied_from_another_version(name: str, tmp_path: Path) -> None:
    audited = record(name, tmp_path / "e", version="1")
    client = MlflowClient()
    client.set_model_version_tag(name, "2", tags.VERDICT, "passed")
    client.set_model_version_tag(name, "2", tags.RUN_ID, audited.run_id)
    _refused(name, "written for version '1', not '2'", version="2")


def test_a_blocked_verdict(name: str, tmp_path: Path) -> None:
    record(name, tmp_path / "e", status="blocked")
    MlflowClient().set_model_version_tag(name, "1", tags.VERDICT, "passed")
    _refused(name, "its verdict is 'blocked'")


def test_files_rewritten_in_the_artifact_store(name: str, tmp_path: Path) -> None:
    record(name, tmp_path / "e")
    version = MlflowClient().get_model_version(name, "1")
    folder = artifact_folder(MlflowClient(), version.source.removeprefix("models:/"))
    (folder / "model.onnx").write_bytes(onnx_model(seed=5).SerializeToString())
    _refused(name, r"not the audited ones: model\.onnx")


def test_a_file_added_in_the_artifact_store(name: str, tmp_path: Path) -> None:
    record(name, tmp_path / "e")
    version = MlflowClient().get_model_version(name, "1")
    folder = artifact_folder(MlflowClient(), version.source.removeprefix("models:/"))
    (folder / "sitecustomize.py").write_text("")
    _refused(name, r"not the audited ones: sitecustomize\.py")


@pytest.mark.parametrize("scheme", ["runs", "RUNS", " runs"])
def test_an_address_that_stands_for_other_places(name: str, tmp_path: Path, scheme: str) -> None:
    """MLflow's client lays files of a logged model over those of a `runs:/` address, whenever that model was logged."""
    client = MlflowClient()
    version = client.get_model_version(name, "1")
    files = artifact_folder(client, str(version.source).removeprefix("models:/"))
    client.log_artifacts(str(version.run_id), str(files), "by-hand")
    client.create_model_version(name, f"{scheme}:/{version.run_id}/by-hand", version.run_id)
    record(name, tmp_path / "e", version="3")
    _refused(name, "stands for other places", version="3")


def test_an_expired_audit(name: str, tmp_path: Path) -> None:
    record(name, tmp_path / "e", created=datetime.now(timezone.utc) - timedelta(days=91))
    _refused(name, "it is valid from")


def test_an_audit_from_the_future(name: str, tmp_path: Path) -> None:
    record(name, tmp_path / "e", created=datetime.now(timezone.utc) + timedelta(days=2))
    _refused(name, "it is valid from")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("max: 500.0", "max: 5000.0", "not the policy of the audit"),
        ("AuditPolicy", "Nonsense", "the policy of the audit is not on record"),
    ],
)
def test_another_policy_beside_the_attestation(name: str, tmp_path: Path, old: str, new: str, reason: str) -> None:
    audited = record(name, tmp_path / "e")
    policy = tmp_path / "e" / "policy.yaml"
    policy.write_text(policy.read_text().replace(old, new))
    MlflowClient().log_artifact(audited.run_id, str(policy), "lipschitz")
    _refused(name, reason)


def test_evidence_changed_after_the_audit(name: str, tmp_path: Path) -> None:
    audited = record(name, tmp_path / "e")
    (tmp_path / "e" / "summary.md").write_text("all is well")
    MlflowClient().log_artifact(audited.run_id, str(tmp_path / "e" / "summary.md"), "lipschitz")
    _refused(name, r"summary\.md is missing or has changed")


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"_type": "https://in-toto.io/Statement/v1"}', "\xff"])
def test_an_attestation_that_is_none(name: str, tmp_path: Path, text: str) -> None:
    audited = record(name, tmp_path / "e")
    (tmp_path / "e" / "attestation.json").write_bytes(text.encode("latin-1"))
    MlflowClient().log_artifact(audited.run_id, str(tmp_path / "e" / "attestation.json"), "lipschitz")
    _refused(name, "the attestation cannot be used")


def test_every_reason_is_given_at_once(name: str, tmp_path: Path) -> None:
    audited = record(name, tmp_path / "e", status="blocked", created=datetime.now(timezone.utc) - timedelta(days=400))
    MlflowClient().set_model_version_tag(name, "2", tags.RUN_ID, audited.run_id)
    with pytest.raises(PromotionRefused) as refusal:
        promote(f"models:/{name}/2", alias="champion")
    for reason in ("written for version", "not the audited ones", "verdict is 'blocked'", "valid from"):
        assert reason in str(refusal.value)


def test_a_failing_alias_leaves_no_record(name: str, tmp_path: Path) -> None:
    record(name, tmp_path / "e")
    with pytest.raises(RegistryError, match="nothing was promoted"):
        promote(f"models:/{name}/1", alias="v1")  # MLflow reserves such names
    assert _aliases(name) == {}
    assert tags.PROMOTION not in MlflowClient().get_model_version(name, "1").tags


@pytest.mark.parametrize("targets", [{}, {"alias": "a", "stage": "Production"}])
def test_a_target_is_needed_and_only_one(name: str, targets: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="--alias"):
        promote(f"models:/{name}/1", **targets)


def test_only_registered_versions(name: str) -> None:
    source = MlflowClient().get_model_version(name, "1").source
    with pytest.raises(UsageError, match="not a registered version"):
        promote(source, alias="champion")
    with pytest.raises(RegistryError):
        promote(f"models:/{name}/99", alias="champion")


def test_the_policy_that_was_passed_is_named(name: str, tmp_path: Path) -> None:
    record(name, tmp_path / "e")
    result = promote(f"models:/{name}/1", alias="champion")
    reference = f"scorer-policy@3 {load_policy(POLICY).digest}"
    assert result.policy == reference
    assert f"policy passed: {reference}" in str(result)
    assert json.loads(MlflowClient().get_model_version(name, "1").tags[tags.PROMOTION])["policy"] == reference


def test_the_policy_asked_for_is_the_one_passed(name: str, tmp_path: Path) -> None:
    record(name, tmp_path / "e")
    same = tmp_path / "same.yaml"
    same.write_text("# a comment changes no meaning\n" + POLICY)
    for wanted in (same, POLICY, load_policy(POLICY)):
        promote(f"models:/{name}/1", alias="champion", policy=wanted)
        assert _aliases(name) == {"champion": "1"}
        MlflowClient().delete_registered_model_alias(name, "champion")


def test_a_laxer_policy_than_the_one_asked_for_opens_nothing(name: str, tmp_path: Path) -> None:
    record(name, tmp_path / "e")
    wanted = POLICY.replace("max: 500.0", "max: 5.0")
    with pytest.raises(PromotionRefused) as refusal:
        promote(f"models:/{name}/1", alias="champion", policy=wanted)
    for reference in (load_policy(POLICY).reference, load_policy(wanted).reference):
        assert reference in str(refusal.value)
    assert _aliases(name) == {}


def test_a_policy_that_cannot_be_read_opens_nothing(name: str, tmp_path: Path) -> None:
    record(name, tmp_path / "e")
    for wanted in (tmp_path / "absent.yaml", "kind: Nonsense\n"):
        with pytest.raises(PolicyError):
            promote(f"models:/{name}/1", alias="champion", policy=wanted)
    assert _aliases(name) == {}
