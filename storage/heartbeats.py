"""The heartbeats that Optuna keeps of its RUNNING trials, where its storage was asked for them."""

from __future__ import annotations

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Engine

from storage import selects
from storage.selects import TRIALS
from storage.tables import optuna_tables

__all__ = ["silence"]

_BEATS = optuna_tables["trial_heartbeats"]


def silence(engine: Engine, name: str) -> float | None:
    """Seconds since the newest heartbeat of any RUNNING trial of a study, by the database's own clock, which
    wrote it; None where none runs, or one has no heartbeat.
    """
    with selects.view(engine) as connection:
        study_id, _ = selects.study_ids(connection, name)
        query = (
            sa.select(sa.func.count(), sa.func.count(_BEATS.c.heartbeat), sa.func.max(_BEATS.c.heartbeat))
            .select_from(TRIALS.outerjoin(_BEATS, TRIALS.c.trial_id == _BEATS.c.trial_id))
            .where(TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.RUNNING)
        )
        trials, beating, newest = connection.execute(query).one()
        if not trials or beating < trials:
            return None
        now = connection.execute(sa.select(sa.func.now())).scalar_one()
    return max(0.0, float((now.replace(tzinfo=None) - newest).total_seconds()))
