"""What `policy init` writes: a policy that loads, fits the model, is passed by what was measured, and blocks what is worse."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.models import ModelSignature, infer_signature
from mlflow.tracking import MlflowClient
from mlflow.types.schema import ColSpec, Schema
from onnx import TensorProto, helper
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mlflow_lipschitz.audited_rows import AuditedRows, spread
from mlflow_lipschitz.policy import AuditPolicy, load_policy
from mlflow_lipschitz.proposal.columns import Column, columns_of, immutable_lines
from mlflow_lipschitz.proposal.thresholds import down, up
from tests.cli.conftest import Answer
from tests.pipeline import test_tokens
from tests.registry.stores import fresh_name, log_onnx

Command = Callable[..., Answer]
pytestmark = pytest.mark.usefixtures("store")


def flats(count: int = 60, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "area": random.uniform(20, 200, count),
            "rooms": random.integers(1, 15, count).astype(float),
            "balcony": random.integers(0, 2, count).astype(float),
            "country_de": random.integers(0, 2, count).astype(float),
            "country_fr": random.integers(0, 2, count).astype(float),
            "year": np.full(count, 2026.0),
        }
    )


def log_rent(name: str, slope: float = 12.0) -> str:
    """Rent as a linear function of the columns, registered as the next version of `name`."""
    frame = flats()
    rent = slope * frame["area"] + 8.0 * frame["rooms"] - 5.0 * frame["balcony"]
    model = LinearRegression().fit(frame, rent)
    with mlflow.start_run():
        info = mlflow.sklearn.log_model(
            model,
            name="model",
            registered_model_name=name,
            signature=infer_signature(frame, model.predict(frame)),
            input_example=frame.head(3),
            serialization_format="skops",
            pip_requirements=["scikit-learn"],
        )
    return f"models:/{name}/{info.registered_model_version}"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "flats.csv"
    flats().to_csv(path, index=False)
    return path


def proposed(command: Command, tmp_path: Path, *arguments: object) -> tuple[AuditPolicy, str, Path]:
    """The policy that `policy init` writes, its text, and its file, which `policy check` accepts."""
    path = tmp_path / f"proposed-{len(list(tmp_path.glob('proposed-*')))}.yaml"
    answer = command("policy", "init", *arguments, "--out", path)
    assert answer.code == 0, answer.err
    assert command("policy", "check", path).code == 0
    return load_policy(path), path.read_text(encoding="utf-8"), path


def uncommented(text: str) -> list[str]:
    """Checks and domains whose number does not say where it comes from."""
    lines = text.splitlines()
    bare = [line for i, line in enumerate(lines) if line.startswith("  - {") and not lines[i - 1].startswith("  #")]
    return bare + [line for line in lines if line.startswith("    ") and "  # " not in line]


def test_a_table_is_read_column_by_column_and_audited(command: Command, data: Path, tmp_path: Path) -> None:
    uri = log_rent(fresh_name("rent"))
    policy, text, path = proposed(command, tmp_path, uri, "--data", data)
    assert set(policy.inputs.immutable) == {"balcony", "country_*", "year"}
    assert "always 2026" in text
    assert "two values: 0 and 1" in text
    assert set(policy.inputs.domain) == {"area", "rooms"}
    assert all(float(end).is_integer() for end in policy.inputs.domain["rooms"])
    assert policy.perturbation.scale == "standardized"
    checks = {check.id: check for check in policy.checks}
    # Of a linear model everything is known: slope times standard deviation, summed over what moves.
    frame = flats()
    steepest = 12.0 * frame["area"].std(ddof=0) + 8.0 * frame["rooms"].std(ddof=0)
    assert steepest * 1.1 <= checks["steadiness"].max <= steepest * 1.3
    assert (checks["sensitivity-1"].feature, checks["sensitivity-2"].feature) == ("area", "rooms")
    assert 12.0 * 1.1 <= checks["sensitivity-1"].max <= 12.0 * 1.3
    assert "proved on all 60 rows" in text
    assert not uncommented(text)
    answer = command("audit", uri, "--policy", path, "--data", data)
    assert answer.code == 0, answer.out + answer.err


def test_a_steeper_version_is_blocked_by_what_was_proposed(command: Command, data: Path, tmp_path: Path) -> None:
    name = fresh_name("rent")
    _, _, path = proposed(command, tmp_path, log_rent(name), "--data", data)
    answer = command("audit", log_rent(name, slope=20.0), "--policy", path, "--data", data)
    assert answer.code == 1
    assert {line.split()[1] for line in answer.out.splitlines() if line.startswith("FAIL")} >= {
        "steadiness",
        "sensitivity-1",
    }


def test_the_champions_record_is_what_a_challenger_is_held_to(command: Command, data: Path, tmp_path: Path) -> None:
    name = fresh_name("rent")
    first = log_rent(name)
    policy, text, path = proposed(command, tmp_path, first, "--data", data)
    assert policy.model.baseline is None
    assert "has the alias champion yet" in text
    decided = text.replace("  # - {id: direction-1,", "  - {id: rises,")
    path.write_text(decided)
    assert command("audit", first, "--policy", path, "--data", data).code == 0
    assert command("promote", first, "--alias", "champion", "--policy", path).code == 0

    second = log_rent(name, slope=18.0)
    policy, text, held = proposed(command, tmp_path, second, "--data", data)
    assert policy.model.baseline == f"models:/{name}@champion"
    assert (policy.metadata.version, policy.inputs) == (2, load_policy(path).inputs)
    assert {"no-worse-1", "rises"} <= {check.id for check in policy.checks}
    assert "champion version 1" in text
    assert "blocked by" in text.splitlines()[1]
    assert not uncommented(text)
    blocked = command("audit", second, "--policy", held, "--data", data)
    assert blocked.code == 1
    assert "FAIL  no-worse-1" in blocked.out
    assert command("audit", log_rent(name, slope=12.5), "--policy", held, "--data", data).code == 0


def test_a_champion_without_a_record_is_named_and_not_compared_with(
    command: Command, data: Path, tmp_path: Path
) -> None:
    name = fresh_name("rent")
    uri = log_rent(name)
    MlflowClient().set_registered_model_alias(name, "champion", "1")
    policy, text, _ = proposed(command, tmp_path, uri, "--data", data)
    assert policy.model.baseline is None
    assert "Not asked: no audit is on record" in text


def test_other_rows_than_the_champions_cannot_be_compared(command: Command, data: Path, tmp_path: Path) -> None:
    name = fresh_name("rent")
    uri = log_rent(name)
    _, _, path = proposed(command, tmp_path, uri, "--data", data)
    assert command("audit", uri, "--policy", path, "--data", data).code == 0
    assert command("promote", uri, "--alias", "champion").code == 0
    other = tmp_path / "other.csv"
    flats(40, seed=1).assign(area=lambda frame: frame["area"] * 30).to_csv(other, index=False)
    policy, text, _ = proposed(command, tmp_path, uri, "--data", other)
    assert policy.model.baseline is None
    assert "cannot be compared with: it had other" in text
    assert policy.inputs.domain["area"][1] > 3000


def test_text_and_codes_do_not_move(command: Command, tmp_path: Path) -> None:
    frame = flats().assign(region=lambda f: np.where(f["area"] > 90, "east", "west"))[["region", "area", "rooms"]]
    steps = ColumnTransformer([("n", StandardScaler(), ["area", "rooms"]), ("t", OneHotEncoder(), ["region"])])
    model = make_pipeline(steps, LogisticRegression()).fit(frame, frame["area"] + 10 * frame["rooms"] > 180)
    name = fresh_name("mixed")
    with mlflow.start_run():
        mlflow.sklearn.log_model(
            model,
            name="model",
            registered_model_name=name,
            signature=infer_signature(frame, model.predict(frame)),
            input_example=frame,
            serialization_format="skops",
            pip_requirements=["scikit-learn"],
        )
    uri = f"models:/{name}/1"
    policy, text, path = proposed(command, tmp_path, uri)
    assert policy.inputs.immutable == ("region",)
    assert "looked up by the model" in text
    assert policy.model.output == "margin"
    assert "radius" in {check.id for check in policy.checks}
    answer = command("audit", uri, "--policy", path)
    assert answer.code == 0, answer.out + answer.err


def log_torch(module: torch.nn.Module, rows: np.ndarray) -> str:
    name = fresh_name("torch")
    with torch.no_grad():
        answers = module(torch.from_numpy(rows)).numpy()
    with mlflow.start_run():
        mlflow.pytorch.log_model(
            module,
            name="model",
            registered_model_name=name,
            serialization_format="pt2",
            signature=infer_signature(rows, answers),
            input_example=rows[:4],
            pip_requirements=["torch"],
        )
    return f"models:/{name}/1"


def test_a_torch_classifier_of_images(command: Command, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(32, 3)
    images = np.random.default_rng(0).uniform(size=(12, 1, 6, 6)).astype(np.float32)
    uri = log_torch(torch.nn.Sequential(*layers).eval(), images)
    path = tmp_path / "images.npz"
    np.savez(path, points=images)
    policy, text, written = proposed(command, tmp_path, uri, "--data", path, "--points", 6)
    assert (policy.model.output, policy.perturbation.scale) == ("margin", "raw")
    assert not policy.inputs.domain
    assert "of the range of the data" in text
    assert "6 of 12 rows" in text
    assert {"radius_at_least", "lipschitz_at_most"} <= {check.type for check in policy.checks}
    answer = command("audit", uri, "--policy", written, "--data", path)
    assert answer.code == 0, answer.out + answer.err


def test_the_radius_shrinks_where_bounds_would_be_loose(command: Command, tmp_path: Path) -> None:
    """Of 1/x no bound is finite where the region reaches 0: there a smaller radius is proposed."""
    value = partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT, shape=["batch", 1])
    graph = helper.make_graph([helper.make_node("Reciprocal", ["x"], ["y"])], "inverse", [value("x")], [value("y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    rows, name = np.linspace(0.05, 2.0, 10, dtype=np.float32)[:, None], fresh_name("inverse")
    with mlflow.start_run():
        mlflow.onnx.log_model(
            model, name="model", registered_model_name=name, input_example=rows, pip_requirements=["onnxruntime"]
        )
    policy, text, _ = proposed(command, tmp_path, f"models:/{name}/1")
    # 0.1 standard deviations are more than the 0.05 between the lowest row and 0, and half as much is less.
    assert policy.perturbation.radius == 0.05
    assert "bounds were too loose" in text
    assert {check.id: check.min for check in policy.checks if check.id == "coverage"} == {"coverage": 1.0}


def test_tokens_do_not_move_and_their_embeddings_do(command: Command, tmp_path: Path) -> None:
    uri = test_tokens.registered()
    policy, text, _ = proposed(command, tmp_path, uri, "--points", 2)
    assert policy.inputs.immutable == ("tokens",)
    assert (policy.model.output, policy.perturbation.scale) == ("margin", "raw")
    assert "looked up by the model" in text
    single, _, _ = proposed(command, tmp_path, uri, "--points", 2, "--output", 1)
    assert single.model.output == 1
    assert "radius" not in {check.id for check in single.checks}


def test_nothing_to_measure_on_is_refused(command: Command, tmp_path: Path) -> None:
    name = fresh_name("bare")
    with mlflow.start_run():
        model = LinearRegression().fit(flats(), np.arange(60.0))
        mlflow.sklearn.log_model(
            model,
            name="model",
            registered_model_name=name,
            serialization_format="skops",
            pip_requirements=["scikit-learn"],
        )
    answer = command("policy", "init", f"models:/{name}/1")
    assert (answer.code, "--data" in answer.err) == (2, True)
    still = tmp_path / "one.csv"
    flats(1).to_csv(still, index=False)
    answer = command("policy", "init", f"models:/{name}/1", "--data", still)
    assert (answer.code, "no column varies in 1 row" in answer.err) == (2, True)
    written = tmp_path / "policy.yaml"
    written.write_text("somebody's decisions")
    name = fresh_name()
    log_onnx(name)
    answer = command("policy", "init", f"models:/{name}/1", "--out", written)
    assert (answer.code, written.read_text()) == (2, "somebody's decisions")
    answer = command("policy", "init", f"models:/{name}/1")
    assert answer.code == 0
    assert load_policy(answer.out).metadata.name == name


# Columns and numbers alone.


def table(**columns: list[float]) -> AuditedRows:
    points = np.column_stack([np.asarray(values, dtype=float) for values in columns.values()])
    return AuditedRows(points, tuple(columns), np.arange(len(points)).astype(str), spread(points))


def kinds(rows: AuditedRows, signature: ModelSignature | None = None) -> dict[str, str]:
    return {column.name: column.kind for column in columns_of(rows, signature, set(rows.feature_names))}


def test_what_a_column_is() -> None:
    rows = table(
        real=[i / 7 for i in range(20)], whole=range(20), flag=[0, 5] * 10, still=[3] * 20, grade=[1, 2, 3, 4] * 5
    )
    assert kinds(rows) == {"real": "real", "whole": "whole", "flag": "code", "still": "constant", "grade": "whole"}
    types = {"real": "double", "whole": "long", "flag": "double", "still": "double", "grade": "long"}
    signed = ModelSignature(inputs=Schema([ColSpec(kind, name) for name, kind in types.items()]))
    assert kinds(rows, signed)["grade"] == "code"
    assert kinds(rows, signed)["whole"] == "whole"
    # Two values in a handful of rows may be chance.
    assert kinds(table(a=[0.5, 1.5, 0.5])) == {"a": "real"}


@pytest.mark.parametrize(
    ("column", "domain"),
    [
        (Column("a", "whole", 18.0, 90.0, ""), "[10, 98]"),
        (Column("a", "whole", 0.0, 7.0, ""), "[0, 8]"),
        (Column("a", "real", 0.0, 1.0, ""), "[0, 1.1]"),
        (Column("a", "real", -3.0, -1.0, ""), "[-3.2, -0.8]"),
        (Column("a", "real", -1234567.0, 7.0, ""), "[-1.36e+06, 124000]"),
    ],
)
def test_the_domain_holds_the_data_and_keeps_its_sign(column: Column, domain: str) -> None:
    assert column.domain == domain


def test_a_pattern_stands_for_immutable_columns_only() -> None:
    columns = tuple(
        Column(name, "code", 0.0, 1.0, "two values") for name in ("c_a", "c_b", "d_a", "d_b", "x[*]_a", "x[*]_b")
    )
    lines = immutable_lines(columns, ["t"], ["c_a", "c_b", "d_a", "d_b", "d_moves", "x[*]_a", "x[*]_b"])
    names = [line.split("  #")[0].strip("- ") for line in lines.splitlines()[1:]]
    assert names == ['"c_*"', "d_a", "d_b", '"x[*]_a"', '"x[*]_b"', "t"]


@pytest.mark.parametrize("value", [1e-300, 0.7, 9.91, 10.0, 99.0001, 123456.7, 1e300])
def test_two_digits_on_the_safe_side(value: float) -> None:
    assert value <= float(up(value)) <= value * 1.2
    assert value >= float(down(value)) >= value * 0.8
    assert len(up(value).split("e")[0].strip("0.").replace(".", "").strip("0")) <= 2


def test_names_cannot_leave_their_comment_or_their_place() -> None:
    hostile = "a\n  - {id: x, type: points_at_least, min: 1}"
    lines = immutable_lines((Column(hostile, "code", 0.0, 1.0, hostile),), [], [hostile])
    assert len(lines.splitlines()) == 2
    assert "  # " in lines
