"""Finding the audit that vouches for a model version, and saying all that keeps it from doing so.

The tag `lipschitz.run_id` only says where to look. What decides is the attestation found there: it has to name this
version and the files as they are at this moment, to have passed, to be valid, and to match the evidence beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow.tracking import MlflowClient

from mlflow_lipschitz.errors import AuditError, PolicyError, RegistryError
from mlflow_lipschitz.policy import AuditPolicy, load_policy
from mlflow_lipschitz.registry import tags
from mlflow_lipschitz.registry.attestation import Attestation, check_attestation
from mlflow_lipschitz.registry.manifest import manifest_of, sha256_of
from mlflow_lipschitz.registry.store import ModelReference, store_errors


@dataclass(frozen=True)
class VouchedAudit:
    """An attestation that vouches for the version, and the policy it was given under, read from the evidence."""

    attestation: Attestation
    policy: AuditPolicy


class NotVouched(Exception):
    """No audit vouches for the version; `problems` are all the reasons. Callers say what follows from it."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))


def vouching_audit(reference: ModelReference, path: Path, client: MlflowClient, scratch: Path) -> VouchedAudit:
    """The passed audit of exactly the files in `path`.

    Args:
        reference: the registered version; name and version are given.
        path: its files, just downloaded.
        scratch: a folder that does not exist yet, for the evidence.
    Raises:
        NotVouched: there is none.
        RegistryError: the store cannot be read.
    """
    with store_errors(f"read {reference.uri}"):
        version = client.get_model_version(str(reference.name), str(reference.version))
    run_id = version.tags.get(tags.RUN_ID)
    if not run_id:
        raise NotVouched(["no audit is on record (the version has no tag lipschitz.run_id)"])
    folder = _evidence(run_id, client, scratch)
    if folder is None:
        raise NotVouched([f"run {run_id} holds no {tags.ATTESTATION_FILE}"])
    policy, problems = _recorded_policy(folder)
    try:
        attestation = Attestation.from_json((folder / tags.ATTESTATION_FILE).read_bytes())
        identity = {"name": reference.name, "version": reference.version, "model_id": reference.model_id}
        found = check_attestation(attestation, manifest_of(path), identity)
        problems = [*found, *problems, *_altered(attestation, policy, folder)]
    except (AuditError, KeyError, TypeError, AttributeError) as error:
        raise NotVouched([f"the attestation cannot be used: {error}"]) from error
    if problems or policy is None:
        raise NotVouched(problems)
    return VouchedAudit(attestation, policy)


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


def _recorded_policy(folder: Path) -> tuple[AuditPolicy | None, list[str]]:
    try:
        return load_policy(folder / tags.POLICY_FILE), []
    except (PolicyError, OSError) as error:
        return None, [f"the policy of the audit is not on record: {error}"]


def _altered(attestation: Attestation, policy: AuditPolicy | None, folder: Path) -> list[str]:
    """What in the evidence is no longer what was attested: the policy by its meaning, every file by its digest."""
    problems = []
    if policy is not None and policy.digest != attestation.predicate["policy"].get("digest"):
        problems.append(f"the recorded {tags.POLICY_FILE} is not the policy of the audit")
    for name, sha256 in sorted(attestation.predicate.get("artifacts", {}).items()):
        path = folder / name
        if folder.resolve() not in path.resolve().parents or not path.is_file() or sha256_of(path) != sha256:
            problems.append(f"the recorded {name} is missing or has changed since the audit")
    return problems
