"""`mlflow server --app-name lipschitz-gate-auth`: the gate on top of MLflow's own basic-auth app.

Importing this module reads the configuration, see `app`, and does what `mlflow server` does for `basic-auth` alone: it makes
the administrator once, before any worker, and shares the token of the job runner.
"""

from __future__ import annotations

import os
import secrets

from flask import Flask
from mlflow.environment_variables import _MLFLOW_AUTH_ADMIN_BOOTSTRAPPED, _MLFLOW_INTERNAL_GATEWAY_AUTH_TOKEN
from mlflow.exceptions import MlflowException
from mlflow.server import app as mlflow_app
from mlflow.server import auth

from mlflow_lipschitz_gate.install import checked_config, install

_CONFIG = checked_config(with_users=True)


def _bootstrap() -> None:
    if _MLFLOW_AUTH_ADMIN_BOOTSTRAPPED.get():
        return
    try:
        auth.get_flask_server_secret_key()
        auth.bootstrap_admin_user()
    except MlflowException as error:
        raise SystemExit(f"mlflow-lipschitz-gate: the server does not start.\n{error.message}") from error
    # The workers inherit both: they are started by this process, or are it.
    os.environ[_MLFLOW_AUTH_ADMIN_BOOTSTRAPPED.name] = "true"
    os.environ.setdefault(_MLFLOW_INTERNAL_GATEWAY_AUTH_TOKEN.name, secrets.token_hex(32))


_bootstrap()


def create_app(app: Flask = mlflow_app) -> object:
    """MLflow's basic-auth app with the gate: an ASGI app under uvicorn, a WSGI app otherwise."""
    install(_CONFIG, app)
    return auth.create_app(app)
