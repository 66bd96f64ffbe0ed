"""A study as a file for other programs: CSV with a row a trial, or JSON with everything.

Trials go through in portions, so that a study of any size needs no memory. JSON is strict:
infinities and NaN are the text ``"inf"``, ``"-inf"`` and ``"nan"``. In CSV a text that a
spreadsheet would run as a formula gets an apostrophe before it.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial
from sqlalchemy.engine import Connection

from storage import tables
from storage.clock import to_utc
from storage.database import Database
from storage.errors import UnknownStudy
from storage.filters import Filter
from storage.pages import all_ids
from storage.rows import CHUNK, read_trials
from storage.studies import StudyRecord, find
from storage.tables import optuna_tables

__all__ = ["FORMATS", "export"]

FORMATS = ("csv", "json")

_FIXED = ("number", "state", "start", "complete", "seconds", "attempts", "reason")


def export(
    database: Database,
    name: str,
    form: str,
    *,
    states: Sequence[str] = (),
    where: Sequence[Filter] = (),
    sort: str = "number",
    descending: bool = False,
) -> Iterator[str]:
    """The parts of the file's text, in order.

    Args:
        form: one of :data:`FORMATS`.
        states, where, sort, descending: which trials, and in what order, as for
            :func:`storage.reads.trials`.

    Raises:
        UnknownStudy: there is no study of that name.
        Refused: there is no such order.
    """
    record = find(database, name)
    if record is None:
        raise UnknownStudy(f"there is no study {name!r} in {database}")
    with database.errors(), database.read() as connection:
        ids = all_ids(
            connection, record.study_id, states=states, where=where, sort=sort, descending=descending
        )
        yield from (_csv if form == "csv" else _json)(connection, record, ids)


def _csv(connection: Connection, record: StudyRecord, ids: Sequence[int]) -> Iterator[str]:
    values = [f"value_{k}" if len(record.directions) > 1 else "value" for k in range(len(record.directions))]
    params = _names(connection, record, "trial_params", "param_name")
    attrs = _names(connection, record, "trial_user_attributes", "key")
    heads = [*_FIXED, *values, *(f"params_{one}" for one in params), *(f"user_attrs_{one}" for one in attrs)]
    yield _line(heads)
    for trial, (attempts, reason) in _trials(connection, record, ids, reports=False):
        times = (_time(trial.datetime_start), _time(trial.datetime_complete), _seconds(trial))
        numbers = [*(trial.values or ()), *([None] * len(values))][: len(values)]
        cells = [trial.number, trial.state.name, *times, attempts, reason, *numbers]
        cells += [trial.params.get(one) for one in params]
        cells += [_attr_cell(trial.user_attrs.get(one)) for one in attrs]
        yield _line(cells)


def _json(connection: Connection, record: StudyRecord, ids: Sequence[int]) -> Iterator[str]:
    study = {
        "name": record.name,
        "directions": record.directions,
        "seed": record.seed,
        "sampler": record.sampler,
        "pruner": record.pruner,
        "user_attrs": _user_attrs(connection, record),
    }
    yield f'{{"study": {_dumped(study)},\n"trials": ['
    between = "\n"
    for trial, (attempts, reason) in _trials(connection, record, ids, reports=True):
        shown = {
            "number": trial.number,
            "state": trial.state.name,
            "values": trial.values,
            "params": trial.params,
            "distributions": {
                name: json.loads(distribution_to_json(one)) for name, one in trial.distributions.items()
            },
            "reports": sorted(trial.intermediate_values.items()),
            "user_attrs": trial.user_attrs,
            "constraints": {
                key.removeprefix("constraints:"): value
                for key, value in trial.system_attrs.items()
                if key.startswith("constraints:")
            },
            "start": _time(trial.datetime_start),
            "complete": _time(trial.datetime_complete),
            "seconds": _seconds(trial),
            "attempts": attempts,
            "reason": reason,
        }
        yield between + _dumped(shown)
        between = ",\n"
    yield "\n]}\n"


def _trials(
    connection: Connection, record: StudyRecord, ids: Sequence[int], *, reports: bool
) -> Iterator[tuple[FrozenTrial, tuple[int, str | None]]]:
    """Each trial, in the order of the ids, with the number of its attempts and the reason of the last."""
    for start in range(0, len(ids), CHUNK):
        chosen = ids[start : start + CHUNK]
        ended = _endings(connection, record, chosen)
        read = read_trials(connection, record.study_id, chosen, reports=reports)
        found = {trial._trial_id: trial for trial in read}
        for trial_id in chosen:
            if trial_id in found:
                yield found[trial_id], ended.get(trial_id, (0, None))


def _endings(
    connection: Connection, record: StudyRecord, ids: Sequence[int]
) -> dict[int, tuple[int, str | None]]:
    if not record.uid:
        return {}
    table = tables.attempts
    query = sa.select(table.c.trial_id, table.c.attempt, table.c.reason).order_by(table.c.attempt)
    mine = (table.c.study_uid == record.uid) & table.c.trial_id.in_(ids)
    return {row.trial_id: (row.attempt, row.reason) for row in connection.execute(query.where(mine))}


def _names(connection: Connection, record: StudyRecord, table: str, column: str) -> list[str]:
    """Every name that a trial of the study has, sorted."""
    names, trials = optuna_tables[table], optuna_tables["trials"]
    query = sa.select(names.c[column]).distinct().join(trials, trials.c.trial_id == names.c.trial_id)
    found = connection.execute(query.where(trials.c.study_id == record.study_id)).scalars()
    return sorted(found)


def _user_attrs(connection: Connection, record: StudyRecord) -> Mapping[str, Any]:
    table = optuna_tables["study_user_attributes"]
    query = sa.select(table.c.key, table.c.value_json).where(table.c.study_id == record.study_id)
    return {row.key: json.loads(row.value_json) for row in connection.execute(query)}


def _time(local: dt.datetime | None) -> str | None:
    stored = to_utc(local)
    return None if stored is None else stored.replace(tzinfo=dt.UTC).isoformat()


def _seconds(trial: FrozenTrial) -> float | None:
    return None if trial.duration is None else trial.duration.total_seconds()


def _attr_cell(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float) else _dumped(value)


def _line(cells: Sequence[Any]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerow([_guarded(cell) for cell in cells])
    return file.getvalue()


def _guarded(cell: Any) -> Any:
    if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{cell}"
    return "" if cell is None else cell


def _dumped(value: Any) -> str:
    return json.dumps(_strict(value), ensure_ascii=False, allow_nan=False)


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _strict(inner) for key, inner in value.items()}
    return [_strict(inner) for inner in value] if isinstance(value, list | tuple) else value
