"""The journal of an audit: finished rows on disk while it runs, so that one that is killed can go on.

One file for each chunk of rows, complete before its name appears: a file that is there is finished work, and a torn one is found
out by its digest. What is read back counts only if it was measured under the same key and is, bit for bit, what was written. With
a signing key every file is signed, so that a folder from somebody else cannot put numbers into an attestation; without one,
the digest finds damage, not forgery, and the attestation says that it is unsigned.
"""

from __future__ import annotations

import base64
import hashlib
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_lipschitz.certificates.durable import PARTIAL, write_durably
from mlflow_lipschitz.certificates.io import EVIDENCE, read_arrays, write_arrays
from mlflow_lipschitz.errors import AuditError, UsageError
from mlflow_lipschitz.registry.dsse import Signature
from mlflow_lipschitz.registry.keys import SigningKey
from mlflow_lipschitz.registry.strict_json import canonical_json, strict_base64, strict_object

Arrays = dict[str, np.ndarray]

WORK_FOLDER = "work"
HEADER = "journal.json"
SCHEMA = "mlflow-lipschitz/journal/v1"
RECORD_TYPE = "application/vnd.mlflow-lipschitz.journal+json"

_RECORD = "journal"
_TEXT_LIMIT = 1 << 16
_PART = re.compile(r"\d{8}\.npz")


@dataclass(frozen=True)
class Journal:
    """Where finished rows are kept.

    Attributes:
        folder: of the files.
        key: digest of everything that the numbers depend on.
        signer: signs every file, and whose signature counts; None: there are no signatures.
    """

    folder: Path
    key: str
    signer: SigningKey | None = None

    def keep(self, start: int, arrays: Arrays) -> None:
        """Write the finished rows from number `start` on; on return they survive a loss of power.

        Raises AuditError when they cannot be written.
        """
        record = {"key": self.key, "schema": SCHEMA, "sha256": arrays_digest(arrays), "start": start}
        if self.signer is not None:
            signature = self.signer.sign(canonical_json(record), RECORD_TYPE)
            record["signature"] = base64.b64encode(signature.sig).decode()
        text = np.frombuffer(canonical_json(record), dtype=np.uint8)
        with _writing(self.folder):
            write_arrays(self._path(start), {**arrays, _RECORD: text})

    def kept(self, start: int, rows: int) -> Arrays | None:
        """The rows from number `start` on as they were written; None when there are none that can be verified.

        A file that is there and cannot be verified is removed, with a warning.
        """
        path = self._path(start)
        if not path.is_file():
            return None
        try:
            return self._verified(path, start, rows)
        except (ValueError, OSError, MemoryError) as error:
            with suppress(OSError):
                path.unlink()
            warnings.warn(
                f"the journal's record {path.name} cannot be verified ({error}): its rows are measured again",
                stacklevel=2,
            )
            return None

    def _verified(self, path: Path, start: int, rows: int) -> Arrays:
        arrays = read_arrays(path)
        if _RECORD not in arrays:
            raise ValueError("it holds no record")
        record = strict_object(arrays.pop(_RECORD).tobytes(), limit=_TEXT_LIMIT)
        signature = record.pop("signature", None)
        expected = {"key": self.key, "schema": SCHEMA, "sha256": arrays_digest(arrays), "start": start}
        if record != expected:
            wrong = [name for name in expected if record.get(name) != expected[name]]
            raise ValueError(f"another {' and '.join(wrong) or 'record'} than expected")
        if self.signer is not None:
            signed = Signature(self.signer.public.keyid, strict_base64(signature, "its signature"))
            if not self.signer.public.verifies(canonical_json(record), signed, RECORD_TYPE):
                raise ValueError("not signed by the key of this audit")
        if any(v.shape[:1] != (rows,) for name, v in arrays.items() if not name.startswith(EVIDENCE)):
            raise ValueError(f"an array that is not about {rows} rows")
        return arrays

    def _path(self, start: int) -> Path:
        return self.folder / f"{start:08d}.npz"


def opened(directory: Path, fields: Mapping[str, str], signer: SigningKey | None, *, resume: bool) -> Journal:
    """The journal in `directory`, made for audits with these `fields`: emptied, or with `resume` as the last one left it.

    Raises:
        UsageError: `resume` of an audit with other fields; nothing is removed then. Or the folder is none of ours.
        AuditError: it cannot be written to.
    """
    folder = directory / WORK_FOLDER
    if folder.is_symlink():
        raise UsageError(f"{folder} is a link to another place: remove it")
    stated = {**fields, "signature": signer.public.keyid if signer else "none"}
    if resume:
        _refuse_other(folder, stated)
    else:
        _remove(folder, _PART)
    header = canonical_json({"schema": SCHEMA, "fields": stated})
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _remove(folder, re.compile(rf".*\{PARTIAL}"))
        write_durably(folder / HEADER, lambda file: file.write(header))
    return Journal(folder, f"sha256:{hashlib.sha256(header).hexdigest()}", signer)


def discard(directory: Path) -> None:
    """Remove the journal: its audit is on record. Files that are not ours stay, and the folder with them."""
    folder = directory / WORK_FOLDER
    if not folder.is_symlink():
        _remove(folder, re.compile(rf"{_PART.pattern}|.*\{PARTIAL}|{re.escape(HEADER)}"))
        with suppress(OSError):
            folder.rmdir()


def arrays_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of names, types, shapes and every bit of the values."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        values = np.ascontiguousarray(arrays[name])
        digest.update(repr((name, values.dtype.str, arrays[name].shape)).encode())
        digest.update(values.tobytes())
    return f"sha256:{digest.hexdigest()}"


def _refuse_other(folder: Path, stated: Mapping[str, str]) -> None:
    """A header that cannot be read names no difference; then every record still has to have the right key."""
    path = folder / HEADER
    if not path.is_file():  # a pipe would be read from for ever
        return
    try:
        with path.open("rb") as file:
            found = strict_object(file.read(_TEXT_LIMIT + 1), limit=_TEXT_LIMIT).get("fields")
    except (OSError, ValueError):
        return
    theirs: Mapping[str, Any] = found if isinstance(found, dict) else {}
    changed = [name for name in {**theirs, **stated} if theirs.get(name) != stated.get(name)]
    if changed:
        raise UsageError(
            f"the unfinished audit in {folder.parent} cannot be resumed: it had another {', '.join(sorted(changed))}."
            " Give what it was started with, or start anew without --resume"
        )


def _remove(folder: Path, names: re.Pattern[str]) -> None:
    if folder.is_dir():
        for path in folder.iterdir():
            if names.fullmatch(path.name):
                path.unlink()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AuditError(
            f"finished rows cannot be kept in {folder}: {error.strerror or error}. Make room, or give another --out; then go"
            " on with --resume"
        ) from error


def spans(total: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of each chunk of rows."""
    for start in range(0, total, size):
        yield start, min(total, start + size)
