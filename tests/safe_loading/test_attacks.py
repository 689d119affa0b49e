"""Models that try to run code, to read elsewhere, or to fill the memory: refused, or loaded without a single side effect.

All are pulled by one program under Python's audit hook (watched.py), which tells every file opened for writing, every process
and every connection. The same hook watches honest models, so that its silence means something.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from onnx import helper
from sklearn.linear_model import Ridge
from torch import nn

from tests.registry.stores import onnx_model, rows
from tests.safe_loading.test_onnx_file import with_external
from tests.safe_loading.test_pt2 import MakesAFolder, saved

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="makes symbolic links and pipes")


def _torch_folder(folder: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).eval()
    mlflow.pytorch.save_model(
        module, folder, serialization_format="pt2", input_example=rows(2), pip_requirements=["torch"]
    )


def _sklearn_folder(folder: Path) -> None:
    mlflow.sklearn.save_model(
        Ridge().fit(rows(), rows()[:, 0]), folder, serialization_format="skops", pip_requirements=["scikit-learn"]
    )


def _onnx_folder(folder: Path) -> None:
    mlflow.onnx.save_model(onnx_model(), folder, pip_requirements=["onnxruntime"], input_example=rows(2))


HONEST = {"honest-onnx": _onnx_folder, "honest-pt2": _torch_folder, "honest-skops": _sklearn_folder}

Change = Callable[[Path, Path], object]
ATTACKS: dict[str, tuple[str, str, Change]] = {}
"""Name -> the honest model it is made from, how it has to end, and what is done to it (folder, where code would leave marks)."""


def attack(base: str, outcome: str) -> Callable[[Change], Change]:
    def add(change: Change) -> Change:
        ATTACKS[change.__name__.strip("_").replace("_", "-")] = (base, outcome, change)
        return change

    return add


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = yaml.safe_load((folder / "MLmodel").read_text())
    change(content)
    (folder / "MLmodel").write_text(yaml.safe_dump(content))


def rewrite(path: Path, change: Callable[[dict[str, bytes]], object], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    change(records)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in records.items():
            archive.writestr(name, content)


def name_in(records: dict[str, bytes], end: str) -> str:
    return next(name for name in records if name.endswith(end))


def skops_file(folder: Path) -> Path:
    return next(folder.glob("model.*"))


PT2 = Path("data") / "model.pt2"


@attack("honest-skops", "UntrustedModel.*pickle")
def _sklearn_pickle(folder: Path, mark: Path) -> None:
    skops_file(folder).write_bytes(pickle.dumps(MakesAFolder(mark)))
    edit(folder, lambda c: c["flavors"]["sklearn"].update(serialization_format="cloudpickle"))


@attack("honest-skops", "UntrustedModel.*not a skops file")
def _pickle_that_is_called_skops(folder: Path, mark: Path) -> None:
    skops_file(folder).write_bytes(pickle.dumps(MakesAFolder(mark)))


@attack("honest-skops", r"UntrustedModel.*os\.system \(FunctionNode\)")
def _skops_that_names_a_function(folder: Path, mark: Path) -> None:
    def change(records: dict[str, bytes]) -> None:
        schema = json.loads(records["schema.json"])
        schema["content"]["content"]["alpha"] = {
            **{"__loader__": "FunctionNode", "__module__": "os", "__class__": "system", "__id__": 1},
            "content": {"module_path": "os", "function": "system"},
        }
        records["schema.json"] = json.dumps(schema).encode()

    rewrite(skops_file(folder), change)
    edit(folder, lambda c: c["flavors"]["sklearn"].update(skops_trusted_types=["os.system"]))


@attack("honest-skops", "UntrustedModel.*larger than the file")
def _skops_bomb(folder: Path, mark: Path) -> None:
    rewrite(skops_file(folder), lambda r: r.update({name_in(r, ".npy"): bytes(2**27)}), method=zipfile.ZIP_DEFLATED)


@attack("honest-pt2", "UntrustedModel.*pickle")
def _torch_pickle(folder: Path, mark: Path) -> None:
    (folder / "data" / "model.pth").write_bytes(saved(MakesAFolder(mark)))


@attack("honest-pt2", "loaded")
def _pt2_with_code_in_its_sample_inputs(folder: Path, mark: Path) -> None:
    rewrite(folder / PT2, lambda r: r.update({name_in(r, "data/sample_inputs/model.pt"): saved(MakesAFolder(mark))}))


@attack("honest-pt2", "UntrustedModel.*pickled tensor")
def _pt2_with_a_pickled_weight(folder: Path, mark: Path) -> None:
    def change(records: dict[str, bytes]) -> None:
        name = name_in(records, "model_weights_config.json")
        config = json.loads(records[name])
        entry = next(iter(config["config"].values()))
        entry["use_pickle"] = True
        records[name] = json.dumps(config).encode()
        records[name_in(records, f"data/weights/{entry['path_name']}")] = saved(MakesAFolder(mark))

    rewrite(folder / PT2, change)


@attack("honest-pt2", "UntrustedModel.*not on the list of operators")
def _pt2_that_calls_a_function(folder: Path, mark: Path) -> None:
    def change(records: dict[str, bytes]) -> None:
        name = name_in(records, "models/model.json")
        records[name] = records[name].replace(b"torch.ops.aten.relu.default", b"os.system")
        assert b"os.system" in records[name]

    rewrite(folder / PT2, change)


@attack("honest-pt2", "UntrustedModel.*larger than the file")
def _pt2_bomb(folder: Path, mark: Path) -> None:
    rewrite(
        folder / PT2, lambda r: r.update({name_in(r, "models/model.json"): b" " * 2**26}), method=zipfile.ZIP_DEFLATED
    )


@attack("honest-onnx", "UntrustedModel.*loader_module")
def _loader_module(folder: Path, mark: Path) -> None:
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    edit(folder, lambda c: c["flavors"]["python_function"].update(loader_module="evil"))


@attack("honest-onnx", "UntrustedModel.*ships Python code")
def _code_folder(folder: Path, mark: Path) -> None:
    (folder / "code").mkdir()
    (folder / "code" / "onnxruntime.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    edit(folder, lambda c: c["flavors"]["onnx"].update(code="code"))


@attack("honest-onnx", "loaded")
def _code_that_nothing_names(folder: Path, mark: Path) -> None:
    for place in (folder, folder / "code"):
        place.mkdir(exist_ok=True)
        for name in ("sitecustomize.py", "onnxruntime.py", "conftest.py", "evil.pth"):
            (place / name).write_text(f"import os; os.mkdir({str(mark)!r})\n")


@attack("honest-onnx", "UntrustedModel.*Python code only")
def _pickled_python_model(folder: Path, mark: Path) -> None:
    (folder / "python_model.pkl").write_bytes(pickle.dumps(MakesAFolder(mark)))
    flavor = {"loader_module": "mlflow.pyfunc.model", "python_model": "python_model.pkl"}
    edit(folder, lambda c: c.update(flavors={"python_function": flavor}))


@attack("honest-onnx", "UntrustedModel.*Python code only")
def _model_from_code(folder: Path, mark: Path) -> None:
    (folder / "model.py").write_text(f"import os; os.mkdir({str(mark)!r})\n")
    flavor = {"loader_module": "mlflow.pyfunc.model", "model_code_path": "model.py"}
    edit(folder, lambda c: c.update(flavors={"python_function": flavor}))


@attack("honest-onnx", "RegistryError.*not readable YAML")
def _mlmodel_that_calls_a_function(folder: Path, mark: Path) -> None:
    with (folder / "MLmodel").open("a") as stream:
        stream.write(f"evil: !!python/object/apply:os.mkdir [{str(mark)!r}]\n")


@attack("honest-onnx", "UntrustedModel.*repeats itself")
def _mlmodel_of_a_billion_laughs(folder: Path, mark: Path) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 20))]
    with (folder / "MLmodel").open("a") as stream:
        stream.write("\n".join(lines) + "\n")


@attack("honest-onnx", "UntrustedModel.*repeats itself")
def _mlmodel_in_a_circle(folder: Path, mark: Path) -> None:
    with (folder / "MLmodel").open("a") as stream:
        stream.write("a: &a [*a, *a]\n")


@attack("honest-onnx", "RegistryError.*not readable YAML|UntrustedModel")
def _mlmodel_nested_without_end(folder: Path, mark: Path) -> None:
    with (folder / "MLmodel").open("a") as stream:
        stream.write("a: " + "[" * 50_000 + "]" * 50_000 + "\n")


@attack("honest-onnx", "UntrustedModel.*bytes, where")
def _mlmodel_too_long(folder: Path, mark: Path) -> None:
    with (folder / "MLmodel").open("a") as stream:
        stream.write("#" * 2**23)


@attack("honest-onnx", "RegistryError.*signature is not readable")
def _signature_nested_without_end(folder: Path, mark: Path) -> None:
    edit(folder, lambda c: c.update(signature={"inputs": "[" * 100_000}))


@attack("honest-onnx", "RegistryError.*input example")
def _input_example_nested_without_end(folder: Path, mark: Path) -> None:
    names = yaml.safe_load((folder / "MLmodel").read_text())["saved_input_example_info"]
    (folder / (names.get("serving_input_path") or names["artifact_path"])).write_text("[" * 100_000)


@attack("honest-onnx", "UntrustedModel.*outside the model's folder")
def _input_example_elsewhere(folder: Path, mark: Path) -> None:
    edit(folder, lambda c: c["saved_input_example_info"].update(serving_input_path="../secret.json"))


def _with_weights_at(location: Callable[[Path], str]) -> Change:
    def change(folder: Path, mark: Path) -> None:
        (folder.parent / "secret.bin").write_bytes(bytes(48))
        (folder / "model.onnx").write_bytes(with_external(location(folder)).SerializeToString())

    return change


ATTACKS["weights-above"] = ("honest-onnx", "UntrustedModel.*outside", _with_weights_at(lambda f: "../secret.bin"))
ATTACKS["weights-at-a-path"] = (
    "honest-onnx",
    "UntrustedModel.*outside",
    _with_weights_at(lambda f: str(f.parent / "secret.bin")),
)
ATTACKS["weights-of-a-device"] = ("honest-onnx", "UntrustedModel.*outside", _with_weights_at(lambda f: "/dev/zero"))


@attack("honest-onnx", "UntrustedModel.*symbolic link")
def _weights_behind_a_link(folder: Path, mark: Path) -> None:
    (folder / "weights.bin").symlink_to("/etc/hostname")
    (folder / "model.onnx").write_bytes(with_external("weights.bin").SerializeToString())


@attack("honest-onnx", "RegistryError.*pipe|UntrustedModel.*regular file")
def _a_pipe_that_never_ends(folder: Path, mark: Path) -> None:
    os.mkfifo(folder / "weights.bin")


@attack("honest-onnx", "RegistryError.*not a readable ONNX model")
def _weights_beyond_the_end_of_their_file(folder: Path, mark: Path) -> None:
    (folder / "weights.bin").write_bytes(bytes(8))
    (folder / "model.onnx").write_bytes(with_external("weights.bin", offset=2**40).SerializeToString())


@attack("honest-onnx", "UntrustedModel.*nodes")
def _more_nodes_than_any_model(folder: Path, mark: Path) -> None:
    model = onnx_model()
    node = helper.make_node("Relu", ["x"], ["y"]).SerializeToString()
    part = b"\x0a" + bytes([len(node)]) + node
    graph = model.graph.SerializeToString() + part * 200_001
    model.ClearField("graph")
    length, size = b"", len(graph)
    while size:
        length, size = length + bytes([size & 127 | (128 if size > 127 else 0)]), size >> 7
    (folder / "model.onnx").write_bytes(model.SerializeToString() + b"\x3a" + length + graph)


@attack("honest-onnx", "UntrustedModel.*levels deep")
def _graphs_within_graphs(folder: Path, mark: Path) -> None:
    graph = helper.make_graph([], "innermost", [], [])
    for _ in range(28):
        graph = helper.make_graph([helper.make_node("If", ["x"], ["y"], then_branch=graph)], "g", [], [])
    model = onnx_model()
    model.graph.CopyFrom(graph)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


@attack("honest-onnx", "RegistryError.*onnxruntime cannot serve")
def _an_operator_that_is_python_code(folder: Path, mark: Path) -> None:
    model = onnx_model()
    model.graph.node.append(
        helper.make_node("PyOp", ["x"], ["z"], domain="ai.onnx.contrib", code=f"os.mkdir({mark!s})")
    )
    model.opset_import.append(helper.make_opsetid("ai.onnx.contrib", 1))
    (folder / "model.onnx").write_bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], Path]]:
    """What watched.py says of every model, and the folder where code would have left its marks."""
    root = tmp_path_factory.mktemp("watched")
    for part in ("honest", "attacks", "marks", "home"):
        (root / part).mkdir()
    for name, save in HONEST.items():
        save(root / "honest" / name)
    for name, (base, _, change) in ATTACKS.items():
        shutil.copytree(root / "honest" / base, root / "attacks" / name)
        change(root / "attacks" / name, root / "marks" / name)
    environment = {**os.environ, "HOME": str(root / "home"), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.safe_loading.watched", str(root)],
        **{"cwd": root / "home", "env": environment, "capture_output": True, "text": True},
        timeout=400,
        check=False,
    )
    (root / "attacks" / "secret.bin").unlink(missing_ok=True)
    assert run.returncode == 0, run.stderr[-3000:]
    yield json.loads(run.stdout), root
    shutil.rmtree(root, ignore_errors=True)


@pytest.mark.parametrize("name", list(HONEST))
def test_an_honest_model_is_loaded_and_the_hook_is_silent(watched: tuple[dict[str, Any], Path], name: str) -> None:
    assert watched[0][name] == {"outcome": "loaded", "events": []}


@pytest.mark.parametrize("name", list(ATTACKS))
def test_an_attack_ends_as_it_should_and_leaves_no_trace(watched: tuple[dict[str, Any], Path], name: str) -> None:
    answer, (_, outcome, _) = watched[0][name], ATTACKS[name]
    assert answer["events"] == []
    assert re.search(outcome, answer["outcome"], re.DOTALL), answer["outcome"]


def test_nothing_was_written_anywhere(watched: tuple[dict[str, Any], Path]) -> None:
    assert watched[0]["new files"] == []
    assert list((watched[1] / "marks").iterdir()) == []


def test_the_hook_does_notice(tmp_path: Path) -> None:
    """The counter-check: the same pickle, unpickled under the same hook, is told."""
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(MakesAFolder(tmp_path / "mark")))
    (tmp_path / "scratch").mkdir()
    script = (
        "import pickle, subprocess, sys, socket\nfrom pathlib import Path\nfrom tests.safe_loading.watched import Watch\n"
        f"watch = Watch(Path({str(tmp_path / 'scratch')!r}))\nwatch.on = True\n"
        f"pickle.loads(Path({str(tmp_path / 'evil.pkl')!r}).read_bytes())\n"
        f"open({str(tmp_path / 'file')!r}, 'w').close()\nopen({str(tmp_path / 'scratch' / 'file')!r}, 'w').close()\n"
        "subprocess.run([sys.executable, '-c', ''])\n"
        "s = socket.socket()\ns.settimeout(0.1)\ns.connect_ex(('127.0.0.1', 9))\n"
        "watch.on = False\nprint('\\n'.join(e.split()[0] for e in watch.events))"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    told = run.stdout.split()
    assert {"pickle.find_class", "os.mkdir", "open", "subprocess.Popen", "socket.connect"} <= set(told)
    assert told.count("open") == 1
