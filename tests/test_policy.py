"""The policy file: what it means, and that everything wrong with it is said at once, with its line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mlflow_lipschitz.errors import PolicyError
from mlflow_lipschitz.policy import AuditPolicy, load_policy, policy_schema
from mlflow_lipschitz.policy_models import CHECK_MODELS

CONTRACT = """\
apiVersion: mlflow-lipschitz/v1
kind: AuditPolicy
metadata: {name: credit-scorer, version: 3, owner: risk@example.com}
model:
  output: logit[1]                      # index, name, or margin
  baseline: models:/credit-scorer@champion
inputs:
  points: {sample: 200, seed: 7, stratify: label}
  domain: {age: [18, 100], income: [0, 250000]}
  immutable: [customer_id, country_*]
perturbation: {norm: linf, radius: 0.05, scale: standardized}
engine: {budget_per_point_s: 5, target_gap: 0.02, precision: float64}
checks:
  - {id: lip, type: lipschitz_at_most, max: 5.0}
  - {id: radius, type: radius_at_least, min: 0.1, mostly: 0.95, severity: warning}
  - {id: income-up, type: monotone, feature: income, direction: increasing}
  - {id: no-worse, type: no_regression, metric: lipschitz_upper, rel_tol: 0.05}
  - {id: enough, type: points_at_least, min: 100}
  - {id: coverage, type: certified_fraction_at_least, min: 1.0}
  - {id: time, type: time_at_most, max: 60, severity: info}
  - {id: age-slope, type: sensitivity_at_most, feature: age, max: 2}
gate: {fail_on: critical, on_pass: {alias: certified}}
"""

SMALL = """\
apiVersion: mlflow-lipschitz/v1
kind: AuditPolicy
metadata: {name: small, version: 1}
model: {output: 0}
perturbation: {norm: linf, radius: 0.1}
checks:
  - {id: lip, type: lipschitz_at_most, max: 5}
