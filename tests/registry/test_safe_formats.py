"""Crafted archives: what torch.export and skops would run is refused, and the refusal comes before any loading."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mlflow_lipschitz.errors import UntrustedModel
from mlflow_lipschitz.registry.safe_pt2 import load_pt2
from mlflow_lipschitz.registry.safe_skops import load_skops

torch = pytest.importorskip("torch")

MODEL = "model/models/model.json"
WEIGHTS = "model/data/weights/model_weights_config.json"
SAMPLE = "model/data/sample_inputs/model.pt"


class MakesAFolder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(3, 4), torch.nn.GELU(approximate="tanh"), torch.nn.Linear(4, 2)
        )
        self.register_buffer("shift", torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, x):
        return self.layers(x - self.shift).reshape(x.shape[0], -1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Net, Path]:
    net = Net().eval()
    batch = torch.export.Dim.AUTO
    program = torch.export.export(net, (torch.zeros(3, 3),), dynamic_shapes=({0: batch},))
    path = tmp_path_factory.mktemp("pt2") / "model.pt2"
    torch.export.save(program, path)
    return net, path


def _rewrite(source: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    with zipfile.ZipFile(source) as archive:
        root = archive.namelist()[0].split("/", 1)[0]
        records = {"model/" + name.removeprefix(f"{root}/"): archive.read(name) for name in archive.namelist()}
    change(records)
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return target


def _edit_model(change: Callable[[dict], None]) -> Callable[[dict[str, bytes]], None]:
    def apply(records: dict[str, bytes]) -> None:
        model = json.loads(records[MODEL])
        change(model)
        records[MODEL] = json.dumps(model).encode()

    return apply


def _target(name: str) -> Callable[[dict], None]:
    def change(model: dict) -> None:
        model["graph_module"]["graph"]["nodes"][0]["target"] = name

    return change


def _first_size(text: str) -> Callable[[dict], None]:
    def change(model: dict) -> None:
        for value in model["graph_module"]["graph"]["tensor_values"].values():
            for size in value["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = text

    return change


def test_an_honest_archive_answers_as_the_module(exported: tuple[Net, Path]) -> None:
    net, path = exported
    points = torch.randn(7, 3)
    assert load_pt2(path).module()(points).detach().numpy() == pytest.approx(net(points).detach().numpy(), abs=1e-6)


def test_sample_inputs_are_never_unpickled(exported: tuple[Net, Path], tmp_path: Path) -> None:
    mark = tmp_path / "code-ran"

    def change(records: dict[str, bytes]) -> None:
        buffer = io.BytesIO()
        torch.save(MakesAFolder(mark), buffer)
        records[SAMPLE] = buffer.getvalue()

    crafted = _rewrite(exported[1], tmp_path / "model.pt2", change)
    program = load_pt2(crafted)
    assert not mark.exists()
    assert program.example_inputs[0][0].shape == (3, 3)
    # The counter-check: torch itself does run the code in the same archive.
    with pytest.raises(Exception):  # noqa: B017
        torch.export.load(crafted)
    assert mark.exists()


def test_pickled_weights_are_refused(exported: tuple[Net, Path], tmp_path: Path) -> None:
    mark = tmp_path / "code-ran"

    def change(records: dict[str, bytes]) -> None:
        config = json.loads(records[WEIGHTS])
        next(iter(config["config"].values()))["use_pickle"] = True
        records[WEIGHTS] = json.dumps(config).encode()
        records["model/data/weights/weight_0"] = pickle.dumps(MakesAFolder(mark))

    with pytest.raises(UntrustedModel, match="pickled tensor"):
        load_pt2(_rewrite(exported[1], tmp_path / "model.pt2", change))
    assert not mark.exists()


@pytest.mark.parametrize("target", ["torch.os.system", "torch.ops.aten.from_file.default", "#evil", "_operator.a.b", 7])
def test_calls_of_anything_but_operators_are_refused(exported: tuple[Net, Path], tmp_path: Path, target: str) -> None:
    with pytest.raises(UntrustedModel, match="not an aten operator"):
        load_pt2(_rewrite(exported[1], tmp_path / "model.pt2", _edit_model(_target(target))))


@pytest.mark.parametrize(
    "text", ["__import__('os').system('true')", "eval(chr(49))", "Symbol('s0').__class__", "lambda"]
)
def test_symbolic_sizes_that_are_code_are_refused(exported: tuple[Net, Path], tmp_path: Path, text: str) -> None:
    with pytest.raises(UntrustedModel, match="symbolic size"):
        load_pt2(_rewrite(exported[1], tmp_path / "model.pt2", _edit_model(_first_size(text))))


def test_guard_code_is_dropped(exported: tuple[Net, Path], tmp_path: Path) -> None:
    mark = tmp_path / "code-ran"
    code = f"__import__('os').mkdir({str(mark)!r}) is None"
    crafted = _rewrite(exported[1], tmp_path / "model.pt2", _edit_model(lambda m: m.update(guards_code=[code])))
    load_pt2(crafted).module()(torch.zeros(4, 3))
    assert not mark.exists()


def test_surplus_records_and_duplicate_names_are_refused(exported: tuple[Net, Path], tmp_path: Path) -> None:
    crafted = _rewrite(
        exported[1], tmp_path / "a.pt2", lambda r: r.update({"model/data/aotinductor/model/x.so": b"\x7fELF"})
    )
    with pytest.raises(UntrustedModel, match="aotinductor"):
        load_pt2(crafted)
    twice = _rewrite(
        exported[1], tmp_path / "b.pt2", lambda r: r.update({MODEL.upper().replace("MODEL/", "model/", 1): b"{}"})
    )
    with pytest.raises(UntrustedModel, match="two records"):
        load_pt2(twice)


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(pickle.dumps({}))
    with pytest.raises(UntrustedModel, match="no zip archive"):
        load_pt2(tmp_path / "model.pt2")


def _skops(path: Path, estimator: object) -> Path:
    import skops.io

    skops.io.dump(estimator, path)
    return path


def test_an_estimator_comes_back(tmp_path: Path) -> None:
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler, StandardScaler

    points = np.random.default_rng(0).normal(size=(40, 3))
    scaling = ColumnTransformer([("a", StandardScaler(), [0, 1]), ("b", MinMaxScaler(), [2])])
    estimator = make_pipeline(scaling, LogisticRegression()).fit(points, points[:, 0] > 0)
    loaded = load_skops(_skops(tmp_path / "m.skops", estimator))
    assert loaded.predict_proba(points) == pytest.approx(estimator.predict_proba(points))


@pytest.mark.parametrize(
    ("node", "named"),
    [
        ({"__loader__": "ObjectNode", "__module__": "subprocess", "__class__": "Popen"}, "subprocess.Popen"),
        ({"__loader__": "FunctionNode", "__module__": "os", "__class__": "system"}, "os.system"),
        ({"__loader__": "MethodNode", "__module__": "sklearn.linear_model", "__class__": "Ridge"}, "MethodNode"),
        ({"__loader__": "TypeNode", "__module__": "subprocess", "__class__": "Popen"}, "subprocess.Popen"),
        ({"__loader__": "DictNode", "__module__": "os", "__class__": "system"}, "os.system"),
    ],
)
def test_a_node_outside_the_list_is_named(tmp_path: Path, node: dict, named: str) -> None:
    from sklearn.linear_model import Ridge

    source = _skops(tmp_path / "m.skops", Ridge().fit([[0.0], [1.0]], [0.0, 1.0]))
    with zipfile.ZipFile(source) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    schema = json.loads(records["schema.json"])
    schema["content"]["content"]["alpha"] = {**node, "__id__": 1, "content": None}
    records["schema.json"] = json.dumps(schema).encode()
    with zipfile.ZipFile(tmp_path / "crafted.skops", "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    with pytest.raises(UntrustedModel, match=named):
        load_skops(tmp_path / "crafted.skops")
