"""The way to a proposal: the model is pulled, a sample of the data measured, the champion's record read, and checks follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mlflow_lipschitz.errors import InvalidData, PolicyError, UsageError
from mlflow_lipschitz.gate.verdict import Verdict, judge
from mlflow_lipschitz.pipeline.baseline import Baseline, baseline_of
from mlflow_lipschitz.pipeline.intake import rows_for, traced_model
from mlflow_lipschitz.pipeline.measure import Progress
from mlflow_lipschitz.plain_text import one_line
from mlflow_lipschitz.policy import AuditPolicy, load_policy
from mlflow_lipschitz.policy_models import Monotone
from mlflow_lipschitz.policy_yaml import yaml_scalar
from mlflow_lipschitz.proposal import thresholds
from mlflow_lipschitz.proposal.champion import ALIAS, Champion, champion_of
from mlflow_lipschitz.proposal.columns import columns_of
from mlflow_lipschitz.proposal.measuring import Measurement, measured
from mlflow_lipschitz.proposal.sections import SEED, STEPS, Given, Sections, sections_from_data, sections_from_policy
from mlflow_lipschitz.registry.pull import PulledModel, pull
from mlflow_lipschitz.registry.trust import ENVIRONMENT, trust_from
from mlflow_lipschitz.rows import Data, sample

DEFAULT_POINTS = 100
_ALLOWED_WORSENING = 0.1
_TRIED_ROWS = 8


@dataclass(frozen=True)
class ProposalRequest:
    """What `policy init` is asked.

    Attributes:
        model_uri: see `pull`.
        data: rows to measure on; None takes the model's input example.
        points: how many of them.
        output: index, name, or margin; None: the only one, or the margin of several.
    """

    model_uri: str
    data: Data | None = None
    points: int = DEFAULT_POINTS
    output: int | str | None = None
    trust_pickle: bool = False
    tracking_uri: str | None = None


@dataclass(frozen=True)
class Proposal:
    """A policy file, loaded once, and what the measured rows of the model get under it."""

    text: str
    policy: AuditPolicy
    verdict: Verdict
    measurement: Measurement


@dataclass(frozen=True)
class _Measured:
    """The sections that were measured with, and whose bounds thresholds follow: the champion's where it can be asked the same."""

    sections: Sections
    given: Given
    measurement: Measurement
    basis: thresholds.Basis
    decided: tuple[Monotone, ...] = ()


def propose(request: ProposalRequest, progress: Progress | None = None) -> Proposal:
    """Measure the model and write a policy that every measured row of it, or of its champion, passes.

    The graph is not replayed against the served model here: every audit does that before its bounds count.

    Raises:
        InvalidData: there are no rows to measure on, or they do not fit the model.
        UsageError: the model has several outputs and none was named.
        AuditError: not one row could be bounded.
        UnsupportedOperator, UntrustedModel, RegistryError: as in an audit.
    """
    pulled = pull(request.model_uri, trust_pickle=request.trust_pickle, tracking_uri=request.tracking_uri)
    given = _given(pulled, request)
    champion = champion_of(pulled.name, request.tracking_uri) if pulled.name else None
    found = _like_the_champion(pulled, request, given, champion, progress) or _from_data(given, progress)
    return _written(found, champion, request)


def _given(pulled: PulledModel, request: ProposalRequest) -> Given:
    source = _source(pulled, request)
    rows = rows_for(pulled, source, None)
    wanted = 0 if request.output is None else request.output
    try:
        traced = traced_model(pulled, sample(rows, request.points, SEED), _asking(wanted))
    except UsageError as error:
        raise UsageError(f"{error}. Here: --output NAME") from error
    output = ("margin" if len(traced.entries) > 1 else 0) if request.output is None else request.output
    fixed = set(traced.rows.fixed_names)
    columns = columns_of(rows, pulled.signature, set(traced.rows.feature_names) - fixed)
    if columns and not any(column.moves for column in columns):
        # Nothing but codes would leave nothing to prove: what varies is then taken for numbers.
        columns = tuple(replace(c, kind="whole") if c.kind == "code" and c.low < c.high else c for c in columns)
        if not any(column.moves for column in columns):
            raise InvalidData(
                f"no column varies in {len(rows)} row{'s' * (len(rows) != 1)}, so nothing says how far values typically move: "
                "give more rows (--data)"
            )
    whence = Path(source).name if isinstance(source, (str, Path)) else "the model's input example"
    whence = "the given data" if request.data is not None and not isinstance(source, (str, Path)) else whence
    return Given(pulled.name or "model", output, whence, rows, traced, columns, request.points)


def _source(pulled: PulledModel, request: ProposalRequest) -> Data:
    source = request.data if request.data is not None else pulled.input_example
    if source is None:
        raise InvalidData("the model was logged without an input example: give rows to measure on (--data)")
    return source


def _asking(output: int | str) -> AuditPolicy:
    """The least policy that names an output."""
    spelled = yaml_scalar(output) if isinstance(output, str) else output
    return load_policy(
        "apiVersion: mlflow-lipschitz/v1\nkind: AuditPolicy\nmetadata: {name: draft, version: 1}\n"
        f"model: {{output: {spelled}}}\nperturbation: {{norm: linf, radius: 1}}\n"
        "checks: [{id: enough, type: points_at_least, min: 1}]\n"
    )