"""

FEATURES = ("age", "income", "customer_id", "country_de", "country_fr")
OUTPUTS = ("logit[0]", "logit[1]")


def issues_of(text: str) -> list[tuple[int, str, str]]:
    with pytest.raises(PolicyError) as caught:
        load_policy(text)
    return [(issue.line, issue.where, issue.message) for issue in caught.value.errors]


def test_contract_policy_loads_as_written() -> None:
    policy = load_policy(CONTRACT)
    assert [check.type for check in policy.checks] == [
        "lipschitz_at_most", "radius_at_least", "monotone", "no_regression", "points_at_least",
        "certified_fraction_at_least", "time_at_most", "sensitivity_at_most",
    ]  # fmt: skip
    assert [check.line for check in policy.checks] == list(range(14, 22))
    assert policy.checks[1].mostly == 0.95 and policy.checks[0].mostly == 1.0
    assert policy.checks[0].severity == "critical" and policy.checks[1].severity == "warning"
    assert policy.inputs.domain == {"age": (18, 100), "income": (0, 250000)}
    assert policy.perturbation.radius == 0.05 and policy.gate.on_pass.alias == "certified"
    assert policy.text == CONTRACT


def test_every_check_type_of_the_contract_is_exercised() -> None:
    assert {check.type for check in load_policy(CONTRACT).checks} == set(CHECK_MODELS)


def test_policy_is_read_from_a_path_with_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(SMALL, encoding="utf-8-sig")
    assert load_policy(path).digest == load_policy(str(path)).digest == load_policy(SMALL).digest


def test_unreadable_files_are_policy_errors(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"cannot be read: No such file"):
        load_policy(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"kind: \xff\n")
    with pytest.raises(PolicyError, match="not UTF-8 text"):
        load_policy(tmp_path / "latin.yaml")
    assert PolicyError.exit_code == 2


# old text in SMALL, new text, expected issue
BAD = [
    ("/v1", "/v2", (1, "apiVersion", "must be 'mlflow-lipschitz/v1', not 'mlflow-lipschitz/v2'")),
    ("kind: AuditPolicy", "kind: Policy", (2, "kind", "must be 'AuditPolicy', not 'Policy'")),
    ("kind: AuditPolicy\n", "", (1, "", "required key 'kind' is missing")),
    ("name: small, ", "", (3, "metadata", "required key 'name' is missing")),
    ("name: small", "name: 7", (3, "metadata.name", "must be text (quote a number that is meant as text), not 7")),
    ("version: 1", "version: 1.5", (3, "metadata.version", "must be a whole number, not 1.5")),
    ("version: 1", "version: 1, onwer: me",
     (3, "metadata.onwer", "unknown key; did you mean 'owner'?")),
    ("model: {output: 0}\n", "", (1, "", "required key 'model' is missing")),
    ("output: 0", "output: -1", (4, "model.output", "must be greater than or equal to 0, not -1")),
    ("output: 0", "output: true", (4, "model.output", "must be a whole number, not true")),
    ("output: 0", "output: 0, baseline: champion",
     (4, "model.baseline", "must match pattern '^(models|runs):/.+', not 'champion'")),
    ("linf", "l3", (5, "perturbation.norm", "must be 'linf', 'l2' or 'l1', not 'l3'")),
    ("radius: 0.1", "radius: -0.1", (5, "perturbation.radius", "must be greater than 0, not -0.1")),
    ("radius: 0.1", "radius: 0", (5, "perturbation.radius", "must be greater than 0, not 0")),
    ("radius: 0.1", "radius: true", (5, "perturbation.radius", "must be a number, not true")),
    ("radius: 0.1", "radius: '0.1'", (5, "perturbation.radius", "must be a number, not '0.1'")),
    ("radius: 0.1", "radius: .inf", (5, "perturbation.radius", "must be a finite number, not inf")),
    ("radius: 0.1", "radius: 1e999", (5, "perturbation.radius", "must be a finite number, not inf")),
    ("radius: 0.1", "radius: .nan", (5, "perturbation.radius", "must be a finite number, not nan")),
    ("radius: 0.1", "radius: {age: -1}",
     (5, "perturbation.radius.age", "must be greater than or equal to 0, not -1")),
    ("radius: 0.1", "radius: {age: 0}",
     (5, "perturbation.radius", "every radius is 0: nothing would move and nothing would be proved")),
    ("radius: 0.1", "radius: {}", (5, "perturbation.radius", "must not be empty")),
    ("radius: 0.1", "radius: {age: 1}, scale: standardized",
     (5, "perturbation.scale", "a radius per feature is in raw units: write one radius, or leave scale out")),
    ("radius: 0.1", "radius: 0.1, scale: std",
     (5, "perturbation.scale", "must be 'raw' or 'standardized', not 'std'")),
    ("checks:\n", "inputs: {domain: {age: [100, 18]}}\nchecks:\n",
     (6, "inputs.domain.age", "lower must be below upper, not [100, 18]")),
    ("checks:\n", "inputs: {domain: {age: [18, .inf]}}\nchecks:\n",
     (6, "inputs.domain.age[1]", "must be a finite number, not inf")),
    ("checks:\n", "inputs: {domain: {age: [18]}}\nchecks:\n",
     (6, "inputs.domain.age", "must be two numbers, [lower, upper]")),
    ("checks:\n", "inputs: {domain: {age: [1, 2, 3]}}\nchecks:\n",
     (6, "inputs.domain.age", "must be two numbers, [lower, upper]")),
    ("checks:\n", "inputs: {immutable: age}\nchecks:\n", (6, "inputs.immutable", "must be a list, not 'age'")),
    ("checks:\n", "inputs: {points: {sample: 0}}\nchecks:\n",
     (6, "inputs.points.sample", "must be greater than or equal to 1, not 0")),
    ("checks:\n", "inputs: {points: {seed: 1.0}}\nchecks:\n",
     (6, "inputs.points.seed", "must be a whole number, not 1.0")),
    ("checks:\n", "engine: {budget_per_point_s: 0}\nchecks:\n",
     (6, "engine.budget_per_point_s", "must be greater than 0, not 0")),
    ("checks:\n", "engine: {target_gap: 1}\nchecks:\n", (6, "engine.target_gap", "must be less than 1, not 1")),
    ("checks:\n", "engine: {precision: float32}\nchecks:\n",
     (6, "engine.precision", "must be 'float64', not 'float32'")),
    ("checks:\n", "engine: {arithmetic: float32}\nchecks:\n",
     (6, "engine.arithmetic", "must be 'real' or 'deployed-float32', not 'float32'")),
    ("checks:\n", "gate: {fail_on: info}\nchecks:\n",
     (6, "gate.fail_on", "must be 'critical' or 'warning', not 'info'")),
    ("checks:\n", "gate: {on_pass: {alias: v3}}\nchecks:\n",
     (6, "gate.on_pass.alias", "MLflow reserves 'latest' and 'v<number>'")),
    ("checks:\n", "chekcs: []\nchecks:\n", (6, "chekcs", "unknown key; did you mean 'checks'?")),
    ("  - {id: lip, type: lipschitz_at_most, max: 5}\n", "  []\n", (6, "checks", "must not be empty")),
    ("lipschitz_at_most", "lipshitz_at_most",
     (7, "checks[lip].type", "unknown check type 'lipshitz_at_most'; did you mean 'lipschitz_at_most'?")),
    ("type: lipschitz_at_most, ", "", (7, "checks[lip]", "required key 'type' is missing")),
    (", max: 5", "", (7, "checks[lip]", "required key 'max' is missing")),
    ("max: 5", "max: 5, mx: 5", (7, "checks[lip].mx", "unknown key; did you mean 'max'?")),
    ("max: 5", "max: 5, line: 3", (7, "checks[lip].line", "unknown key; known: id, severity, mostly, type, max")),
    ("max: 5", "max: yes", (7, "checks[lip].max", "must be a number, not 'yes'")),
    ("max: 5", "max: -1", (7, "checks[lip].max", "must be greater than or equal to 0, not -1")),
    ("max: 5", "max: 5, mostly: 0", (7, "checks[lip].mostly", "must be greater than 0, not 0")),
    ("max: 5", "max: 5, mostly: 1.01", (7, "checks[lip].mostly", "must be less than or equal to 1, not 1.01")),
    ("max: 5", "max: 5, severity: fatal",
     (7, "checks[lip].severity", "must be 'critical', 'warning' or 'info', not 'fatal'")),
    ("id: lip", "id: implicit-points",
     (7, "checks[implicit-points].id", "ids starting with 'implicit-' are reserved for checks added by this package")),
    ("max: 5}\n", "max: 5}\n  - {id: lip, type: time_at_most, max: 1}\n",
     (8, "checks[1].id", "duplicate id 'lip', first used on line 7")),
    ("max: 5}\n", "max: 5}\n  - {id: worse, type: no_regression, metric: lipschitz_upper, rel_tol: 0}\n",
     (8, "checks[worse]", "no_regression needs model.baseline, for example models:/name@champion")),
    ("max: 5}\n", "max: 5}\n  - 7\n", (8, "checks[1]", "must be a mapping of keys to values, not 7")),
    ("max: 5}\n", "max: 5}\n  - {id: up, type: monotone, feature: age, direction: up}\n",
     (8, "checks[up].direction", "must be 'increasing' or 'decreasing', not 'up'")),
    ("max: 5}\n", "max: 5}\n  - {id: n, type: points_at_least, min: 0}\n",
     (8, "checks[n].min", "must be greater than or equal to 1, not 0")),
    ("max: 5}\n", "max: 5}\n  - {id: c, type: certified_fraction_at_least, min: 0}\n",
     (8, "checks[c].min", "must be greater than 0, not 0")),
    ("max: 5}\n", "max: 5}\n  - {id: n, type: points_at_least, min: 9}\ninputs: {points: {sample: 8}}\n",
     (8, "checks[n].min", "can never pass: inputs.points.sample draws only 8 rows")),
    ("kind: AuditPolicy\n", "kind: AuditPolicy\nkind: AuditPolicy\n",
     (3, "kind", "duplicate key, first given on line 2")),
    ("max: 5", "max: 5, max: 50", (7, "checks[0].max", "duplicate key, first given on line 7")),
    ("{output: 0}", "{output: 0, <<: {baseline: 'models:/a'}}",
     (4, "model", "merge keys (<<) are not allowed: write the values out")),
    ("{output: 0}", "{output: 0, ? [a] : 1}", (4, "model", "a key must be plain text")),
    ("max: 5", "max: 123456789012345678901", (7, "checks[0].max", "number out of range")),
    ("{output: 0}", "&m {output: 0}\nextra: *m", (5, "", "alias *m is not allowed: write the value out")),
    ("output: 0", "output: !!python/object/apply:os.getcwd []",
     (4, "", "tag tag:yaml.org,2002:python/object/apply:os.getcwd is not allowed: write plain values")),
    ("output: 0", "output: " + "[" * 20 + "]" * 20, (4, "", "nested deeper than 16 levels")),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "issue"), BAD, ids=[f"{n}-{row[2][2][:40]}" for n, row in enumerate(BAD)])
def test_each_error_is_named_with_its_line(old: str, new: str, issue: tuple[int, str, str]) -> None:
    text = SMALL.replace(old, new, 1)
    assert text != SMALL
    assert issues_of(text) == [issue]


def test_all_errors_are_reported_at_once_in_file_order() -> None:
    text = SMALL
    for old, new in [("linf", "l3"), ("output: 0", "output: -1"), ("max: 5", "mx: 5"), ("version: 1", "version: x!")]:
        text = text.replace(old, new)
    assert [line for line, _, _ in issues_of(text)] == [3, 4, 5, 7, 7]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("\n\n", 1, "the policy is empty"),
        ("# nothing\n", 1, "the policy is empty"),
        ("- a\n- b\n", 1, "the policy must be a mapping of keys to values"),
        ("a: [1\nb: 2\n", 2, "not YAML: expected ',' or ']', but got ':'"),
        ("a: 1\n---\nb: 2\n", 2, "not YAML: but found another document"),
        ("a: 1\n\tb: 2\n", 2, "not YAML: found character '\\t' that cannot start any token"),
        ("a: \x01\n", 0, "not YAML: unacceptable character #x0001: special characters are not allowed"),
        ("a: 1\n" + "#" * 1_000_000, 0, "longer than 1000000 characters"),
    ],
)
def test_text_that_is_no_policy(text: str, line: int, message: str) -> None:
    assert issues_of(text) == [(line, "", message)]


def test_scalars_follow_yaml_1_2() -> None:
    policy = load_policy(SMALL.replace("version: 1", "version: 1, owner: no").replace("max: 5", "max: 1e-3"))
    assert policy.metadata.owner == "no"
    assert policy.checks[0].max == 0.001


def test_guards_are_added_as_critical_when_absent() -> None:
    added = [check for check in load_policy(SMALL).checks if check.id.startswith("implicit-")]
    assert [(c.id, c.type, c.min, c.severity, c.line) for c in added] == [
        ("implicit-points", "points_at_least", 1, "critical", 0),
        ("implicit-certified-fraction", "certified_fraction_at_least", 1.0, "critical", 0),
    ]


@pytest.mark.parametrize("severity", ["warning", "info"])
def test_a_weak_guard_stands_beside_the_critical_one(severity: str) -> None:
    weak = f"  - {{id: c, type: certified_fraction_at_least, min: 0.5, severity: {severity}}}\n"
    checks = [c for c in load_policy(SMALL + weak).checks if c.type == "certified_fraction_at_least"]
    assert [(c.min, c.severity) for c in checks] == [(0.5, severity), (1.0, "critical")]


def test_a_critical_guard_of_the_author_is_respected() -> None:
    own = "  - {id: c, type: certified_fraction_at_least, min: 0.5}\n"
    checks = [c for c in load_policy(SMALL + own).checks if c.type == "certified_fraction_at_least"]
    assert [(c.id, c.min) for c in checks] == [("c", 0.5)]


def test_digest_depends_on_content_only() -> None:
    same = """
