"""Loading a `.pt2` archive (torch.export) without unpickling anything or running code that the file carries.

`torch.export.load` unpickles sample inputs, constants and any weight whose record asks for it, and executes source text
made from the program (see program.py). So the archive is not handed over: its JSON is rebuilt from what an exported
network needs, and a *new* archive is written from the rebuilt JSON and the raw tensors. What was checked is then, byte
for byte, what is loaded, whatever two zip readers make of an odd original.
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

from mlflow_lipschitz.errors import RegistryError, UntrustedModel
from mlflow_lipschitz.safe_loading.archives import read_records, stored
from mlflow_lipschitz.safe_loading.program import program, qualified_name, tensor_meta
from mlflow_lipschitz.safe_loading.structure import Unexpected, boolean, count, mapping, record, text, union

_TEXT = re.compile(r"archive_format|archive_version|byteorder|version|\.data/version|\.data/serialization_id")
_PLAIN = re.compile(rb"[A-Za-z0-9._-]{1,64}\n?")
_MODEL = "models/model.json"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_SAMPLE = "data/sample_inputs/model.pt"
_UNKNOWN_SIZE = 2
_JSON_LIMIT = 128 << 20

_payloads = record(
    {
        "config": mapping(
            qualified_name,
            record(
                {
                    "path_name": text(r"(weight|tensor)_[0-9]{1,9}"),
                    "is_param": boolean,
                    "use_pickle": boolean,
                    "tensor_meta": tensor_meta(union(as_int=count)),
                }
            ),
        )
    }
)


def load_pt2(path: str | Path) -> Any:
    """The `torch.export.ExportedProgram` in the archive at `path`, on the CPU.

    Raises UntrustedModel when the archive holds anything but JSON of the known form and raw tensors, RegistryError when
    the installed torch cannot read it.
    """
    path = Path(path)
    try:
        archive = _rewritten(_records(path))
    except Unexpected as error:
        raise UntrustedModel(
            f"the pt2 archive {path.name} is refused before loading: {error}. Loading it could run code from the file. "
            "Log the model again with mlflow.pytorch.log_model(model, name=…, serialization_format='pt2', "
            "input_example=…), or as ONNX with mlflow.onnx.log_model, or allow it with trust_pickle=True "
            "(--trust-pickle) if you wrote it yourself."
        ) from error
    import torch

    try:
        return torch.export.load(archive)
    except (RuntimeError, ValueError, LookupError, AttributeError, AssertionError, TypeError, ArithmeticError) as error:
        raise RegistryError(
            f"{path} cannot be read by torch {torch.__version__}: {error}. Install the torch version named in the "
            "model's requirements.txt, or log the model again with the installed one."
        ) from error


def _records(path: Path) -> dict[str, bytes]:
    # torch stores without compression; so nothing can unfold to more than the file itself.
    records = read_records(path, ratio=1, small=0)
    if len({name.casefold() for name in records}) != len(records):
        raise Unexpected("two records with one name")
    if len({name.split("/", 1)[0] for name in records}) != 1 or any("/" not in name for name in records):
        raise Unexpected("records outside one folder")
    return {name.split("/", 1)[1]: content for name, content in records.items()}


def _rewritten(records: dict[str, bytes]) -> io.BytesIO:
    model = _checked(program, records, _MODEL)
    kept: dict[str, bytes] = {_MODEL: json.dumps(model).encode()}
    raw: set[str] = set()
    for name in _CONFIGS:
        config = _checked(_payloads, records, name)
        raw |= _tensor_records(config, name.rsplit("/", 1)[0], records)
        kept[name] = json.dumps(config).encode()
    for name, content in records.items():
        if name in raw or (_TEXT.fullmatch(name) and _PLAIN.fullmatch(content)):
            kept[name] = content
        elif name not in (_MODEL, _SAMPLE, *_CONFIGS):
            raise Unexpected(f"{name}: a record that is neither JSON nor a raw tensor")
    kept[_SAMPLE] = _sample_inputs(model)
    return stored({f"model/{name}": content for name, content in kept.items()})


def _tensor_records(config: Any, folder: str, records: dict[str, bytes]) -> set[str]:
    """The raw records that `config` names."""
    found = set()
    for key, entry in config["config"].items():
        record_name = f"{folder}/{entry['path_name']}"
        if entry["use_pickle"]:
            raise Unexpected(f"{record_name}: the pickled tensor {key!r}")
        if record_name not in records:
            raise Unexpected(f"{record_name}: no such record")
        # For an empty record torch would fill a tensor of the claimed size, however large.
        if not records[record_name] and all(size["as_int"] for size in entry["tensor_meta"]["sizes"]):
            raise Unexpected(f"{record_name}: an empty record for a tensor that is not empty")
        found.add(record_name)
    return found


def _sample_inputs(model: Any) -> bytes:
    """A stand-in for the archive's pickled sample inputs: zeros of the shapes the graph declares."""
    import torch
    from torch.utils._pytree import tree_unflatten, treespec_loads

    module = model["graph_module"]
    try:
        given = [_sample(spec, module["graph"]["tensor_values"]) for spec in module["signature"]["input_specs"]]
        call = module["module_call_graph"][0]["signature"]
        inputs = tree_unflatten([value for kept, value in given if kept], treespec_loads(call["in_spec"]))
    except (LookupError, RuntimeError, ValueError, OverflowError) as error:
        raise Unexpected(f"{_MODEL}: inputs of no known types and shapes ({error})") from error
    buffer = io.BytesIO()
    torch.save(inputs, buffer)
    return buffer.getvalue()


def _sample(spec: dict[str, Any], declared: dict[str, Any]) -> tuple[bool, Any]:
    """Whether the input is one the caller gives, and a value for it."""
    import torch
    from torch._export.serde.serialize import deserialize_scalar_type

    if "constant_input" in spec:
        ((kind, value),) = spec["constant_input"]["value"].items()
        return True, float(value) if kind == "as_float" else None if kind == "as_none" else value
    if "user_input" not in spec:
        return False, None
    meta = declared[spec["user_input"]["arg"]["as_tensor"]["name"]]
    zero = torch.zeros((), dtype=deserialize_scalar_type(meta["dtype"]))
    # One zero seen from every index: a declared shape costs no memory.
    return True, zero.expand([_length(size) for size in meta["sizes"]])


def _length(size: dict[str, Any]) -> int:
    if "as_int" in size:
        return int(size["as_int"])
    hint = size["as_expr"].get("hint") or {}
    return int(hint["as_int"]) if "as_int" in hint else _UNKNOWN_SIZE


def _checked(check: Any, records: dict[str, bytes], name: str) -> Any:
    if name not in records:
        raise Unexpected(f"{name}: no such record; archives written by torch before 2.9 keep their weights pickled")
    if len(records[name]) > _JSON_LIMIT:
        raise Unexpected(f"{name}: {len(records[name])} bytes of JSON, where {_JSON_LIMIT} are allowed")
    try:
        return check(json.loads(records[name]))
    except Unexpected as error:
        raise Unexpected(f"{name}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise Unexpected(f"{name}: a record that is not JSON") from error
