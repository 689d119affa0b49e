"""Reading model files where the server keeps them: resolved as MLflow's own handlers resolve them, hashed in a stream."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.server import handlers
from mlflow.server.constants import ARTIFACT_ROOT_ENV_VAR
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository
from mlflow.utils.uri import append_to_uri_path, validate_path_is_safe

from mlflow_lipschitz_gate.config import Limits

_CHUNK = 1 << 20
_PROXIED = ("http", "https", "mlflow-artifacts")
# MLflow writes uploads under this name first; no client is ever shown such a file.
_STAGED = ".artifact.uploading."
# MLflow's client writes this file while downloading; it is no part of the model.
_META = "registered_model_meta"


class Unreadable(Exception):
    """Files cannot be read or pinned down; the text says why."""


@dataclass(frozen=True)
class FileDigest:
    """One file, its path relative to the model's folder."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Place:
    """A folder in a store: the repository and the path in it (empty for its root)."""

    repository: ArtifactRepository
    path: str


def without_run(uri: str) -> str:
    """`runs:/ID/path` as the place where that run keeps its artifacts; other URIs as they are. Raises MlflowException."""
    if urlparse(uri).scheme != "runs":
        return uri
    try:
        run_id, path = RunsArtifactRepository.parse_runs_uri(uri)
    except MlflowException as error:
        # Said as what it is: this address will never be one, whatever the database answers.
        raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from error
    root = handlers._get_tracking_store().get_run(run_id).info.artifact_uri
    return append_to_uri_path(root, path) if path else root  # `runs:/ID` is all of the run


def fixed_place_problems(uri: str) -> list[str]:
    """Why `uri` does not say, once and for everybody, where files are; empty when it does.

    What the server hashes has to be what every client downloads, now and later.
    """
    parsed = urlparse(uri)
    if parsed.scheme in ("runs", "models"):
        # MLflow's client puts files of a logged model of the same run and name over those of a runs:/ address.
        return [f"its address {uri} stands for other places, which may change: register the logged model (models:/m-…)"]
    if bad := [char for char in "?#;\\" if char in uri]:
        return [f"its address {uri} holds {bad[0]!r}, which not every program reads alike"]
    if parsed.scheme in _PROXIED and parsed.netloc and parsed.netloc != urlparse(_server_root()).netloc:
        return [
            f"its address {uri} names the host {parsed.netloc}, which is not the one this server keeps artifacts at"
        ]
    return []


def _server_root() -> str:
    return os.environ.get(ARTIFACT_ROOT_ENV_VAR, "")


def place_of(uri: str) -> Place:
    """Where the server itself would read `uri`: behind its artifact proxy, on its disk, or in a bucket. Raises Unreadable."""
    try:
        uri = without_run(uri)
        if problems := fixed_place_problems(uri):
            raise Unreadable(problems[0])
        if urlparse(uri).scheme not in _PROXIED:
            return Place(handlers.get_artifact_repository(uri), "")
        if not handlers._is_servable_proxied_run_artifact_root(uri):
            raise Unreadable(f"this server does not serve {uri}")
        # Decoded by the function that decodes downloads, so that what is hashed is what is served.
        path = validate_path_is_safe(handlers._get_proxied_run_artifact_destination_path(uri))
    except (AssertionError, MlflowException) as error:
        raise Unreadable(f"{uri} is no place this server can read: {error}") from error
    return Place(handlers._get_artifact_repo_mlflow_artifacts(), posixpath.normpath(path))


def manifest_digest(files: list[FileDigest]) -> str:
    """The digest of a manifest as attestations record it."""
    rows = [{"path": f.path, "sha256": f.sha256, "size": f.size} for f in files]
    text = json.dumps({"files": rows}, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def hash_files(uri: str, limits: Limits) -> list[FileDigest]:
    """Every file under `uri`, sorted by path, read now. Raises Unreadable."""
    place = place_of(uri)
    try:
        local = _local_folder(place)
        found = list(_local(local, limits) if local is not None else _remote(place, limits))
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(f"the files of {uri} cannot be read: {error}") from error
    if not found:
        raise Unreadable(f"there are no files at {uri}")
    return sorted(found, key=lambda f: f.path)


def read_file(uri: str, name: str, limit: int) -> bytes:
    """The file `name` under `uri`, `limit` + 1 bytes at most. Raises Unreadable."""
    place = place_of(uri)
    path = posixpath.join(place.path, name)
    try:
        local = place.repository.get_local_path(path)
        if local is not None:
            with open(local, "rb") as stream:
                return stream.read(limit + 1)
        sizes = {f.path: f.file_size for f in place.repository.list_artifacts(posixpath.dirname(path))}
        if sizes.get(path) is None or sizes[path] > limit:
            raise Unreadable(f"{name} under {uri} is missing or larger than {limit} bytes")
        with tempfile.TemporaryDirectory() as folder:
            target = os.path.join(folder, "file")
            place.repository._download_file(path, target)
            with open(target, "rb") as stream:
                return stream.read(limit + 1)
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(f"{name} under {uri} cannot be read: {error}") from error


def _local_folder(place: Place) -> Path | None:
    path = place.repository.get_local_path(place.path or ".")
    return None if path is None else Path(path)


def _local(root: Path, limits: Limits) -> Iterator[FileDigest]:
    total = 0
    for number, path in enumerate(_walk(root)):
        relative = path.relative_to(root).as_posix()
        if relative == _META:
            continue
        digest, size = _digest(path, limits.bytes - total)
        total += size
        if number >= limits.files:
            raise Unreadable(f"there are more than {limits.files} files (limits.files)")
        yield FileDigest(relative, digest, size)


def _walk(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            mode = entry.stat(follow_symlinks=False).st_mode
            if not entry.name.isprintable():
                raise Unreadable(f"the name {entry.name!r} cannot be shown")
            if stat.S_ISDIR(mode):
                yield from _walk(Path(entry.path))
            elif not stat.S_ISREG(mode):
                raise Unreadable(f"{entry.name} is a link or another special file, which no digest can pin down")
            elif not entry.name.startswith(_STAGED):
                yield Path(entry.path)


def _digest(path: Path, limit: int) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    # A link that was put there since the listing must not be followed.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    with os.fdopen(descriptor, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            size += len(chunk)
            if size > limit:
                raise Unreadable("the files are larger than limits.bytes allows")
            digest.update(chunk)
    return digest.hexdigest(), size


def _remote(place: Place, limits: Limits) -> Iterator[FileDigest]:
    names, total = _listing(place, limits), 0
    with tempfile.TemporaryDirectory(prefix="lipschitz-gate-") as folder:
        target = Path(folder) / "file"
        for name, announced in names:
            if total + announced > limits.bytes:
                raise Unreadable("the files are larger than limits.bytes allows")
            place.repository._download_file(name, str(target))
            digest, size = _digest(target, limits.bytes - total)
            target.unlink()
            total += size
            relative = posixpath.relpath(name, place.path or ".")
            if relative != _META:
                yield FileDigest(relative, digest, size)


def _listing(place: Place, limits: Limits) -> list[tuple[str, int]]:
    """Path and announced size of every file, folders walked."""
    files: list[tuple[str, int]] = []
    folders = [place.path]
    while folders:
        for info in place.repository.list_artifacts(folders.pop() or None):
            if info.is_dir:
                folders.append(info.path)
            else:
                files.append((info.path, info.file_size or 0))
            if len(files) + len(folders) > limits.files:
                raise Unreadable(f"there are more than {limits.files} files (limits.files)")
    return files
