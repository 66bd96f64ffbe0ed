"""Why a trial was pruned: the pruner's decision and what it compared, as the event log has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dashboard.theme import number
from storage.views import EventRow, TrialDetail

__all__ = ["decision", "inputs", "sentence"]

_LABELS = {
    "pruner": "pruner",
    "step": "step",
    "value": "report at the step",
    "best": "its best report so far",
    "threshold": "threshold",
    "percentile": "percentile",
    "rung": "rung",
    "at_rung": "its value at the rung",
    "leader": "best value at the rung",
    "place": "its place",
    "lower": "lower bound",
    "upper": "upper bound",
    "trials": "trials compared",
    "direction": "direction",
    "finished": "finished trials of the study then",
}


def decision(trial: TrialDetail) -> EventRow | None:
    """The newest time that the pruner said yes."""
    return next((event for event in trial.event_rows if event.kind == "should_prune"), None)


def sentence(trial: TrialDetail) -> str:
    """Why, in one sentence as plain text; "" for a trial that no pruner judged, and was not pruned."""
    found = decision(trial)
    if found is None:
        if trial.state != "PRUNED":
            return ""
        if not trial.attempt_rows:
            return "It was run by another program: Optuna keeps no reason for a pruning."
        return "The objective raised TrialPruned by itself; the pruner had not told it to."
    detail = found.detail
    said = f"{detail.get('pruner', 'The pruner')} said at step {detail.get('step')} to prune it"
    if trial.state == "RUNNING":
        said += ", and the objective has not ended yet"
    elif trial.state != "PRUNED":
        said += ", but the objective went on"
    why = _why(detail)
    return f"{said}: {why}." if why else f"{said}."


def inputs(found: EventRow) -> list[dict[str, str]]:
    """What the pruner compared, for a table."""
    detail = found.detail
    return [
        {"input": label, "value": _text(detail[key])}
        for key, label in _LABELS.items()
        if detail.get(key) is not None
    ]


def _why(detail: Mapping[str, Any]) -> str:
    if detail.get("value") == "nan":
        return "its report was not a number"
    worse = "below" if detail.get("direction") == "maximize" else "above"
    trials = detail.get("trials")
    if "threshold" in detail:
        percentile = detail.get("percentile")
        what = "the median" if percentile == 50 else f"percentile {number(percentile)}"
        return (
            f"its best report until then, {_text(detail.get('best'))}, is {worse} "
            f"{_text(detail['threshold'])}, {what} of the {trials} complete trials with a report at this step"
        )
    if "rung" in detail:
        return (
            f"with {_text(detail.get('at_rung'))} at rung {detail['rung']} it came "
            f"{_ordinal(detail.get('place'))} of the {trials} trials that got there, and "
            f"only the best share goes on; "
            f"the best had {_text(detail.get('leader'))}"
        )
    if "lower" in detail:
        bounds = f"{_text(detail['lower'])} to {_text(detail.get('upper'))}"
        return f"its report {_text(detail.get('value'))} is not within {bounds}"
    if detail.get("value") is not None:
        return f"its report was {_text(detail['value'])}"
    return ""


def _ordinal(place: Any) -> str:
    if not isinstance(place, int):
        return "-"
    ending = "th" if place % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return f"{place}{ending}"


def _text(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(value)