# another layout
checks: [{max: 5.0, type: "lipschitz_at_most", id: lip, severity: critical}]
perturbation: {radius: 1e-1, norm: linf, scale: raw}
model: {output: 0}
metadata:
    version: 1
    name: small
kind: AuditPolicy
apiVersion: mlflow-lipschitz/v1
"""
    policy = load_policy(SMALL)
    assert load_policy(same).digest == policy.digest
    assert load_policy(SMALL.replace("max: 5", "max: 5.0000000001")).digest != policy.digest
    assert load_policy(SMALL.replace("version: 1", "version: 2")).digest != policy.digest
    assert policy.digest.startswith("sha256:") and len(policy.digest) == 71
    assert policy.reference == f"small@1 {policy.digest}"


def test_a_policy_is_frozen() -> None:
    policy = load_policy(CONTRACT)
    with pytest.raises(ValueError, match="frozen"):
        policy.checks[0].max = 10
    with pytest.raises(TypeError, match="frozen"):
        policy.inputs.domain["age"] = (0, 1)
    with pytest.raises(TypeError, match="frozen"):
        policy.inputs.domain.update(age=(0, 1))
    with pytest.raises(TypeError, match="frozen"):
        policy.inputs.domain |= {"age": (0, 1)}


def bind_issues(policy: AuditPolicy, features=FEATURES, outputs=OUTPUTS) -> list[tuple[int, str, str]]:
    with pytest.raises(PolicyError) as caught:
        policy.bind(features, outputs)
    return [(issue.line, issue.where, issue.message) for issue in caught.value.errors]


def test_bind_accepts_the_model_the_policy_was_written_for() -> None:
    policy = load_policy(CONTRACT)
    policy.bind(FEATURES, OUTPUTS)
    assert policy.immutable_features(FEATURES) == ("customer_id", "country_de", "country_fr")
    assert policy.resolve_output(OUTPUTS) == 1
    assert load_policy(CONTRACT.replace("logit[1]", "margin")).resolve_output(OUTPUTS) == "margin"


def test_bind_names_everything_unknown_at_once() -> None:
    assert bind_issues(load_policy(CONTRACT), ("agee", "x"), ("probability",)) == [
        (5, "model.output", "unknown output 'logit[1]'; known: probability"),
        (9, "inputs.domain.age", "unknown feature 'age'; did you mean 'agee'?"),
        (9, "inputs.domain.income", "unknown feature 'income'"),
        (10, "inputs.immutable[0]", "'customer_id' matches no feature"),
        (10, "inputs.immutable[1]", "'country_*' matches no feature"),
        (16, "checks[income-up].feature", "unknown feature 'income'"),
        (21, "checks[age-slope].feature", "unknown feature 'age'; did you mean 'agee'?"),
    ]


def test_bind_wants_a_radius_for_every_feature_that_moves() -> None:
    text = SMALL.replace("radius: 0.1", "radius: {age: 1, incom: 2, id: 3}") + "inputs: {immutable: [id]}\n"
    assert bind_issues(load_policy(text), ("age", "income", "id")) == [
        (5, "perturbation.radius", "no radius for income: give one, or list the feature as immutable"),
        (5, "perturbation.radius.id", "'id' is immutable, its radius can only be 0"),
        (5, "perturbation.radius.incom", "unknown feature 'incom'; did you mean 'income'?"),
    ]


def test_bind_refuses_a_region_in_which_nothing_moves() -> None:
    issues = bind_issues(load_policy(SMALL + "inputs: {immutable: ['*']}\n"))
    assert issues == [(8, "inputs.immutable", "matches every feature: nothing would move and nothing be proved")]


def test_bind_refuses_an_output_that_does_not_exist() -> None:
    assert bind_issues(load_policy(SMALL.replace("output: 0", "output: 2"))) == [
        (4, "model.output", "index 2 of a model with 2 output(s)")
    ]
    assert bind_issues(load_policy(SMALL.replace("output: 0", "output: risk")), outputs=()) == [
        (4, "model.output", "unknown output 'risk'; the model names none, give an index")
    ]


def test_a_feature_with_brackets_in_its_name_is_taken_literally() -> None:
    policy = load_policy(SMALL + "inputs: {immutable: ['x[0]']}\n")
    assert policy.immutable_features(("x[0]", "x[1]", "x0")) == ("x[0]",)


def test_schema_is_valid_and_accepts_the_contract_policy() -> None:
    schema = policy_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert list(validator.iter_errors(yaml.safe_load(CONTRACT))) == []
    assert list(validator.iter_errors({**yaml.safe_load(CONTRACT), "extra": 1}))
    assert json.loads(json.dumps(schema)) == schema


def test_schema_describes_every_key() -> None:
    schema = policy_schema()

    def described(value: dict) -> bool:
        return "description" in value or "description" in schema["$defs"][value["$ref"].removeprefix("#/$defs/")]

    sections = {"policy": schema, **schema["$defs"]}
    keys = [(name, key) for name, section in sections.items() for key in section.get("properties", {}) if key != "type"]
    assert len(keys) > 40
    assert [pair for pair in keys if not described(sections[pair[0]]["properties"][pair[1]])] == []


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
trees = st.recursive(scalars, lambda t: st.lists(t, max_size=3) | st.dictionaries(st.text(max_size=6), t, max_size=3))


@given(key=st.sampled_from([*sorted(AuditPolicy.model_fields), "apiVersion", "checks"]), value=trees)
def test_any_value_anywhere_is_a_policy_or_a_policy_error(key: str, value: object) -> None:
    content = {**yaml.safe_load(SMALL), key: value}
    try:
        policy = load_policy(yaml.safe_dump(content, allow_unicode=True) + "\n")
    except PolicyError as error:
        assert error.errors and all(issue.message for issue in error.errors)
    else:
        assert load_policy(policy.text).digest == policy.digest


@given(st.text(max_size=60))
def test_any_text_is_a_policy_or_a_policy_error(text: str) -> None:
    with pytest.raises(PolicyError):
        load_policy(text + "\n")


def test_what_a_model_looks_up_has_to_be_said() -> None:
    policy = load_policy(CONTRACT)
    features = (*FEATURES, "branch=1", "branch=2")
    with pytest.raises(PolicyError, match="'branch' is looked up by the model and cannot move") as refused:
        policy.bind(features, OUTPUTS, fixed=("branch=1", "branch=2"), looked_up=("branch",))
    (issue,) = refused.value.errors
    assert issue.where == "inputs.immutable" and issue.line > 1
    written = issue.message.rpartition("write ")[2]
    said = load_policy(re.sub(r"immutable: \[.*\]", written, CONTRACT))
    said.bind(features, OUTPUTS, fixed=("branch=1", "branch=2"), looked_up=("branch",))
