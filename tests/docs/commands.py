"""The programs that documented commands call, in a shell whose variables and directory last from block to block."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

_ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore",
}
_STRANGERS = ("MLFLOW_", "LIPSCHITZ_")
"""Beginnings of what a user, or another test, may have set: a store, an experiment, keys. No page and no example obeys it."""

_SECONDS = 300


@contextmanager
def programs() -> Iterator[Path]:
    """A folder to put first on the PATH: `mlflow-lipschitz` and `python` of this checkout, warm where that is possible."""
    with tempfile.TemporaryDirectory(prefix="docs-") as name:
        folder, path = Path(name), f"{name}/socket"
        warm = sys.platform == "linux"
        for program, cold in (("mlflow-lipschitz", ["-m", "mlflow_lipschitz.cli"]), ("python", [])):
            command = [sys.executable, "-IS", str(HERE / "warm_client.py"), path, program]
            line = shlex.join(command if warm else [sys.executable, *cold])
            (folder / program).write_text(f'#!/bin/sh\nexec {line} "$@"\n', encoding="utf-8")
            (folder / program).chmod(0o755)
        if not warm:
            yield folder
            return
        server = [sys.executable, str(HERE / "warm_server.py"), path]
        process = subprocess.Popen(server, stdout=subprocess.PIPE, text=True, env=environment(), cwd=folder)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield folder
        finally:
            process.kill()
            process.communicate()


def strangers() -> list[str]:
    """The variables that are set and that a reader would not have."""
    return [name for name in os.environ if name.startswith(_STRANGERS)]


def environment() -> dict[str, str]:
    """This process's, without what would lead commands to somebody's own store or keys."""
    strange = set(strangers())
    kept = {name: value for name, value in os.environ.items() if name not in strange}
    return {**kept, **_ENVIRONMENT}


@dataclass(frozen=True)
class Shell:
    """One reader's terminal: `folder` is where the reader is, `state` remembers what was exported.

    `run` returns exit code and what was printed, both streams together.
    """

    folder: Path
    state: Path
    bin: Path

    def start(self, **variables: str) -> None:
        self.state.mkdir(parents=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()]
        (self.state / "variables").write_text("".join(lines), encoding="utf-8")
        (self.state / "directory").write_text(str(self.folder), encoding="utf-8")

    @property
    def where(self) -> Path:
        """The directory the reader is in by now."""
        return Path((self.state / "directory").read_text(encoding="utf-8").strip())

    def run(self, script: str, *, strict: bool = True, last: int = 0) -> tuple[int, str]:
        """Run a script. `strict` ends it at the first command that fails; `last` is what `$?` is at its beginning."""
        keep = f"export -p > {shlex.quote(str(self.state / 'variables'))}; pwd > {shlex.quote(str(self.state / 'directory'))}"
        begin = (
            f'. {shlex.quote(str(self.state / "variables"))}; cd "$(cat {shlex.quote(str(self.state / "directory"))})"'
        )
        # The state is kept on the way out, with the exit code of the script itself.
        trap = f"trap 'code=$?; {keep}; exit $code' EXIT"
        whole = f"{begin}\n{trap}\n{'set -euo pipefail' if strict else f'(exit {last})'}\n{script}\n"
        known = environment()
        known["PATH"] = f"{self.bin}{os.pathsep}{known['PATH']}"
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-c", whole],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=known,
            timeout=_SECONDS,
        )
        return done.returncode, done.stdout
