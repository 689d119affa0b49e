"""The sections of a policy file as frozen values: what may be written where, with the descriptions editors show.

No threshold has a default: a number that decides is one the author wrote down.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NoReturn, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
)

Severity = Literal["critical", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "critical")

RegressionMetric = Literal[
    "lipschitz_upper", "lipschitz_upper_mean", "radius_median", "radius_p05", "certified_fraction"
]

IMPLICIT_PREFIX = "implicit-"


class FrozenDict(dict[str, Any]):
    """A dict that refuses to change, so that a policy's digest stays true."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("a policy is frozen")

    __setitem__ = __delitem__ = update = setdefault = pop = popitem = clear = __ior__ = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenDict, (dict(self),)


def _text_or_number(value: Any) -> str:
    return "text" if isinstance(value, str) else "number"


def _per_feature_or_number(value: Any) -> str:
    return "per_feature" if isinstance(value, Mapping) else "number"


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if not bounds[0] < bounds[1]:
        raise ValueError(f"lower must be below upper, not [{bounds[0]:g}, {bounds[1]:g}]")
    return bounds


def _moves_something(radii: Mapping[str, float]) -> Mapping[str, float]:
    if not any(radii.values()):
        raise ValueError("every radius is 0: nothing would move and nothing would be proved")
    return radii


def _not_reserved(check_id: str) -> str:
    if check_id.startswith(IMPLICIT_PREFIX):
        raise ValueError(f"ids starting with {IMPLICIT_PREFIX!r} are reserved for checks added by this package")
    return check_id


