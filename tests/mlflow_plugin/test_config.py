"""The evaluator's config is checked once, and everything wrong with it is said at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlflow_lipschitz.errors import UsageError
from mlflow_lipschitz.mlflow_plugin.config import EvaluatorConfig, parse_config


def test_the_policy_is_enough() -> None:
    assert parse_config({"policy": "policy.yaml"}) == EvaluatorConfig("policy.yaml")
    assert parse_config({"policy": Path("p.yaml"), "chunk_size": 16, "device": None}).chunk_size == 16


def test_all_errors_at_once() -> None:
    with pytest.raises(UsageError) as refusal:
        parse_config({"polcy": "p.yaml", "chunk_size": "many", "trust_pickle": "yes", "raise_on_block": 1})
    message = str(refusal.value)
    for part in ("unknown key 'polcy'", "'policy' is missing", "'chunk_size'", "'trust_pickle'", "'raise_on_block'"):
        assert part in message
    assert "Known keys: policy, model_uri" in message


def test_a_boolean_is_no_number() -> None:
    with pytest.raises(UsageError, match="chunk_size"):
        parse_config({"policy": "p.yaml", "chunk_size": True})


def test_to_go_on_there_has_to_be_a_folder() -> None:
    assert parse_config({"policy": "p.yaml", "out": "audit", "resume": True}).resume
    with pytest.raises(UsageError, match="'resume' needs 'out'"):
        parse_config({"policy": "p.yaml", "resume": True})
