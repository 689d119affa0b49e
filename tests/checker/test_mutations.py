"""Wrong certificates are rejected, all of them: thousands by the arithmetic, others by their files."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlflow_lipschitz.certificates.graph_io import graph_of
from mlflow_lipschitz.certificates.io import (
    CERTIFICATES,
    EVIDENCE,
    GRAPH,
    NUMBERS,
    read_arrays,
    sha256_of,
    write_arrays,
)
from mlflow_lipschitz.checker.verification import Recheck, recheck
from tests.checker import mutants
from tests.checker.certified import SEARCH, asked, mlp, written

Arrays = dict[str, np.ndarray]


# How many mutants of each case are known to be wrong, at least: more than a thousand in all.
LEAST = {
    "relu": 400,
    "relu in a domain": 100,
    "relu, l2 margins": 250,
    "tanh, margins": 100,
    "tanh, l2": 100,
    "softplus, l1": 100,
    "signs": 100,
}


@pytest.mark.parametrize("name", mutants.CASES)
def test_no_mutant_is_accepted(name: str, tmp_path: Path) -> None:
    found = mutants.scores(name, tmp_path)
    sys.stdout.write("\n".join(["", name, *mutants.table(found)]) + "\n")
    assert {kind: score.accepted for kind, score in found.items() if score.accepted} == {}
    assert sum(score.counted for score in found.values()) >= LEAST[name]


def test_a_mutant_that_is_accepted_would_be_told() -> None:
    score = mutants.Score()
    score.add(2, np.array([True, False]), np.array([False, False]), "case")
    assert (score.tried, score.counted, score.accepted) == (2, 1, ["case, [0]"])


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five points in three sections."""
    points = np.random.default_rng(3).uniform(-0.5, 0.5, (5, 2))
    question = asked((2,), budget=SEARCH, max_radius=1.0, size=0.3)
    return written(mlp("relu", (2, 5, 4, 2), 3), points, question, tmp_path_factory.mktemp("original"), chunk=2)


Change = Callable[[Arrays, dict[str, Any]], None]


def changed(original: Path, folder: Path, name: str, change: Change, *, hashed: bool = True) -> Path:
    """A copy with the arrays of one file, or the description, changed, and the hashes that go with it."""
    shutil.copytree(original, folder)
    described = json.loads((folder / CERTIFICATES).read_text(encoding="utf-8"))
    arrays = read_arrays(folder / name)
    change(arrays, described)
    write_arrays(folder / name, arrays)
    if hashed:
        described["files"][name] = sha256_of(folder / name)
        described["graph_sha256"] = graph_of(read_arrays(folder / GRAPH)).content_hash()
    (folder / CERTIFICATES).write_text(json.dumps(described), encoding="utf-8")
    return folder


def rejected(folder: Path) -> bool:
    try:
        return not recheck(folder).holds
    except ValueError:
        return True


def test_the_original_is_accepted(original: Path, tmp_path: Path) -> None:
    assert recheck(original) == Recheck(
        recheck(original).graph_sha256,
        dict.fromkeys(("derivative_lower", "derivative_upper", "lipschitz_upper", "radius"), 5),
        (),
        (),
    )
    assert recheck(changed(original, tmp_path / "same", NUMBERS, lambda arrays, described: None)).holds


def _times(name: str, factor: float) -> Change:
    def change(arrays: Arrays, described: dict[str, Any]) -> None:
        arrays[name] = arrays[name] * factor

    return change


def _without_last(name: str) -> Change:
    def change(arrays: Arrays, described: dict[str, Any]) -> None:
        arrays[name] = arrays[name][:-1]

    return change


def _hidden(name: str, value: float) -> Change:
    """A false claim, and evidence by its name that is true."""

    def change(arrays: Arrays, described: dict[str, Any]) -> None:
        for section in (0, 2, 4):
            arrays[f"{EVIDENCE}{section:08d}/{name}"] = np.full_like(arrays[name][section : section + 2], value)
        arrays[name] = arrays[name] * 0.5

    return change


def _unlisted(arrays: Arrays, described: dict[str, Any]) -> None:
    del described["claims"]["lipschitz_upper"]
    arrays["lipschitz_upper"] = arrays["lipschitz_upper"] * 0.5


def _nothing_claimed(arrays: Arrays, described: dict[str, Any]) -> None:
    for name in list(described["claims"]):
        del described["claims"][name], arrays[name]


def _other_section(arrays: Arrays, described: dict[str, Any]) -> None:
    first, second = ({n for n in arrays if n.startswith(f"{EVIDENCE}{i:08d}/")} for i in (0, 2))
    moved = {n.replace("00000000", "00000002"): arrays.pop(n) for n in first} | {
        n.replace("00000002", "00000000"): arrays.pop(n) for n in second - first
    }
    arrays |= moved
    arrays["lipschitz_upper"] = arrays["lipschitz_upper"] * 0.9


def _section_begins_elsewhere(arrays: Arrays, described: dict[str, Any]) -> None:
    for name in [n for n in arrays if n.startswith(f"{EVIDENCE}00000002/")]:
        arrays[name.replace("00000002", "00000001")] = arrays.pop(name)


