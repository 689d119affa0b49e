"""Pulls models under Python's audit hook and tells what each did: a program of its own, for a hook cannot be taken off again.

Arguments: the folder with `honest/` and `attacks/`, each with one model per subfolder. Prints one JSON object: model -> how
it ended, and every event by which a file is written outside this program's scratch folder, a process started, a connection
made, a library loaded, or a function of the system looked up by pickle.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_lipschitz.errors import LipschitzError
from mlflow_lipschitz.registry.pull import pull

_ALWAYS = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.", "socket.connect")
_LOUD = (*_ALWAYS, "socket.bind", "socket.sendto", "ctypes.dlopen", "urllib.Request", "webbrowser.", "code.__new__")
_PATHS = (
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.chmod",
    "os.truncate",
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """Collects events while `on`."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = os.path.realpath(scratch)
        self.on = False
        self.events: list[str] = []
        sys.addaudithook(self._event)

    def _event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and self._loud(event, arguments):
            self.on = False  # what is done to write it down is no event of the model
            self.events.append(f"{event} {str(arguments)[:200]}")
            self.on = True

    def _loud(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "open":
            path, mode, flags = arguments
            written = (isinstance(mode, str) and set(mode) & set("wax+")) or (
                isinstance(flags, int) and flags & _WRITING
            )
            return bool(written) and self._elsewhere(path)
        if event == "pickle.find_class":
            return arguments[0].partition(".")[0] in ("os", "posix", "nt", "subprocess", "builtins", "shutil", "sys")
        if event.startswith(_PATHS):
            written = arguments[1:] if event in ("os.symlink", "os.link") else arguments
            return any(self._elsewhere(path) for path in written if isinstance(path, (str, bytes, os.PathLike)))
        return event.startswith(_LOUD)

    def _elsewhere(self, path: Any) -> bool:
        if isinstance(path, int) or path in (os.devnull,):
            return False
        return not os.path.realpath(os.fspath(path)).startswith(self.scratch + os.sep)


def _outcome(folder: Path, rows: np.ndarray) -> str:
    try:
        pulled = pull(str(folder))
        if pulled.served is not None:
            pulled.served(rows)
    except LipschitzError as error:
        return f"{type(error).__name__}: {error}"
    return "loaded"


def _below(folder: Path) -> set[str]:
    return {f"{path} {path.lstat().st_mtime_ns}" for path in folder.rglob("*")}


def main(root: Path) -> None:
    """Warm up on the honest models, then watch all of them."""
    scratch = root / "scratch"
    scratch.mkdir()
    tempfile.tempdir = str(scratch)
    rows = np.zeros((2, 3), np.float32)
    for folder in sorted((root / "honest").iterdir()):
        _outcome(folder, rows)  # imports of torch, skops and others look for compilers and libraries
    home = _below(root / "home")  # those imports may keep caches there
    watch, answers = Watch(scratch), {}
    for folder in [*sorted((root / "honest").iterdir()), *sorted((root / "attacks").iterdir())]:
        before = list(sys.path)
        watch.events, watch.on = [], True
        outcome = _outcome(folder, rows)
        watch.on = False
        grown = ["sys.path grew"] if sys.path != before else []
        imported = [
            str(m.__file__) for m in list(sys.modules.values()) if str(getattr(m, "__file__", "")).startswith(str(root))
        ]
        answers[folder.name] = {"outcome": outcome, "events": [*watch.events, *grown, *imported]}
    new = _below(root / "home") ^ home | _below(root / "marks")
    sys.stdout.write(json.dumps({**answers, "new files": sorted(new)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
