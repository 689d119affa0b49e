"""What exactly was audited: the SHA-256 of every file of a model.

Registered files are mutable (an artifact store accepts a new `model.onnx` under an old version), so evidence is
bound to this manifest and never to a name and a version alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlflow_lipschitz.errors import UntrustedModel

_CHUNK = 1 << 20


@dataclass(frozen=True)
class FileDigest:
    """One file: its path relative to the model's root with forward slashes, its SHA-256 in hex, its size in bytes."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """Every file of a model, sorted by path."""

    files: tuple[FileDigest, ...]

    @property
    def digest(self) -> str:
        """`sha256:` and the hex digest of the canonical JSON: two manifests with one digest list the same bytes."""
        return "sha256:" + hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no whitespace."""
        rows = [{"path": f.path, "sha256": f.sha256, "size": f.size} for f in self.files]
        return json.dumps({"files": rows}, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """The inverse of `to_json`. Raises ValueError, KeyError or TypeError on text that is not a manifest."""
        rows = json.loads(text)["files"]
        files = [FileDigest(str(r["path"]), str(r["sha256"]), int(r["size"])) for r in rows]
        return cls(tuple(sorted(files, key=lambda f: f.path)))

    def differences(self, other: Manifest) -> tuple[str, ...]:
        """One line per file that is changed, missing or new in `other`; empty when both list the same bytes."""
        mine, theirs = {f.path: f for f in self.files}, {f.path: f for f in other.files}
        lines = []
        for path in sorted(mine.keys() | theirs.keys()):
            if path not in theirs:
                lines.append(f"{path} is missing")
            elif path not in mine:
                lines.append(f"{path} is new")
            elif mine[path] != theirs[path]:
                lines.append(f"{path} has changed")
        return tuple(lines)


def manifest_of(directory: str | Path) -> Manifest:
    """Hash every file under `directory`.

    Raises UntrustedModel on symbolic links and on anything that is neither a file nor a folder: their meaning lies
    outside the folder, so no digest can pin it.
    """
    root = Path(directory)
    files = [FileDigest(path.relative_to(root).as_posix(), *_digest(path)) for path in _files(root)]
    return Manifest(tuple(sorted(files, key=lambda f: f.path)))


def sha256_of(path: str | Path) -> str:
    """SHA-256 of one file, in hex."""
    return _digest(Path(path))[0]


def _digest(path: Path) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


def _files(directory: Path) -> Iterator[Path]:
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            if not entry.name.isprintable():
                raise UntrustedModel(
                    f"the model's files contain {entry.path!r}, a name that cannot be shown. Rename the file."
                )
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                yield from _files(Path(entry.path))
            elif stat.S_ISREG(mode):
                yield Path(entry.path)
            else:
                kind = "a symbolic link" if stat.S_ISLNK(mode) else "not a regular file"
                raise UntrustedModel(
                    f"the model's files contain {entry.path}, which is {kind}. Only regular files can be pinned by a "
                    "digest: log the model again with the file's content instead."
                )
