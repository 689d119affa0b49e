"""The sections of a proposed policy around its checks, as YAML: from the data, or as the champion's policy has them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mlflow_lipschitz.audited_rows import AuditedRows
from mlflow_lipschitz.pipeline.intake import TracedModel
from mlflow_lipschitz.plain_text import one_line
from mlflow_lipschitz.policy import AuditPolicy, load_policy
from mlflow_lipschitz.policy_yaml import yaml_scalar
from mlflow_lipschitz.proposal.columns import Column, domain_lines, immutable_lines
from mlflow_lipschitz.proposal.thresholds import down

STEPS = (1.0, 0.5, 0.2, 0.1)
"""Radii that are tried, largest first, as parts of the first one."""

SEED = 7
_STANDARD_RADIUS, _RAW_RADIUS = 0.1, 0.01
_MOST_DOMAINS = 40

_TEMPLATE = """\
# Proposed by `mlflow-lipschitz policy init` from {source}.
{header}# Decide each number, and which properties this model has to have: no measurement knows what it is for.
apiVersion: mlflow-lipschitz/v1
kind: AuditPolicy
metadata: {{name: {name}, version: {version}}}  # raise the version with every change
model:
  output: {output}  # {output_note}
{baseline}inputs:
{inputs}# {perturbation_note}
perturbation: {perturbation}
# {engine_note}
engine: {engine}
checks:
{checks}gate: {gate}  # the least severity of a failed check that blocks
"""


@dataclass(frozen=True)
class Sections:
    """Everything of a policy file but its checks. Values are YAML, notes are comments on one line."""

    source: str
    name: str
    output: str
    output_note: str
    inputs: str
    perturbation: str
    perturbation_note: str
    version: int = 1
    engine: str = "{budget_per_point_s: 5, target_gap: 0.02}"
    engine_note: str = "seconds of search that a row may cost beyond one pass; measured with 0.25"
    gate: str = "{fail_on: critical}"
    baseline: str = ""

    def text(self, checks: str, header: Sequence[str] = ()) -> str:
        """The whole file."""
        baseline = f"  baseline: {self.baseline}  # what no_regression compares with\n" if self.baseline else ""
        notes = {
            key: one_line(getattr(self, key)) for key in ("source", "output_note", "perturbation_note", "engine_note")
        }
        lines = "".join(f"# {one_line(line)}\n" for line in header)
        return _TEMPLATE.format(**{**vars(self), **notes, "header": lines, "baseline": baseline, "checks": checks})

    def draft(self, checks: str = "") -> AuditPolicy:
        """A policy with these sections to measure with: limits that nothing exceeds, and no limit that ends a search early."""
        limits = "".join(f"  - {{id: open-{i}, type: lipschitz_at_most, max: 1.0e+308}}\n" for i in (1, 2))
        short = replace(self, engine="{budget_per_point_s: 0.25, target_gap: 0.05}", baseline="")
        return load_policy(short.text(limits + checks))


@dataclass(frozen=True)
class Given:
    """What a policy is made from.

    Attributes:
        name: of the registered model.
        output: as the policy will name it: an index, a name, or margin.
        whence: where the rows come from, for people.
        rows: all of them, as they were read.
        traced: the model on those of them that are measured.
        columns: what the columns are, see `columns_of`.
        points: how many rows the policy audits.
    """

    name: str
    output: int | str
    whence: str
    rows: AuditedRows
    traced: TracedModel
    columns: tuple[Column, ...]
    points: int

    @property
    def measured(self) -> str:
        return f"{len(self.traced.rows)} of {len(self.rows)} rows"


def sections_from_data(given: Given, step: float, why: str = "") -> Sections:
    """What the data says of every column; perturbations by `step` times the first radius, smaller than it for `why`."""
    value, scale, note = _perturbation(given, step)
    points = f"  points: {{sample: {given.points}, seed: {SEED}}}  # the rows that were measured: {given.measured}\n"
    domain = domain_lines(given.columns, f"all {len(given.rows)} rows") if len(given.columns) <= _MOST_DOMAINS else ""
    traced = given.traced.rows
    fixed = immutable_lines(given.columns, traced.looked_up, traced.feature_names)
    return Sections(
        source=f"{len(given.rows)} rows of {given.whence}",
        name=yaml_scalar(re.sub(r"[^A-Za-z0-9._-]+", "-", given.name).strip("-._")[:100] or "model"),
        output=_flow(given.output),
        output_note=_output_note(given),
        inputs=points + domain + fixed,
        perturbation=f"{{norm: linf, radius: {value}, scale: {scale}}}",
        perturbation_note=note + (f"; {why}" if why else ""),
    )


def sections_from_policy(policy: AuditPolicy, whose: str, given: Given) -> Sections:
    """The sections of a policy that `whose` passed, so that the two versions are asked the same."""
    as_there = f"as {whose} passed it"
    inputs = policy.inputs.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    version = policy.metadata.version
    return Sections(
        source=f"{len(given.rows)} rows of {given.whence}, and the policy {policy.metadata.name}@{version} that {whose} passed",
        name=yaml_scalar(policy.metadata.name),
        version=version + 1 if isinstance(version, int) else 1,
        output=_flow(policy.model.output),
        output_note=as_there,
        inputs="".join(f"  {key}: {_flow(value)}  # {as_there}\n" for key, value in inputs.items())
        or f"  points: {{}}  # all rows, {as_there}\n",
        perturbation=_flow(policy.perturbation.model_dump(mode="json")),
        perturbation_note=as_there,
        engine=_flow(policy.engine.model_dump(mode="json")),
        engine_note=as_there,
        gate=_flow({"fail_on": policy.gate.fail_on}),
    )


def _perturbation(given: Given, step: float) -> tuple[str, str, str]:
    """Radius, scale and where it comes from."""
    if any(column.moves for column in given.columns):
        value = f"{_STANDARD_RADIUS * step:g}"
        return value, "standardized", f"{value} standard deviations of each column, all columns at once"
    moving = given.traced.rows.points.reshape(len(given.traced.rows), -1)
    if given.traced.rows.fixed is not None:
        moving = moving[:, ~given.traced.rows.fixed.reshape(-1)]
    span = float(np.ptp(moving)) or float(np.abs(moving).max(initial=0.0)) or 1.0
    return down(_RAW_RADIUS * step * span), "raw", f"{_RAW_RADIUS * step:.1%} of the range of the data, {span:.3g}"


def _output_note(given: Given) -> str:
    entries = given.traced.entries
    if given.output == "margin":
        return f"top class against the rest: {len(entries)} outputs are taken for scores of classes; else name one (--output)"
    return f"of {len(entries)}: {', '.join(entries[:4])}" + (", …" if len(entries) > 4 else "")


def _flow(value: Any) -> str:
    """A plain value as YAML on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{yaml_scalar(str(key))}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return yaml_scalar(value) if isinstance(value, str) else json.dumps(value)
