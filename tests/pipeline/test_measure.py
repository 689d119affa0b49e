"""Bounds of every row, chunk after chunk; an interrupted audit goes on where it stopped, and only where it may."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder
from mlflow_lipschitz.gate.table import BoundsTable
from mlflow_lipschitz.pipeline import measure as measure_module
from mlflow_lipschitz.pipeline.measure import MeasureOptions, counterexamples, gap_of, measure
from mlflow_lipschitz.pipeline.question import MonotoneQuestion, Question
from mlflow_lipschitz.pipeline.row_bounds import table_columns
from mlflow_lipschitz.rows import AuditedRows


def kink(slope_left: float = -1.0, outputs: int = 1) -> Graph:
    """f(a, b) = 2a + relu(b) + slope_left · relu(−b), repeated with alternating sign for more outputs."""
    builder = GraphBuilder()
    x = builder.add(ops.Input((2,)))
    hidden = builder.add(ops.Linear(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])), x)
    active = builder.add(ops.Elementwise("relu"), hidden)
    row = np.array([2.0, -2.0, 1.0, slope_left])
    out = builder.add(ops.Linear(np.stack([(-1.0) ** i * row for i in range(outputs)])), active)
    return builder.build(out)


def rows(*points: tuple[float, float]) -> AuditedRows:
    array = np.array(points, dtype=np.float64)
    return AuditedRows(array, ("a", "b"), np.array([f"p{i}" for i in range(len(array))]), array.std(axis=0))


def question(direction: str | None = "increasing", limit: float | None = None, **changes: object) -> Question:
    values: dict[str, object] = {
        "output": 0,
        "norm": "linf",
        "unit": np.ones(2),
        "size": 0.5,
        "domain": (np.full(2, -np.inf), np.full(2, np.inf)),
        "columns": (0, 1),
        "monotone": (MonotoneQuestion("up", 1, direction),) if direction else (),  # type: ignore[arg-type]
        "lipschitz_limits": () if limit is None else (limit,),
        "max_radius": None,
    }
    return Question(**{**values, **changes})  # type: ignore[arg-type]


def statuses(graph: Graph, given: AuditedRows, asked: Question, directory: Path) -> list[str]:
    arrays = measure(graph, given, asked, directory, MeasureOptions())
    table = BoundsTable.from_columns(*table_columns(given, asked, arrays))
    return table.columns["status"].tolist()


def test_rows_away_from_the_kink_are_certified_with_the_true_slopes(tmp_path: Path) -> None:
    given, asked = rows((1.0, 2.0), (1.0, 3.0)), question()
    arrays = measure(kink(-4.0), given, asked, tmp_path, MeasureOptions())
    np.testing.assert_allclose(arrays["lipschitz_upper"], 3.0, rtol=1e-9)
    names, columns = table_columns(given, asked, arrays)
    table = BoundsTable.from_columns(names, columns)
    assert table.columns["status"].tolist() == ["certified", "certified"]
    assert table.columns["monotone:b"].tolist() == [1, 1]
    np.testing.assert_allclose(table.columns["sensitivity_upper:a"], 2.0, rtol=1e-9)
    assert counterexamples(given, asked, arrays) == ()


def test_a_wrong_slope_that_is_met_is_a_violation_with_its_point(tmp_path: Path) -> None:
    # f falls with growing b only where b < 0, because −relu(−b) · (−4) rises to the left.
    given, asked = rows((1.0, 2.0), (1.0, -3.0)), question()
    arrays = measure(kink(4.0), given, asked, tmp_path, MeasureOptions())
    table = BoundsTable.from_columns(*table_columns(given, asked, arrays))
    assert table.columns["status"].tolist() == ["certified", "violated"]
    (example,) = counterexamples(given, asked, arrays)
    assert (example.point_id, example.feature, example.check_id) == ("p1", "b", "up")
    assert example.derivative == pytest.approx(-4.0)
    assert -3.5 <= example.point["b"] <= -2.5
    assert table.columns["slope_min:b"][1] <= -4.0 + 1e-9


def test_a_gradient_above_the_limit_is_a_violation(tmp_path: Path) -> None:
    given = rows((1.0, 2.0))
    assert statuses(kink(), given, question(None, limit=2.5), tmp_path) == ["violated"]
    assert statuses(kink(), given, question(None, limit=3.5), tmp_path) == ["certified"]


def test_a_row_with_nan_claims_nothing(tmp_path: Path) -> None:
    given, asked = rows((1.0, 2.0), (1.0, 3.0)), question()
    arrays = measure(kink(), given, asked, tmp_path, MeasureOptions())
    for name in ("lipschitz_upper", "lipschitz_lower", "derivative_upper", "radius"):
        broken = {**arrays, name: arrays[name].astype(float).copy()}
        broken[name][1] = np.nan
        table = BoundsTable.from_columns(*table_columns(given, asked, broken))
        assert table.columns["status"].tolist() == ["certified", "error"]
        assert table.columns["lipschitz_upper"][1] == np.inf
        assert table.columns["monotone:b"][1] == 0


def test_an_unknown_bound_is_undecided(tmp_path: Path) -> None:
    given, asked = rows((1.0, 2.0), (1.0, 3.0)), question()
    arrays = measure(kink(), given, asked, tmp_path, MeasureOptions())
    unbounded = {**arrays, "lipschitz_upper": np.array([3.0, np.inf])}
    table = BoundsTable.from_columns(*table_columns(given, asked, unbounded))
    assert table.columns["status"].tolist() == ["certified", "undecided"]
    assert table.columns["gap"][1] == np.inf
    unsigned = {**arrays, "sign": np.zeros_like(arrays["sign"])}
    table = BoundsTable.from_columns(*table_columns(given, asked, unsigned))
    assert table.columns["status"].tolist() == ["undecided", "undecided"]


def test_margins_have_a_radius_and_no_signs(tmp_path: Path) -> None:
    given = rows((1.0, 2.0), (0.0, 0.0))
    asked = question(None, output="margin", max_radius=8.0, size=0.1)
    arrays = measure(kink(-1.0, outputs=2), given, asked, tmp_path, MeasureOptions())
    table = BoundsTable.from_columns(*table_columns(given, asked, arrays))
    # f₀ − f₁ = 2(2a + b): 8 at the first point with gradient (4, 2), so the decision holds for 8/6.
    assert 1.0 < table.columns["radius"][0] <= 8 / 6
    assert table.columns["radius"][1] == 0.0
    assert table.columns["sensitivity_upper:a"][0] == np.inf


def test_the_gap_is_relative_and_never_nan() -> None:
    arrays = {"lipschitz_upper": np.array([2.0, 0.0, np.inf, 1.0]), "lipschitz_lower": np.array([1.0, 0.0, 1.0, 1.0])}
    assert gap_of(arrays).tolist() == [0.5, 0.0, np.inf, 0.0]


def test_chunks_give_what_one_pass_gives(tmp_path: Path) -> None:
    given, asked = rows(*((float(i), i - 2.0) for i in range(5))), question()
    reports: list[tuple[int, int, float]] = []
    whole = measure(kink(), given, asked, tmp_path / "a", MeasureOptions())
    parts = measure(
        kink(), given, asked, tmp_path / "b", MeasureOptions(chunk_size=2), lambda *state: reports.append(state)
    )
    for name in ("lipschitz_upper", "lipschitz_lower", "sign", "derivative_lower"):
        np.testing.assert_allclose(whole[name], parts[name], rtol=1e-9)
    assert [(done, total) for done, total, _ in reports] == [(2, 5), (4, 5), (5, 5)]
    assert not (tmp_path / "b" / "chunks").exists()


def test_leftovers_of_a_killed_audit_do_not_disturb(tmp_path: Path) -> None:
    folder = tmp_path / "chunks"
    folder.mkdir()
    (folder / "00000000.partial").write_bytes(b"half a file")
    (folder / "notes.txt").write_text("not ours")
    measure(kink(), rows((1.0, 2.0)), question(), tmp_path, MeasureOptions())
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def interrupted(given: AuditedRows, directory: Path, key: str = "k") -> None:
    def stop(done: int, total: int, gap: float) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(kink(), given, question(), directory, MeasureOptions(chunk_size=2, key=key), stop)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the chunks that are really computed from now on."""
    sizes: list[int] = []
    original = measure_module._measure_chunk

    def counting(graph: Graph, part: AuditedRows, asked: Question, device: str) -> dict[str, np.ndarray]:
        sizes.append(len(part))
        return original(graph, part, asked, device)

    monkeypatch.setattr(measure_module, "_measure_chunk", counting)
    return sizes


