"""Whole trials from raw column reads, past the object mapping of Optuna and the rows of SQLAlchemy."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.trial import FrozenTrial
from sqlalchemy.engine import Connection

from storage.clock import to_local
from storage.floats import unstored
from storage.tables import optuna_tables

__all__ = ["CHUNK", "distribution", "read_trials"]

CHUNK = 500
"""Ids in one IN list: SQLite's limit of variables is 999 in old versions."""


@functools.lru_cache(maxsize=4096)
def distribution(text: str) -> BaseDistribution:
    """Optuna's distribution of its JSON; shared, so never change one."""
    return json_to_distribution(text)


def read_trials(
    connection: Connection, study_id: int, ids: Sequence[int] | None = None, *, reports: bool = True
) -> list[FrozenTrial]:
    """The trials of a study in order of number; with ``ids`` only those that still exist.

    Args:
        ids: trial ids, or None for all trials of the study.
        reports: False leaves them out, which are most of what there is.
    """
    with _no_collection():
        if ids is None:
            return _read(connection, study_id, None, reports)
        found: list[FrozenTrial] = []
        for start in range(0, len(ids), CHUNK):
            found += _read(connection, study_id, list(ids[start : start + CHUNK]), reports)
        return sorted(found, key=lambda trial: trial.number)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """The collector would walk all that is being built, again and again, and find nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read(
    connection: Connection, study_id: int, ids: list[int] | None, with_reports: bool
) -> list[FrozenTrial]:
    found = _bare_trials(connection, study_id, ids)
    chosen = (
        f"SELECT trial_id FROM trials WHERE study_id = {study_id:d}"  # noqa: S608 - numbers
        if ids is None
        else ", ".join(f"{one:d}" for one in found) or "NULL"
    )

    def rows(table: str, columns: str, order: str) -> Iterable[tuple[Any, ...]]:
        """Plain tuples of the driver, in the transaction that the first query began."""
        cursor = connection.connection.cursor()
        cursor.execute(
            f"SELECT trial_id, {columns} FROM {table} WHERE trial_id IN ({chosen}) ORDER BY {order}"  # noqa: S608
        )
        return cast(Iterable[tuple[Any, ...]], cursor)

    for trial_id, name, value, text in rows(
        "trial_params", "param_name, param_value, distribution_json", "param_id"
    ):
        trial, dist = found[trial_id], distribution(text)
        trial._params[name] = dist.to_external_repr(value)
        trial._distributions[name] = dist
    values: dict[int, list[float]] = {}
    for trial_id, value, kind in rows("trial_values", "value, value_type", "objective"):
        values.setdefault(trial_id, []).append(value if kind == "FINITE" else unstored(value, kind))
    for trial_id, numbers in values.items():
        found[trial_id]._values = numbers
    reports = {trial_id: trial.intermediate_values for trial_id, trial in found.items()}
    columns = "step, intermediate_value, intermediate_value_type"
    if with_reports:
        for trial_id, step, value, kind in rows(
            "trial_intermediate_values", columns, "trial_intermediate_value_id"
        ):
            reports[trial_id][step] = value if kind == "FINITE" else unstored(value, kind)
    for trial_id, key, text in rows("trial_user_attributes", "key, value_json", "trial_user_attribute_id"):
        found[trial_id]._user_attrs[key] = json.loads(text)
    for trial_id, key, text in rows(
        "trial_system_attributes", "key, value_json", "trial_system_attribute_id"
    ):
        found[trial_id]._system_attrs[key] = json.loads(text)
    return list(found.values())


def _bare_trials(connection: Connection, study_id: int, ids: list[int] | None) -> dict[int, FrozenTrial]:
    """The trials' own rows by id, in order of number, with nothing of what hangs on them."""
    trials = optuna_tables["trials"]
    where = trials.c.study_id == study_id
    if ids is not None:
        where = where & trials.c.trial_id.in_(ids)
    columns = [
        trials.c[name] for name in ("trial_id", "number", "state", "datetime_start", "datetime_complete")
    ]
    return {
        trial_id: FrozenTrial(
            number=number,
            state=state,
            value=None,
            datetime_start=to_local(start),
            datetime_complete=to_local(complete),
            params={},
            distributions={},
            user_attrs={},
            system_attrs={},
            intermediate_values={},
            trial_id=trial_id,
        )
        for trial_id, number, state, start, complete in connection.execute(
            sa.select(*columns).where(where).order_by(trials.c.number)
        )
    }
