"""Certificates as two files: `certificates.json` to read, `certificates.npz` for the numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_lipschitz.certificates.schema import SCHEMA, Certificates, Counterexample
from mlflow_lipschitz.safe_loading.archives import read_npz


def write_certificates(certificates: Certificates, directory: Path) -> tuple[Path, Path]:
    """Write both files into `directory` and return their paths. The JSON holds no array and no infinite number."""
    numbers, text = directory / "certificates.npz", directory / "certificates.json"
    write_arrays(numbers, certificates.arrays)
    description = {
        "schema": SCHEMA,
        "graph_sha256": certificates.graph_hash,
        "objective": certificates.objective,
        "region": {
            "norm": certificates.norm,
            "arrays": ["points", "radius_per_feature", "domain_lower", "domain_upper"],
        },
        "claims": certificates.claims,
        "arithmetic": certificates.arithmetic,
        "method": certificates.method,
        "point_ids": list(certificates.point_ids),
        "feature_names": list(certificates.feature_names),
        "counterexamples": [asdict(example) for example in certificates.counterexamples],
    }
    text.write_text(json.dumps(description, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
    return text, numbers


def read_certificates(directory: Path) -> Certificates:
    """The certificates `write_certificates` left in `directory`. Raises ValueError for another schema."""
    description = json.loads((directory / "certificates.json").read_text(encoding="utf-8"))
    if description.get("schema") != SCHEMA:
        raise ValueError(f"not {SCHEMA}: {description.get('schema')!r}")
    return Certificates(
        graph_hash=description["graph_sha256"],
        objective=description["objective"],
        norm=description["region"]["norm"],
        method=description["method"],
        point_ids=tuple(description["point_ids"]),
        feature_names=tuple(description["feature_names"]),
        arrays=read_arrays(directory / "certificates.npz"),
        counterexamples=tuple(Counterexample(**example) for example in description["counterexamples"]),
        arithmetic=description["arithmetic"],
    )


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz so that an interrupted write never leaves a half file under its final name."""
    partial = path.with_suffix(".partial")
    named: dict[str, Any] = dict(arrays)
    with partial.open("wb") as file:
        np.savez_compressed(file, **named)
    partial.replace(path)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; pickled content is refused, and what unfolds to far more than it should.

    Raises ValueError for a file that is no such archive.
    """
    return read_npz(path)
