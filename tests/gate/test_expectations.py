"""great_expectations' hazards: each is reproduced with great_expectations alone, then shown not to reach us."""

from __future__ import annotations

import copy
import json
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import great_expectations as gx
import pandas as pd
import pytest
from great_expectations.data_context.data_context.context_factory import project_manager
from great_expectations.exceptions import DataContextError
from great_expectations.expectations.registry import get_expectation_impl

from mlflow_lipschitz.errors import AuditError, PolicyError
from mlflow_lipschitz.gate.answers import raised_message
from mlflow_lipschitz.gate.declarations import Declaration, Observed, declare
from mlflow_lipschitz.gate.expectations import EXPECTATIONS, build_suite, evaluate, load_suite, suite_to_json
from mlflow_lipschitz.gate.verdict import judge
from mlflow_lipschitz.policy import load_policy
from mlflow_lipschitz.policy_models import CHECK_MODELS
from tests.gate.tables import FEATURES, good_columns, table
from tests.test_policy import CONTRACT, SMALL

NAN = float("nan")
BASELINE = {"lipschitz/upper_max": 3.0}


def raw(frame: pd.DataFrame, *expectations: Any) -> Any:
    """The frame judged by great_expectations as its documentation shows."""
    context = gx.get_context(mode="ephemeral")
    asset = context.data_sources.add_pandas("p").add_dataframe_asset("a")
    batch = asset.add_batch_definition_whole_dataframe("b").get_batch({"dataframe": frame})
    return batch.validate(gx.ExpectationSuite(name="s", expectations=list(expectations)))


def own(frame: pd.DataFrame, type_: str, **kwargs: Any) -> bool:
    """The frame judged by one of our expectations."""
    answers, _ = evaluate(build_suite("s", [Declaration("c", type_, "critical", 1, kwargs)]), frame)
    assert len(answers) == 1 and not answers[0].error
    return answers[0].success


AT_MOST = "expect_certified_lipschitz_to_be_at_most"
AT_LEAST = "expect_certified_radius_to_be_at_least"
FRACTION = "expect_certified_fraction_to_be_at_least"
NO_REGRESSION = "expect_no_regression_against"


def rows(values: list[Any], name: str = "lipschitz_upper") -> pd.DataFrame:
    return pd.DataFrame({"point_id": [f"p{i}" for i in range(len(values))], name: values})


# 1. NaN passes


def test_hazard_1_builtins_pass_nan() -> None:
    built_in = gx.expectations.ExpectColumnValuesToBeBetween(column="lipschitz_upper", max_value=5)
    assert raw(rows([1.0, NAN, 3.0]), built_in).success is True


@pytest.mark.parametrize("values", [[1.0, NAN, 3.0], [NAN, 1.0]])
def test_hazard_1_own_expectations_fail_on_nan(values: list[float]) -> None:
    assert own(rows(values), AT_MOST, column="lipschitz_upper", max_value=5.0, mostly=1.0) is False
    assert own(rows(values, "radius"), AT_LEAST, column="radius", min_value=0.1, mostly=1.0) is False
    regression = {"column": "lipschitz_upper", "metric": "lipschitz_upper", "figure": "max", "baseline": 9.0}
    assert own(rows(values), NO_REGRESSION, **regression, rel_tol=0.1) is False
    frame = rows(values, "monotone:age").assign(**{"sensitivity_upper:age": NAN})
    pair = {"column_A": "monotone:age", "column_B": "sensitivity_upper:age", "ignore_row_if": "neither"}
    assert own(frame, "expect_feature_to_be_monotone", **pair, direction="increasing", mostly=1.0) is False


def test_hazard_1_nan_never_reaches_them() -> None:
    with pytest.raises(AuditError, match="nan"):
        table(lipschitz_upper=[1.0, NAN, 3.0, 3.0])


# 2. empty and all-null tables pass


def test_hazard_2_map_expectations_pass_on_nothing() -> None:
    built_in = gx.expectations.ExpectColumnValuesToBeBetween(column="lipschitz_upper", max_value=5)
    assert raw(rows([]), built_in).success is True
    assert raw(rows([NAN, NAN]), built_in).success is True


@pytest.mark.parametrize("values", [[], [NAN, NAN]])
def test_hazard_2_own_map_expectations_inherit_it(values: list[float]) -> None:
    """The reason why NaN stops at the table, and no table without rows reaches great_expectations."""
    assert own(rows(values), AT_MOST, column="lipschitz_upper", max_value=5.0, mostly=1.0) is True
    with pytest.raises(AuditError):
        table(2, lipschitz_upper=[NAN, NAN])


def test_hazard_2_an_empty_table_is_an_error() -> None:
    empty = table(0)
    verdict = judge(empty, load_policy(SMALL), expected_points=0)
    assert verdict.status == "error" and not any(check.passed for check in verdict.checks)
    assert "the bounds table is empty" in verdict.checks[0].message
    assert verdict.validation_json["success"] is False


