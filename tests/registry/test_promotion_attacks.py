"""Whoever can write to runs, tags and artifacts, but has no trusted key, cannot get a version promoted; in a real store."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mlflow_lipschitz.errors import PromotionRefused, RegistryError
from mlflow_lipschitz.registry import tags
from mlflow_lipschitz.registry.attestation import Attestation
from mlflow_lipschitz.registry.promotion import PromotionOptions, PromotionResult, promote
from mlflow_lipschitz.registry.pull import pull
from mlflow_lipschitz.registry.strict_json import canonical_json
from mlflow_lipschitz.registry.trust import TrustSources
from tests.registry.conftest import _current
from tests.registry.evidence import POLICY, Record, attest, record, replace_attestation
from tests.registry.interposed import at_call
from tests.registry.keyring import key, public_file, revocation_list
from tests.registry.stores import artifact_folder, fresh_name, log_onnx, onnx_model

TRUSTED, OTHER = key(1), key(2)


@dataclass(frozen=True)
class Scene:
    """A registered model of two versions, each with a signed, passed audit; `champion` is version 2."""

    name: str
    records: tuple[Record, Record]
    folder: Path
    public: Path

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/1"

    @property
    def files(self) -> Path:
        source = MlflowClient().get_model_version(self.name, "1").source
        return artifact_folder(MlflowClient(), source.removeprefix("models:/"))

    def promote(self, *, revoked: tuple[Path, ...] = (), **target) -> PromotionResult:
        options = PromotionOptions(trust=TrustSources((self.public,), revoked))
        return promote(self.uri, options=options, **(target or {"alias": "champion"}))

    def refused(self, match: str, **how) -> None:
        """Promotion is refused for this reason, and every alias and tag is as it was."""
        client = MlflowClient()
        before = (client.get_registered_model(self.name).aliases, client.get_model_version(self.name, "1").tags)
        with pytest.raises(PromotionRefused, match=match):
            self.promote(**how)
        after = (client.get_registered_model(self.name).aliases, client.get_model_version(self.name, "1").tags)
        assert after == before

    def put(self, attestation: Attestation | bytes) -> None:
        """Replace the attestation on record of version 1."""
        content = attestation if isinstance(attestation, bytes) else attestation.to_json().encode()
        replace_attestation(self.records[0].run_id, content, self.folder / "1")


@pytest.fixture(scope="module")
def model(sqlite_store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("scene")
    for _ in _current(sqlite_store):
        name = fresh_name("attacked")
        for seed in (0, 1):
            log_onnx(name, seed=seed)
        records = [record(name, folder / v, version=v, key=TRUSTED) for v in ("1", "2")]
        yield Scene(name, (records[0], records[1]), folder, public_file(1, folder))


@pytest.fixture
def scene(model: Scene, store: str, tmp_path: Path) -> Iterator[Scene]:
    """The scene as it was in the beginning, whatever an earlier test did to it."""
    client = MlflowClient()
    files, kept = model.files, tmp_path / "kept-files"
    shutil.copytree(files, kept)
    version = client.get_model_version(model.name, "1")
    client.set_registered_model_alias(model.name, "champion", "2")
    yield model
    shutil.rmtree(files)
    shutil.copytree(kept, files)
    model.put(model.records[0].attestation)
    for name in ("policy.yaml", "summary.md"):
        client.log_artifact(model.records[0].run_id, str(model.folder / "1" / name), "lipschitz")
    for tag in client.get_model_version(model.name, "1").tags:
        client.delete_model_version_tag(model.name, "1", tag)
    for tag, value in version.tags.items():
        client.set_model_version_tag(model.name, "1", tag, value)


def aliases(name: str) -> dict[str, str]:
    return {alias: str(version) for alias, version in MlflowClient().get_registered_model(name).aliases.items()}


def again(scene: Scene, **how) -> Attestation:
    """Another attestation of version 1; `how` as in `attest`."""
    return attest(pull(scene.uri), scene.folder / "1", **{"key": TRUSTED, **how})


def test_signed_by_a_trusted_key_it_is_promoted_and_everything_says_by_whom(scene: Scene) -> None:
    result = scene.promote()
    assert aliases(scene.name) == {"champion": "1"}
    assert result.signature == f"signed by {TRUSTED.public.keyid}"
    assert "UNSIGNED" not in str(result)
    tag = json.loads(MlflowClient().get_model_version(scene.name, "1").tags[tags.PROMOTION])
    assert (tag["signature"], tag["before"], tag["alias"]) == (result.signature, "2", "champion")
    run_id = scene.records[0].run_id
    newest = sorted(f.path for f in MlflowClient().list_artifacts(run_id, tags.PROMOTIONS_FOLDER))[-1]
    kept = json.loads(Path(MlflowClient().download_artifacts(run_id, newest)).read_text())
    assert kept == {**tag, "outcome": "promoted", "version": scene.uri}


def test_the_environment_says_whom_to_trust(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.put(again(scene, key=None))
    monkeypatch.setenv("LIPSCHITZ_TRUSTED_KEYS", str(scene.public))
    with pytest.raises(PromotionRefused, match="UNSIGNED"):
        promote(scene.uri, alias="champion")
    assert aliases(scene.name) == {"champion": "2"}


def test_lying_tags_change_nothing(scene: Scene) -> None:
    client = MlflowClient()
    for tag in (tags.VERDICT, tags.POLICY, tags.ATTESTATION, tags.PROMOTION):
        client.set_model_version_tag(scene.name, "1", tag, "blocked")
    scene.promote()
    assert aliases(scene.name) == {"champion": "1"}
    client.set_registered_model_alias(scene.name, "champion", "2")
    for tag in (tags.VERDICT, tags.ATTESTATION):
        client.set_model_version_tag(scene.name, "1", tag, "passed")
    scene.put(again(scene, status="blocked"))
    scene.refused("its verdict is 'blocked'")


def test_unsigned(scene: Scene) -> None:
    scene.put(again(scene, key=None))
    scene.refused("UNSIGNED")


def test_signed_by_somebody_else(scene: Scene) -> None:
    scene.put(again(scene, key=OTHER))
    scene.refused("not a trusted key")


def test_signed_by_somebody_else_in_the_name_of_a_trusted_key(scene: Scene) -> None:
    forged = json.loads(again(scene, key=OTHER).to_json())
    forged["signatures"][0]["keyid"] = TRUSTED.public.keyid
    scene.put(json.dumps(forged).encode())
    scene.refused("not the one of")


def test_an_honest_signature_around_another_statement(scene: Scene) -> None:
    envelope, blocked = json.loads(scene.records[0].attestation.to_json()), again(scene, status="blocked")
    envelope["payload"] = base64.b64encode(blocked.payload.replace(b"blocked", b"passed")).decode()
    scene.put(json.dumps(envelope).encode())
    scene.refused("not the one of")


def _flip(text: str, position: int) -> str:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return text[:position] + alphabet[(alphabet.index(text[position]) ^ 1)] + text[position + 1 :]


@pytest.mark.parametrize("part", ["payload", "sig", "keyid", "payloadType"])
def test_one_bit_of_the_envelope(scene: Scene, part: str) -> None:
    """One bit in each part; every bit of an envelope is tried in test_signatures.py."""
    envelope = json.loads(scene.records[0].attestation.to_json())
    if part in ("payload", "payloadType"):
        envelope[part] = _flip(envelope[part], 20)
    else:
        envelope["signatures"][0][part] = _flip(envelope["signatures"][0][part], 12)
    scene.put(json.dumps(envelope).encode())
    scene.refused("cannot be used|not the one of|not a trusted key")


def test_the_attestation_of_another_version(scene: Scene) -> None:
    scene.put(scene.records[1].attestation)
    scene.refused("written for version '2', not '1'")
    MlflowClient().set_model_version_tag(scene.name, "1", tags.RUN_ID, scene.records[1].run_id)
    scene.refused("written for version '2', not '1'")


def test_the_attestation_of_another_model_with_the_same_files(scene: Scene) -> None:
    statement = scene.records[0].attestation.statement
    statement = json.loads(canonical_json(statement))
    statement["predicate"]["model"]["name"] = "somebody-elses"
    payload = canonical_json(statement)
    scene.put(Attestation(payload, (TRUSTED.sign(payload),)))
    scene.refused("written for name 'somebody-elses'")


@pytest.mark.parametrize("days", [-91, 2])
def test_out_of_time(scene: Scene, days: int) -> None:
    scene.put(again(scene, created=datetime.now(timezone.utc) + timedelta(days=days)))
    scene.refused("it is valid from")


def test_another_policy_than_the_one_demanded(scene: Scene) -> None:
    scene.refused("is what it has to pass", alias="champion", policy=POLICY.replace("max: 500.0", "max: 5.0"))


def test_another_policy_beside_the_attestation(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(POLICY.replace("max: 500.0", "max: 5.0"))
    MlflowClient().log_artifact(scene.records[0].run_id, str(tmp_path / "policy.yaml"), "lipschitz")
    scene.refused("not the policy of the audit", alias="champion", policy=tmp_path / "policy.yaml")


@pytest.mark.parametrize("kind", ["keyid", "attestation"])
def test_revoked(scene: Scene, tmp_path: Path, kind: str) -> None:
    digest = TRUSTED.public.keyid if kind == "keyid" else scene.records[0].attestation.digest
    revoked = revocation_list(tmp_path, [{kind: digest, "reason": "found on a lost laptop"}])
    scene.refused("revoked: found on a lost laptop", revoked=(revoked,))


def test_files_overwritten_behind_the_stores_back(scene: Scene) -> None:
    (scene.files / "model.onnx").write_bytes(onnx_model(seed=5).SerializeToString())
    scene.refused(r"not the audited ones: model\.onnx")


def test_a_deleted_attestation(scene: Scene) -> None:
    local = MlflowClient().get_run(scene.records[0].run_id).info.artifact_uri.removeprefix("file://")
    (Path(local) / "lipschitz" / "attestation.json").unlink()
    scene.refused(r"holds no attestation\.json")


# Between two looks. The attacker's hand is put right before or after MLflow's own call, where no luck is needed to hit.


def _swap(scene: Scene) -> Callable[[], object]:
    return lambda: (scene.files / "model.onnx").write_bytes(onnx_model(seed=5).SerializeToString())


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_files_swapped_while_the_alias_is_set(scene: Scene, monkeypatch: pytest.MonkeyPatch, first: bool) -> None:
    with at_call(monkeypatch, "set_registered_model_alias", _swap(scene), first=first):
        scene.refused("changed while it was promoted, so that was taken back")
    assert aliases(scene.name) == {"champion": "2"}
    outcomes = [
        json.loads(Path(MlflowClient().download_artifacts(scene.records[0].run_id, f.path)).read_text())["outcome"]
        for f in MlflowClient().list_artifacts(scene.records[0].run_id, tags.PROMOTIONS_FOLDER)
    ]
    assert any(outcome.startswith("not promoted: ") for outcome in outcomes)
    assert "begun" not in outcomes


def test_an_alias_that_was_not_there_is_gone_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    with at_call(monkeypatch, "set_registered_model_alias", _swap(scene), first=False):
        scene.refused("taken back", alias="canary")
    assert aliases(scene.name) == {"champion": "2"}


@pytest.mark.filterwarnings("ignore:.*stages.*:FutureWarning")
def test_files_swapped_while_the_stage_is_set(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    with at_call(monkeypatch, "transition_model_version_stage", _swap(scene), first=False):
        scene.refused("taken back", stage="Production")
    assert MlflowClient().get_model_version(scene.name, "1").current_stage == "None"


def test_files_swapped_while_a_copy_is_promoted(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    target = fresh_name("prod")
    with at_call(monkeypatch, "copy_model_version", _swap(scene), first=False):
        scene.refused("not the audited ones", to=target, alias="champion")
    assert MlflowClient().search_model_versions(f"name='{target}'") == []
    assert aliases(target) == {}


def test_an_attestation_deleted_while_the_alias_is_set(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    local = MlflowClient().get_run(scene.records[0].run_id).info.artifact_uri.removeprefix("file://")
    delete = (Path(local) / "lipschitz" / "attestation.json").unlink
    with at_call(monkeypatch, "set_registered_model_alias", delete, first=False):
        scene.refused("holds no attestation")


def test_another_promotion_at_the_same_time_keeps_its_alias(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    real = MlflowClient.set_registered_model_alias
    client = MlflowClient()

    def other() -> None:
        real(client, scene.name, "champion", "2")

    with (
        at_call(monkeypatch, "set_registered_model_alias", other, first=False),
        pytest.raises(
            RegistryError, match="somebody else moved the alias champion meanwhile; it now points to version 2"
        ),
    ):
        scene.promote()
    assert aliases(scene.name) == {"champion": "2"}


class _Interrupted(BaseException):
    """Stands for Ctrl-C, which pytest would take for its own."""


@pytest.mark.parametrize(
    "error", [_Interrupted(), MlflowException("the store went away")], ids=lambda e: type(e).__name__
)
def test_what_cannot_be_looked_at_again_is_taken_back(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    looks = []

    def second_look(*_: object, **__: object) -> None:
        looks.append(1)
        raise error

    real = MlflowClient.set_registered_model_alias

    def then_fail(self: MlflowClient, *arguments: object) -> None:
        real(self, *arguments)
        monkeypatch.setattr(MlflowClient, "download_artifacts", second_look)
        monkeypatch.setattr(MlflowClient, "set_registered_model_alias", real)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", then_fail)
    with pytest.raises((_Interrupted, PromotionRefused)):
        scene.promote()
    monkeypatch.undo()
    assert looks
    assert aliases(scene.name) == {"champion": "2"}


def test_an_alias_that_cannot_be_put_back_is_said(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = MlflowClient.set_registered_model_alias, []

    def once(self: MlflowClient, *arguments: object) -> None:
        if calls:
            raise MlflowException("no more writes today")
        calls.append(real(self, *arguments))
        _swap(scene)()

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", once)
    with pytest.raises(RegistryError, match=r"could not be put back: no more writes today.*it was 2"):
        scene.promote()
