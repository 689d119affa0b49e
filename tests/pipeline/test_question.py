"""A policy becomes numbers: who moves how far, in which unit, within which domain."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest

from mlflow_lipschitz.errors import InvalidData, PolicyError
from mlflow_lipschitz.pipeline.question import MAX_FEATURE_COLUMNS, MonotoneQuestion, Question, question_of
from mlflow_lipschitz.policy import load_policy
from mlflow_lipschitz.rows import AuditedRows, load_rows

POINTS = np.array([[20.0, 1.0, 5.0], [40.0, 1.0, 7.0], [60.0, 2.0, 9.0]])
NAMES = ("age", "code", "income")


def rows() -> AuditedRows:
    return AuditedRows(POINTS, NAMES, np.array(["0", "1", "2"]), POINTS.std(axis=0))


def asked(
    perturbation: str,
    *,
    checks: str = "{id: lip, type: lipschitz_at_most, max: 1.0}",
    inputs: str = "{}",
    output: str = "0",
    outputs: tuple[str, ...] = ("score",),
) -> Question:
    policy = load_policy(
        "apiVersion: mlflow-lipschitz/v1\nkind: AuditPolicy\nmetadata: {name: p, version: 1}\n"
        f"model: {{output: {output}}}\ninputs: {inputs}\nperturbation: {perturbation}\nchecks:\n  - {checks}\n"
    )
    policy.bind(NAMES, outputs)
    return question_of(policy, rows(), outputs)


def test_raw_radius_is_in_input_units() -> None:
    question = asked("{norm: linf, radius: 0.5}")
    np.testing.assert_array_equal(question.unit, [1, 1, 1])
    np.testing.assert_array_equal(question.radius, [0.5, 0.5, 0.5])


def test_standardized_radius_is_in_standard_deviations_of_the_data() -> None:
    question = asked("{norm: linf, radius: 0.5, scale: standardized}")
    np.testing.assert_array_equal(question.unit, POINTS.std(axis=0))
    np.testing.assert_allclose(question.radius, 0.5 * POINTS.std(axis=0), rtol=1e-15)


def test_a_radius_that_had_to_be_rounded_is_not_smaller_than_asked() -> None:
    question = asked("{norm: linf, radius: 0.3, scale: standardized}", inputs="{immutable: [code]}")
    wanted = [Fraction(0.3) * Fraction(unit) for unit in question.unit.tolist()]
    given = [Fraction(radius) for radius in question.radius.tolist()]
    assert all(radius >= exact for radius, exact in zip(given, wanted, strict=True))
    assert given[1] == 0
    tiny = replace(question, size=5e-324, unit=np.array([0.25, 0.0, 1.0]))
    np.testing.assert_array_equal(tiny.radius, [5e-324, 0.0, 5e-324])


def test_radii_per_feature_are_the_unit_together() -> None:
    question = asked("{norm: linf, radius: {age: 2.0, code: 0, income: 0.5}}")
    np.testing.assert_array_equal(question.radius, [2.0, 0.0, 0.5])
    np.testing.assert_array_equal(question.unit, [2.0, 0.0, 0.5])


def test_immutable_features_do_not_move_and_do_not_count() -> None:
    question = asked("{norm: linf, radius: 0.5, scale: standardized}", inputs="{immutable: [co*]}")
    assert question.radius[1] == 0.0
    assert question.unit[1] == 0.0
    assert (question.unit[[0, 2]] > 0).all()


def test_a_constant_column_is_no_unit() -> None:
    constant = POINTS.copy()
    constant[:, 1] = 3.0
    policy = load_policy(
        "apiVersion: mlflow-lipschitz/v1\nkind: AuditPolicy\nmetadata: {name: p, version: 1}\nmodel: {output: 0}\n"
        "perturbation: {norm: linf, radius: 0.5, scale: standardized}\n"
        "checks:\n  - {id: lip, type: lipschitz_at_most, max: 1.0}\n"
    )
    given = AuditedRows(constant, NAMES, np.array(["0", "1", "2"]), constant.std(axis=0))
    with pytest.raises(InvalidData, match="'code' is constant"):
        question_of(policy, given, ("score",))


@pytest.mark.parametrize("column", [np.full(200, 0.1), 1e9 + np.arange(200) * 1e-4, np.full(200, -1e300)])
def test_a_column_that_is_constant_up_to_rounding_is_no_unit(column: np.ndarray) -> None:
    """The standard deviation of 200 times 0.1 is not 0: as a unit it would freeze the feature and prove nothing of it."""
    policy = load_policy(
        "apiVersion: mlflow-lipschitz/v1\nkind: AuditPolicy\nmetadata: {name: p, version: 1}\nmodel: {output: 0}\n"
        "perturbation: {norm: linf, radius: 0.5, scale: standardized}\n"
        "checks:\n  - {id: lip, type: lipschitz_at_most, max: 1.0}\n"
    )
    data = pd.DataFrame({"moves": np.arange(200.0), "stays": column})
    with pytest.raises(InvalidData, match="'stays' is constant"):
        question_of(policy, load_rows(data, None), ("score",))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_region_is_cut_by_the_domain(norm: str) -> None:
    question = asked(f"{{norm: {norm}, radius: 5.0}}", inputs="{domain: {age: [18, 62], income: [4, 10]}}")
    box = question.region(POINTS).box
    assert box.lower[0, 0] == 18.0
    assert box.upper[2, 0] == 62.0
    assert box.lower[0, 1] <= -4.0  # no domain for this one
    assert box.upper[2, 2] == 10.0


def test_checks_become_questions() -> None:
    question = asked(
        "{norm: linf, radius: 0.5}",
        checks="{id: up, type: monotone, feature: income, direction: increasing}\n"
        "  - {id: a, type: lipschitz_at_most, max: 3.0}\n  - {id: b, type: lipschitz_at_most, max: 2.0, severity: info}",
    )
    assert question.monotone == (MonotoneQuestion("up", 2, "increasing"),)
    assert question.lipschitz_limits[0] == 2.0
    assert question.max_radius is None
    assert question.columns == (0, 1, 2)


def test_wide_models_get_columns_for_named_features_only() -> None:
    count = MAX_FEATURE_COLUMNS + 1
    policy = load_policy(
        "apiVersion: mlflow-lipschitz/v1\nkind: AuditPolicy\nmetadata: {name: p, version: 1}\nmodel: {output: 0}\n"
        "perturbation: {norm: linf, radius: 0.5}\n"
        "checks:\n  - {id: up, type: monotone, feature: x7, direction: increasing}\n"
    )
    assert question_of(policy, load_rows(np.eye(count), None), ("score",)).columns == (7,)
    assert len(question_of(policy, load_rows(np.eye(count - 1), None), ("score",)).columns) == count - 1


RADIUS = "{id: far, type: radius_at_least, min: 0.5}"
RISES = "{id: up, type: monotone, feature: age, direction: increasing}"


@pytest.mark.parametrize(
    ("checks", "output", "outputs", "message"),
    [
        (RISES, "margin", ("a", "b"), "line 8: .*monotone needs one output"),
        (RADIUS, "1", ("a", "b"), "line 8: .*radius_at_least needs a decision"),
        ("{id: lip, type: lipschitz_at_most, max: 1.0}", "margin", ("a",), "a margin needs two outputs"),
    ],
)
def test_checks_without_a_meaning_for_the_output_are_refused(
    checks: str, output: str, outputs: tuple[str, ...], message: str
) -> None:
    with pytest.raises(PolicyError, match=message):
        asked("{norm: linf, radius: 0.5}", checks=checks, output=output, outputs=outputs)


@pytest.mark.parametrize(("output", "outputs"), [("margin", ("a", "b")), ("0", ("logit",))])
def test_decisions_have_a_radius(output: str, outputs: tuple[str, ...]) -> None:
    question = asked("{norm: linf, radius: 0.1}", checks=RADIUS, output=output, outputs=outputs)
    assert question.max_radius is not None
    assert question.max_radius >= 0.5