# 3. unknown types vanish when a suite is loaded


def contract_suite() -> Any:
    return build_suite("s", declare(load_policy(CONTRACT), Observed(BASELINE)))


def test_hazard_3_unknown_types_vanish() -> None:
    content = suite_to_json(contract_suite())
    content["expectations"][0]["type"] = "expect_something_else"
    loaded = gx.ExpectationSuite(name="s", expectations=content["expectations"])
    assert len(loaded.expectations) == len(content["expectations"]) - 1


def test_hazard_3_loading_refuses_what_would_be_lost() -> None:
    content = suite_to_json(contract_suite())
    assert suite_to_json(load_suite(content)) == content
    for change in ("expect_something_else", "expect_column_values_to_be_between"):
        other = copy.deepcopy(content)
        other["expectations"][0]["type"] = change
        with pytest.raises(PolicyError, match=f"{change}: unknown expectation type"):
            load_suite(other)
    twice = copy.deepcopy(content)
    twice["expectations"].append(twice["expectations"][0])
    for broken in (twice, {**content, "expectations": None}):
        with pytest.raises(PolicyError):
            load_suite(broken)


# 4. contexts are process-wide


def test_hazard_4_get_context_replaces_the_users_project() -> None:
    mine = gx.get_context(mode="ephemeral")
    gx.get_context(mode="ephemeral")
    assert project_manager._project is not mine


def test_hazard_4_the_users_project_is_put_back() -> None:
    mine = gx.get_context(mode="ephemeral")
    judge(table(), load_policy(SMALL), expected_points=4)
    assert project_manager._project is mine
    project_manager.set_project(None)
    judge(table(), load_policy(SMALL), expected_points=4)
    with pytest.raises(DataContextError):
        project_manager._project  # judge left no project where there was none


def test_hazard_4_eight_threads_each_get_their_own_answer() -> None:
    policy = load_policy(SMALL)

    def job(number: int) -> bool:
        uppers = [float(number)] * 3
        verdict = judge(table(3, lipschitz_upper=uppers, lipschitz_lower=[0.0] * 3), policy, expected_points=3)
        (result,) = [
            r for r in verdict.validation_json["results"] if r["expectation_config"]["meta"]["check_id"] == "lip"
        ]
        seen = {row["lipschitz_upper"] for row in result["result"]["partial_unexpected_index_list"]}
        passed = number <= 5
        return verdict.status == ("passed" if passed else "blocked") and seen == (set() if passed else {float(number)})

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(job, list(range(10)) * 4))


# 5. errors hide in info checks and in two shapes


def test_hazard_5_an_errored_info_check_stays_info() -> None:
    broken = gx.expectations.ExpectColumnMaxToBeBetween(column="absent", max_value=1, severity="info")
    (result,) = raw(rows([1.0]), broken).results
    assert result.success is False and result.expectation_config.severity == "info"
    assert raised_message(result.exception_info)


def test_hazard_5_an_errored_info_check_is_an_error() -> None:
    info = SMALL + "  - {id: up, type: monotone, feature: bmi, direction: increasing, severity: info}\n"
    verdict = judge(table(), load_policy(info), expected_points=4)
    assert verdict.status == "error"
    (outcome,) = verdict.failed
    assert (outcome.id, outcome.severity, outcome.status) == ("up", "info", "error")
    assert verdict.metrics() == {"lipschitz/checks_failed_critical": 1.0}


@pytest.mark.parametrize("severity", ["critical", "info"])
def test_hazard_5_a_raised_exception_is_an_answer_with_an_error(severity: str) -> None:
    kwargs = {"column": "lipschitz_upper", "max_value": 1.0, "mostly": 1.0}
    answers, content = evaluate(
        build_suite("s", [Declaration("c", AT_MOST, severity, 1, kwargs)]), rows([1.0], "other")
    )
    assert [(a.check_id, a.success, bool(a.error)) for a in answers] == [("c", False, True)]
    assert "traceback" not in json.dumps(content).lower()


def test_hazard_5_both_shapes_of_exception_info_are_read() -> None:
    flat = {"raised_exception": True, "exception_message": "a", "exception_traceback": "t"}
    quiet = {"raised_exception": False, "exception_message": None, "exception_traceback": None}
    assert raised_message(flat) == "a" and raised_message(quiet) == "" and raised_message({}) == ""
    assert raised_message({"metric one": flat, "metric two": quiet, "metric three": flat}) == "a; a"


# 6. defaults vanish from suite JSON


def test_hazard_6_fields_equal_to_their_default_vanish() -> None:
    built_in = gx.expectations.ExpectColumnValuesToBeBetween(column="x", max_value=5, mostly=1)
    assert "mostly" not in built_in.configuration.kwargs


