"""The MLflow run an audit is recorded in: begun before the first bound, and never left RUNNING."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlflow.tracking import MlflowClient

from mlflow_lipschitz.errors import LipschitzError, RegistryError
from mlflow_lipschitz.mlflow_plugin.logging import log_failure
from mlflow_lipschitz.pipeline.run_note import LABEL, end_killed_run, forget_run, note_run
from mlflow_lipschitz.registry.pull import PulledModel
from mlflow_lipschitz.registry.store import client_for, store_errors


@contextmanager
def audit_run(pulled: PulledModel, tracking_uri: str | None, directory: Path) -> Iterator[str]:
    """A run beside the one that logged the model; FINISHED, KILLED on Ctrl-C, or FAILED, when the block ends.

    The run of an earlier audit that was killed by force in `directory` is marked KILLED first.

    Raises:
        RegistryError: the store does not answer, or the run disappeared meanwhile.
    """
    client, label = client_for(tracking_uri), uuid.uuid4().hex
    experiment, run_id = os.environ.get("MLFLOW_EXPERIMENT_ID") or "0", None
    # A store that forgot the killed run is no reason not to audit.
    with suppress(RegistryError):
        end_killed_run(directory, client)
    try:
        with store_errors("start a run for the audit"):
            if pulled.run_id:
                experiment = client.get_run(pulled.run_id).info.experiment_id
            name = f"lipschitz audit of {pulled.uri}"
            run_id = client.create_run(experiment, run_name=name, tags={LABEL: label}).info.run_id
        note_run(directory, run_id, label)
        yield run_id
    except BaseException as error:
        # The first failure is the one to report; that the store is gone too would hide it.
        with suppress(RegistryError):
            if run_id and _says_something_about_the_model(error):
                log_failure(pulled, run_id, tracking_uri=tracking_uri)
        with suppress(RegistryError):
            _abandon(client, experiment, run_id, label, error)
        forget_run(directory)
        raise
    _end(client, run_id, "FINISHED")
    forget_run(directory)


def _abandon(client: MlflowClient, experiment: str, run_id: str | None, label: str, error: BaseException) -> None:
    """End the run; one that was interrupted between the store's answer and ours has no known id, only its label."""
    if run_id is not None:
        _end(client, run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
    elif not isinstance(error, Exception):
        with store_errors("look for an interrupted run"):
            for run in client.search_runs([experiment], f"tags.`{LABEL}` = '{label}'"):
                _end(client, run.info.run_id, "KILLED")


def _says_something_about_the_model(error: BaseException) -> bool:
    """An interruption or a mistake in policy or data leaves the version's last verdict as it is."""
    if isinstance(error, LipschitzError):
        return error.exit_code == LipschitzError.exit_code
    return isinstance(error, Exception)


def _end(client: MlflowClient, run_id: str, status: str) -> None:
    with store_errors(f"end run {run_id}", "Was the run deleted during the audit?"):
        client.set_terminated(run_id, status=status)
