"""Every check type is explained, and nothing else is."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from mlflow_lipschitz.errors import UsageError
from mlflow_lipschitz.gate.explain import CHECK_TYPES, advice, explain
from mlflow_lipschitz.policy_models import CHECK_MODELS

PARTS = ("What it means:", "What it does not mean:", "Unit:", "How to react:")


@pytest.mark.parametrize("check_type", CHECK_TYPES)
def test_every_check_type_has_all_parts(check_type: str) -> None:
    text = explain(check_type)
    assert text.startswith(f"{check_type}: ")
    positions = [text.index(part) for part in PARTS]
    assert positions == sorted(positions)
    assert "compliant" not in text


def test_the_types_are_the_policys() -> None:
    assert set(CHECK_TYPES) == set(CHECK_MODELS)


def test_an_unknown_type_is_refused_with_a_hint() -> None:
    with pytest.raises(UsageError, match="did you mean 'monotone'"):
        explain("monoton")


def test_verdicts_can_be_imported_without_great_expectations() -> None:
    code = "import sys, mlflow_lipschitz.gate.verdict, mlflow_lipschitz.gate.explain, mlflow_lipschitz.policy as p; "
    code += "print([m for m in ('great_expectations', 'torch', 'onnx', 'mlflow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


SEARCHED = ("lipschitz_at_most", "monotone")
"""Checks that the engine searches for with a budget."""


@pytest.mark.parametrize("kind", CHECK_TYPES)
def test_no_text_tells_to_turn_a_knob_that_does_nothing(kind: str) -> None:
    """Where no search is made, a larger budget would change no bound."""
    tells = bool(re.search("raise (the|engine).*(budget|gap)|lower the budget|within the budget", explain(kind)))
    assert tells == (kind in SEARCHED)


@pytest.mark.parametrize("kind", CHECK_TYPES)
@pytest.mark.parametrize("status", ["violated", "undecided", "error"])
def test_there_is_advice_for_whatever_failed(kind: str, status: str) -> None:
    text = advice(kind, status)
    assert text[0].isupper()
    assert text.endswith(".")
    assert not re.match("(Undecided|Violated|Error):", text)


def test_what_is_proved_needs_no_advice() -> None:
    assert advice("monotone", "certified") == ""