def test_hazard_6_every_argument_is_written_down() -> None:
    declared = declare(load_policy(CONTRACT), Observed(BASELINE, 12.5))
    written = {item["meta"]["check_id"]: item for item in suite_to_json(build_suite("s", declared))["expectations"]}
    assert {check_id: item["kwargs"] for check_id, item in written.items()} == {d.check_id: d.kwargs for d in declared}
    assert {check_id: item["type"] for check_id, item in written.items()} == {d.check_id: d.type for d in declared}
    assert written["time"]["severity"] == "info" and written["lip"]["meta"]["policy_line"] == 14


@pytest.mark.parametrize("kind", [kind for name, kind in EXPECTATIONS.items() if "row_count" not in name])
def test_hazard_6_thresholds_have_no_defaults(kind: Any) -> None:
    thresholds = {"max_value", "min_value", "mostly", "baseline", "rel_tol"} & set(kind.__fields__)
    assert thresholds and all(kind.__fields__[name].required for name in thresholds)


# 7. NaN thresholds are accepted


def test_hazard_7_nan_thresholds_are_accepted() -> None:
    built_in = gx.expectations.ExpectColumnValuesToBeBetween(column="x", max_value=NAN)
    assert math.isnan(built_in.max_value)


@pytest.mark.parametrize("value", [NAN, float("inf"), float("-inf")])
def test_hazard_7_thresholds_must_be_finite(value: float) -> None:
    for declared in declare(load_policy(CONTRACT), Observed(BASELINE, 12.5)):
        for name, given in declared.kwargs.items():
            if isinstance(given, float):
                changed = Declaration("c", declared.type, "critical", 1, {**declared.kwargs, name: value})
                with pytest.raises(ValueError, match="must be finite"):
                    build_suite("s", [changed])


# 8. success ignores severity, order is lost


def test_hazard_8_an_info_failure_fails_the_suite_and_order_is_lost() -> None:
    expectations = [
        gx.expectations.ExpectTableRowCountToBeBetween(min_value=1),
        gx.expectations.ExpectColumnMaxToBeBetween(column="lipschitz_upper", max_value=0, severity="info"),
        gx.expectations.ExpectColumnValuesToBeBetween(column="lipschitz_upper", max_value=9),
    ]
    result = raw(rows([1.0]), *expectations)
    assert result.success is False
    assert sorted(r.expectation_config.type for r in result.results) == sorted(e.expectation_type for e in expectations)


def test_hazard_8_an_info_failure_does_not_block() -> None:
    info = SMALL + "  - {id: slow, type: time_at_most, max: 0.5, severity: info}\n"
    verdict = judge(table(), load_policy(info), expected_points=4)
    assert verdict.status == "passed" and [check.id for check in verdict.failed] == ["slow"]
    assert verdict.validation_json["success"] is False
    assert [check.id for check in verdict.checks] == ["lip", "slow", "implicit-points", "implicit-certified-fraction"]


# the rest


def test_every_check_type_is_declared_with_a_known_expectation() -> None:
    declared = declare(load_policy(CONTRACT), Observed(BASELINE))
    assert len(declared) == len(CHECK_MODELS)
    assert {d.type for d in declared} == set(EXPECTATIONS)


def test_names_are_permanent() -> None:
    assert set(EXPECTATIONS) == {
        "expect_certified_lipschitz_to_be_at_most", "expect_certified_radius_to_be_at_least",
        "expect_feature_to_be_monotone", "expect_no_regression_against", "expect_certified_fraction_to_be_at_least",
        "expect_audit_time_to_be_at_most", "expect_certified_sensitivity_to_be_at_most",
        "expect_table_row_count_to_be_between",
    }  # fmt: skip
    assert all(get_expectation_impl(name) is kind for name, kind in EXPECTATIONS.items())


def test_exports_are_strict_json_and_repeatable() -> None:
    columns = good_columns() | {"status": ["undecided"] * 4, "lipschitz_upper": [float("inf")] * 4}
    unknown = type(table()).from_columns(FEATURES, columns)
    first, second = (judge(unknown, load_policy(CONTRACT), expected_points=4, baseline=BASELINE) for _ in range(2))
    for document in (first.suite_json, first.validation_json):
        json.dumps(document, allow_nan=False)
    assert first.suite_json == second.suite_json
    assert '"Infinity"' in json.dumps(first.validation_json)


def test_failing_rows_are_named_by_point_id() -> None:
    _, content = evaluate(contract_suite(), table(lipschitz_upper=[2.0, 6.0, 2.0, 7.0]).frame)
    (result,) = [r for r in content["results"] if r["expectation_config"]["meta"]["check_id"] == "lip"]
    assert [row["point_id"] for row in result["result"]["partial_unexpected_index_list"]] == ["p1", "p3"]


def test_no_progress_bar_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    evaluate(contract_suite(), table().frame)
    out, err = capfd.readouterr()
    assert out == "" and "Calculating Metrics" not in err
