"""Whole studies as columns, for charts: values, parameters of chosen trials, search space, history.

Each is a fixed number of statements, and none reads a report. Parameters are asked for the trials
that a chart shows, since a study has several of them for each value.
"""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState
from sqlalchemy.engine import Connection, Engine

from storage import selects
from storage.expressions import among, number
from storage.rows import distribution
from storage.selects import PARAMS, TRIALS, VALUES
from storage.tables import optuna_tables

__all__ = [
    "History",
    "ParamColumn",
    "ValueColumns",
    "history",
    "objective_names",
    "params",
    "space",
    "values",
    "wall_time",
]

_METRIC_NAMES_KEY = "study:metric_names"  # Optuna's set_metric_names
_CONSTRAINTS_KEY = "constraints"  # Optuna's: a list below it, or one value below "constraints:NAME"
_VALUE = number(VALUES.c.value, VALUES.c.value_type)


@dataclass(frozen=True, kw_only=True)
class ValueColumns:
    """The COMPLETE trials of a study; the columns are in order of the trials' numbers.

    Attributes:
        names: of the objectives: the metric names, else ``value``, or ``value 0`` and so on.
        values: a column for each objective; they may hold infinities and NaN.
        feasible: whether every constraint is at most 0; a trial without any is feasible.
        constrained: whether any trial has constraints.
    """

    directions: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    values: tuple[tuple[float, ...], ...] = ()
    feasible: tuple[bool, ...] = ()
    constrained: bool = False


@dataclass(frozen=True, kw_only=True)
class ParamColumn:
    """One parameter of some trials, in their order; None where a trial does not have it.

    Attributes:
        values: numbers, or the texts of a categorical parameter's choices.
        choices: all of those texts, in the order of the distribution; None for numbers.
        log: whether it was drawn on a logarithmic scale.
    """

    values: tuple[float | str | None, ...]
    choices: tuple[str, ...] | None
    log: bool


@dataclass(frozen=True, kw_only=True)
class History:
    """The COMPLETE trials of a single objective with finite values, in order of their completion.

    Attributes:
        seconds: from the start of the study's first trial.
    """

    numbers: tuple[int, ...] = ()
    seconds: tuple[float, ...] = ()
    values: tuple[float, ...] = ()


def values(engine: Engine, name: str) -> ValueColumns:
    """Values and feasibility of the COMPLETE trials; empty for an unknown study."""
    with selects.view(engine) as connection:
        study_id, _ = selects.study_ids(connection, name)
        if study_id is None:
            return ValueColumns()
        directions = selects.directions(connection, [study_id]).get(study_id, ())
        query = (
            sa.select(TRIALS.c.trial_id, TRIALS.c.number, _VALUE)
            .join(VALUES, VALUES.c.trial_id == TRIALS.c.trial_id)
            .where(TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.COMPLETE)
            .order_by(TRIALS.c.number, VALUES.c.objective)
        )
        numbers: dict[int, int] = {}
        found: dict[int, list[float]] = {}
        for trial_id, at, value in connection.execute(query).all():
            numbers[trial_id] = at
            found.setdefault(trial_id, []).append(math.nan if value is None else value)
        whole = [trial_id for trial_id in numbers if len(found[trial_id]) == len(directions)]
        constraints = _feasible(connection, study_id)
        return ValueColumns(
            directions=directions,
            names=objective_names(connection, study_id, len(directions)),
            numbers=tuple(numbers[trial_id] for trial_id in whole),
            values=tuple(
                tuple(found[trial_id][objective] for trial_id in whole)
                for objective in range(len(directions))
            ),
            feasible=tuple(constraints.get(trial_id, True) for trial_id in whole),
            constrained=bool(constraints),
        )


def objective_names(connection: Connection, study_id: int, count: int) -> tuple[str, ...]:
    """Of a study with so many: the metric names, else ``value``, or ``value 0`` and so on."""
    attrs = optuna_tables["study_system_attributes"]
    query = sa.select(attrs.c.value_json).where(
        attrs.c.study_id == study_id, attrs.c.key == _METRIC_NAMES_KEY
    )
    named = selects.from_json(connection.execute(query).scalar())
    if isinstance(named, list) and len(named) == count:
        return tuple(map(str, named))
    return ("value",) if count == 1 else tuple(f"value {objective}" for objective in range(count))


def _feasible(connection: Connection, study_id: int) -> dict[int, bool]:
    """By trial id, of the COMPLETE trials that have constraints; one that is NaN is not kept."""
    attrs = optuna_tables["trial_system_attributes"]
    query = (
        sa.select(attrs.c.trial_id, attrs.c.key, attrs.c.value_json)
        .join(TRIALS, TRIALS.c.trial_id == attrs.c.trial_id)
        .where(TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.COMPLETE)
        .where(attrs.c.key.startswith(_CONSTRAINTS_KEY))
    )
    found: dict[int, bool] = {}
    for trial_id, key, text in connection.execute(query).all():
        if key == _CONSTRAINTS_KEY:
            kept = all(value <= 0 for value in json.loads(text) or ())
        elif key.startswith(f"{_CONSTRAINTS_KEY}:"):
            kept = json.loads(text) <= 0
        else:
            continue
        found[trial_id] = found.get(trial_id, True) and kept
    return found


