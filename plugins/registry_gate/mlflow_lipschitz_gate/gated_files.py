"""Artifact repositories that refuse to change the files of registered versions.

Both of MLflow's HTTP stacks, and everything else in the server, get their repositories from one registry. The check stands
in the repository, behind all decoding of URLs, so `//`, `..` and `%2e` have been dealt with by the code that acts on them.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import posixpath
from collections.abc import AsyncIterable, AsyncIterator, Callable
from functools import cache, wraps
from typing import Any, BinaryIO

from mlflow.store.artifact import artifact_repository_registry as registry_module
from mlflow.store.artifact.artifact_repo import (
    ArtifactRepository,
    MultipartUploadMixin,
    PresignedUploadMixin,
    StreamUploadMixin,
)

from mlflow_lipschitz_gate.frozen import FrozenPlaces

# Method -> the parameters that say where it writes: folder first, then the file.
_WRITERS = {
    "log_artifact": ("artifact_path", "local_file"),
    "log_artifacts": ("artifact_path", ""),
    "delete_artifacts": ("artifact_path", ""),
    "create_multipart_upload": ("artifact_path", "local_file"),
    "complete_multipart_upload": ("artifact_path", "local_file"),
    "create_presigned_upload_url": ("artifact_path", ""),
    "upload_archived_trace_data": ("", ""),
    "upload_archived_trace_data_bytes": ("", ""),
}
_STREAM, _ASYNC_STREAM = "log_artifact_from_stream", "log_artifact_from_async_stream"
_HARMLESS = frozenset({"abort_multipart_upload", "upload_attachment", "upload_trace_data"})
# These hand the work to a repository of the same registry, or over HTTP to a server.
_RESOLVING = frozenset({"runs", "models", "mlflow-artifacts", "http", "https"})
_VERBS = ("log", "upload", "delete", "create", "complete", "write", "put", "move", "copy", "rename")


def freeze_files(frozen: FrozenPlaces) -> None:
    """Make every repository that is built in this process from now on refuse to change files of registered versions."""
    registry = registry_module._artifact_repository_registry
    build = registry.get_artifact_repository

    @wraps(build)
    def build_gated(artifact_uri: str, *args: Any, **kwargs: Any) -> ArtifactRepository:
        return _gated(build(artifact_uri, *args, **kwargs), frozen)

    registry.get_artifact_repository = build_gated


def unknown_writers() -> list[str]:
    """Public methods of MLflow's repositories that sound like writing and that this module does not know."""
    kinds = (ArtifactRepository, MultipartUploadMixin, PresignedUploadMixin, StreamUploadMixin)
    public = {name for kind in kinds for name in dir(kind) if name.startswith(_VERBS)}
    return sorted(public - {*_WRITERS, _STREAM, _ASYNC_STREAM, *_HARMLESS})


def _gated(repository: ArtifactRepository, frozen: FrozenPlaces) -> ArtifactRepository:
    resolving = repository.artifact_uri.partition(":")[0] in _RESOLVING
    if not resolving and not hasattr(repository, "lipschitz_frozen"):
        repository.lipschitz_frozen = frozen
        repository.__class__ = _gated_class(type(repository))  # type: ignore[arg-type]
    return repository


@cache
def _gated_class(kind: type) -> type:
    """`kind` with checks. Only methods it has are overridden: MLflow asks by class and attribute what a repository can do."""
    methods: dict[str, Any] = {
        name: _checked(getattr(kind, name), *where) for name, where in _WRITERS.items() if hasattr(kind, name)
    }
    if hasattr(kind, _STREAM):
        methods[_STREAM] = _checked_stream(getattr(kind, _STREAM))
    if hasattr(kind, _ASYNC_STREAM):
        methods[_ASYNC_STREAM] = _checked_async_stream(getattr(kind, _ASYNC_STREAM))
    return type(f"Gated{kind.__name__}", (kind,), methods)


def _checked(method: Callable[..., Any], folder: str, file: str) -> Callable[..., Any]:
    signature = inspect.signature(method)
    action = "to delete" if method.__name__.startswith("delete") else "to write"

    @wraps(method)
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, *args, **kwargs).arguments
        # A parameter of another name leaves the path empty, which stands for the whole repository: refused, not missed.
        path, name = given.get(folder) or "", os.fspath(given.get(file) or "")
        # Some repositories keep only the last part of a relative name, others all of it.
        targets = {posixpath.basename(name), "" if posixpath.isabs(name) else name} - {"" if name else None}
        writes = [self.lipschitz_frozen.write(self.artifact_uri, posixpath.join(path, t), action) for t in targets]
        for write in writes:
            write.refuse()
        done = method(self, *args, **kwargs)
        for write in writes:
            write.after()
        return done

    return checked


def _checked_stream(method: Callable[..., None]) -> Callable[..., None]:
    @wraps(method)
    def checked(self: Any, stream: BinaryIO, artifact_file_name: str, artifact_path: str | None = None) -> None:
        name = posixpath.join(artifact_path or "", artifact_file_name)
        write = self.lipschitz_frozen.write(self.artifact_uri, name, "to write")
        write.refuse()
        method(self, _Watched(stream, write.refuse), artifact_file_name, artifact_path)
        write.after()

    return checked


def _checked_async_stream(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    async def checked(
        self: Any, chunks: AsyncIterable[bytes], artifact_file_name: str, artifact_path: str | None = None
    ) -> None:
        name = posixpath.join(artifact_path or "", artifact_file_name)
        write = self.lipschitz_frozen.write(self.artifact_uri, name, "to write")

        # A look at the database must not hold up the event loop; a look at memory need not leave it.
        async def watched() -> AsyncIterator[bytes]:
            async for chunk in chunks:
                yield chunk
            # The version may have been registered while the bytes were coming in.
            if not write.is_clear:
                await asyncio.to_thread(write.refuse)

        if not write.is_clear:
            await asyncio.to_thread(write.refuse)
        await method(self, watched(), artifact_file_name, artifact_path)
        if not write.is_clear:
            await asyncio.to_thread(write.after)

    return checked


class _Watched:
    """A stream that asks once more when it has been read to its end, before anything is put in place."""

    def __init__(self, stream: BinaryIO, ask: Callable[[], None]) -> None:
        self._stream, self._ask = stream, ask

    def read(self, size: int = -1) -> bytes:
        """As the stream does."""
        chunk = self._stream.read(size)
        if not chunk or size < 0:
            self._ask()
        return chunk
