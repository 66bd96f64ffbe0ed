"""Which trials are on a page: filters and orders as SQL, so that only the page's trials are read.

Python looks at the choices of a categorical parameter, never at a study's trials.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from storage.errors import Refused
from storage.expressions import Column, is_sqlite, number
from storage.filters import AttrFilter, Filter, NumberFilter, ParamFilter, ValueFilter
from storage.limits import check_key
from storage.rows import distribution
from storage.tables import optuna_tables

__all__ = ["SORTS", "all_ids", "check_sort", "page_ids"]

SORTS = ("number", "state", "value", "duration", "started", "completed", "last_step", "last_value")
"""Names to sort by, beside ``value:K``, ``param:NAME`` and ``attr:NAME``."""

_TRIALS = optuna_tables["trials"]
_VALUES = optuna_tables["trial_values"]
_PARAMS = optuna_tables["trial_params"]
_ATTRS = optuna_tables["trial_user_attributes"]
_REPORTS = optuna_tables["trial_intermediate_values"]

_LAST_NUMBER = 2**31 - 1


def page_ids(
    connection: Connection,
    study_id: int,
    *,
    states: Sequence[str],
    where: Sequence[Filter],
    sort: str,
    descending: bool,
    page: int,
    size: int,
) -> tuple[list[int], int]:
    """The ids of a page's trials in their order, and how many trials match in all."""
    wanted = _wanted(connection, study_id, states, where)
    count = sa.select(sa.func.count()).select_from(_TRIALS).where(*wanted)
    query = _ordered(connection, study_id, wanted, sort, descending)
    query = query.limit(size).offset(min((max(1, page) - 1) * size, _LAST_NUMBER))
    return list(connection.scalars(query)), connection.execute(count).scalar_one()


def all_ids(
    connection: Connection,
    study_id: int,
    *,
    states: Sequence[str] = (),
    where: Sequence[Filter] = (),
    sort: str = "number",
    descending: bool = False,
) -> list[int]:
    """The ids of all trials that match, in their order."""
    wanted = _wanted(connection, study_id, states, where)
    return list(connection.scalars(_ordered(connection, study_id, wanted, sort, descending)))


def _wanted(
    connection: Connection, study_id: int, states: Sequence[str], where: Sequence[Filter]
) -> list[Column]:
    wanted: list[Column] = [_TRIALS.c.study_id == study_id]
    if states:
        wanted.append(_TRIALS.c.state.in_([TrialState[state] for state in states]))
    return [*wanted, *(_condition(connection, study_id, one) for one in where)]


def _ordered(
    connection: Connection, study_id: int, wanted: Sequence[Column], sort: str, descending: bool
) -> sa.Select[Any]:
    query = sa.select(_TRIALS.c.trial_id).where(*wanted)
    order = _order(connection, study_id, check_sort(sort))
    if order.table is not None:
        query = query.outerjoin(order.table, order.on)
    for key in order.keys:
        query = query.order_by(key.desc().nulls_last() if descending else key.asc().nulls_last())
    # Numbers grow with the ids, by which SQLite's index on the study is sorted. PostgreSQL would walk
    # the ids of all studies.
    keys = [_TRIALS.c.trial_id] if is_sqlite(connection) else [_TRIALS.c.number, _TRIALS.c.trial_id]
    return query.order_by(*(key.desc() if descending else key.asc() for key in keys))


def check_sort(text: str) -> tuple[str, str]:
    """What to sort by, as (kind, name): ``param:lr`` is ``("param", "lr")``.

    Raises:
        Refused: one line that says what there is.
    """
    kind, colon, name = text.partition(":")
    if kind in ("param", "attr") and name:
        check_key(name)
        return kind, name
    if kind == "value" and colon and name.isascii() and name.isdigit() and len(name) < 10:
        return kind, name
    if text not in SORTS:
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        raise Refused(
            f"sort {shown!r}: choose {', '.join(SORTS)}, value:K for objective K, param:NAME or attr:NAME"
        )
    return text, "0" if text == "value" else ""


# ---------------------------------------------------------------------- filters


def _condition(connection: Connection, study_id: int, wanted: Filter) -> Column:
    match wanted:
        case NumberFilter():
            return _TRIALS.c.number.between(wanted.floor, wanted.ceiling)
        case ValueFilter():
            low = -math.inf if wanted.low is None else wanted.low
            high = math.inf if wanted.high is None else wanted.high
            key = number(_VALUES.c.value, _VALUES.c.value_type)
            return _has(_VALUES, _VALUES.c.objective == wanted.objective, key.between(low, high))
        case AttrFilter():
            return _has(_ATTRS, _ATTRS.c.key == wanted.key, _ATTRS.c.value_json.in_(wanted.texts))
        case ParamFilter():
            choices = _choices(connection, study_id, wanted.name)
            return _has(_PARAMS, _PARAMS.c.param_name == wanted.name, _param_condition(wanted, choices))


def _has(table: sa.Table, *which: Column) -> Column:
    """Whether another table has such a row for the trial."""
    query = sa.select(table.c.trial_id).where(table.c.trial_id == _TRIALS.c.trial_id, *which)
    return query.correlate(_TRIALS).exists()