def _from_data(given: Given, progress: Progress | None) -> _Measured:
    """The largest radius at which a few rows are bounded well, the smallest one tried where none is; then all rows."""
    why, traced = "", given.traced
    few = replace(traced, rows=traced.rows.take(np.arange(min(_TRIED_ROWS, len(traced.rows)))))
    for step in STEPS:
        sections = sections_from_data(given, step, why)
        measurement = measured(few, sections.draft())
        if measurement.useful:
            break
        why = f"with twice that or more, bounds were too loose: median gap {measurement.gap:.0%}"
    if len(few.rows) < len(traced.rows):
        measurement = measured(traced, sections.draft(), progress)
    basis = thresholds.Basis(f"measured on {given.measured}", measurement.table)
    return _Measured(sections, given, measurement, basis)


def _like_the_champion(
    pulled: PulledModel, request: ProposalRequest, given: Given, champion: Champion | None, progress: Progress | None
) -> _Measured | None:
    """Asked what the champion was asked; None where there is no such record, or it does not fit this model and these rows."""
    if champion is None or champion.policy is None or champion.table is None:
        return None
    policy, whose = champion.policy, f"champion version {champion.version}"
    decided = tuple(check for check in policy.checks if isinstance(check, Monotone))
    try:
        traced = traced_model(pulled, rows_for(pulled, _source(pulled, request), policy), policy)
        given = replace(given, traced=traced, output=policy.model.output)
        sections = sections_from_policy(policy, whose, given)
        directions = thresholds.directions(thresholds.Basis(whose, champion.table), (), decided, whose)
        measurement = measured(traced, sections.draft(directions), progress)
    except (InvalidData, PolicyError, UsageError):
        return None
    return _Measured(sections, given, measurement, thresholds.Basis(whose, champion.table), decided)


def _written(found: _Measured, champion: Champion | None, request: ProposalRequest) -> Proposal:
    """The text, and the measured table judged by it."""
    compared, no_worse = _compared(found, champion, request)
    sections = replace(found.sections, baseline=champion.uri if champion and no_worse.bounds else "")
    checks = _checks(found) + compared
    policy = load_policy(sections.text(checks))
    rows, measurement = found.given.traced.rows, found.measurement
    policy.bind(rows.feature_names, found.given.traced.entries, fixed=rows.fixed_names, looked_up=rows.looked_up)
    verdict = judge(
        measurement.table,
        policy,
        expected_points=len(rows),
        baseline=no_worse.bounds,
        seconds_total=measurement.seconds,
        no_baseline=no_worse.problem,
    )
    failed = ", ".join(check.id for check in verdict.checks if check.blocking)
    outcome = f"{request.model_uri}, {found.given.measured} measured: {verdict.status}" + (
        f" by {failed}" if failed else ""
    )
    text = sections.text(checks, [outcome])
    return Proposal(text, load_policy(text), verdict, measurement)


def _checks(found: _Measured) -> str:
    margin = found.given.output == "margin"
    units = {} if margin else _units(found)
    return (
        "  # Change of the output per unit of perturbation.\n"
        + thresholds.steadiness(found.basis)
        + (thresholds.radius(found.basis) if margin else "")
        + thresholds.sensitivities(found.basis, units)
        + thresholds.directions(found.basis, tuple(units), found.decided, "the champion's policy")
        + thresholds.bookkeeping(found.measurement, found.basis)
    )


def _units(found: _Measured) -> Mapping[str, float]:
    """Features of a table that move, with their standard deviations."""
    if not found.given.columns:
        return {}
    rows = found.given.traced.rows
    still = {*found.sections.draft().immutable_features(rows.feature_names), *rows.fixed_names}
    spread = dict(zip(rows.feature_names, rows.scale.reshape(-1).tolist(), strict=True))
    return {name: spread[name] for name in found.basis.table.feature_names if name in spread and name not in still}


def _compared(found: _Measured, champion: Champion | None, request: ProposalRequest) -> tuple[str, Baseline]:
    """The no_regression checks; as a comment that says why, where no audit of the champion can be compared with."""
    metrics = ["lipschitz_upper", *(["radius_median"] if found.given.output == "margin" else [])]
    lines = [
        f"  - {{id: no-worse-{i}, type: no_regression, metric: {metric}, rel_tol: {_ALLOWED_WORSENING}}}\n"
        for i, metric in enumerate(metrics, 1)
    ]
    if champion is None:
        name = found.given.name
        why = f"no version of {name} has the alias {ALIAS} yet; model.baseline would be models:/{name}@{ALIAS}"
        return _commented(lines, why), Baseline()
    policy = load_policy(replace(found.sections, baseline=champion.uri).text("".join(lines)))
    baseline = baseline_of(policy, found.given.traced.rows, request.tracking_uri, trust_from(ENVIRONMENT))
    if baseline.problem:
        return _commented(lines, champion.problem or baseline.problem), Baseline()
    figures = ", ".join(f"{key.removeprefix('lipschitz/')} {value:.3g}" for key, value in _named(baseline, metrics))
    return f"  # not worse than champion version {champion.version} ({figures}) by more than a tenth\n" + "".join(
        lines
    ), baseline


def _named(baseline: Baseline, metrics: list[str]) -> list[tuple[str, float]]:
    from mlflow_lipschitz.gate.figures import REGRESSIONS

    keys = [REGRESSIONS[metric].metric for metric in metrics]
    return [(key, baseline.bounds[key]) for key in keys if key in baseline.bounds]


def _commented(lines: list[str], why: str) -> str:
    return f"  # Not asked: {one_line(why)}\n" + "".join(f"  # {line.strip()}\n" for line in lines)
