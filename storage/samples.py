"""Some COMPLETE trials of a study as Optuna's own values, for what only Optuna computes."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import Engine

from storage import selects
from storage.expressions import among
from storage.floats import unstored
from storage.rows import distribution
from storage.selects import PARAMS, TRIALS, VALUES

__all__ = ["Sample", "complete"]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Trials of a study: numbers, values, parameters and distributions, nothing else of them.

    Attributes:
        total: how many COMPLETE trials there are.
    """

    directions: tuple[str, ...]
    trials: tuple[FrozenTrial, ...]
    total: int


def complete(engine: Engine, name: str, *, most: int = 2000) -> Sample:
    """At most ``most`` COMPLETE trials at even distances of their order: the same ones at each call."""
    with selects.view(engine) as connection:
        study_id, _ = selects.study_ids(connection, name)
        if study_id is None:
            return Sample(directions=(), trials=(), total=0)
        directions = selects.directions(connection, [study_id]).get(study_id, ())
        query = sa.select(TRIALS.c.trial_id, TRIALS.c.number).where(
            TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.COMPLETE
        )
        rows = [
            (trial_id, number) for trial_id, number in connection.execute(query.order_by(TRIALS.c.number))
        ]
        total = len(rows)
        if total > most:
            rows = [rows[index * total // most] for index in range(most)]
        ids = [trial_id for trial_id, _ in rows]
        trials = {trial_id: _bare(trial_id, number) for trial_id, number in rows}
        values: dict[int, list[float]] = {}
        found = sa.select(VALUES).where(among(connection, VALUES.c.trial_id, ids))
        for row in connection.execute(found.order_by(VALUES.c.objective)):
            values.setdefault(row.trial_id, []).append(unstored(row.value, row.value_type.name))
        for trial_id, numbers in values.items():
            trials[trial_id].values = numbers
        columns = (PARAMS.c.trial_id, PARAMS.c.param_name, PARAMS.c.param_value, PARAMS.c.distribution_json)
        params = sa.select(*columns).where(among(connection, PARAMS.c.trial_id, ids))
        for trial_id, param, value, text in connection.execute(params.order_by(PARAMS.c.param_id)).all():
            trial, dist = trials[trial_id], distribution(text)
            trial.params[param] = dist.to_external_repr(value)
            trial.distributions[param] = dist
    return Sample(directions=directions, trials=tuple(trials.values()), total=total)


def _bare(trial_id: int, number: int) -> FrozenTrial:
    return FrozenTrial(
        number=number,
        state=TrialState.COMPLETE,
        value=None,
        datetime_start=None,
        datetime_complete=None,
        params={},
        distributions={},
        user_attrs={},
        system_attrs={},
        intermediate_values={},
        trial_id=trial_id,
    )
