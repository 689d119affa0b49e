"""Which MLflow run an audit writes to, noted beside its journal: a process that is killed by force cannot end its run itself.

The next audit in the same directory does it. The note may be from anybody, so a run is ended only if it is still running and
carries the same random label as the note.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from mlflow.tracking import MlflowClient

from mlflow_lipschitz.certificates.durable import write_durably
from mlflow_lipschitz.errors import AuditError
from mlflow_lipschitz.pipeline.journal import WORK_FOLDER
from mlflow_lipschitz.registry.store import store_errors
from mlflow_lipschitz.registry.strict_json import canonical_json, strict_object

LABEL = "lipschitz.attempt"

_FILE = "run.json"
_LIMIT = 4096
_ID = re.compile(r"[0-9a-f]{32}")


def note_run(directory: Path, run_id: str, label: str) -> None:
    """Write down which run is going on. Raises AuditError when the folder cannot be written to."""
    path = directory / WORK_FOLDER / _FILE
    content = canonical_json({"run_id": run_id, "label": label})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, lambda file: file.write(content))
    except OSError as error:
        raise AuditError(f"{path} cannot be written: {error.strerror or error}. Give another --out") from error


def forget_run(directory: Path) -> None:
    """The run has ended in an orderly way: there is nothing left to do."""
    path = directory / WORK_FOLDER / _FILE
    with suppress(OSError):
        path.unlink(missing_ok=True)
        path.parent.rmdir()


def end_killed_run(directory: Path, client: MlflowClient) -> None:
    """Mark the run of an audit KILLED that was killed in this directory, if it is still marked as running.

    Raises RegistryError when the store does not answer.
    """
    path = directory / WORK_FOLDER / _FILE
    if not path.is_file():  # a pipe would be read from for ever
        return
    try:
        with path.open("rb") as file:
            note = strict_object(file.read(_LIMIT + 1), limit=_LIMIT)
    except (OSError, ValueError):
        return
    run_id, label = str(note.get("run_id")), str(note.get("label"))
    if not (_ID.fullmatch(run_id) and _ID.fullmatch(label)):
        return
    with store_errors("look for the run of a killed audit"):
        run = client.get_run(run_id)
        if run.info.status == "RUNNING" and run.data.tags.get(LABEL) == label:
            client.set_terminated(run_id, status="KILLED")
