"""Finding the audit that vouches for a model version, and saying all that keeps it from doing so.

The tag `lipschitz.run_id` only says where to look. What decides is the attestation found there: it has to be signed by
somebody trusted, to name this version and the files as they are at this moment, to have passed, to be valid, and to match
the evidence beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from mlflow.tracking import MlflowClient

from mlflow_lipschitz.errors import AuditError, PolicyError, RegistryError
from mlflow_lipschitz.policy import AuditPolicy, load_policy
from mlflow_lipschitz.registry import tags
from mlflow_lipschitz.registry.attestation import Attestation
from mlflow_lipschitz.registry.checking import Finding, own_findings, problems_in, version_findings
from mlflow_lipschitz.registry.dsse import ENVELOPE_LIMIT
from mlflow_lipschitz.registry.manifest import manifest_of, sha256_of
from mlflow_lipschitz.registry.store import ModelReference, store_errors
from mlflow_lipschitz.registry.trust import SignatureStatus, Trust


@dataclass(frozen=True)
class FoundAudit:
    """What is on record, and one finding per question asked of it.

    `folder` holds the audit's artifacts, `policy` is the one recorded there; both are None where there is none.
    """

    findings: tuple[Finding, ...]
    attestation: Attestation | None = None
    signature: SignatureStatus | None = None
    policy: AuditPolicy | None = None
    folder: Path | None = None
    run_id: str | None = None


@dataclass(frozen=True)
class VouchedAudit:
    """An attestation that vouches for the version, and the policy it was given under, read from the evidence."""

    attestation: Attestation
    policy: AuditPolicy
    signature: str
    run_id: str


class NotVouched(Exception):
    """No audit vouches for the version; `problems` are all the reasons. Callers say what follows from it."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))


def vouching_audit(
    reference: ModelReference, path: Path, client: MlflowClient, scratch: Path, trust: Trust
) -> VouchedAudit:
    """The passed audit of exactly the files in `path`.

    Args:
        reference: the registered version; name and version are given.
        path: its files, just downloaded.
        scratch: a folder that does not exist yet, for the evidence.
        trust: whose signatures count.
    Raises:
        NotVouched: there is none.
        RegistryError: the store cannot be read.
    """
    found = recorded_audit(reference, path, client, scratch, trust)
    problems = problems_in(found.findings)
    if problems or not (found.attestation and found.policy and found.signature and found.run_id):
        raise NotVouched(problems or ["the evidence is incomplete"])
    return VouchedAudit(found.attestation, found.policy, found.signature.label, found.run_id)


def recorded_audit(
    reference: ModelReference,
    path: Path,
    client: MlflowClient,
    scratch: Path,
    trust: Trust,
    sources: Sequence[ModelReference] = (),
) -> FoundAudit:
    """The audit that the version's tag points to, with a finding for each question; see `vouching_audit`.

    Args:
        sources: versions that this one is a copy of, whose attestations count as well.
    """
    with store_errors(f"read {reference.uri}"):
        version = client.get_model_version(str(reference.name), str(reference.version))
        address = client.get_model_version_download_uri(str(reference.name), str(reference.version))
    run_id = version.tags.get(tags.RUN_ID)
    if not run_id:
        return _nothing("no audit is on record (the version has no tag lipschitz.run_id)")
    folder = _evidence(run_id, client, scratch)
    if folder is None:
        return _nothing(f"run {run_id} holds no {tags.ATTESTATION_FILE}")
    try:
        attestation = read_attestation(folder / tags.ATTESTATION_FILE)
    except AuditError as error:
        return _nothing(f"the attestation cannot be used: {error}")
    identities = [{"name": r.name, "version": r.version, "model_id": r.model_id} for r in (reference, *sources)]
    status = trust.status(attestation)
    policy, evidence = evidence_findings(attestation, folder)
    findings = (
        *signature_findings(attestation, status),
        *address_findings(address),
        *version_findings(attestation, manifest_of(path), identities),
        *own_findings(attestation),
        *evidence,
    )
    return FoundAudit(findings, attestation, status, policy, folder, run_id)


def read_attestation(path: Path) -> Attestation:
    """Read `attestation.json`; AuditError when it cannot be read or is not well-formed."""
    try:
        with path.open("rb") as stream:
            return Attestation.from_json(stream.read(ENVELOPE_LIMIT + 1))
    except OSError as error:
        raise AuditError(f"{path} cannot be read: {error.strerror}") from error


def signature_findings(attestation: Attestation, status: SignatureStatus) -> tuple[Finding, ...]:
    """The attestation is well-formed; and what is to be said of its signature."""
    formed = Finding("attestation", f"{attestation.digest}, canonical and complete")
    if status.problems:
        return (formed, *(Finding("signature", problem, False) for problem in status.problems))
    return formed, Finding("signature", status.label, True if status.verified_by else None)


def address_findings(address: str) -> tuple[Finding, ...]:
    """What is to be said of the place where a version's files are: nothing, where it is one place for everybody, for good."""
    if urlsplit(address).scheme not in ("runs", "models"):  # in any case, and with blanks: as MLflow reads it
        return ()
    # MLflow's client lays the files of a logged model of that run and name over those of the address.
    problem = (
        f"its address {address} stands for other places, which may change: register the logged model (models:/m-…)"
    )
    return (Finding("address", problem, False),)


def evidence_findings(attestation: Attestation, folder: Path) -> tuple[AuditPolicy | None, tuple[Finding, ...]]:
    """The recorded policy; and what in the evidence is no longer what was attested: policy by meaning, files by digest."""
    findings, policy = [], None
    try:
        policy = load_policy(folder / tags.POLICY_FILE)
    except PolicyError as error:
        findings.append(Finding("evidence", f"the policy of the audit is not on record: {error}", False))
    if policy is not None and policy.digest != attestation.predicate["policy"]["digest"]:
        findings.append(Finding("evidence", f"the recorded {tags.POLICY_FILE} is not the policy of the audit", False))
    attested = sorted(attestation.predicate["artifacts"].items())
    for name, sha256 in attested:
        if not _holds(folder, name, sha256):
            findings.append(
                Finding("evidence", f"the recorded {name} is missing or has changed since the audit", False)
            )
    return policy, tuple(findings) or (Finding("evidence", f"{len(attested)} artifacts as attested"),)


def _nothing(problem: str) -> FoundAudit:
    return FoundAudit((Finding("attestation", problem, False),))


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


def _holds(folder: Path, name: str, sha256: str) -> bool:
    path = folder / name
    return folder.resolve() in path.resolve().parents and path.is_file() and sha256_of(path) == sha256
