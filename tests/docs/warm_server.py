"""Runs `mlflow-lipschitz …` and `python …` in forks of one process that has imported the heavy packages already.

Importing torch, MLflow and great_expectations takes seconds, and the documentation holds dozens of commands. Each command still
is a process of its own, with its own working directory, environment and streams. Linux only; elsewhere commands start cold.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import traceback
from pathlib import Path

PRELOADED = (
    "torch",
    "onnx",
    "onnxruntime",
    "sklearn.linear_model",
    "skl2onnx",
    "mlflow.sklearn",
    "mlflow.onnx",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow_lipschitz.audit",
    "mlflow_lipschitz.checker.files",
    "mlflow_lipschitz.cli.commands",
    "mlflow_lipschitz.gate.expectations",
    "mlflow_lipschitz.proposal.proposing",
)


def serve(path: str) -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                _answer(connection)
            connection.close()


def _answer(connection: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    request = json.loads(message)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    code = _exit_code(request["program"], request["arguments"])
    atexit._run_exitfuncs()  # os._exit below runs none, and temporary folders would stay
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(bytes([code]))
    os._exit(code)


def _exit_code(program: str, arguments: list[str]) -> int:
    try:
        _run(program, arguments)
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(end.code + "\n")
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - what a fresh interpreter does with an exception that nobody caught
        traceback.print_exc()
        return 1
    return 0


def _run(program: str, arguments: list[str]) -> None:
    if program == "mlflow-lipschitz":
        from mlflow_lipschitz.cli.__main__ import main

        sys.argv = [program, *arguments]
        main()
    elif arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path.insert(0, "")
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    serve(sys.argv[1])