def _param_condition(wanted: ParamFilter, choices: Sequence[Any] | None) -> Column:
    """On a row of a parameter. The choices of a categorical one are stored as their positions."""
    column = _PARAMS.c.param_value
    if choices is not None:
        return column.in_([float(at) for at, choice in enumerate(choices) if wanted.admits(choice)])
    within = column.between(wanted.floor, wanted.ceiling)
    return within & column.in_(_floats(wanted.any_of)) if wanted.any_of else within


def _floats(values: Sequence[Any]) -> list[float]:
    """Those of the values that a parameter's column can hold."""
    found = []
    for value in values:
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:
                continue
            if number == value:
                found.append(number)
    return found


def _choices(connection: Connection, study_id: int, name: str) -> Sequence[Any] | None:
    """The choices of a categorical parameter, of which Optuna admits one list a study; else None."""
    query = (
        sa.select(_PARAMS.c.distribution_json)
        .join(_TRIALS, _TRIALS.c.trial_id == _PARAMS.c.trial_id)
        .where(_TRIALS.c.study_id == study_id, _PARAMS.c.param_name == name)
        .limit(1)
    )
    text = connection.execute(query).scalar()
    known = None if text is None else distribution(text)
    return known.choices if isinstance(known, CategoricalDistribution) else None


# ---------------------------------------------------------------------- orders


@dataclass(frozen=True, kw_only=True)
class _Order:
    """What to order by, the foremost first; NULL where a trial has nothing of the kind, or NaN.

    ``table`` has a row for the trial at most, the one of which ``on`` is true.
    """

    keys: tuple[Column, ...] = ()
    table: sa.Table | None = None
    on: Column | None = None


def _order(connection: Connection, study_id: int, sort: tuple[str, str]) -> _Order:
    kind, name = sort
    sqlite = is_sqlite(connection)
    end, begin = _TRIALS.c.datetime_complete, _TRIALS.c.datetime_start
    match kind:
        case "number":
            return _Order()
        case "state":
            return _Order(keys=(sa.case(*((_TRIALS.c.state == one, one.value) for one in TrialState)),))
        case "duration":
            return _Order(keys=(_microseconds(end) - _microseconds(begin) if sqlite else end - begin,))
        case "started" | "completed":
            return _Order(keys=(begin if kind == "started" else end,))
        case "last_step" | "last_value":
            key = number(_REPORTS.c.intermediate_value, _REPORTS.c.intermediate_value_type)
            column = _REPORTS.c.step if kind == "last_step" else key
            last = sa.select(column).where(_REPORTS.c.trial_id == _TRIALS.c.trial_id)
            last = last.order_by(_REPORTS.c.step.desc()).limit(1).correlate(_TRIALS)
            return _Order(keys=(last.scalar_subquery(),))
        case "value":
            key, which = number(_VALUES.c.value, _VALUES.c.value_type), _VALUES.c.objective == int(name)
            return _Order(keys=(key,), table=_VALUES, on=(_VALUES.c.trial_id == _TRIALS.c.trial_id) & which)
        case "param":
            key, which = _param_key(_choices(connection, study_id, name)), _PARAMS.c.param_name == name
            return _Order(keys=(key,), table=_PARAMS, on=(_PARAMS.c.trial_id == _TRIALS.c.trial_id) & which)
    on = (_ATTRS.c.trial_id == _TRIALS.c.trial_id) & (_ATTRS.c.key == name)
    return _Order(keys=_attr_keys(sqlite), table=_ATTRS, on=on)


def _microseconds(moment: Column) -> Column:
    """A time on SQLite, whose own functions of time stop at milliseconds."""
    seconds = sa.cast(sa.func.strftime("%s", moment), sa.BigInteger)
    text = sa.type_coerce(moment, sa.String)
    return seconds * 1_000_000 + sa.cast(sa.func.substr(text, 21, 6), sa.BigInteger)


def _param_key(choices: Sequence[Any] | None) -> Column:
    """Numbers by value, other choices behind them by their text."""
    column = _PARAMS.c.param_value
    if choices is None:
        return sa.case((column <= math.inf, column))
    ranks = sorted({_rank(choice) for choice in choices if choice == choice})  # NaN is behind all
    place = {rank: at for at, rank in enumerate(ranks)}
    places = {float(at): place[_rank(choice)] for at, choice in enumerate(choices) if choice == choice}
    return sa.case(places, value=column) if places else sa.null()


def _rank(choice: object) -> tuple[bool, float, str]:
    if isinstance(choice, int | float) and not isinstance(choice, bool):
        return False, choice, ""
    return True, 0.0, str(choice)


def _attr_keys(sqlite: bool) -> tuple[Column, ...]:
    """Numbers by value, then everything else by its JSON text; NaN is behind all."""
    text = _ATTRS.c.value_json
    finite: Column = text.op("GLOB")("[-0-9]*") if sqlite else text.regexp_match("^-?[0-9]")
    number = sa.cast(text, sa.Float if sqlite else sa.Numeric)  # an integer may be past PostgreSQL's floats
    open_text: Column = sa.func.substr(text, 1, sa.func.length(text) - 1)  # without the closing quote
    rank = sa.case(
        (text.is_(None) | (text == "NaN"), sa.null()),
        (text == "-Infinity", 0),
        (finite, 1),
        (text == "Infinity", 2),
        else_=3,
    )
    is_number = (rank == 1).self_group()
    return (
        rank,
        sa.case((is_number, number)),
        sa.case((rank == 3, open_text if sqlite else open_text.collate("C"))),
    )