def _beyond_the_end(arrays: Arrays, described: dict[str, Any]) -> None:
    arrays[f"{EVIDENCE}00000009/lipschitz/tree/node"] = np.array([-1])


def _no_number(name: str, value: float) -> Change:
    def change(arrays: Arrays, described: dict[str, Any]) -> None:
        arrays[name] = arrays[name].copy()
        arrays[name].reshape(-1)[0] = value

    return change


def _other_labels(arrays: Arrays, described: dict[str, Any]) -> None:
    arrays["labels"] = 1 - arrays["labels"]


def _fewer_ids(arrays: Arrays, described: dict[str, Any]) -> None:
    described["point_ids"].pop()


def _more_ids(arrays: Arrays, described: dict[str, Any]) -> None:
    described["point_ids"].append("one more")


def _unproved(arrays: Arrays, described: dict[str, Any]) -> None:
    described["unproved"] = ["p0"]


def _schema(arrays: Arrays, described: dict[str, Any]) -> None:
    described["schema"] = "mlflow-lipschitz/certificates/v1"


NUMBERS_CHANGED: dict[str, Change] = {
    **{f"{name} times 0.5": _times(name, 0.5) for name in ("lipschitz_upper", "derivative_upper", "derivative_lower")},
    "radius times 40": _times("radius", 40.0),
    **{f"{n} without its last row": _without_last(n) for n in ("points", "lipschitz_upper", "radius", "labels")},
    **{f"{n} without its last row": _without_last(n) for n in ("derivative_upper", "derivative_lower")},
    "true bounds hidden in the evidence": _hidden("lipschitz_upper", np.inf),
    "other points hidden in the evidence": _hidden("points", 0.0),
    "a claim that is stated and not listed": _unlisted,
    "nothing claimed": _nothing_claimed,
    "evidence of another section": _other_section,
    "a section that begins elsewhere": _section_begins_elsewhere,
    "a section beyond the end": _beyond_the_end,
    "a bound that is no number": _no_number("lipschitz_upper", np.nan),
    "a derivative that is no number": _no_number("derivative_lower", np.nan),
    "a radius that is no number": _no_number("radius", np.nan),
    "a negative radius": _no_number("radius", -1.0),
    "an infinite radius": _no_number("radius", np.inf),
    "a point that is no number": _no_number("points", np.nan),
    "a region that is no number": _no_number("radius_per_feature", np.nan),
    "a region of negative size": _no_number("radius_per_feature", -0.5),
    "a label of no class": _no_number("labels", 7),
    "the other label": _other_labels,
    "fewer names than points": _fewer_ids,
    "more names than points": _more_ids,
    "a point that is said to be unproved": _unproved,
    "another schema": _schema,
}


@pytest.mark.parametrize("kind", NUMBERS_CHANGED)
def test_changed_numbers_are_rejected_though_the_hashes_are_right(kind: str, original: Path, tmp_path: Path) -> None:
    assert rejected(changed(original, tmp_path / "changed", NUMBERS, NUMBERS_CHANGED[kind]))


@pytest.mark.parametrize("name", [NUMBERS, GRAPH])
@pytest.mark.parametrize("seed", range(5))
def test_a_bit_that_flipped_shows_in_the_hash(name: str, seed: int, original: Path, tmp_path: Path) -> None:
    shutil.copytree(original, tmp_path / "changed")
    content = bytearray((original / name).read_bytes())
    rng = np.random.default_rng(seed)
    content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
    (tmp_path / "changed" / name).write_bytes(content)
    with pytest.raises(ValueError, match="not the file"):
        recheck(tmp_path / "changed")


@pytest.mark.parametrize("seed", range(4))
def test_a_bit_of_a_weight_shows_in_the_hash_of_the_graph(seed: int, original: Path, tmp_path: Path) -> None:
    def flip(arrays: Arrays, described: dict[str, Any]) -> None:
        rng = np.random.default_rng(seed)
        weights = [name for name in arrays if name.endswith(("/weight", "/bias"))]
        name = weights[int(rng.integers(len(weights)))]
        content = bytearray(arrays[name].tobytes())
        content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
        arrays[name] = np.frombuffer(bytes(content)).reshape(arrays[name].shape)

    folder = changed(original, tmp_path / "changed", GRAPH, flip, hashed=False)
    described = json.loads((folder / CERTIFICATES).read_text(encoding="utf-8"))
    described["files"][GRAPH] = sha256_of(folder / GRAPH)
    (folder / CERTIFICATES).write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(ValueError, match="graph"):
        recheck(folder)


def test_a_steeper_model_does_not_keep_the_claims(original: Path, tmp_path: Path) -> None:
    def steeper(arrays: Arrays, described: dict[str, Any]) -> None:
        last = max((name for name in arrays if name.endswith("/weight")), key=lambda name: int(name.split("/")[0]))
        arrays[last] = arrays[last] * 2

    found = recheck(changed(original, tmp_path / "changed", GRAPH, steeper))
    assert {str(refuted.claim) for refuted in found.refuted} >= {"lipschitz_upper", "derivative_upper"}
