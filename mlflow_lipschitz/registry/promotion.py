"""Opening the door: an alias, a stage or a copy, for exactly the bytes that passed an audit.

Nothing on the model version is believed. The tag `lipschitz.run_id` only says where to look; what decides is the
attestation found there, compared with the files as they are at this moment. All checks come before the first change,
and the alias is the last change, so a refusal or a crash leaves every alias where it was.
"""

from __future__ import annotations

import getpass
import json
import tempfile
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mlflow_lipschitz.errors import AuditError, PolicyError, PromotionRefused, RegistryError, UsageError
from mlflow_lipschitz.registry import tags
from mlflow_lipschitz.registry.attestation import Attestation, check_attestation
from mlflow_lipschitz.registry.manifest import manifest_of, sha256_of
from mlflow_lipschitz.registry.pull import fetch
from mlflow_lipschitz.registry.store import ModelReference, client_for, store_errors


@dataclass(frozen=True)
class PromotionResult:
    """What was done, or with `dry_run` what would be done.

    `name` and `version` are of the version that now holds the alias or the stage: the copy, when one was made.
    """

    name: str
    version: str
    source: str
    alias: str | None
    stage: str | None
    attestation: str
    signature: str
    dry_run: bool

    def __str__(self) -> str:
        """One line for people."""
        target = [f"alias {self.alias}"] * bool(self.alias) + [f"stage {self.stage}"] * bool(self.stage)
        done = "would be" if self.dry_run else "is now"
        place = f"{self.name} version {self.version}"
        return (
            f"{self.source} {done} {' and '.join(target) or 'a copy'} of {place} ({self.signature} {self.attestation})"
        )


@dataclass(frozen=True)
class _Request:
    alias: str | None
    stage: str | None
    to: str | None
    dry_run: bool


def promote(
    model_uri: str,
    *,
    alias: str | None = None,
    stage: str | None = None,
    to: str | None = None,
    dry_run: bool = False,
    tracking_uri: str | None = None,
) -> PromotionResult:
    """Promote a registered version whose passed audit of exactly these files is on record.

    Args:
        model_uri: `models:/name/1` or `models:/name@alias`.
        alias: alias to set. stage: stage to move to (deprecated in MLflow). to: registered model to copy to;
        together with alias or stage, these go to the copy.
        dry_run: check everything, change nothing.
    Raises:
        PromotionRefused: with everything that is missing and the command that would supply it.
        UsageError: no target, both an alias and a stage, or a URI without name and version.
        RegistryError: the store cannot be read or written.
    """
    if bool(alias) + bool(stage) > 1 or not (alias or stage or to):
        raise UsageError("say where to: one of alias (--alias NAME) and stage (--stage NAME), or a copy (--to NAME).")
    client = client_for(tracking_uri)
    with tempfile.TemporaryDirectory(prefix="mlflow-lipschitz-") as scratch:
        reference, path = fetch(model_uri, directory=Path(scratch), tracking_uri=tracking_uri)
        if reference.name is None or reference.version is None or not _names_a_version(model_uri):
            raise UsageError(f"{model_uri!r} is not a registered version. Use models:/NAME/VERSION.")
        attestation = _vouching(reference, path, client, Path(scratch) / "evidence")
    return _carry_out(_Request(alias, stage, to, dry_run), reference, attestation, client, tracking_uri)


def _names_a_version(uri: str) -> bool:
    """`models:/NAME/VERSION` or `models:/NAME@ALIAS`; a logged model's id alone may stand for several versions."""
    path = uri.removeprefix("models:/")
    return path != uri and ("/" in path or "@" in path)


def _vouching(reference: ModelReference, path: Path, client: MlflowClient, scratch: Path) -> Attestation:
    """The attestation that vouches for the files in `path`; raises PromotionRefused when there is none."""
    with store_errors(f"read {reference.uri}"):
        version = client.get_model_version(reference.name, reference.version)
    run_id = version.tags.get(tags.RUN_ID)
    if not run_id:
        raise _refused(reference, ["no audit is on record (the version has no tag lipschitz.run_id)"])
    folder = _evidence(run_id, client, scratch)
    if folder is None:
        raise _refused(reference, [f"run {run_id} holds no {tags.ATTESTATION_FILE}"])
    try:
        attestation = Attestation.from_json((folder / tags.ATTESTATION_FILE).read_bytes())
        identity = {"name": reference.name, "version": reference.version, "model_id": reference.model_id}
        problems = [*check_attestation(attestation, manifest_of(path), identity), *_altered(attestation, folder)]
    except (AuditError, KeyError, TypeError, AttributeError) as error:
        raise _refused(reference, [f"the attestation cannot be used: {error}"]) from error
    if problems:
        raise _refused(reference, problems)
    return attestation


