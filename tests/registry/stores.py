"""Real MLflow stores and real logged models for the tests of the registry and of the plugin."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import mlflow
import numpy as np
import onnx
from mlflow.models import infer_signature
from mlflow.tracking import MlflowClient
from onnx import TensorProto, helper, numpy_helper

FEATURES = 3


def rows(count: int = 8) -> np.ndarray:
    return np.random.default_rng(7).normal(size=(count, FEATURES)).astype(np.float32)


def weights(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(FEATURES, 4)).astype(np.float32), generator.normal(size=(4, 1)).astype(np.float32)


def network(points: np.ndarray, seed: int = 0) -> np.ndarray:
    """What `onnx_model(seed)` computes."""
    first, second = weights(seed)
    return np.maximum(points @ first, 0) @ second


def onnx_model(seed: int = 0) -> onnx.ModelProto:
    first, second = weights(seed)
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["hidden"], name="first_layer"),
        helper.make_node("Relu", ["hidden"], ["active"], name="relu"),
        helper.make_node("MatMul", ["active", "second"], ["score"], name="second_layer"),
    ]
    graph = helper.make_graph(
        nodes,
        "scorer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", FEATURES])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def fresh_name(prefix: str = "scorer") -> str:
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


def log_onnx(name: str | None = None, seed: int = 0) -> mlflow.models.model.ModelInfo:
    """Log the network in a run of its own, and register it when `name` is given."""
    with mlflow.start_run():
        return mlflow.onnx.log_model(
            onnx_model(seed),
            name="model",
            registered_model_name=name,
            signature=infer_signature(rows(), network(rows(), seed)),
            input_example=rows(2),
            pip_requirements=["onnxruntime"],
        )


def log_linear(name: str | None = None) -> mlflow.models.model.ModelInfo:
    """Log a linear regression as skops: MLflow's own evaluators take its one-column answers."""
    from sklearn.linear_model import LinearRegression

    with mlflow.start_run():
        return mlflow.sklearn.log_model(
            LinearRegression().fit(rows(), rows() @ [1.0, 2.0, 3.0]),
            name="model",
            registered_model_name=name,
            serialization_format="skops",
            pip_requirements=["scikit-learn"],
        )


def artifact_folder(client: MlflowClient, model_id: str) -> Path:
    """Where a local artifact store keeps the model's files."""
    location = client.get_logged_model(model_id).artifact_location
    return Path(location.removeprefix("file://"))


@contextmanager
def mlflow_server(folder: Path, settings: Mapping[str, str] = MappingProxyType({})) -> Iterator[str]:
    """A live `mlflow server` on a free port of 127.0.0.1, with these variables besides, stopped for certain."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    command += ["--artifacts-destination", str(folder / "server-artifacts"), "--serve-artifacts"]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, **settings},
            start_new_session=True,
        )
        try:
            _wait_until_healthy(uri, process, folder / "server.log")
            yield uri
        finally:
            process.terminate()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=15)


def _wait_until_healthy(uri: str, process: subprocess.Popen, log: Path, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{uri}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"mlflow server did not start:\n{log.read_text()[-2000:]}")
