"""Certificates as files: `certificates.json` to read, `certificates.npz` for the numbers, `graph.npz` for what they are about."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO

import numpy as np

from mlflow_lipschitz.certificates.durable import write_durably
from mlflow_lipschitz.certificates.graph_io import graph_arrays
from mlflow_lipschitz.certificates.schema import SCHEMA, Certificates, Counterexample
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.safe_loading.archives import read_npz

CERTIFICATES, NUMBERS, GRAPH = "certificates.json", "certificates.npz", "graph.npz"
EVIDENCE, EVIDENCE_FILE = "evidence/", "evidence.npz"
# Arrays that all points have in common.
PER_FEATURE = ("radius_per_feature", "feature_scale", "domain_lower", "domain_upper")


def write_certificates(
    certificates: Certificates, directory: Path, graph: Graph, evidence: Path | None = None
) -> dict[str, Path]:
    """Write the files of one audit into `directory`: the JSON, which holds no array and no infinite number, the numbers, the graph.

    Args:
        graph: what the claims are about.
        evidence: an archive of arrays `evidence/first row/…` that lead to the claims; it is moved into the numbers.

    Returns:
        Name of each file -> its path.
    """
    paths = {name: directory / name for name in (NUMBERS, GRAPH, CERTIFICATES)}
    write_arrays(paths[GRAPH], graph_arrays(graph))
    write_arrays(paths[NUMBERS], certificates.arrays, evidence)
    if evidence is not None:
        evidence.unlink()
    description = {
        "schema": SCHEMA,
        "graph_sha256": certificates.graph_hash,
        "files": {name: sha256_of(paths[name]) for name in (NUMBERS, GRAPH)},
        "objective": certificates.objective,
        "output": certificates.output,
        "region": {
            "norm": certificates.norm,
            "arrays": ["points", "radius_per_feature", "domain_lower", "domain_upper"],
        },
        "claims": certificates.claims,
        "unproved": list(certificates.unproved),
        "arithmetic": certificates.arithmetic,
        "arithmetic_of": certificates.arithmetic_of,
        "method": certificates.method,
        "point_ids": list(certificates.point_ids),
        "feature_names": list(certificates.feature_names),
        "counterexamples": [asdict(example) for example in certificates.counterexamples],
    }
    text = json.dumps(description, indent=1, sort_keys=True, allow_nan=False) + "\n"
    paths[CERTIFICATES].write_text(text, encoding="utf-8")
    return paths


def read_certificates(directory: Path) -> Certificates:
    """The certificates `write_certificates` left in `directory`, without the evidence. Raises ValueError for another schema."""
    description = json.loads((directory / CERTIFICATES).read_text(encoding="utf-8"))
    if description.get("schema") != SCHEMA:
        raise ValueError(f"not {SCHEMA}: {description.get('schema')!r}")
    with np.load(directory / NUMBERS, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files if not name.startswith(EVIDENCE)}
    return Certificates(
        graph_hash=description["graph_sha256"],
        objective=description["objective"],
        norm=description["region"]["norm"],
        method=description["method"],
        point_ids=tuple(description["point_ids"]),
        feature_names=tuple(description["feature_names"]),
        arrays=arrays,
        counterexamples=tuple(Counterexample(**example) for example in description["counterexamples"]),
        arithmetic=description["arithmetic"],
        output=description["output"],
        unproved=tuple(description["unproved"]),
        radius_arithmetic=description.get("arithmetic_of", {}).get("radius", "real"),
    )


def sections(path: Path) -> Iterator[dict[str, np.ndarray]]:
    """The numbers of some points after the other, each with the evidence that belongs to them; memory holds one section.

    Raises:
        ValueError: a section does not begin where the last one ended, an array is there twice, or is not about every point.
    """
    with np.load(path, allow_pickle=False) as archive:
        if len(set(archive.files)) != len(archive.files):
            raise ValueError(f"{path.name} holds an array twice")
        common = {name: archive[name] for name in archive.files if not name.startswith(EVIDENCE)}
        parts = [(name.split("/", 2), name) for name in archive.files if name.startswith(EVIDENCE)]
        starts = sorted({int(part[1]) for part, _ in parts} | {0})
        total = len(common["points"])
        if any(len(values) != total for name, values in common.items() if name not in PER_FEATURE):
            raise ValueError("an array is not about every point")
        for start, stop in zip(starts, [*starts[1:], total], strict=True):
            if not 0 <= start < stop <= total:
                raise ValueError(f"evidence for points {start} to {stop} of {total}")
            rows = {name: values if name in PER_FEATURE else values[start:stop] for name, values in common.items()}
            evidence = {part[2]: archive[name] for part, name in parts if int(part[1]) == start}
            if evidence.keys() & rows.keys():
                raise ValueError("evidence stands in the place of what is claimed")
            yield rows | evidence


def write_evidence(path: Path, start: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Add the evidence of the points from number `start` on to an archive, which is made when there is none."""
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        _add(archive, {f"{EVIDENCE}{start:08d}/{name}": values for name, values in arrays.items()})


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], more: Path | None = None) -> None:
    """Write an .npz, with the arrays of another archive added, so that an interrupted write never leaves a half file under its
    final name. The same arrays make the same bytes."""

    def write(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            _add(archive, arrays)
            if more is not None and more.exists():
                with zipfile.ZipFile(more) as added:
                    for name in added.namelist():
                        with added.open(name) as source, archive.open(_entry(name), "w", force_zip64=True) as goal:
                            shutil.copyfileobj(source, goal)

    write_durably(path, write)


def _add(archive: zipfile.ZipFile, arrays: Mapping[str, np.ndarray]) -> None:
    for name, values in arrays.items():
        with archive.open(_entry(f"{name}.npy"), "w", force_zip64=True) as file:
            np.lib.format.write_array(file, np.asanyarray(values), allow_pickle=False)


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; pickled content is refused, and what unfolds to far more than it should.

    Raises ValueError for a file that is no such archive.
    """
    return read_npz(path)
