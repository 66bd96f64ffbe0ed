"""What the parameters of trials are drawn from, and the names that trials can be asked for by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from sqlalchemy.engine import Connection, Engine

from storage import selects
from storage.expressions import among
from storage.rows import distribution
from storage.selects import PARAMS, TRIALS
from storage.tables import optuna_tables
from storage.views import ParamRange

__all__ = ["Names", "names", "of_space", "ranges_of"]

_NEWEST = 50  # trials whose ranges stand for the study's


@dataclass(frozen=True, kw_only=True)
class Names:
    """What the trials of a study have names for, sorted.

    Attributes:
        params, attrs: of any trial.
        ranges: of the newest trials' parameters, by name.
    """

    params: tuple[str, ...] = ()
    attrs: tuple[str, ...] = ()
    ranges: tuple[tuple[str, ParamRange], ...] = ()


def names(engine: Engine, name: str) -> Names:
    """The names of a study's parameters and user attributes; none for an unknown study."""
    with selects.view(engine) as connection:
        study_id, _ = selects.study_ids(connection, name)
        if study_id is None:
            return Names()
        mine = sa.select(TRIALS.c.trial_id).where(TRIALS.c.study_id == study_id)
        attrs = optuna_tables["trial_user_attributes"]
        newest = mine.order_by(TRIALS.c.trial_id.desc()).limit(_NEWEST)
        ids = list(connection.execute(newest).scalars())
        return Names(
            params=_distinct(connection, PARAMS.c.param_name, PARAMS.c.trial_id, mine),
            attrs=_distinct(connection, attrs.c.key, attrs.c.trial_id, mine),
            ranges=tuple(sorted(ranges_of(connection, ids).items())),
        )


def ranges_of(connection: Connection, ids: Sequence[int]) -> dict[str, ParamRange]:
    """By name of a parameter, what the newest of these trials with it drew it from."""
    query = sa.select(PARAMS.c.param_name, PARAMS.c.distribution_json)
    query = query.where(among(connection, PARAMS.c.trial_id, ids)).order_by(PARAMS.c.param_id)
    return {row.param_name: _range(row.distribution_json) for row in connection.execute(query).all()}


def of_space(space: Mapping[str, str]) -> dict[str, ParamRange]:
    """By name of a parameter, what a space draws it from.

    Args:
        space: distributions in Optuna's JSON, as the settings of a study keep them.
    """
    return {name: _range(text) for name, text in space.items()}


def _range(text: str) -> ParamRange:
    known = distribution(text)
    if isinstance(known, FloatDistribution | IntDistribution):
        step = (
            None
            if known.step is None or (known.step == 1 and isinstance(known, IntDistribution))
            else known.step
        )
        return ParamRange(low=known.low, high=known.high, log=known.log, step=step)
    return ParamRange(choices=tuple(known.choices) if isinstance(known, CategoricalDistribution) else ())


def _distinct(
    connection: Connection,
    column: sa.ColumnElement[str],
    of: sa.ColumnElement[int],
    mine: sa.Select[tuple[int]],
) -> tuple[str, ...]:
    return tuple(sorted(connection.execute(sa.select(column).distinct().where(of.in_(mine))).scalars()))