def _evidence(run_id: str, client: MlflowClient, scratch: Path) -> Path | None:
    """The audit's artifacts, downloaded; None when the run, or the attestation in it, is not there."""
    scratch.mkdir()
    try:
        with store_errors(f"read the evidence in run {run_id}"):
            client.download_artifacts(run_id, tags.ARTIFACT_FOLDER, str(scratch))
    except RegistryError:
        return None
    folder = scratch / tags.ARTIFACT_FOLDER
    return folder if (folder / tags.ATTESTATION_FILE).is_file() else None


def _altered(attestation: Attestation, folder: Path) -> list[str]:
    """What in the evidence is no longer what was attested: the policy by its meaning, every file by its digest."""
    from mlflow_lipschitz.policy import load_policy

    problems = []
    try:
        found = load_policy(folder / tags.POLICY_FILE).digest
        if found != attestation.predicate["policy"].get("digest"):
            problems.append(f"the recorded {tags.POLICY_FILE} is not the policy of the audit")
    except (PolicyError, OSError) as error:
        problems.append(f"the policy of the audit is not on record: {error}")
    for name, sha256 in sorted(attestation.predicate.get("artifacts", {}).items()):
        path = folder / name
        if folder.resolve() not in path.resolve().parents or not path.is_file() or sha256_of(path) != sha256:
            problems.append(f"the recorded {name} is missing or has changed since the audit")
    return problems


def _refused(reference: ModelReference, problems: list[str]) -> PromotionRefused:
    place = f"models:/{reference.name}/{reference.version}"
    listed = "\n".join(f"  - {problem}" for problem in problems)
    return PromotionRefused(
        f"{place} may not be promoted:\n{listed}\nAudit it: mlflow-lipschitz audit {place} --policy POLICY.yaml "
        "--data ROWS"
    )


def _carry_out(
    request: _Request, source: ModelReference, attestation: Attestation, client: MlflowClient, tracking_uri: str | None
) -> PromotionResult:
    name, version = str(source.name), str(source.version)
    if not request.dry_run:
        if request.to:
            name, version = _copied(request.to, source, attestation, client, tracking_uri)
        _apply(request, name, version, source, attestation, client)
    return PromotionResult(
        name=request.to or name,
        version="(new)" if request.dry_run and request.to else version,
        source=f"models:/{source.name}/{source.version}",
        alias=request.alias,
        stage=request.stage,
        attestation=attestation.digest,
        signature=attestation.signature,
        dry_run=request.dry_run,
    )


def _copied(
    to: str, source: ModelReference, attestation: Attestation, client: MlflowClient, tracking_uri: str | None
) -> tuple[str, str]:
    """Copy the version and hash the copy: it must serve the audited bytes too."""
    with store_errors(f"copy to {to}", "Check that you may create versions there."):
        copy = client.copy_model_version(f"models:/{source.name}/{source.version}", to)
    with tempfile.TemporaryDirectory(prefix="mlflow-lipschitz-") as scratch:
        _, path = fetch(f"models:/{to}/{copy.version}", directory=scratch, tracking_uri=tracking_uri)
        if manifest_of(path).digest != attestation.predicate["model"]["manifest"]:
            client.delete_model_version(to, str(copy.version))
            raise _refused(
                source, [f"the copy models:/{to}/{copy.version} did not hold the audited files and was deleted"]
            )
    return to, str(copy.version)


def _apply(
    request: _Request, name: str, version: str, source: ModelReference, attestation: Attestation, client: MlflowClient
) -> None:
    record = {
        "by": getpass.getuser(),
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "from": f"models:/{source.name}/{source.version}",
        "alias": request.alias,
        "stage": request.stage,
        "attestation": attestation.digest,
        "signature": attestation.signature,
    }
    with store_errors(f"promote {name} version {version}", "Check your rights on this model; nothing was promoted."):
        # The record comes first: an alias without a record would be worse than a record without an alias.
        client.set_model_version_tag(name, version, tags.PROMOTION, json.dumps(record, sort_keys=True))
        try:
            if request.stage:
                client.transition_model_version_stage(name, version, request.stage)
            if request.alias:
                client.set_registered_model_alias(name, request.alias, version)
        except (MlflowException, OSError):
            client.delete_model_version_tag(name, version, tags.PROMOTION)
            raise
