"""Bad moments, one process each: what `inside.py` brings about must leave no protected place open."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from conftest import PLUGIN
from servers import environment

DENIED = "PERMISSION_DENIED"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Case -> what it found."""
    folder = tmp_path_factory.mktemp("moments")
    words = [sys.executable, str(PLUGIN / "tests" / "inside.py"), str(folder)]
    env = environment(folder, None)
    done = subprocess.run(words, env=env, cwd=folder, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    results = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/found.json")}
    assert len(results) == 8, done.stderr[-3000:]
    return results


def test_the_second_look_counts_however_the_version_is_spelled(found: dict[str, Any]) -> None:
    assert found["swapped_behind_another_spelling"] == [[DENIED, {}]] * 4


def test_a_second_look_that_does_not_end_well_is_none(found: dict[str, Any]) -> None:
    for said, alias, marks in found["second_look_breaks"][::2]:
        assert (said != "done", alias, marks) == (True, {}, [])
    for said, stage, marks in found["second_look_breaks"][1::2]:
        assert (said != "done", stage, marks) == (True, "None", [])
    assert len(found["second_look_breaks"]) == 8


def test_a_start_leaves_the_marks_of_living_workers_alone(found: dict[str, Any]) -> None:
    said, seen, marks, aliases = found["another_worker_starts"]
    assert said == "done"
    assert seen == [["lipschitz.gate.opening-alias.champion"]]
    assert (marks, aliases) == ([], {"champion": "1"})


def test_a_store_as_a_whole_is_no_place_of_a_version(found: dict[str, Any]) -> None:
    assert found["the_whole_store_is_registered"] == ["done", DENIED, [DENIED, {}]]


def test_a_database_that_is_away_does_not_leave_a_door_open(found: dict[str, Any]) -> None:
    said, aliases, left = found["the_database_is_away"]
    assert (said != "done", aliases, left) == (True, {}, 0)


def test_a_busy_database_takes_nothing_back(found: dict[str, Any]) -> None:
    assert found["a_busy_database_takes_nothing_back"] == ["TEMPORARILY_UNAVAILABLE", {"champion": "1"}, []]


def test_a_promotion_during_a_rename_does_not_come_along(found: dict[str, Any]) -> None:
    assert found["alias_set_during_a_rename"] == [DENIED, {}]


def test_an_upload_that_lands_after_the_promotion_closes_it_again(found: dict[str, Any]) -> None:
    assert found["upload_that_lands_late"] == [DENIED, {}]
