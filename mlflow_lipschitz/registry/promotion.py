"""Opening the door: an alias, a stage or a copy, for exactly the bytes that passed an audit.

Nothing on the model version is believed; see vouching.py for what is. All checks come before the first change, and the
alias is the last change, so a refusal or a crash leaves every alias where it was.
"""

from __future__ import annotations

import getpass
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mlflow_lipschitz.errors import PromotionRefused, UsageError
from mlflow_lipschitz.policy import AuditPolicy, load_policy
from mlflow_lipschitz.registry import tags
from mlflow_lipschitz.registry.attestation import Attestation
from mlflow_lipschitz.registry.manifest import manifest_of
from mlflow_lipschitz.registry.pull import fetch
from mlflow_lipschitz.registry.store import ModelReference, client_for, store_errors
from mlflow_lipschitz.registry.vouching import NotVouched, VouchedAudit, vouching_audit


@dataclass(frozen=True)
class PromotionResult:
    """What was done, or with `dry_run` what would be done.

    `name` and `version` are of the version that now holds the alias or the stage: the copy, when one was made. `policy`
    is the reference (`name@version sha256:…`) of the policy that was passed.
    """

    name: str
    version: str
    source: str
    alias: str | None
    stage: str | None
    attestation: str
    signature: str
    policy: str
    dry_run: bool

    def __str__(self) -> str:
        """Two lines for people. The second names the policy, for any policy opens the door unless one was asked for."""
        target = [f"alias {self.alias}"] * bool(self.alias) + [f"stage {self.stage}"] * bool(self.stage)
        done = "would be" if self.dry_run else "is now"
        place = f"{self.name} version {self.version}"
        return (
            f"{self.source} {done} {' and '.join(target) or 'a copy'} of {place} ({self.signature} {self.attestation})\n"
            f"policy passed: {self.policy}"
        )


@dataclass(frozen=True)
class PromotionOptions:
    """How a promotion is carried out.

    Attributes:
        dry_run: check everything, change nothing.
        tracking_uri: MLflow store; None takes MLflow's current one.
    """

    dry_run: bool = False
    tracking_uri: str | None = None


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
    policy: str | Path | AuditPolicy | None = None,
    options: PromotionOptions | None = None,
) -> PromotionResult:
    """Promote a registered version whose passed audit of exactly these files is on record.

    Args:
        model_uri: `models:/name/1` or `models:/name@alias`.
        alias: alias to set. stage: stage to move to (deprecated in MLflow). to: registered model to copy to;
        together with alias or stage, these go to the copy.
        policy: the policy that has to have been passed (a file, YAML text, or a loaded one), compared by its digest;
        None accepts any and names it in the result.
    Raises:
        PolicyError: `policy` cannot be read.
        PromotionRefused: with everything that is missing and the command that would supply it.
        UsageError: no target, both an alias and a stage, or a URI without name and version.
        RegistryError: the store cannot be read or written.
    """
    if bool(alias) + bool(stage) > 1 or not (alias or stage or to):
        raise UsageError("say where to: one of alias (--alias NAME) and stage (--stage NAME), or a copy (--to NAME).")
    options = options or PromotionOptions()
    wanted = policy if policy is None or isinstance(policy, AuditPolicy) else load_policy(policy)
    tracking_uri = options.tracking_uri
    client = client_for(tracking_uri)
    with tempfile.TemporaryDirectory(prefix="mlflow-lipschitz-") as scratch:
        reference, path = fetch(model_uri, directory=Path(scratch), tracking_uri=tracking_uri)
        if reference.name is None or reference.version is None or not _names_a_version(model_uri):
            raise UsageError(f"{model_uri!r} is not a registered version. Use models:/NAME/VERSION.")
        vouched = _vouching(reference, path, client, Path(scratch) / "evidence", wanted)
    return _carry_out(_Request(alias, stage, to, options.dry_run), reference, vouched, client, tracking_uri)


def _names_a_version(uri: str) -> bool:
    """`models:/NAME/VERSION` or `models:/NAME@ALIAS`; a logged model's id alone may stand for several versions."""
    path = uri.removeprefix("models:/")
    return path != uri and ("/" in path or "@" in path)


def _vouching(
    reference: ModelReference, path: Path, client: MlflowClient, scratch: Path, wanted: AuditPolicy | None
) -> VouchedAudit:
    """The audit that vouches for the files in `path`; raises PromotionRefused when there is none."""
    try:
        vouched = vouching_audit(reference, path, client, scratch)
    except NotVouched as error:
        raise _refused(reference, error.problems) from error
    if wanted is not None and vouched.policy.digest != wanted.digest:
        raise _refused(
            reference, [f"it passed {vouched.policy.reference}, and {wanted.reference} is what it has to pass"]
        )
    return vouched


def _refused(reference: ModelReference, problems: Sequence[str]) -> PromotionRefused:
    place = f"models:/{reference.name}/{reference.version}"
    listed = "\n".join(f"  - {problem}" for problem in problems)
    return PromotionRefused(
        f"{place} may not be promoted:\n{listed}\nAudit it: mlflow-lipschitz audit {place} --policy POLICY.yaml "
        "--data ROWS"
    )


def _carry_out(
    request: _Request, source: ModelReference, vouched: VouchedAudit, client: MlflowClient, tracking_uri: str | None
) -> PromotionResult:
    name, version, attestation = str(source.name), str(source.version), vouched.attestation
    if not request.dry_run:
        if request.to:
            name, version = _copied(request.to, source, attestation, client, tracking_uri)
        _apply(request, name, version, source, vouched, client)
    return PromotionResult(
        name=request.to or name,
        version="(new)" if request.dry_run and request.to else version,
        source=f"models:/{source.name}/{source.version}",
        alias=request.alias,
        stage=request.stage,
        attestation=attestation.digest,
        signature=attestation.signature,
        policy=vouched.policy.reference,
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
    request: _Request, name: str, version: str, source: ModelReference, vouched: VouchedAudit, client: MlflowClient
) -> None:
    record = {
        "by": getpass.getuser(),
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "from": f"models:/{source.name}/{source.version}",
        "alias": request.alias,
        "stage": request.stage,
        "attestation": vouched.attestation.digest,
        "signature": vouched.attestation.signature,
        "policy": vouched.policy.reference,
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
