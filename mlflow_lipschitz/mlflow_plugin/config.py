"""What a user may say in `evaluator_config`, checked once and all at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mlflow_lipschitz.errors import UsageError

# Its presence says that a config is meant for this evaluator: MLflow shows every plugin every flat config.
OWN_KEY = "policy"


@dataclass(frozen=True)
class EvaluatorConfig:
    """Parsed `evaluator_config`.

    Attributes:
        policy: the policy file, or its text.
        model_uri: the registered version to mark, for a model object that does not tell it.
        device, chunk_size: as in `AuditOptions`.
        trust_pickle: load pickled models.
        out: folder for the artifacts; a temporary one by default.
        resume: go on from the finished rows that a stopped evaluation left in `out`.
        raise_on_block: end `evaluate` with an error when the policy does not pass, instead of saying so in the results.
    """

    policy: str | Path
    model_uri: str | None = None
    device: str = "auto"
    chunk_size: int | None = None
    trust_pickle: bool = False
    out: str | Path | None = None
    resume: bool = False
    raise_on_block: bool = False


_KINDS: Mapping[str, tuple[type, ...]] = {
    "policy": (str, Path),
    "model_uri": (str,),
    "device": (str,),
    "chunk_size": (int,),
    "trust_pickle": (bool,),
    "out": (str, Path),
    "resume": (bool,),
    "raise_on_block": (bool,),
}


def parse_config(config: Mapping[str, Any]) -> EvaluatorConfig:
    """The config as a value. Raises UsageError listing everything that is wrong with it."""
    names = [field.name for field in fields(EvaluatorConfig)]
    problems = [f"unknown key {key!r}" for key in config if key not in names]
    if not config.get(OWN_KEY):
        problems.append(f"{OWN_KEY!r} is missing: the path of a policy file")
    for name, kinds in _KINDS.items():
        value = config.get(name)
        if value is not None and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
            problems.append(f"{name!r} must be {' or '.join(kind.__name__ for kind in kinds)}, not {value!r}")
    if config.get("resume") and not config.get("out"):
        problems.append("'resume' needs 'out', the folder that holds the finished rows")
    if problems:
        raise UsageError(
            f"evaluator_config of the lipschitz evaluator: {'; '.join(problems)}. Known keys: {', '.join(names)}."
        )
    return EvaluatorConfig(**{name: value for name, value in config.items() if value is not None})