def params(engine: Engine, name: str, numbers: Sequence[int]) -> dict[str, ParamColumn]:
    """The parameters of some trials by name, sorted; the columns are in the order of ``numbers``.

    A parameter that was drawn from several distributions is categorical where any of them was.
    """
    with selects.view(engine) as connection:
        study_id, _ = selects.study_ids(connection, name)
        by_id = selects.trial_ids(connection, study_id, numbers)
        query = sa.select(
            PARAMS.c.trial_id, PARAMS.c.param_name, PARAMS.c.param_value, PARAMS.c.distribution_json
        ).where(among(connection, PARAMS.c.trial_id, list(by_id)))
        drawn: dict[str, dict[int, tuple[float, BaseDistribution]]] = {}
        for trial_id, param, value, text in connection.execute(query).all():
            drawn.setdefault(param, {})[by_id[trial_id]] = (value, distribution(text))
    return {param: _column(drawn[param], numbers) for param in sorted(drawn)}


def _column(drawn: Mapping[int, tuple[float, BaseDistribution]], numbers: Sequence[int]) -> ParamColumn:
    # by identity, since the same text gives the same object: a distribution's hash is slow
    distributions = list({id(one): one for _, one in drawn.values()}.values())
    labels = {
        id(one): tuple(map(_choice, one.choices))
        for one in distributions
        if isinstance(one, CategoricalDistribution)
    }
    if labels:
        decoded = {
            at: labels[id(one)][int(value)] if id(one) in labels else _choice(one.to_external_repr(value))
            for at, (value, one) in drawn.items()
        }
        every = [label for of_one in labels.values() for label in of_one]
        choices = tuple(dict.fromkeys([*every, *decoded.values()]))
        return ParamColumn(values=tuple(decoded.get(at) for at in numbers), choices=choices, log=False)
    of = {at: value for at, (value, _) in drawn.items()}
    log = all(getattr(one, "log", False) for one in distributions) and min(of.values()) > 0
    return ParamColumn(values=tuple(of.get(at) for at in numbers), choices=None, log=log)


def _choice(value: Any) -> str:
    """A choice for a person; the text "1" is not the number 1."""
    if isinstance(value, str) and value not in ("", "None", "True", "False"):
        try:
            float(value)
        except ValueError:
            return value
    return repr(value)


def space(engine: Engine, name: str) -> dict[str, str]:
    """The search space as its trials drew from it: a text for each parameter, by name, sorted.

    Example:
        >>> database = storage.Database("sqlite:///tuner.db")
        >>> study = optuna.create_study(study_name="space", storage=database.optuna_storage())
        >>> study.optimize(lambda trial: trial.suggest_float("lr", 1e-5, 0.1, log=True), n_trials=1)
        >>> space(database.engine, "space")
        {'lr': 'float 1e-05 to 0.1, log'}
    """
    with selects.view(engine) as connection:
        study_id, _ = selects.study_ids(connection, name)
        if study_id is None:
            return {}
        query = (
            sa.select(PARAMS.c.param_name, PARAMS.c.distribution_json)
            .join(TRIALS, TRIALS.c.trial_id == PARAMS.c.trial_id)
            .where(TRIALS.c.study_id == study_id)
            .distinct()
        )
        found: dict[str, set[str]] = {}
        for param, text in connection.execute(query).all():
            found.setdefault(param, set()).add(_described(distribution(text)))
    return {param: _joined(found[param]) for param in sorted(found)}


_MOST = 5  # an objective that bounds a parameter by another one has a distribution for each trial


def _joined(texts: Iterable[str]) -> str:
    shown = sorted(texts)
    rest = f"; and {len(shown) - _MOST} more" if len(shown) > _MOST else ""
    return "; ".join(shown[:_MOST]) + rest


def _described(one: BaseDistribution) -> str:
    if isinstance(one, CategoricalDistribution):
        return " | ".join(map(_choice, one.choices))
    if not isinstance(one, FloatDistribution | IntDistribution):
        return str(one)
    kind = "int" if isinstance(one, IntDistribution) else "float"
    step = f", step {one.step:g}" if one.step not in (None, 1) else ""
    return f"{kind} {one.low:g} to {one.high:g}{', log' if one.log else ''}{step}"


def history(engine: Engine, name: str) -> History:
    """When a study reached which values; empty for an unknown one and for several objectives."""
    with selects.view(engine) as connection:
        study_id, _ = selects.study_ids(connection, name)
        ways = selects.directions(connection, [study_id]) if study_id is not None else {}
        if study_id is None or len(ways.get(study_id, ())) != 1:
            return History()
        started = sa.select(sa.func.min(TRIALS.c.datetime_start)).where(TRIALS.c.study_id == study_id)
        start = connection.execute(started).scalar()
        query = (
            sa.select(TRIALS.c.number, TRIALS.c.datetime_complete, _VALUE)
            .join(VALUES, VALUES.c.trial_id == TRIALS.c.trial_id)
            .where(TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.COMPLETE)
            .order_by(TRIALS.c.datetime_complete, TRIALS.c.number)
        )
        rows = [
            (at, _seconds(start, end), value)
            for at, end, value in connection.execute(query).all()
            if value is not None and math.isfinite(value)
        ]
    numbers, seconds, reached = zip(*rows, strict=True) if rows else ((), (), ())
    return History(numbers=numbers, seconds=seconds, values=reached)


def _seconds(start: dt.datetime | None, end: dt.datetime | None) -> float:
    return (end - start).total_seconds() if start and end else 0.0


def wall_time(engine: Engine, name: str) -> float | None:
    """Seconds from the start of a study's first trial to its last end, pauses included; None without."""
    with selects.view(engine) as connection:
        study_id, _ = selects.study_ids(connection, name)
        ends = (sa.func.min(TRIALS.c.datetime_start), sa.func.max(TRIALS.c.datetime_complete))
        start, end = connection.execute(sa.select(*ends).where(TRIALS.c.study_id == study_id)).one()
    return (end - start).total_seconds() if start and end else None
