"""Audits that are killed by force and resumed: a program of its own, since it forks, and a forked child must inherit no open store.

Each leg of an audit is a child that is killed with SIGKILL: every other one a random while after some more rows were finished,
the others at any time. Where exactly that falls is left to chance; what is asserted holds at every moment. Prints one JSON line
per leg.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import mlflow.store.artifact.local_artifact_repo
import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store
from sqlalchemy.orm import configure_mappers

from mlflow_lipschitz import audit
from mlflow_lipschitz.cli.__main__ import run
from mlflow_lipschitz.gate import expectations
from mlflow_lipschitz.gate.table import BoundsTable
from mlflow_lipschitz.pipeline.journal import Arrays, Journal


@dataclass(frozen=True)
class Kill:
    """A moment: so many records are on the disk, and then so many seconds go by."""

    records: int
    seconds: float


def begin(command: list[str], store: str, log: Path) -> int:
    """Start one leg; its process id."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        said = os.open(log.with_suffix(".err"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        note_what_is_kept(log)
        mlflow.set_tracking_uri(store)
        mlflow.set_registry_uri(store)
        code = run(command)
    finally:
        os._exit(code)


def note_what_is_kept(log: Path) -> None:
    """From now on, a line for every chunk of rows that was measured and is on the disk."""
    keep = Journal.keep

    def keep_and_note(self: Journal, start: int, arrays: Arrays) -> None:
        keep(self, start, arrays)
        with log.open("a") as file:
            file.write(f"{start}\n")

    Journal.keep = keep_and_note  # type: ignore[method-assign]


def ended(child: int, kill: Kill | None, out: Path) -> int:
    """Kill the child at its moment, if it is still there; its exit code, or minus the signal."""
    if kill is not None:
        while len(list((out / "work").glob("*.npz"))) < kill.records:
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break  # it failed
            time.sleep(0.002)
        time.sleep(kill.seconds)
        os.kill(child, signal.SIGKILL)  # of a child that has ended and was not waited for, this does nothing
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kept(out: Path) -> dict[str, str]:
    """SHA-256 of every record of the journal. Seconds are among the numbers, so the same rows measured again have another one."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((out / "work").glob("*.npz"))}


def outcome(out: Path) -> dict[str, Any]:
    """What an audit found, without its times."""
    table = BoundsTable.read(out / "points.parquet")
    found = {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in ("certificates.npz", "suite.json")}
    statuses = [outcome["success"] for outcome in json.loads((out / "validation.json").read_text())["results"]]
    return {**found, "table": table.bounds_digest(), "seconds": table.columns["seconds"].tolist(), "checks": statuses}


def moment(generator: random.Random, left: int, records: int, whole: tuple[float, int]) -> Kill:
    """When the next kill comes, of an audit that takes `whole`: seconds, and records."""
    seconds, most = whole
    if left % 2 and records < most - 1:
        return Kill(generator.randint(records + 1, most - 1), generator.random() * seconds / most)
    return Kill(0, generator.random() * seconds)


def main(store: str, folder: str, kills: str, *command: str) -> None:
    """An undisturbed audit first; then audits in legs, until so many legs were killed."""
    assert audit and expectations  # imported here, so that no leg spends its time on it
    configure_mappers()
    generator, place = random.Random(20_261), Path(folder)
    left, chain, whole, rows = int(kills), 0, 0.0, 0
    while chain == 0 or left > 0:
        out, log = place / f"out-{chain}", place / f"kept-{chain}.txt"
        log.touch()
        code = -int(signal.SIGKILL)
        while code == -int(signal.SIGKILL):
            kill = moment(generator, left, len(kept(out)), (whole, rows)) if chain and left > 0 else None
            started = time.monotonic()
            code = ended(begin([*command, "--out", str(out), "--resume"], store, log), kill, out)
            if not chain:
                whole, rows = time.monotonic() - started, len(log.read_text().split())
            left -= code == -int(signal.SIGKILL)
            line = {"chain": chain, "code": code, "log": [int(start) for start in log.read_text().split()]}
            line |= {"records": kept(out), "outcome": outcome(out) if code in (0, 1) else None}
            if code not in (0, 1, -int(signal.SIGKILL)):
                line["said"] = log.with_suffix(".err").read_text()[-2000:]
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
        chain += 1


if __name__ == "__main__":
    main(*sys.argv[1:])
