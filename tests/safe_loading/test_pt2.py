"""A pt2 archive can hold code in many places. None of it runs: it is refused or replaced before torch sees the file."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mlflow_lipschitz.errors import RegistryError, UntrustedModel
from mlflow_lipschitz.frontends.to_onnx import to_onnx
from mlflow_lipschitz.safe_loading.pt2 import load_pt2

Records = dict[str, bytes]

MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
SAMPLE = "data/sample_inputs/model.pt"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, 4), nn.BatchNorm1d(4), nn.GELU(approximate="tanh"), nn.Dropout(), nn.Linear(4, 2)
        )
        self.register_buffer("shift", torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x - self.shift).reshape(x.shape[0] * 2, -1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Net, Path]:
    net = Net().eval()
    program = torch.export.export(net, (torch.zeros(3, 3),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    path = tmp_path_factory.mktemp("pt2") / "model.pt2"
    torch.export.save(program, path)
    return net, path


@pytest.fixture
def craft(exported: tuple[Net, Path], tmp_path: Path) -> Callable[[Callable[[Records], object]], Path]:
    """A copy of the honest archive after `change` of its records."""

    def crafted(change: Callable[[Records], object]) -> Path:
        with zipfile.ZipFile(exported[1]) as archive:
            records = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
        change(records)
        with zipfile.ZipFile(tmp_path / "model.pt2", "w") as archive:
            for name, content in records.items():
                archive.writestr(f"model/{name}", content)
        return tmp_path / "model.pt2"

    return crafted


@pytest.fixture
def craft_json(craft) -> Callable[..., Path]:
    """A copy of the honest archive after `change` of the JSON in one record."""

    def crafted(change: Callable[[dict[str, Any]], object], record: str = MODEL) -> Path:
        def apply(records: Records) -> None:
            content = json.loads(records[record])
            change(content)
            records[record] = json.dumps(content).encode()

        return craft(apply)

    return crafted


def graph_of(model: dict[str, Any]) -> dict[str, Any]:
    return model["graph_module"]["graph"]


def node_with(model: dict[str, Any], text: str) -> dict[str, Any]:
    return next(node for node in graph_of(model)["nodes"] if text in node["target"])


def root_call(model: dict[str, Any]) -> dict[str, Any]:
    return model["graph_module"]["module_call_graph"][0]["signature"]


class MakesAFolder:
    """Unpickling one creates the folder `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def torch_runs_it(path: Path, mark: Path) -> bool:
    """The counter-check: torch itself, given the same file, does run the code in it."""
    with contextlib.suppress(Exception):
        torch.export.load(path).module()(torch.zeros(4, 3))
    return mark.exists()


def test_an_honest_archive_answers_as_the_module(exported: tuple[Net, Path]) -> None:
    net, path = exported
    points = torch.randn(7, 3)
    program = load_pt2(path)
    assert torch.equal(program.module()(points), torch.export.load(path).module()(points))
    assert program.module()(points).detach().numpy() == pytest.approx(net(points).detach().numpy(), abs=1e-6)
    assert to_onnx(path).SerializeToString() == to_onnx(torch.export.load(path)).SerializeToString()


def test_several_outputs_and_decomposed_programs(tmp_path: Path) -> None:
    class Several(nn.Module):
        def forward(self, x: torch.Tensor, flag: bool = True) -> dict[str, Any]:
            left, right = (x * float("inf")).clamp(max=1e30).chunk(2, dim=-1)
            return {"sum": left + right, "parts": (torch.softmax(left, -1), x.flip(0) if flag else x)}

    program = torch.export.export(
        Several(), (torch.ones(3, 4), True), dynamic_shapes={"x": {0: torch.export.Dim.AUTO}, "flag": None}
    )
    for version in (program, program.run_decompositions()):
        torch.export.save(version, tmp_path / "m.pt2")
        rows = torch.rand(5, 4)
        found, expected = load_pt2(tmp_path / "m.pt2").module()(rows, True), Several()(rows)
        assert torch.equal(found["sum"], expected["sum"])
        assert torch.equal(found["parts"][1], expected["parts"][1])


# --- pickles -------------------------------------------------------------------------------------------------------


def test_sample_inputs_are_never_unpickled(craft, tmp_path: Path) -> None:
    mark = tmp_path / "code-ran"
    crafted = craft(lambda records: records.update({SAMPLE: saved(((MakesAFolder(mark),), {}))}))
    program = load_pt2(crafted)
    assert not mark.exists()
    assert program.example_inputs[0][0].shape == (3, 3)
    assert torch_runs_it(crafted, mark)


def test_pickled_weights_are_refused(craft, tmp_path: Path) -> None:
    mark = tmp_path / "code-ran"

    def change(records: Records) -> None:
        config = json.loads(records[WEIGHTS])
        next(iter(config["config"].values()))["use_pickle"] = True
        records[WEIGHTS] = json.dumps(config).encode()
        records["data/weights/weight_0"] = saved(MakesAFolder(mark))

    crafted = craft(change)
    with pytest.raises(UntrustedModel, match=r"weights/weight_0: the pickled tensor"):
        load_pt2(crafted)
    assert not mark.exists()
    assert torch_runs_it(crafted, mark)


@pytest.mark.parametrize("path_name", ["custom_obj_0", "opaque_obj_0", "../../weight_0", "weight_0/../x"])
def test_payloads_of_other_kinds_are_refused(craft, path_name: str) -> None:
    def change(records: Records) -> None:
        entry = next(iter(json.loads(records[WEIGHTS])["config"].values()))
        records[CONSTANTS] = json.dumps({"config": {"x": {**entry, "path_name": path_name}}}).encode()
        records[f"data/constants/{path_name}"] = b"x"

    with pytest.raises(UntrustedModel, match="path_name"):
        load_pt2(craft(change))


# --- source text that torch writes and executes --------------------------------------------------------------------


def rename_input(model: dict[str, Any], new: str) -> None:
    """Call the program's input `new`, wherever it is named."""

    def renamed(value: Any) -> Any:
        if isinstance(value, dict):
            return {renamed(k): renamed(v) for k, v in value.items()}
        if isinstance(value, list):
            return [renamed(v) for v in value]
        return new if value == "x" else value

    model["graph_module"] = renamed(model["graph_module"])


def test_names_that_are_code_are_refused(craft_json, tmp_path: Path) -> None:
    mark = tmp_path / "code-ran"
    crafted = craft_json(lambda model: rename_input(model, f"x = __import__('os').mkdir({str(mark)!r})"))
    with pytest.raises(UntrustedModel, match="__import__"):
        load_pt2(crafted)
    assert not mark.exists()
    assert torch_runs_it(crafted, mark)


BAD_NAMES = ["", "a b", "a=1", "a;b", "a\nb", "a.b", "lambda", "é", "1a", "a" * 2000, 7, None, ["a"]]


@pytest.mark.parametrize("bad", BAD_NAMES, ids=repr)
@pytest.mark.parametrize("place", ["node", "placeholder", "output", "argument", "forward", "parameter"])
def test_every_name_is_an_identifier(craft_json, place: str, bad: object) -> None:
    def change(model: dict[str, Any]) -> None:
        node = node_with(model, "aten.linear")
        if place == "node":
            node["name"] = bad
        elif place == "placeholder":
            graph_of(model)["inputs"][0]["as_tensor"]["name"] = bad
        elif place == "output":
            node["outputs"][0]["as_tensor"]["name"] = bad
        elif place == "argument":
            node["inputs"][0]["arg"]["as_tensor"]["name"] = bad
        elif place == "forward":
            root_call(model)["forward_arg_names"] = [bad]
        else:
            spec = next(s for s in model["graph_module"]["signature"]["input_specs"] if "parameter" in s)
            spec["parameter"]["arg"]["name"] = bad

    if place == "node" and bad is None:
        pytest.skip("a node need not be named")
    with pytest.raises(UntrustedModel, match="refused before loading"):
        load_pt2(craft_json(change))


@pytest.mark.parametrize("bad", ['a"]+b', "__class__", "a.__dict__.b", "a..b", ".a", "a b", "getattr(x)", "\n", 3])
@pytest.mark.parametrize("place", ["weights", "signature"])
def test_names_of_weights_are_attributes(craft_json, place: str, bad: object) -> None:
    def in_config(config: dict[str, Any]) -> None:
        config["config"] = {bad: next(iter(config["config"].values()))}

    def in_signature(model: dict[str, Any]) -> None:
        spec = next(s for s in model["graph_module"]["signature"]["input_specs"] if "parameter" in s)
        spec["parameter"]["parameter_name"] = bad

    if place == "weights" and not isinstance(bad, str):
        pytest.skip("JSON keys are texts")
    with pytest.raises(UntrustedModel, match="expected form"):
        load_pt2(craft_json(in_config, WEIGHTS) if place == "weights" else craft_json(in_signature))


def test_guards_are_dropped(craft_json, tmp_path: Path) -> None:
    mark = tmp_path / "code-ran"
    code = [f"__import__('os').mkdir({str(mark)!r}) is None"]
    crafted = craft_json(lambda model: model.update(guards_code=code))
    load_pt2(crafted).module()(torch.zeros(4, 3))
    assert not mark.exists()
    assert torch_runs_it(crafted, mark)


def test_metadata_resolves_nothing_and_holds_no_hidden_lines(craft_json) -> None:
    def change(model: dict[str, Any]) -> None:
        for node in graph_of(model)["nodes"]:
            node["metadata"] |= {"source_fn_stack": "x,torch.os.system", "custom": "{}", "from_node": "[{}]"}
            node["metadata"]["torch_fn"] = "a\rimport os\x0c"

    nodes = [node for node in load_pt2(craft_json(change)).graph.nodes if node.op == "call_function"]
    assert nodes
    for node in nodes:
        assert not {"source_fn_stack", "custom", "from_node"} & node.meta.keys()
        assert node.meta["torch_fn"] == ("aimport os",)


# --- functions -----------------------------------------------------------------------------------------------------

CALLS = [
    "torch.load", "torch.hub.load", "torch.os.system", "torch.ops.load_library", "torch.ops.aten.from_file.default",
    "torch.ops.aten._print.default", "torch.ops.aten.empty.memory_format", "torch.ops.aten.set_.source_Tensor",
    "torch.ops.aten.resize_.default", "torch.ops.aten.relu.out", "torch.ops.aten.add.out",
    "torch.ops.aten.relu.__setattr__", "torch.ops.aten.relu.__call__", "torch.ops.aten.relu.op",
    "torch.ops.aten.relu.overloads", "torch.ops.aten.relu.no_such_overload", "torch.ops.aten.__class__.mro",
    "torch.ops.aten.relu", "torch.ops.aten.relu.default.__call__", "torch.ops.prims.sin.default",
    "torch.ops.aten.lstm.input", "torch.ops.aten.gru.data",
    "torch.ops.higher_order.cond", "torch.ops.mkldnn.linear.default", "_operator.methodcaller", "_operator.attrgetter",
    "_operator.itemgetter", "_operator.call", "_operator.setitem", "_operator.pow", "_operator.lshift",
    "_operator.a.b", "math.exp", "math.factorial", "torch.sym_fresh_size", "#x", "#evil:op", "print", "", 7, None,
]  # fmt: skip


@pytest.mark.parametrize("target", CALLS)
def test_functions_that_are_not_listed_are_refused(craft_json, target: object) -> None:
    with pytest.raises(UntrustedModel, match=r"target: a call of .* not on the list"):
        load_pt2(craft_json(lambda model: graph_of(model)["nodes"][0].update(target=target)))


@pytest.mark.filterwarnings("ignore:The tensor attributes")
def test_an_operator_that_trusts_its_weights_has_a_way_out(tmp_path: Path) -> None:
    """torch.lstm reads beyond weights that are too small; written out as other operators the program is loaded."""
    torch.manual_seed(0)
    layer = torch.nn.LSTM(3, 2, batch_first=True).eval()
    program = torch.export.export(layer, (torch.zeros(2, 4, 3),))
    torch.export.save(program, tmp_path / "whole.pt2")
    with pytest.raises(UntrustedModel, match=r"aten\.lstm\.input.*run_decompositions"):
        load_pt2(tmp_path / "whole.pt2")
    torch.export.save(program.run_decompositions(), tmp_path / "parts.pt2")
    x = torch.randn(2, 4, 3)
    torch.testing.assert_close(load_pt2(tmp_path / "parts.pt2").module()(x)[0], layer(x)[0])


def test_arithmetic_is_for_numbers_only(craft_json) -> None:
    def change(model: dict[str, Any]) -> None:
        node_with(model, "_operator.mul")["inputs"][0]["arg"] = {"as_string": "x"}

    with pytest.raises(UntrustedModel, match="as_string"):
        load_pt2(craft_json(change))


@pytest.mark.parametrize(
    "bad",
    [
        {"as_operator": "torch.os.system"},
        {"as_custom_obj": {"name": "x", "class_fqn": "y"}},
        {"as_graph": {"name": "x", "graph": {}}},
        {"as_string_to_argument": {}},
        {"as_int": "__import__('os')"},
        {"as_int": True},
        {"as_int": 2**70},
        {"as_float": "1+1"},
        {"as_string": "a\nb"},
        {"as_layout": 1},
        {"as_int": 1, "as_float": 1.0},
        {},
        [],
        "x",
    ],
    ids=str,
)
def test_arguments_of_other_kinds_are_refused(craft_json, bad: object) -> None:
    with pytest.raises(UntrustedModel, match="refused before loading"):
        load_pt2(craft_json(lambda model: node_with(model, "aten.linear")["inputs"][0].update(arg=bad)))


@pytest.mark.parametrize("place", ["custom_obj_values", "input", "output"])
def test_custom_objects_and_tokens_are_refused(craft_json, place: str) -> None:
    def change(model: dict[str, Any]) -> None:
        signature = model["graph_module"]["signature"]
        if place == "custom_obj_values":
            graph_of(model)["custom_obj_values"] = {"x": {"name": "x", "class_fqn": "y"}}
        elif place == "input":
            signature["input_specs"][0] = {"custom_obj": {"arg": {"name": "x"}, "custom_obj_name": "y"}}
        else:
            signature["output_specs"][0] = {"token": {"arg": {"name": "x"}}}

    with pytest.raises(UntrustedModel, match=r"custom_obj|token"):
        load_pt2(craft_json(change))


# --- symbolic sizes ------------------------------------------------------------------------------------------------

EXPRESSIONS = [
    "exec(chr(112))", "__import__('os').system('true')", "eval(chr(49))", "s0.__class__", "Symbol('s0').__class__",
    "open(s0)", "Symbol('s0', positive=open('x'))", "Symbol('s0', commutative=False)", "Symbol('os')", "[].append",
    "lambda: 0", "lambda", "breakpoint()", "ｅｖａｌ(1)", "9**9**9", "Pow(Integer(9), Integer(99))", "s0**99",
    "Pow(Pow(Symbol('s0'), 8), 8)", "Integer('9' * 9)", "Float('1')", "Function('f')(s0)", "factorial(9)", "f's0'",
    "s0 if s0 else s0", "s0 and s0", "(s0, s0)", "s0[0]", "Integer(*s0)", "Add(s0, evaluate=False)", "1.5", "", "(" * 300,
    "s0 + " * 2000 + "s0", 3, None,
]  # fmt: skip


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=lambda value: str(value)[:30])
def test_symbolic_sizes_that_are_not_arithmetic_are_refused(craft_json, expression: object) -> None:
    def change(model: dict[str, Any]) -> None:
        for value in graph_of(model)["tensor_values"].values():
            for size in value["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = expression

    with pytest.raises(UntrustedModel, match="symbolic size"):
        load_pt2(craft_json(change))


SYMBOL = "Symbol('s77', positive=True, integer=True)"


@pytest.mark.parametrize(
    "expression",
    [SYMBOL, "s77", "2*s77 + 1", f"Mul(Integer(2), {SYMBOL})", f"Pow({SYMBOL}, Integer(2))", "s77**2 // 3",
     f"GreaterThan({SYMBOL}, Integer(-2))", f"Max(1, FloorDiv({SYMBOL}, Integer(2)))"],
)  # fmt: skip
def test_arithmetic_of_sizes_is_read(expression: str) -> None:
    from mlflow_lipschitz.safe_loading.expressions import expression as checked

    assert checked(expression) == expression


@pytest.mark.parametrize("key", ["u99999999999", "os", "s0 + 1", ""])
def test_ranges_of_other_symbols_are_refused(craft_json, key: str) -> None:
    ranges = {key: {"min_val": 2, "max_val": None}}
    with pytest.raises(UntrustedModel, match="range_constraints"):
        load_pt2(craft_json(lambda model: model.update(range_constraints=ranges)))


# --- nesting of inputs and outputs ---------------------------------------------------------------------------------

LEAF = {"type": None, "context": None, "children_spec": []}


def test_an_enumeration_in_the_nesting_imports_nothing(craft_json, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "imported_by_torch.py").write_text("class Kind: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    context = json.dumps([{"__enum__": True, "fqn": "imported_by_torch:Kind", "name": "A"}])
    spec = json.dumps([1, {"type": "builtins.dict", "context": context, "children_spec": [LEAF]}])
    crafted = craft_json(lambda model: root_call(model).update(out_spec=spec))
    with pytest.raises(UntrustedModel, match="out_spec"):
        load_pt2(crafted)
    assert "imported_by_torch" not in sys.modules
    with contextlib.suppress(Exception):
        torch.export.load(crafted)
    assert "imported_by_torch" in sys.modules
    del sys.modules["imported_by_torch"]


@pytest.mark.parametrize(
    "spec",
    [
        [1, {"type": "collections.defaultdict", "context": "{}", "children_spec": []}],
        [1, {"type": "builtins.dict", "context": '["a=1"]', "children_spec": [LEAF]}],
        [1, {"type": "builtins.dict", "context": "{}", "children_spec": [LEAF]}],
        [1, {"type": "builtins.tuple", "context": '{"__enum__": 1}', "children_spec": [LEAF]}],
        [1, {**LEAF, "children_spec": [LEAF]}],
        [1, {**LEAF, "type": ["x"]}],
        [2, LEAF],
        [1],
        "no JSON",
        None,
    ],
    ids=str,
)
@pytest.mark.parametrize("field", ["in_spec", "out_spec"])
def test_unknown_containers_are_refused(craft_json, field: str, spec: object) -> None:
    value = spec if isinstance(spec, str) or spec is None else json.dumps(spec)
    with pytest.raises(UntrustedModel, match=field):
        load_pt2(craft_json(lambda model: root_call(model).update({field: value})))


# --- the archive ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "data/aotinductor/model/x.so",
        "extra/hello",
        "models/other.json",
        "data/weights/model.pt",
        "data/weights/weight_99",
    ],
)
def test_surplus_records_are_refused(craft, name: str) -> None:
    with pytest.raises(UntrustedModel, match="neither JSON nor a raw tensor"):
        load_pt2(craft(lambda records: records.update({name: b"\x7fELF"})))


def test_two_records_with_one_name_are_refused(craft) -> None:
    with pytest.raises(UntrustedModel, match="two records"):
        load_pt2(craft(lambda records: records.update({MODEL.upper(): b"{}"})))


def test_records_outside_the_folder_are_refused(craft) -> None:
    path = craft(lambda records: None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("version", "8")
    with pytest.raises(UntrustedModel, match="one folder"):
        load_pt2(path)


def test_a_compressed_bomb_is_not_unfolded(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt2", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"model/{MODEL}", b" " * 2**24)
    with pytest.raises(UntrustedModel, match="larger than the file"):
        load_pt2(tmp_path / "model.pt2")


def test_a_claimed_shape_takes_no_memory(craft_json, craft) -> None:
    huge = [{"as_int": 2**40}, {"as_int": 2}]

    def inputs(model: dict[str, Any]) -> None:
        graph_of(model)["tensor_values"]["x"]["sizes"] = huge

    with contextlib.suppress(RegistryError, UntrustedModel):  # the shapes no longer fit; memory is what matters here
        load_pt2(craft_json(inputs))

    def weights(records: Records) -> None:
        config = json.loads(records[WEIGHTS])
        next(iter(config["config"].values()))["tensor_meta"]["sizes"] = huge
        records[WEIGHTS] = json.dumps(config).encode()
        records["data/weights/weight_0"] = b""

    with pytest.raises(UntrustedModel, match="empty record"):
        load_pt2(craft(weights))


@pytest.mark.parametrize("sizes", [[{"as_int": 2**20}], [{"as_int": 4}, {"as_int": 2**30}]])
def test_a_weight_larger_than_its_record_cannot_be_read(craft_json, sizes: list[Any]) -> None:
    def change(config: dict[str, Any]) -> None:
        meta = next(iter(config["config"].values()))["tensor_meta"]
        meta |= {"sizes": sizes, "strides": [{"as_int": 1}] * len(sizes)}

    with pytest.raises(RegistryError, match="cannot be read by torch"):
        load_pt2(craft_json(change, WEIGHTS))


def test_a_program_exported_on_another_device_is_loaded_on_the_cpu(craft, exported: tuple[Net, Path]) -> None:
    def change(records: Records) -> None:
        for name in (MODEL, WEIGHTS):
            records[name] = records[name].replace(b'{"type": "cpu", "index": null}', b'{"type": "cuda", "index": 0}')
            assert b"cuda" in records[name]

    rows = torch.randn(4, 3)
    assert torch.equal(load_pt2(craft(change)).module()(rows), exported[0](rows))


@pytest.mark.parametrize("content", [b"", b"not a zip", pickle.dumps([1])])
def test_files_that_are_no_archives(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(content)
    with pytest.raises(UntrustedModel, match=r"model\.pt2.*no zip archive"):
        load_pt2(path)


@pytest.mark.parametrize("name", [MODEL, WEIGHTS, CONSTANTS])
@pytest.mark.parametrize("content", [None, b"", b"[]", b"7", b"\xff", b"[" * 100_000, b"{}"], ids=lambda c: str(c)[:9])
def test_records_that_are_missing_or_of_another_form(craft, name: str, content: bytes | None) -> None:
    def change(records: Records) -> None:
        if content is None:
            del records[name]
        else:
            records[name] = content

    with pytest.raises(UntrustedModel, match=name):
        load_pt2(craft(change))
