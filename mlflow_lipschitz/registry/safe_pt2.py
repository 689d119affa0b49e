"""Loading a `.pt2` archive (torch.export) without unpickling anything or running code that the file carries.

`torch.export.load` unpickles sample inputs, constants and any weight whose record asks for it, evaluates symbolic
shapes as Python text, executes guard code, and resolves a node's target to any attribute of the `torch` package
(`torch.os.system` is one). So the archive is not handed over: its JSON is checked against short lists of what an
exported network needs, and a *new* archive is written from the checked records only. What was checked is then, byte
for byte, what is loaded, whatever two zip readers make of an odd original.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlflow_lipschitz.errors import RegistryError, UntrustedModel

_TEXT = re.compile(r"archive_format|archive_version|byteorder|version|\.data/version|\.data/serialization_id")
_PLAIN = re.compile(rb"[A-Za-z0-9._-]{1,64}\n?")
_RAW = re.compile(r"data/(weights/weight|constants/tensor)_\d+")
_MODEL = "models/model.json"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_SAMPLE = "data/sample_inputs/model.pt"

_TARGET = re.compile(
    r"torch\.ops\.(aten|prims)\.[A-Za-z0-9_]+\.[A-Za-z0-9_]+|_operator\.[a-z]+|math\.[a-z]+|torch\.sym_[a-z]+"
)
_FILE_TARGETS = re.compile(r"torch\.ops\.aten\.(from_file|save|_print)\b")
_SYMBOLIC = re.compile(r"[\w\s'(),=+*-]*")
_WORD = re.compile(r"[A-Za-z_]\w*")
_SYMBOLIC_WORD = re.compile(
    r"Symbol|Integer|Rational|Float|Add|Mul|Pow|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|Max|Min|Eq|Ne|Lt|Le|Gt|Ge|And|Or"
    r"|Not|oo|int_oo|true|false|positive|nonnegative|integer|real|True|False|(s|u|z|zf|zuf)\d+"
)
_TREE_TYPES = (None, "builtins.tuple", "builtins.list", "builtins.dict")
_KEPT_METADATA = ("stack_trace", "nn_module_stack", "torch_fn")


def load_pt2(path: str | Path) -> Any:
    """The `torch.export.ExportedProgram` in the archive at `path`.

    Raises UntrustedModel when the archive holds anything but JSON and raw tensors, RegistryError when the installed
    torch cannot read it.
    """
    archive = io.BytesIO(_rewritten(_records(Path(path))))
    import torch

    try:
        return torch.export.load(archive)
    except (RuntimeError, ValueError, KeyError, AttributeError, AssertionError) as error:
        raise RegistryError(
            f"{path} cannot be read by torch {torch.__version__}: {error}. Install the torch version named in the "
            "model's "
            "requirements.txt, or log the model again with the installed one."
        ) from error


def _records(path: Path) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
            names = [info.filename for info in infos]
            if len({name.casefold() for name in names}) != len(names):
                raise _refused(path, "two records with one name")
            roots = {name.split("/", 1)[0] for name in names}
            if len(roots) != 1 or any("/" not in name for name in names):
                raise _refused(path, "records outside one folder")
            return {info.filename.split("/", 1)[1]: archive.read(info) for info in infos}
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise _refused(path, f"no zip archive ({error})") from error


def _rewritten(records: dict[str, bytes]) -> bytes:
    model = _checked_model(_json(records, _MODEL))
    raw = set().union(*(_checked_config(_json(records, name), name) for name in _CONFIGS))
    kept: dict[str, bytes] = {_MODEL: json.dumps(model).encode(), _SAMPLE: _sample_inputs(model)}
    for name, content in records.items():
        if (_TEXT.fullmatch(name) and _PLAIN.fullmatch(content)) or name in _CONFIGS or name in raw:
            kept[name] = content
        elif name not in (_MODEL, _SAMPLE):
            raise _refused(name, "a record that is neither JSON nor a raw tensor")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in kept.items():
            archive.writestr(f"model/{name}", content)
    return buffer.getvalue()


def _checked_config(config: Any, name: str) -> set[str]:
    folder, records = name.rsplit("/", 1)[0], set()
    for key, entry in config.get("config", {}).items():
        record = f"{folder}/{entry.get('path_name')}"
        if entry.get("use_pickle") is not False or not _RAW.fullmatch(record):
            raise _refused(record, f"the pickled tensor {key!r}")
        records.add(record)
    return records


def _checked_model(model: Any) -> Any:
    """The program's JSON without what torch would execute; raises UntrustedModel where that cannot be removed."""
    for node in _mappings(model):
        if "metadata" in node and "target" in node:
            node["metadata"] = {k: v for k, v in node["metadata"].items() if k in _KEPT_METADATA}
        for key, value in node.items():
            if key == "target":
                _check_target(value)
            elif key == "expr_str":
                _check_symbolic(value)
            elif key in ("in_spec", "out_spec") and value:
                _check_tree(value)
            elif key in ("as_custom_obj", "as_graph", "as_operator"):
                raise _refused(key, "an argument that is neither a tensor, a number nor text")
    model["guards_code"] = []
    model["graph_module"]["treespec_namedtuple_fields"] = {}
    return model


