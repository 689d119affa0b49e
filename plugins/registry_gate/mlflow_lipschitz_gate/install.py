"""Putting the gate into a server process, once, and refusing where it would not hold."""

from __future__ import annotations

import os

from flask import Flask, Response
from mlflow.environment_variables import _MLFLOW_SGI_NAME, MLFLOW_ENABLE_WORKSPACES
from mlflow.server import handlers
from mlflow.server.constants import ARTIFACTS_ONLY_ENV_VAR
from mlflow.server.fastapi_app import create_fastapi_app
from mlflow.store.model_registry.abstract_store import AbstractStore
from mlflow.tracking._model_registry import utils as client_registry

from mlflow_lipschitz_gate.config import GateConfig, config_from
from mlflow_lipschitz_gate.doors import close_unvouched
from mlflow_lipschitz_gate.frozen import FrozenPlaces
from mlflow_lipschitz_gate.gated_files import freeze_files, unknown_writers
from mlflow_lipschitz_gate.gated_store import GatedStore, gated, gated_builder, store_problem
from mlflow_lipschitz_gate.refusals import GateConfigError, denied
from mlflow_lipschitz_gate.registrations import Registrations, share_registrations

# Ways of AbstractStore that lead to the ones the gate overrides, or to nothing it protects.
_SAFE = frozenset({
    "create_registered_model", "create_webhook", "create_prompt", "create_prompt_version", "copy_model_version",
    "set_registered_model_tag", "set_model_version_tag", "set_prompt_tag", "set_prompt_version_tag", "set_prompt_alias",
    "update_registered_model", "update_model_version", "update_webhook",
})  # fmt: skip
_VERBS = ("create", "set", "update", "rename", "transition", "copy", "move", "promote", "import", "restore")


def checked_config(*, with_users: bool) -> GateConfig:
    """The configuration, for the module that `mlflow server` imports: it ends the command when the server must not start.

    Args:
        with_users: whether this app knows who is asking.
    """
    try:
        config = config_from()
        _check_server(config, with_users=with_users)
        share_registrations()
    except GateConfigError as error:
        raise SystemExit(f"mlflow-lipschitz-gate: the server does not start.\n{error}") from error
    return config


def install(config: GateConfig, app: Flask) -> None:
    """Gate every registry store and every artifact repository of this process."""
    registrations = Registrations()
    for registry in (handlers._model_registry_store_registry, client_registry._get_store_registry()):
        for scheme, build in list(registry._registry.items()):
            registry.register(scheme, gated_builder(build, config, registrations))
    if handlers._model_registry_store is not None:
        gated(handlers._model_registry_store, config, registrations)

    def look_again(name: str) -> None:
        close_unvouched(handlers._get_model_registry_store(), config, name)

    freeze_files(FrozenPlaces(registrations, config.file.artifact_stores, look_again))
    handlers._artifact_repo = None  # one that was built before has no gate
    app.before_request(_refuse_without_gate)


def served(app: Flask) -> object:
    """What an app factory of MLflow has to return for the server that is starting."""
    return create_fastapi_app(app) if _MLFLOW_SGI_NAME.get() == "uvicorn" else app


def _refuse_without_gate() -> Response | None:
    """A second lock: whatever replaced the store since, no request is answered from one without the gate."""
    store = handlers._model_registry_store
    if store is None or isinstance(store, GatedStore):
        return None
    error = denied("every request", ["the registry's store lost its gate"], "Restart the server.")
    return Response(error.serialize_as_json(), status=403, mimetype="application/json")


def _check_server(config: GateConfig, *, with_users: bool) -> None:
    if config.file.override is not None and not with_users:
        raise GateConfigError("override names users, and only --app-name lipschitz-gate-auth knows who is asking")
    if os.environ.get(ARTIFACTS_ONLY_ENV_VAR):
        raise GateConfigError(
            "a server with --artifacts-only has no registry and cannot know which files are registered"
        )
    if MLFLOW_ENABLE_WORKSPACES.get():
        raise GateConfigError("workspaces are not supported by this version of the gate")
    store = handlers._model_registry_store
    if store is not None and not isinstance(store, GatedStore) and (problem := store_problem(store)):
        raise GateConfigError(problem)
    if unknown := unknown_writers() + _unknown_doors():
        raise GateConfigError(
            f"this MLflow has ways to write that the gate does not know ({', '.join(unknown)}): "
            "use a version of mlflow-lipschitz-gate that was made for it"
        )


def _unknown_doors() -> list[str]:
    guarded = {name for name in vars(GatedStore) if not name.startswith("_")}
    public = {name for name in dir(AbstractStore) if name.startswith(_VERBS)}
    return sorted(public - guarded - _SAFE)
