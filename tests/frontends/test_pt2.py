"""A .pt2 archive can hold code in five places. None of it runs: it is refused or replaced before torch sees the file."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mlflow_lipschitz.errors import UntrustedModel
from mlflow_lipschitz.frontends.pt2 import load_exported_program


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "model.pt2"
    module = nn.Sequential(nn.Linear(5, 3), nn.ReLU()).eval()
    shapes = ({0: torch.export.Dim.AUTO},)
    torch.export.save(torch.export.export(module, (torch.zeros(2, 5),), dynamic_shapes=shapes), path)
    return path


def tampered(
    archive: Path, target: Path, change: Callable[[str, bytes], bytes], add: dict[str, bytes] | None = None
) -> Path:
    """A copy of the archive with every record passed through `change`, and records added."""
    path = target / "tampered.pt2"
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w") as copy:
        for info in source.infolist():
            copy.writestr(info.filename, change(info.filename, source.read(info)))
        root = source.namelist()[0].partition("/")[0]
        for name, content in (add or {}).items():
            copy.writestr(f"{root}/{name}", content)
    return path


def in_program(change: Callable[[dict[str, Any]], None]) -> Callable[[str, bytes], bytes]:
    def apply(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return content
        program = json.loads(content)
        change(program)
        return json.dumps(program).encode()

    return apply


class Marker:
    """Unpickling one creates the file `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def test_an_honest_archive_is_loaded(archive: Path) -> None:
    program = load_exported_program(archive)
    rows = torch.randn(7, 5)
    assert torch.equal(program.module()(rows), torch.export.load(archive).module()(rows))


def test_pickled_sample_inputs_are_not_read(archive: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    def change(name: str, content: bytes) -> bytes:
        buffer = io.BytesIO()
        torch.save(((Marker(mark),), {}), buffer)
        return buffer.getvalue() if "sample_inputs" in name else content

    path = tampered(archive, tmp_path, change)
    load_exported_program(path)
    assert not mark.exists()
    with contextlib.suppress(Exception):
        torch.export.load(path)
    assert mark.exists(), "the test could not fail: torch itself would not have run it"


def test_guards_are_not_executed(archive: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    path = tampered(
        archive, tmp_path, in_program(lambda p: p.update(guards_code=[f"open({str(mark)!r}, 'w') is not None"]))
    )
    load_exported_program(path).module()
    assert not mark.exists()


def test_pickled_weights_are_refused(archive: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    def change(name: str, content: bytes) -> bytes:
        if name.endswith("weights_config.json"):
            config = json.loads(content)
            for payload in config["config"].values():
                payload["use_pickle"] = True
            return json.dumps(config).encode()
        return pickle.dumps(Marker(mark)) if "/weight_" in name else content

    with pytest.raises(UntrustedModel, match=r"weights/weight_0 .* pickle"):
        load_exported_program(tampered(archive, tmp_path, change))
    assert not mark.exists()


@pytest.mark.parametrize("path_name", ["custom_obj_0", "opaque_obj_0", "../../weight_0", "weight_0/../x"])
def test_payloads_of_other_kinds_are_refused(archive: Path, tmp_path: Path, path_name: str) -> None:
    def change(name: str, content: bytes) -> bytes:
        entry = {"path_name": path_name, "is_param": False, "use_pickle": False, "tensor_meta": None}
        return json.dumps({"config": {"x": entry}}).encode() if name.endswith("constants_config.json") else content

    with pytest.raises(UntrustedModel, match="pickle"):
        load_exported_program(tampered(archive, tmp_path, change, {f"data/constants/{path_name}": b"x"}))


EXPRESSIONS = [
    "exec(chr(112))", "__import__('os').system('true')", "s0.__class__", "open(s0)", "Symbol('s0', positive=open('x'))",
    "[].append", "lambda: 0", "Symbol('os')", "breakpoint()",
]  # fmt: skip


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_shape_expressions_that_are_not_arithmetic_are_refused(archive: Path, tmp_path: Path, expression: str) -> None:
    def change(program: dict[str, Any]) -> None:
        sizes = next(iter(program["graph_module"]["graph"]["tensor_values"].values()))["sizes"]
        sizes[0] = {"as_expr": {"expr_str": expression, "hint": None}}

    with pytest.raises(UntrustedModel, match="expr_str"):
        load_exported_program(tampered(archive, tmp_path, in_program(change)))


@pytest.mark.parametrize(
    "target",
    ["torch.load", "torch.hub.load", "torch.ops.aten.from_file.default", "math.exp", "torch.ops.load_library", "#x"],
)
def test_functions_that_are_not_tensor_operators_are_refused(archive: Path, tmp_path: Path, target: str) -> None:
    def change(program: dict[str, Any]) -> None:
        program["graph_module"]["graph"]["nodes"][0]["target"] = target

    with pytest.raises(UntrustedModel, match="target"):
        load_exported_program(tampered(archive, tmp_path, in_program(change)))


def test_unknown_containers_are_refused(archive: Path, tmp_path: Path) -> None:
    def change(program: dict[str, Any]) -> None:
        call = program["graph_module"]["module_call_graph"][0]["signature"]
        call["in_spec"] = json.dumps([1, {"type": "collections.defaultdict", "context": "{}", "children_spec": []}])

    with pytest.raises(UntrustedModel, match="in_spec"):
        load_exported_program(tampered(archive, tmp_path, in_program(change)))


def test_records_beside_the_model_are_left_out(archive: Path, tmp_path: Path) -> None:
    extra = {"data/aotinductor/model/x.so": b"\x7fELF", "extra/hello": b"x", "models/other.json": b"{}"}
    load_exported_program(tampered(archive, tmp_path, lambda _, content: content, extra))


@pytest.mark.parametrize("content", [b"", b"not a zip", pickle.dumps([1])])
def test_files_that_are_no_archives(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(content)
    with pytest.raises(UntrustedModel, match=r"model\.pt2"):
        load_exported_program(path)


def test_archive_without_a_model(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/readme", "")
    with pytest.raises(UntrustedModel, match="holds no models"):
        load_exported_program(path)