def _check_target(target: Any) -> None:
    if not isinstance(target, str) or not _TARGET.fullmatch(target) or _FILE_TARGETS.match(target):
        raise _refused(_MODEL, f"a call of {target!r}, which is not an aten operator")


def _check_symbolic(text: Any) -> None:
    words = _WORD.findall(text) if isinstance(text, str) else ["?"]
    if not all(map(_SYMBOLIC_WORD.fullmatch, words)) or not _SYMBOLIC.fullmatch(text):
        raise _refused(_MODEL, f"the symbolic size {text!r}")


def _check_tree(text: Any) -> None:
    try:
        specification = json.loads(text)
    except (TypeError, ValueError) as error:
        raise _refused(_MODEL, "an unreadable tree of inputs") from error
    for node in _mappings(specification):
        if "children_spec" in node and node.get("type") not in _TREE_TYPES:
            raise _refused(_MODEL, f"inputs of the type {node.get('type')!r}")


def _sample_inputs(model: Any) -> bytes:
    """A stand-in for the archive's pickled sample inputs: zeros of the shapes the graph declares."""
    import torch
    from torch._export.serde.serialize import deserialize_scalar_type

    module = model["graph_module"]
    sizes = module["graph"]["tensor_values"]
    tensors = []
    for spec in module["signature"]["input_specs"]:
        if "user_input" in spec:
            value = sizes[spec["user_input"]["arg"]["as_tensor"]["name"]]
            shape = [s["as_int"] if "as_int" in s else s["as_expr"]["hint"]["as_int"] for s in value["sizes"]]
            tensors.append(torch.zeros(shape, dtype=deserialize_scalar_type(value["dtype"])))
    buffer = io.BytesIO()
    torch.save((tuple(tensors), {}), buffer)
    return buffer.getvalue()


def _json(records: dict[str, bytes], name: str) -> Any:
    if name not in records:
        raise _refused(name, "no such record; archives written by torch before 2.9 keep their weights pickled")
    try:
        value = json.loads(records[name])
    except ValueError as error:
        raise _refused(name, "a record that is not JSON") from error
    if not isinstance(value, dict):
        raise _refused(name, "a record that is not a JSON object")
    return value


def _mappings(value: Any) -> Iterator[dict[str, Any]]:
    """Every JSON object inside `value`."""
    if isinstance(value, dict):
        yield value
        for child in list(value.values()):
            yield from _mappings(child)
    elif isinstance(value, list):
        for child in value:
            yield from _mappings(child)


def _refused(where: object, found: str) -> UntrustedModel:
    return UntrustedModel(
        f"the pt2 archive is refused before loading: {where}: {found}. Loading it could run code from the file. Log "
        "the "
        "model again with mlflow.pytorch.log_model(model, name=…, serialization_format='pt2', input_example=…), or as "
        "ONNX with mlflow.onnx.log_model, or allow it with trust_pickle=True (--trust-pickle) if you wrote it yourself."
    )
