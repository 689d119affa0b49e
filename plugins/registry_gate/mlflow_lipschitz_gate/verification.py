"""Does a signed audit vouch for exactly this version, with exactly the bytes it has now?

The tag `lipschitz.run_id` says in which run to look and nothing more: a wrong tag leads to no attestation, or to one that
does not fit. What decides is a signature by a trusted key over the digests of the files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlparse

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.server import handlers

from mlflow_lipschitz_gate.attestation import LIMIT, Attestation, Malformed, read_attestation
from mlflow_lipschitz_gate.config import GateConfig, RequiredPolicy
from mlflow_lipschitz_gate.keys import Trust
from mlflow_lipschitz_gate.places import is_inside
from mlflow_lipschitz_gate.refusals import GateConfigError
from mlflow_lipschitz_gate.storage import (
    FileDigest,
    Unreadable,
    fixed_place_problems,
    hash_files,
    manifest_digest,
    read_file,
)

RUN_TAG = "lipschitz.run_id"
EVIDENCE = "lipschitz/attestation.json"
_RUN_ID = re.compile(r"[0-9A-Za-z_\-]{1,64}")
_COPIES = 16
# What MLflow answers about things that are not there, or that no thing can be called.
ABSENT = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"})


@dataclass(frozen=True)
class Ancestor:
    """A version in the line of copies that ends in the version to be judged."""

    name: str
    version: str
    run_id: str | None


@dataclass(frozen=True)
class Subject:
    """A version to be judged: it and the versions it is a copy of, the logged model behind them, and where the files are."""

    line: tuple[Ancestor, ...]
    model_id: str | None
    location: str

    @property
    def uri(self) -> str:
        """Of the version that was first, which is the one to audit."""
        first = self.line[-1]
        return f"models:/{first.name}/{first.version}"


def subject_of(store: Any, name: str, version: str) -> Subject:
    """Read a version and its line of copies from the registry. Raises MlflowException when the version is not there."""
    found = store.get_model_version(name, version)
    location = store.get_model_version_download_uri(name, version)
    line, model_id = [_ancestor(found)], found.model_id
    while len(line) <= _COPIES and (parent := _parent(found.source)) is not None:
        try:
            found = store.get_model_version(*parent)
        except MlflowException as error:
            if error.error_code not in ABSENT:
                raise
            break  # deleted since: the copy has to stand on its own tags
        line.append(_ancestor(found))
        model_id = model_id or found.model_id
    return Subject(tuple(line), model_id or _model_id(found.source), location)


def problems_with(subject: Subject, config: GateConfig, target: str) -> list[str]:
    """Everything that keeps the version from a protected place on the registered model `target`; empty when nothing does."""
    policy = config.policy_for(target)
    if policy is None:
        return [f"no entry of policies is for the model {target!r}"]
    if reasons := _place_problems(subject.location, config):
        return reasons
    try:
        trust = config.trust()
    except GateConfigError as error:
        return [f"the gate cannot read its keys: {error}"]
    runs = list(dict.fromkeys(a.run_id for a in subject.line if a.run_id))
    if not runs:
        return ["no audit is on record (the version has no tag lipschitz.run_id)"]
    files: list[FileDigest] | None = None
    collected: list[str] = []
    for run_id in runs:
        try:
            attestation = _from_run(run_id)
            reasons = _judge(attestation, subject, trust, config, policy)
            if not reasons:
                # The bytes are hashed once, and only when everything cheaper holds.
                files = hash_files(subject.location, config.file.limits) if files is None else files
                reasons = _file_problems(attestation, files)
        except (Malformed, Unreadable) as error:
            reasons = [str(error)]
        if not reasons:
            return []
        collected += [f"the attestation in run {run_id} does not count: {reason}" for reason in reasons]
    return collected


def _place_problems(location: str, config: GateConfig) -> list[str]:
    if reasons := fixed_place_problems(location):
        return reasons
    if not is_inside(location, config.file.artifact_stores):
        return [f"its files are at {location}, in none of the stores that this server guards (artifact_stores)"]
    return []


def _from_run(run_id: str) -> Attestation:
    if not _RUN_ID.fullmatch(run_id):
        raise Unreadable("the tag lipschitz.run_id names no run")
    try:
        run = handlers._get_tracking_store().get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise  # a database that does not answer says nothing about the run
        raise Unreadable(f"there is no such run: {error}") from error
    return read_attestation(read_file(run.info.artifact_uri, EVIDENCE, LIMIT))


def _judge(
    attestation: Attestation, subject: Subject, trust: Trust, config: GateConfig, policy: RequiredPolicy
) -> list[str]:
    if reasons := attestation.signature_problems(trust):
        return reasons  # nothing an unknown author wrote is worth quoting
    predicate = attestation.predicate
    reasons = attestation.time_problems(datetime.now(timezone.utc), config.file.max_age_days)
    reasons += _identity_problems(predicate["model"], subject)
    reasons += _policy_problems(predicate["policy"], policy)
    if predicate["verdict"]["status"] != "passed":
        reasons.append(f"its verdict is {predicate['verdict']['status']!r}, not 'passed'")
    return reasons


def _identity_problems(model: Mapping[str, Any], subject: Subject) -> list[str]:
    reasons = []
    named = (model["name"], model["version"])
    if named not in {(a.name, a.version) for a in subject.line}:
        last = subject.line[0]
        reasons.append(f"it is for version {named[1]} of {named[0]!r}, not version {last.version} of {last.name!r}")
    if None not in (model["model_id"], subject.model_id) and model["model_id"] != subject.model_id:
        reasons.append(f"it is for the logged model {model['model_id']}, not {subject.model_id}")
    return reasons


def _policy_problems(passed: Mapping[str, Any], wanted: RequiredPolicy) -> list[str]:
    reasons = []
    if wanted.name is not None and passed["name"] != wanted.name:
        reasons.append(f"it passed the policy {passed['name']!r}, and {wanted.name!r} is required")
    if wanted.min_version is not None:
        version = passed["version"]
        if not (version.isascii() and version.isdigit()) or int(version[:18]) < wanted.min_version:
            reasons.append(f"it passed version {version} of the policy, and {wanted.min_version} is required")
    if wanted.digests is not None and passed["digest"] not in wanted.digests:
        reasons.append(f"it passed the policy with digest {passed['digest']}, which is not one of the required ones")
    return reasons


def _file_problems(attestation: Attestation, files: list[FileDigest]) -> list[str]:
    now = {f.path: f.sha256 for f in files}
    audited = attestation.files
    changed = sorted(path for path in now.keys() | audited.keys() if now.get(path) != audited.get(path))
    if changed or manifest_digest(files) != attestation.predicate["model"]["manifest"]:
        shown = ", ".join(changed[:5]) + (" and more" if len(changed) > 5 else "")
        return [f"the model's files are not the audited ones: {shown or 'their manifest differs'}"]
    return []


def _ancestor(version: ModelVersion) -> Ancestor:
    return Ancestor(version.name, str(version.version), version.tags.get(RUN_TAG))


def _parent(source: str | None) -> tuple[str, str] | None:
    """Name and version of the version that `source` copies; None when it is no copy of a version."""
    parsed = urlparse(source or "")
    name, _, version = parsed.path.strip("/").rpartition("/")
    return (name, version) if parsed.scheme == "models" and name and version.isdigit() else None


def _model_id(source: str | None) -> str | None:
    return next((part for part in urlparse(source or "").path.split("/") if part.startswith("m-")), None)
