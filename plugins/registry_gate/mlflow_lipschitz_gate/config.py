"""The gate's configuration file: read once when the server starts, refused as a whole when anything in it is wrong."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from mlflow.entities.model_registry.model_version_stages import ALL_STAGES
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mlflow_lipschitz_gate.keys import Trust, read_trust
from mlflow_lipschitz_gate.names import Aliases, NamePatterns
from mlflow_lipschitz_gate.refusals import GateConfigError
from mlflow_lipschitz_gate.strict import read_yaml

VARIABLE = "LIPSCHITZ_GATE_CONFIG"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_ALIAS = re.compile(r"[\w\-]+")

Text = Annotated[str, Field(min_length=1, strict=True)]


def _simple_pattern(value: str) -> str:
    if "[" in value or "]" in value:
        raise ValueError(f"{value!r}: patterns know * and ? only")
    return value


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Protect(_Part):
    """What is guarded: aliases on every registered model, stages on every registered model, names of registered models."""

    aliases: tuple[Text, ...] = ()
    stages: tuple[Text, ...] = ()
    names: tuple[Text, ...] = ()

    @field_validator("aliases")
    @classmethod
    def _aliases_exist(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if bad := [value for value in values if not _ALIAS.fullmatch(value)]:
            raise ValueError(f"MLflow allows no alias {bad[0]!r}: letters, digits, _ and - only")
        return values

    @field_validator("stages")
    @classmethod
    def _stages_exist(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        known = {stage.casefold(): stage for stage in ALL_STAGES}
        if bad := [value for value in values if value.casefold() not in known]:
            raise ValueError(f"{bad[0]!r} is no stage of MLflow; they are {', '.join(ALL_STAGES)}")
        return tuple(known[value.casefold()] for value in values)

    @field_validator("names")
    @classmethod
    def _no_sets(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            _simple_pattern(value)
        return values

    @model_validator(mode="after")
    def _something(self) -> Protect:
        if not (self.aliases or self.stages or self.names):
            raise ValueError("nothing is protected: give aliases, stages or names")
        return self


class RequiredPolicy(_Part):
    """The policy that versions of some models must have passed. Every field given has to fit.

    Attributes:
        models: pattern of registered model names (`*`, `?`); the first entry that fits a model counts for it.
        name: of the policy. min_version: the smallest version that will do, a whole number.
        digests: the digests that will do; what pins a policy down, for a name is only a name.
    """

    models: Text = "*"
    name: Text | None = None
    min_version: Annotated[int, Field(ge=0, strict=True)] | None = None
    digests: tuple[Text, ...] | None = None

    @field_validator("models")
    @classmethod
    def _no_sets(cls, value: str) -> str:
        return _simple_pattern(value)

    @field_validator("digests")
    @classmethod
    def _well_formed(cls, values: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if values is not None and not values:
            raise ValueError("an empty list of digests lets no policy through: leave the key out, or list digests")
        if bad := [value for value in values or () if not _DIGEST.fullmatch(value)]:
            raise ValueError(f"{bad[0]!r} is not sha256: and 64 hexadecimal digits")
        return values


class Override(_Part):
    """Users of basic-auth who may open a door without an attestation, and the file that remembers each time."""

    users: Annotated[tuple[Text, ...], Field(min_length=1)]
    log: Text


class Limits(_Part):
    """What the server is willing to hash for one version."""

    bytes: Annotated[int, Field(gt=0, strict=True)] = 50 * 2**30
    files: Annotated[int, Field(gt=0, strict=True)] = 10_000


class GateFile(_Part):
    """The file as written."""

    apiVersion: Literal["mlflow-lipschitz/v1"]
    kind: Literal["GateConfig"]
    protect: Protect
    policies: Annotated[tuple[RequiredPolicy, ...], Field(min_length=1)]
    trusted_keys: Annotated[tuple[Text, ...], Field(min_length=1)]
    revoked: tuple[Text, ...] = ()
    max_age_days: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    override: Override | None = None
    artifact_stores: tuple[Text, ...] = ()
    limits: Limits = Limits()


@dataclass(frozen=True)
class GateConfig:
    """A configuration that can be used, with paths relative to `folder`, the folder of the file."""

    file: GateFile
    folder: Path

    @cached_property
    def aliases(self) -> Aliases:
        return Aliases(self.file.protect.aliases)

    @cached_property
    def names(self) -> NamePatterns:
        return NamePatterns(self.file.protect.names)

    def policy_for(self, name: str) -> RequiredPolicy | None:
        """What a version of the registered model `name` has to have passed; None when no entry is for it.

        A name that only looks like one an entry is for counts as that one: another spelling leads to no other demand.
        """
        return next((policy for pattern, policy in self._policies if pattern.match(name)), None)

    @cached_property
    def _policies(self) -> tuple[tuple[NamePatterns, RequiredPolicy], ...]:
        return tuple((NamePatterns((policy.models,)), policy) for policy in self.file.policies)

    def trust(self) -> Trust:
        """Keys and revocations as the files say now: a key revoked this minute counts no longer.

        Raises GateConfigError when a file cannot be read.
        """
        return read_trust(self._paths(self.file.trusted_keys), self._paths(self.file.revoked))

    @property
    def override_log(self) -> Path | None:
        return None if self.file.override is None else self.folder / self.file.override.log

    def _paths(self, names: tuple[str, ...]) -> tuple[Path, ...]:
        return tuple(self.folder / name for name in names)


def load_config(path: str | Path) -> GateConfig:
    """Read and check a configuration file, and once also the keys and lists that it names.

    Raises GateConfigError with everything that is wrong.
    """
    place = Path(path).absolute()
    try:
        data = read_yaml(place.read_text(encoding="utf-8"))
        config = GateConfig(GateFile.model_validate(data), place.parent)
    except (OSError, UnicodeDecodeError) as error:
        raise GateConfigError(f"{place} cannot be read: {error}") from error
    except ValidationError as error:
        raise GateConfigError(f"{place} cannot be used:\n{_listed(error)}") from error
    except ValueError as error:
        raise GateConfigError(f"{place} is no YAML that can be used: {error}") from error
    config.trust()
    _check_log(config)
    return config


def config_from(environment: Mapping[str, str] | None = None) -> GateConfig:
    """The configuration that the variable LIPSCHITZ_GATE_CONFIG names. Raises GateConfigError, also when it is not set."""
    path = (os.environ if environment is None else environment).get(VARIABLE, "").strip()
    if not path:
        raise GateConfigError(
            f"{VARIABLE} is not set. It names the gate's configuration file; docs/gate.md describes it. "
            "Without one nothing would be protected, so the server does not start."
        )
    return load_config(path)


def _check_log(config: GateConfig) -> None:
    log = config.override_log
    if log is None:
        return
    try:
        with log.open("a", encoding="utf-8"):
            pass
    except OSError as error:
        raise GateConfigError(f"the override log {log} cannot be written: {error.strerror}") from error


def _listed(error: ValidationError) -> str:
    lines = []
    for issue in error.errors():
        place = ".".join(str(part) for part in issue["loc"]) or "the file"
        lines.append(f"  - {place}: {issue['msg'].removeprefix('Value error, ')}")
    return "\n".join(lines)
