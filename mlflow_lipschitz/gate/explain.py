"""What each check's number means, what it does not mean, and what to do about it, in plain words."""

from __future__ import annotations

from collections.abc import Mapping

from mlflow_lipschitz.errors import UsageError
from mlflow_lipschitz.policy_messages import did_you_mean
from mlflow_lipschitz.policy_models import CHECK_MODELS

CHECK_TYPES: tuple[str, ...] = tuple(CHECK_MODELS)

# meaning, not meaning, unit, how to react
_TEXTS: Mapping[str, tuple[str, str, str, str]] = {
    "lipschitz_at_most": (
        "For every audited row, no input within the perturbation radius changes the judged output faster than `max`: "
        "moving the input by d changes the output by at most max * d. The bound is proved for all inputs of the "
        "region, not sampled.",
        "It says nothing about inputs outside the regions around the audited rows, and nothing about accuracy. A bound "
        "above `max` does not mean that the model changes that fast, only that it could not be ruled out; `violated` "
        "means that a point where it does was found.",
        "Output units per unit of perturbation: per feature unit with scale raw, per standard deviation with scale "
        "standardized.",
        "undecided: give the search more time (engine.budget_per_point_s), lower the radius, or train with weight decay, which "
        "makes bounds tighter. violated: look at the worst row; train with "
        "weight decay, spectral normalization or a gradient penalty, or scale the output.",
    ),
    "radius_at_least": (
        "For the rows counted by `mostly`, no perturbation smaller than `min` changes the decision: that of the exact "
        "function of the stored weights, or with engine.arithmetic deployed-float32 that of the program that evaluates it in "
        "float32.",
        "It does not say that the decision is right, and not that a perturbation just above the radius changes it: the "
        "certified radius is a lower bound of the true one. 0 means that nothing was proved.",
        "The unit and norm of perturbation.radius.",
        "undecided: the row may well be robust; ask for a smaller `min`, or train for robustness. violated: a nearby input "
        "that changes the decision was found; train with adversarial or noisy inputs, or accept fewer rows with "
        "`mostly`.",
    ),
    "monotone": (
        "For the rows counted by `mostly`, the output never moves against `direction` while the feature grows, "
        "anywhere in the row's region, whatever the other features do within it.",
        "It is not a statement about causes, nor about the whole input space: two regions that do not touch are not "
        "compared. The output may stay constant.",
        "A fraction of the audited rows between 0 and 1.",
        "undecided: lower the radius. violated: the row shows a derivative of the wrong sign; "
        "constrain the feature's weights in training, or ask whether the direction is really wanted.",
    ),
    "sensitivity_at_most": (
        "In every row's region, changing this one feature changes the output by at most `max` per unit of the feature.",
        "It is not the feature's importance: a feature can matter much through interactions with others and still have "
        "a small derivative. It says nothing outside the regions.",
        "Output units per raw unit of the feature.",
        "undecided: lower the radius. violated: look at the worst row; regularize, or rescale the feature.",
    ),
    "no_regression": (
        "The audited model's figure is not worse than the baseline's by more than `rel_tol`, both bounded in the same "
        "way.",
        "It compares certified bounds, not the true constants: a looser bound can look like a regression. It does not "
        "say that either model is good.",
        "The unit of the metric; rel_tol is a fraction of the baseline's value.",
        "error: audit the baseline first, with the same rows, radius and norm. undecided: lower the radius for both. "
        "Otherwise compare the two reports row by row.",
    ),
    "points_at_least": (
        "At least `min` rows were audited.",
        "Many rows do not make the audit representative: that depends on where they come from.",
        "A number of rows.",
        "Give more data, or raise inputs.points.sample.",
    ),
    "certified_fraction_at_least": (
        "For at least this fraction of the rows, everything the checks read was proved (status certified).",
        "It does not say that the bounds meet the other checks, only that they were computed to the end. A row that is "
        "not certified is not unsafe: it is unknown.",
        "A fraction of the audited rows between 0 and 1.",
        "undecided: lower the radius; large networks need a smaller one. error: a row could not be computed, see its "
        "message. A critical check of this type with a smaller `min` replaces the built-in demand for 1.0.",
    ),
    "time_at_most": (
        "The whole audit took at most `max` seconds on the machine it ran on.",
        "It is no property of the model, and differs between machines.",
        "Seconds of wall-clock time.",
        "Audit fewer rows, or use a GPU. Best kept at severity info.",
    ),
}


def explain(check_type: str) -> str:
    """Plain text about one check type: its definition, meaning, limits, unit, and how to react.

    Raises:
        UsageError: unknown check type; names the nearest one.
    """
    if check_type not in _TEXTS:
        hint = did_you_mean(check_type, CHECK_TYPES, list_all=True)
        raise UsageError(f"unknown check type {check_type!r}{hint}")
    means, means_not, unit, react = _TEXTS[check_type]
    definition = (CHECK_MODELS[check_type].__doc__ or "").strip()
    return "\n\n".join(
        (
            f"{check_type}: {definition}",
            f"What it means: {means}",
            f"What it does not mean: {means_not}",
            f"Unit: {unit}",
            f"How to react: {react}",
        )
    )
