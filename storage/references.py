"""What the curve of a trial is held against: the median of the study's curves, and the best trial's."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Connection, Engine

from storage import selects
from storage.curves import curves_of
from storage.listing import thinned
from storage.selects import TRIALS
from storage.views import CurvePoint

__all__ = ["References", "references"]

_TRIALS = 200  # enough for a median, whatever the size of the study
_STEPS = 200  # of the median; more cannot be seen


@dataclass(frozen=True, kw_only=True)
class References:
    """Curves of a study with reports.

    Attributes:
        median: at each step, of the finite reports of ``sampled`` trials, evenly chosen among the
            ``trials`` that are COMPLETE or PRUNED. Late steps are those of the trials that got there.
        best: reports of the best trial, whose number is ``best_number``; None for no single best one.
    """

    median: tuple[CurvePoint, ...] = ()
    sampled: int = 0
    trials: int = 0
    best_number: int | None = None
    best: tuple[CurvePoint, ...] = ()


def references(engine: Engine, name: str) -> References:
    """What to draw beside a trial's curve; empty for an unknown study or one without reports."""
    with selects.view(engine) as connection:
        study_id, _ = selects.study_ids(connection, name)
        if study_id is None or len(selects.directions(connection, [study_id])[study_id]) != 1:
            return References()  # Optuna lets only a single objective report
        ids = _finished(connection, study_id)
        chosen = ids[:: max(1, math.ceil(len(ids) / _TRIALS))]
        number = selects.bests_of(connection, [study_id]).get(study_id, (None,))[0]
        best = selects.trial_id(connection, study_id, number) if number is not None else None
        curves = curves_of(connection, [*dict.fromkeys([*chosen, *([] if best is None else [best])])])
    values: dict[int, list[float]] = {}
    for trial_id in chosen:
        for step, value in curves[trial_id]:
            if math.isfinite(value):
                values.setdefault(step, []).append(value)
    median = [(step, statistics.median(found)) for step, found in sorted(values.items())]
    return References(
        median=tuple(thinned(median, _STEPS)),
        sampled=len(chosen),
        trials=len(ids),
        best_number=number,
        best=() if best is None else tuple(curves[best]),
    )


def _finished(connection: Connection, study_id: int) -> list[int]:
    query = sa.select(TRIALS.c.trial_id).where(
        TRIALS.c.study_id == study_id, TRIALS.c.state.in_([TrialState.COMPLETE, TrialState.PRUNED])
    )
    return sorted(connection.execute(query).scalars())