def test_an_interruption_keeps_finished_chunks_and_resume_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = rows(*((float(i), i - 2.0) for i in range(5)))
    interrupted(given, tmp_path)
    assert sorted(p.name for p in (tmp_path / "chunks").iterdir()) == ["00000000.npz", "00000002.npz"]
    sizes = counted(monkeypatch)
    resumed = measure(kink(), given, question(), tmp_path, MeasureOptions(chunk_size=2, resume=True, key="k"))
    assert sizes == [1]
    whole = measure(kink(), given, question(), tmp_path / "other", MeasureOptions(chunk_size=2))
    np.testing.assert_array_equal(resumed["lipschitz_upper"], whole["lipschitz_upper"])


@pytest.mark.parametrize("change", ["policy", "rows", "graph", "not asked"])
def test_chunks_of_another_audit_are_not_taken(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = rows(*((float(i), i - 2.0) for i in range(5)))
    interrupted(given, tmp_path)
    sizes = counted(monkeypatch)
    graph = kink(-3.0) if change == "graph" else kink()
    if change == "rows":
        given = rows(*((float(i), i - 2.5) for i in range(5)))
    options = MeasureOptions(chunk_size=2, resume=change != "not asked", key="other" if change == "policy" else "k")
    measure(graph, given, question(), tmp_path, options)
    assert sizes == [2, 2, 1]