def _usable_alias(alias: str) -> str:
    if alias.lower() == "latest" or re.fullmatch(r"[vV]\d+", alias):
        raise ValueError("MLflow reserves 'latest' and 'v<number>'")
    return alias


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
Text = Annotated[str, Field(min_length=1, max_length=500)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Bounds = Annotated[tuple[float, float], AfterValidator(_ordered)]
Number = Annotated[int, Field(ge=0), Tag("number")]
PerFeature = Annotated[
    dict[Text, NonNegative], Field(min_length=1), AfterValidator(_moves_something), AfterValidator(FrozenDict)
]


class Section(BaseModel):
    """Base of every section: frozen, strict (a quoted number is text, `true` is no number), finite, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Metadata(Section):
    """Who answers for the policy."""

    name: Name = Field(description="Name of the policy; appears in tags and attestations as name@version.")
    version: Annotated[Number | Annotated[Name, Tag("text")], Discriminator(_text_or_number)] = Field(
        description="Version of the policy: a whole number or quoted text. Raise it whenever the content changes."
    )
    owner: Text | None = Field(default=None, description="Who to ask about this policy.")


class Model(Section):
    """Which output is judged, and which model it is compared with."""

    output: Annotated[Number | Annotated[Text, Tag("text")], Discriminator(_text_or_number)] = Field(
        description="Index or name of the output, or 'margin' (top class against the rest)."
    )
    baseline: Annotated[str, Field(pattern=r"^(models|runs):/.+")] | None = Field(
        default=None, description="Model that no_regression checks compare with, as models:/name@alias."
    )


class Points(Section):
    """Which of the given rows are audited."""

    sample: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="How many rows to draw; all rows when absent."
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(default=0, description="Seed of the draw.")
    stratify: Text | None = Field(default=None, description="Column whose proportions the draw keeps.")


class Inputs(Section):
    """The rows, and where their perturbations may go."""

    points: Points = Points()
    domain: Annotated[dict[Text, Bounds], AfterValidator(FrozenDict)] = Field(
        default_factory=FrozenDict,
        description="[lower, upper] per feature, raw units: the box a perturbed input never leaves.",
    )
    immutable: tuple[Text, ...] = Field(
        default=(), description="Features, or patterns such as country_*, that do not move."
    )


class Perturbation(Section):
    """How far an input may move."""

    norm: Literal["linf", "l2", "l1"] = Field(description="Norm the radius is measured in.")
    radius: Annotated[
        Annotated[Positive, Tag("number")] | Annotated[PerFeature, Tag("per_feature")],
        Discriminator(_per_feature_or_number),
    ] = Field(description="One radius for all features, or one per feature in raw units.")
    scale: Literal["raw", "standardized"] = Field(
        default="raw", description="Unit of a single radius: the features' own units, or their standard deviations."
    )


class Engine(Section):
    """How much work the engine may put into one row."""

    budget_per_point_s: Positive | None = Field(
        default=5.0,
        description="Seconds of search that a row's Lipschitz bound, and the signs of its monotone features, may each cost beyond"
        " one pass, where a check judges them; null: none, or no limit of time where parts_per_point is given.",
    )
    parts_per_point: Annotated[int, Field(gt=0)] | None = Field(
        default=None,
        description="Parts into which each of these searches may cut a row's problem. Unlike a time, it makes an audit repeat:"
        " with budget_per_point_s null, the same audit on the same machine gives the same bounds to the last bit.",
    )
    target_gap: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.02,
        description="Relative gap between the bounds at which the search on a row stops.",
    )
    precision: Literal["float64"] = Field(default="float64", description="Arithmetic the bounds are computed in.")
    arithmetic: Literal["real", "deployed-float32"] = Field(
        default="real",
        description="Whose decisions certified radii are about: the exact function of the stored weights, or the program that"
        " evaluates it in float32, rounding included. Lipschitz bounds and derivatives are about the exact function.",
    )


class OnPass(Section):
    """What a passed audit leads to."""

    alias: Annotated[str, Field(pattern=r"^[\w-]+$", max_length=255), AfterValidator(_usable_alias)] | None = Field(
        default=None,
        description="Registry alias that an audit sets on a version that passes, after promotion's own checks. An evaluation"
        " by MLflow sets none.",
    )


class Gate(Section):
    """What the verdict depends on."""

    fail_on: Literal["critical", "warning"] = Field(
        default="critical",
        description="Least severity of a failed check that blocks. An errored check is always critical.",
    )
    on_pass: OnPass = OnPass()


class Check(Section):
    """Fields every check has. `line` is its line in the policy file, 0 for a check added by this package."""

    id: Annotated[Name, AfterValidator(_not_reserved)] = Field(description="Unique name of the check.")
    severity: Severity = Field(default="critical", description="What a failure means; see gate.fail_on.")
    _line: int = PrivateAttr(0)

    @property
    def line(self) -> int:
        return self._line

    def with_place(self, line: int, check_id: str | None = None) -> Any:
        """This check as found on `line`; `check_id` may be a reserved one."""
        copy = self.model_copy(update={"id": check_id} if check_id else None)
        copy._line = line
        return copy


class _RowCheck(Check):
    mostly: Fraction = Field(
        default=1.0, description="Least fraction of the rows for which the property must be proved."
    )


class LipschitzAtMost(_RowCheck):
    """Every row's certified Lipschitz upper bound is at most `max`."""

    type: Literal["lipschitz_at_most"]
    max: NonNegative = Field(description="Largest allowed change of the output per unit of perturbation.")


class RadiusAtLeast(_RowCheck):
    """Every row's decision is proved not to change within `min`."""

    type: Literal["radius_at_least"]
    min: Positive = Field(description="Least certified radius, in the unit of perturbation.radius.")


class Monotone(_RowCheck):
    """The output is proved to move in one direction only as the feature grows."""

    type: Literal["monotone"]
    feature: Text = Field(description="Name of the feature.")
    direction: Literal["increasing", "decreasing"] = Field(description="How the output must move (not strictly).")


class SensitivityAtMost(_RowCheck):
    """The output's derivative in one feature is proved to stay within `max`."""

    type: Literal["sensitivity_at_most"]
    feature: Text = Field(description="Name of the feature.")
    max: NonNegative = Field(description="Largest allowed absolute derivative, output units per feature unit.")


class NoRegression(Check):
    """A summary figure is not worse than the baseline's by more than `rel_tol`."""

    type: Literal["no_regression"]
    metric: RegressionMetric = Field(description="Which figure; lipschitz_upper is the largest over the rows.")
    rel_tol: Annotated[float, Field(ge=0, lt=1)] = Field(description="Allowed worsening, relative to the baseline.")


class PointsAtLeast(Check):
    """Enough rows were audited."""

    type: Literal["points_at_least"]
    min: Annotated[int, Field(ge=1)] = Field(description="Least number of audited rows.")


class CertifiedFractionAtLeast(Check):
    """Enough rows ended with status `certified`."""

    type: Literal["certified_fraction_at_least"]
    min: Fraction = Field(description="Least fraction of rows with status certified.")


class TimeAtMost(Check):
    """The audit did not take longer than `max` seconds."""

    type: Literal["time_at_most"]
    max: Positive = Field(description="Largest allowed duration of the audit in seconds.")


AnyCheck = Annotated[
    LipschitzAtMost
    | RadiusAtLeast
    | Monotone
    | SensitivityAtMost
    | NoRegression
    | PointsAtLeast
    | CertifiedFractionAtLeast
    | TimeAtMost,
    Field(discriminator="type"),
]

CHECK_MODELS: dict[str, type[Check]] = {
    get_args(model.model_fields["type"].annotation)[0]: model for model in get_args(get_args(AnyCheck)[0])
}

ROW_CHECKS = (LipschitzAtMost, RadiusAtLeast, Monotone, SensitivityAtMost)
