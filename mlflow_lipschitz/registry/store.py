"""From a model URI to files: MLflow's tracking store and registry, seen through one small window.

Every failure of the store becomes a RegistryError that says what to try next.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import mlflow
import requests
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mlflow_lipschitz.errors import RegistryError, UsageError

_CONNECT_SECONDS = 5.0
_MOST_COPIES = 16


@dataclass(frozen=True)
class ModelReference:
    """What a model URI stands for. A field the store cannot tell is None; a plain folder has `local_path` only."""

    uri: str
    name: str | None = None
    version: str | None = None
    model_id: str | None = None
    run_id: str | None = None
    local_path: Path | None = None


def client_for(tracking_uri: str | None = None) -> MlflowClient:
    """A client for `tracking_uri` (None: MLflow's current one), after checking that a server there answers.

    MLflow itself retries a refused connection for minutes, so the connection is tried once here first.
    """
    uri = tracking_uri or mlflow.get_tracking_uri()
    parsed = urlparse(str(uri))
    if parsed.scheme in ("http", "https") and parsed.hostname:
        port = parsed.port or (443 if parsed.scheme == "https" else 80)
        try:
            socket.create_connection((parsed.hostname, port), _CONNECT_SECONDS).close()
        except OSError as error:
            raise RegistryError(
                f"no MLflow server answers at {uri}: {error}. Start it with mlflow server --host {parsed.hostname} "
                f"--port {port}, or set MLFLOW_TRACKING_URI."
            ) from error
    with store_errors("open the tracking store"):
        return MlflowClient(tracking_uri=uri, registry_uri=tracking_uri)


@contextmanager
def store_errors(doing: str, hint: str = "") -> Iterator[None]:
    """Turn what MLflow and its transports raise into RegistryError: "cannot <doing>: … <hint>"."""
    try:
        yield
    except (MlflowException, requests.RequestException, OSError) as error:
        advice = hint or "Check MLFLOW_TRACKING_URI, and that the model exists: mlflow ui."
        raise RegistryError(f"cannot {doing}: {error}. {advice}") from error


def resolve(uri: str, tracking_uri: str | None = None) -> ModelReference:
    """Understand `models:/name/1`, `models:/name@alias`, `models:/m-…`, `runs:/…`, and plain or file:// paths.

    Raises UsageError for other spellings, RegistryError when the store does not know the model.
    """
    parsed = urlparse(uri)
    if parsed.scheme == "models":
        return _registered(uri, parsed.path.strip("/"), client_for(tracking_uri))
    if parsed.scheme == "runs":
        return _of_run(uri, parsed.path.strip("/"), client_for(tracking_uri))
    path = Path(unquote(parsed.path)) if parsed.scheme == "file" else Path(uri)
    if path.is_dir():
        return ModelReference(uri, local_path=path)
    raise UsageError(
        f"{uri!r} is neither a folder nor a model URI. Use models:/NAME/VERSION, models:/NAME@ALIAS, models:/m-ID, "
        "runs:/RUN_ID/PATH or the path of a folder with an MLmodel file."
    )


def download(reference: ModelReference, directory: Path, tracking_uri: str | None = None) -> Path:
    """Copy the model's files into the folder `directory` and return the folder that holds MLmodel."""
    if reference.local_path is not None:
        with store_errors(f"read {reference.local_path}", "Check the folder's permissions."):
            # Links are kept as links here; hashing refuses them.
            return Path(shutil.copytree(reference.local_path, directory / "model", symlinks=True))
    with store_errors(f"download {reference.uri}", "Check that its artifacts still exist: open it in mlflow ui."):
        target = directory / "model"
        target.mkdir(parents=True)
        found = mlflow.artifacts.download_artifacts(
            artifact_uri=_location(reference, client_for(tracking_uri)),
            dst_path=str(target),
            tracking_uri=tracking_uri,
            registry_uri=tracking_uri,
        )
    folder = Path(os.path.normpath(found))
    # MLflow itself writes this file while downloading a registered version; the model has no such file.
    (folder / "registered_model_meta").unlink(missing_ok=True)
    return folder


def _registered(uri: str, path: str, client: MlflowClient) -> ModelReference:
    if "/" not in path and "@" not in path:
        with store_errors(f"find the logged model {path}", "Copy the id from the run's page in mlflow ui."):
            model = client.get_logged_model(path)
        reference = ModelReference(uri, model_id=path, run_id=_text_or_none(model.source_run_id))
        return _with_version(reference, model.tags, client)
    hint = f"List the versions: mlflow ui, or MlflowClient().search_model_versions(\"name='{path.split('/')[0]}'\")."
    with store_errors(f"find {uri}", hint):
        if "/" in path:
            name, version = path.rsplit("/", 1)
            if not version.isdigit():
                raise UsageError(f"{uri!r} names no single version. Use models:/{name}/NUMBER or models:/{name}@ALIAS.")
            found = client.get_model_version(name, version)
        else:
            name, alias = path.rsplit("@", 1)
            found = client.get_model_version_by_alias(name, alias)
        model_id = _text_or_none(found.model_id) or _model_id_behind(found.source, client)
    run_id = _text_or_none(found.run_id)
    return ModelReference(uri, name=found.name, version=str(found.version), model_id=model_id, run_id=run_id)


def _model_id_behind(source: str | None, client: MlflowClient) -> str | None:
    """The logged model a version was made from, through any number of copies (`models:/dev.scorer/1`)."""
    for _ in range(_MOST_COPIES):
        copied = _version_in(source)
        if copied is None:
            parsed = urlparse(source or "")
            path = parsed.path.strip("/")
            if parsed.scheme == "models":
                return path
            return next((part for part in path.split("/") if part.startswith("m-")), None)
        source = client.get_model_version(*copied).source
    return None


def copied_from(name: str, version: str, client: MlflowClient) -> list[tuple[str, str]]:
    """Names and versions this version is a copy of, the nearest first, as far as the registry still knows them."""
    found: list[tuple[str, str]] = []
    with store_errors(f"read models:/{name}/{version}"):
        source = client.get_model_version(name, version).source
        while (copied := _version_in(source)) and len(found) < _MOST_COPIES:
            found.append(copied)
            try:
                source = client.get_model_version(*copied).source
            except MlflowException:
                break  # the original was deleted; that it was one is still known
    return found


def _version_in(source: str | None) -> tuple[str, str] | None:
    parsed = urlparse(source or "")
    name, slash, version = parsed.path.strip("/").rpartition("/")
    return (name, version) if parsed.scheme == "models" and slash else None


def _of_run(uri: str, path: str, client: MlflowClient) -> ModelReference:
    run_id, _, artifact = path.partition("/")
    with store_errors(f"find the run {run_id}", "Copy the run id from its page in mlflow ui."):
        run = client.get_run(run_id)
        outputs = run.outputs.model_outputs if run.outputs else []
        models = [client.get_logged_model(output.model_id) for output in outputs]
    named = [model for model in models if model.name == artifact]
    reference = ModelReference(uri, run_id=run_id)
    if len(named) != 1:
        return reference
    return _with_version(replace(reference, model_id=named[0].model_id), named[0].tags, client)


def _with_version(reference: ModelReference, tags: dict[str, str], client: MlflowClient) -> ModelReference:
    """Add name and version when exactly one registered version was made from the logged model."""
    try:
        listed = json.loads(tags.get("mlflow.modelVersions") or "[]")
        versions = {(str(row["name"]), str(row["version"])) for row in listed}
    except (ValueError, KeyError, TypeError):
        return reference
    if len(versions) != 1:
        return reference
    name, version = versions.pop()
    try:
        found = client.get_model_version(name, version)
    except MlflowException:
        return reference  # the tag outlives a deleted version
    return replace(reference, name=name, version=version) if found.source else reference


def _location(reference: ModelReference, client: MlflowClient) -> str:
    """Where the store keeps the files.

    Asked of `client` and not left to `models:/` URIs: MLflow resolves those against its process-wide registry, whatever
    tracking_uri it is given. An alias is not asked again: it could have moved since it was resolved.
    """
    if str(client._registry_uri).startswith("databricks"):
        # Unity Catalog hands out short-lived credentials, which only the models:/ repository of MLflow asks for.
        return f"models:/{reference.name}/{reference.version}" if reference.name else reference.uri
    if reference.name is not None and urlparse(reference.uri).path.strip("/") != reference.model_id:
        location = client.get_model_version_download_uri(reference.name, str(reference.version))
    elif reference.model_id is not None:
        location = client.get_logged_model(reference.model_id).artifact_location
    else:
        run_id, _, artifact = urlparse(reference.uri).path.strip("/").partition("/")
        location = f"{client.get_run(run_id).info.artifact_uri}/{artifact}"
    if urlparse(location).scheme == "models":
        raise RegistryError(f"the store gives no place for the files of {reference.uri}, only {location}.")
    return location


def _text_or_none(value: Any) -> str | None:
    return str(value) if value not in (None, "") else None
