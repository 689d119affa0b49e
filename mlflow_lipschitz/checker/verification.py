"""Re-prove the certificates in a folder: every claim of every point, from the graph beside them, and nothing believed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_lipschitz.certificates.graph_io import graph_of
from mlflow_lipschitz.certificates.io import CERTIFICATES, GRAPH, NUMBERS, sections, sha256_of
from mlflow_lipschitz.certificates.schema import SCHEMA
from mlflow_lipschitz.checker.arithmetic import Arithmetic
from mlflow_lipschitz.checker.derivation import (
    Stated,
    Subject,
    derivative_range,
    lipschitz_upper,
    mislabeled,
    radius_holds,
)
from mlflow_lipschitz.checker.files import TABLE, beyond_claims, refuse_malformed, refuse_misfits, strict_json

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Refuted:
    """A claim that does not follow: of which point, what was claimed, and what could be proved."""

    claim: str
    point_id: str
    claimed: float
    proved: float

    def __str__(self) -> str:
        return f"point {self.point_id}: {self.claim} is claimed to be {self.claimed!r}, proved is {self.proved!r}"


@dataclass(frozen=True)
class Recheck:
    """What came of it. `checked` counts claims by name; `unproved` are points of which the audit reports more than it can prove."""

    graph_sha256: str
    checked: dict[str, int]
    refuted: tuple[Refuted, ...]
    unproved: tuple[str, ...]

    @property
    def holds(self) -> bool:
        return not self.refuted and not self.unproved and sum(self.checked.values()) > 0


def recheck(directory: Path, *, exact: bool = False, progress: Progress | None = None) -> Recheck:
    """Re-prove what `directory` claims (certificates.json, certificates.npz, graph.npz).

    Args:
        exact: calculate in rationals instead of float64 with bounded errors; for small graphs.
        progress: called with (points done, points in all).

    Raises:
        ValueError: the files are not certificates of this schema, do not belong together, or describe no graph.
        OSError: a file cannot be read.
    """
    try:
        return _recheck(directory, Arithmetic(exact), progress)
    except (ValueError, OSError):
        raise
    except Exception as error:  # files from anybody may provoke anything: then they are no certificates
        raise ValueError(f"these files hold no certificates: {error!r}") from error


def _described(directory: Path, rounding: Arithmetic) -> tuple[dict[str, Any], Subject]:
    """What is claimed, and what it is about: files that belong together."""
    described = strict_json(directory / CERTIFICATES)
    if described.get("schema") != SCHEMA:
        raise ValueError(f"not {SCHEMA}: {described.get('schema')!r}")
    for name in (NUMBERS, GRAPH):
        if sha256_of(directory / name) != described["files"][name]:
            raise ValueError(f"{name} is not the file that {CERTIFICATES} was written for")
    with np.load(directory / GRAPH, allow_pickle=False) as archive:
        if len(set(archive.files)) != len(archive.files):
            raise ValueError(f"{GRAPH} holds an array twice")
        graph = graph_of(archive)
    if graph.content_hash() != described["graph_sha256"]:
        raise ValueError("graph.npz is not the graph that the certificates are about")
    refuse_malformed(graph, described)
    return described, Subject(graph, described["region"]["norm"], described["output"], rounding)


def _recheck(directory: Path, rounding: Arithmetic, progress: Progress | None) -> Recheck:
    described, subject = _described(directory, rounding)
    names = described["point_ids"]
    checked: dict[str, int] = {}
    claimed: list[dict[str, np.ndarray]] = []
    refuted: list[Refuted] = []
    done = 0
    for stated in sections(directory / NUMBERS):
        count = len(stated["points"])
        refuse_misfits(subject.graph, described["claims"], stated)
        claimed.append({name: stated[name] for name in described["claims"]})
        for claim, wrong in _claims(subject, stated, described["claims"]):
            if claim in described["claims"]:
                checked[claim] = checked.get(claim, 0) + count
            refuted += [Refuted(claim, names[done + row], claimed, proved) for row, claimed, proved in wrong]
        done += count
        if progress:
            progress(done, len(names))
    if done != len(names):
        raise ValueError(f"the certificates are about {len(names)} points, and hold {done}")
    if (directory / TABLE).exists():
        held = {name: np.concatenate([part[name] for part in claimed]) for name in described["claims"]}
        beyond = beyond_claims(strict_json(directory / TABLE), described, held)
        refuted += [Refuted(f"{TABLE}, {name}", names[row], told, proved) for name, row, told, proved in beyond]
    return Recheck(described["graph_sha256"], checked, tuple(refuted), tuple(described["unproved"]))


Wrong = list[tuple[int, float, float]]


def _claims(subject: Subject, stated: Stated, claims: Any) -> Iterator[tuple[str, Wrong]]:
    """Of every kind of claim: row, claimed and proved number, where the claim does not follow."""
    with np.errstate(all="ignore"):
        if "labels" in stated:
            labels = stated["labels"]
            yield (
                "labels",
                [(int(row), float(labels[row]), np.nan) for row in np.flatnonzero(mislabeled(subject, stated))],
            )
        if "lipschitz_upper" in claims:
            yield "lipschitz_upper", _above(stated["lipschitz_upper"], lipschitz_upper(subject, stated))
        if "derivative_lower" in claims:
            low, high = derivative_range(subject, stated)
            yield "derivative_lower", _above(-_flat(stated["derivative_lower"]), -low)
            yield "derivative_upper", _above(_flat(stated["derivative_upper"]), high)
        if "radius" in claims:
            radius = stated["radius"]
            held = radius_holds(subject, stated, radius) | (radius == 0)
            yield "radius", [(int(row), float(radius[row]), 0.0) for row in np.flatnonzero(~held | ~(radius >= 0))]


def _above(claimed: np.ndarray, proved: np.ndarray) -> Wrong:
    """The rows in which some proved number is above the claimed one; one that is no number is above everything."""
    if claimed.shape != proved.shape:
        raise ValueError(f"claims of shape {claimed.shape}, where {proved.shape} is asked for")
    wrong = ~(proved <= claimed)
    first = wrong.reshape(len(wrong), -1).argmax(1)
    rows = np.flatnonzero(wrong.reshape(len(wrong), -1).any(1))
    flat = [x.reshape(len(x), -1) for x in (claimed, proved)]
    return [(int(r), float(flat[0][r, first[r]]), float(flat[1][r, first[r]])) for r in rows]


def _flat(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1)
