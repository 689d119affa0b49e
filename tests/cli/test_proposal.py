"""What `policy init` prints is a policy that loads and fits the model it was made for."""

from __future__ import annotations

import numpy as np
import pytest
from mlflow.models import ModelSignature
from mlflow.types.schema import ColSpec, Schema, TensorSpec

from mlflow_lipschitz.cli.proposal import propose_policy
from mlflow_lipschitz.policy import load_policy
from mlflow_lipschitz.rows import AuditedRows

NAMES = ("age", "no", "weird: #name", "country_de")
MIXED = ModelSignature(
    inputs=Schema(
        [
            ColSpec("double", "age"),
            ColSpec("double", "no"),
            ColSpec("float", "weird: #name"),
            ColSpec("long", "country_de"),
        ]
    )
)


def rows(count: int = 5) -> AuditedRows:
    points = np.random.default_rng(0).normal(size=(count, 4)) * [10.0, 0.001, 1e6, 1.0] + [40.0, 0.0, -3e6, 0.0]
    ids = np.array([str(i) for i in range(count)])
    return AuditedRows(points, NAMES, ids, points.std(axis=0))


@pytest.mark.parametrize("given", [None, rows(5), rows(1)])
@pytest.mark.parametrize("name", ["credit-scorer", "models with spaces/é", "-", "x" * 200])
def test_a_proposal_is_a_valid_policy(given: AuditedRows | None, name: str) -> None:
    policy = load_policy(propose_policy(name, MIXED, given))
    policy.bind(NAMES, ("score",))
    assert policy.immutable_features(NAMES) == ("country_de",)


def test_the_domain_holds_every_given_row() -> None:
    given = rows(50)
    policy = load_policy(propose_policy("m", MIXED, given))
    assert set(policy.inputs.domain) == {"age", "no", "weird: #name"}
    for i, name in enumerate(NAMES):
        if name in policy.inputs.domain:
            low, high = policy.inputs.domain[name]
            assert low < given.points[:, i].min() <= given.points[:, i].max() < high


def test_without_a_signature_the_rows_name_the_features() -> None:
    policy = load_policy(propose_policy("m", None, rows()))
    policy.bind(NAMES, ())
    tensor = ModelSignature(inputs=Schema([TensorSpec(np.dtype("float32"), (-1, 4))]))
    assert load_policy(propose_policy("m", tensor, None)).inputs.immutable == ()


def test_a_model_of_whole_numbers_only_still_moves() -> None:
    signature = ModelSignature(inputs=Schema([ColSpec("long", "a"), ColSpec("long", "b")]))
    policy = load_policy(propose_policy("m", signature, None))
    policy.bind(("a", "b"), ())
    assert policy.inputs.immutable == ()


def test_constant_columns_are_not_measured_in_standard_deviations() -> None:
    given = rows(1)
    assert load_policy(propose_policy("m", MIXED, given)).perturbation.scale == "raw"
    assert load_policy(propose_policy("m", MIXED, rows(9))).perturbation.scale == "standardized"


def test_columns_with_two_values_are_codes() -> None:
    given = rows(30)
    given.points[:, 0] = np.arange(30) % 2 + 1
    policy = load_policy(propose_policy("m", None, given))
    assert policy.immutable_features(NAMES) == ("age",)
    assert "age" not in policy.inputs.domain
