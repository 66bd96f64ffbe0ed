"""The JSON form of Optuna's ``FrozenTrial``, in which ``trial.study`` receives trials from the driver."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Any

from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState

__all__ = ["trial_from_json", "trial_to_json", "trials_from_json", "trials_to_json"]


def trials_to_json(trials: Iterable[FrozenTrial]) -> list[dict[str, Any]]:
    """What ``json.dumps`` accepts for these trials (infinities and NaN as Python writes them)."""
    return [trial_to_json(trial) for trial in trials]


def trials_from_json(rows: Iterable[dict[str, Any]]) -> list[FrozenTrial]:
    """The trials that :func:`trials_to_json` wrote."""
    return [trial_from_json(row) for row in rows]


def trial_to_json(trial: FrozenTrial) -> dict[str, Any]:
    """One trial as plain data; parameters in Optuna's internal representation."""
    return {
        "id": trial._trial_id,
        "number": trial.number,
        "state": trial.state.name,
        "values": trial.values,
        "params": {
            name: [distribution.to_internal_repr(trial.params[name]), distribution_to_json(distribution)]
            for name, distribution in trial.distributions.items()
        },
        "user_attrs": dict(trial.user_attrs),
        "system_attrs": dict(trial.system_attrs),
        # Pairs, since the keys of a JSON object are text.
        "reports": list(trial.intermediate_values.items()),
        "start": _to_text(trial.datetime_start),
        "complete": _to_text(trial.datetime_complete),
    }


def trial_from_json(row: dict[str, Any]) -> FrozenTrial:
    """The trial that :func:`trial_to_json` wrote."""
    distributions = {name: json_to_distribution(text) for name, (_, text) in row["params"].items()}
    return FrozenTrial(
        number=row["number"],
        trial_id=row["id"],
        state=TrialState[row["state"]],
        value=None,
        values=row["values"],
        params={
            name: distributions[name].to_external_repr(value) for name, (value, _) in row["params"].items()
        },
        distributions=distributions,
        user_attrs=row["user_attrs"],
        system_attrs=row["system_attrs"],
        intermediate_values={int(step): value for step, value in row["reports"]},
        datetime_start=_from_text(row["start"]),
        datetime_complete=_from_text(row["complete"]),
    )


def _to_text(moment: datetime.datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _from_text(text: str | None) -> datetime.datetime | None:
    return None if text is None else datetime.datetime.fromisoformat(text)
