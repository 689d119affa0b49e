"""Stands on the PATH for `mlflow-lipschitz` and `python`: hands the command over to `warm_server.py` and returns its exit code."""

from __future__ import annotations

import json
import os
import socket
import sys


def main(path: str, program: str, *arguments: str) -> int:
    request = {"program": program, "arguments": arguments, "directory": os.getcwd(), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
        code = connection.recv(1)
    return code[0] if code else 139  # the process was killed before it could say


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
