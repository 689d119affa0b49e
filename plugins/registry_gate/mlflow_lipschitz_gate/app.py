"""`mlflow server --app-name lipschitz-gate`.

Importing this module reads the configuration: MLflow imports it in the command itself before it starts any worker, so a gate
that cannot be used ends `mlflow server` with one message and starts nothing.
"""

from __future__ import annotations

from flask import Flask
from mlflow.server import app as mlflow_app

from mlflow_lipschitz_gate.install import checked_config, install, served

_CONFIG = checked_config(with_users=False)


def create_app(app: Flask = mlflow_app) -> object:
    """MLflow's app with the gate: an ASGI app under uvicorn, a WSGI app otherwise."""
    install(_CONFIG, app)
    return served(app)
