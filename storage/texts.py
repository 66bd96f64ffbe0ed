"""A study as text: CSV with a row a trial, or JSON with everything. In parts, trial by trial.

JSON is strict: infinities and NaN are the text ``"inf"``, ``"-inf"`` and ``"nan"``. In CSV a text
that a spreadsheet would run as a formula gets an apostrophe before it. Times are UTC.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from optuna.distributions import distribution_to_json

from storage.exports import ExportedStudy, ExportedTrial

__all__ = ["csv_head", "csv_parts", "csv_row", "dumped", "json_head", "json_tail", "json_trial"]

_FIXED = ("number", "state", "start", "complete", "seconds", "attempts", "reason")


def csv_parts(study: ExportedStudy, trials: Iterable[ExportedTrial]) -> Iterator[str]:
    """The lines of the file."""
    yield csv_head(study)
    for trial in trials:
        yield csv_row(study, trial)


def csv_head(study: ExportedStudy) -> str:
    """The line of the columns' names."""
    count = len(study.directions)
    values = [f"value_{k}" if count > 1 else "value" for k in range(count)]
    params = (f"params_{name}" for name in study.space)
    return _line([*_FIXED, *values, *params, *(f"user_attrs_{name}" for name in study.attr_names)])


def csv_row(study: ExportedStudy, trial: ExportedTrial) -> str:
    """The line of a trial."""
    count = len(study.directions)
    cells = [trial.number, trial.state, _time(trial.started_at), _time(trial.completed_at), trial.seconds]
    cells += [trial.attempts, trial.reason, *[*trial.values, *([None] * count)][:count]]
    cells += [trial.params.get(name) for name in study.space]
    cells += [_attr_cell(trial.user_attrs.get(name)) for name in study.attr_names]
    return _line(cells)


def json_head(study: ExportedStudy) -> str:
    """The file up to its first trial."""
    shown = {
        "name": study.name,
        "directions": study.directions,
        "seed": study.seed,
        "sampler": study.sampler,
        "pruner": study.pruner,
        "user_attrs": study.user_attrs,
    }
    return f'{{"study": {dumped(shown)},\n"trials": ['


def json_trial(trial: ExportedTrial, first: bool) -> str:
    """A trial, with what parts it from the one before it."""
    shown = {
        "number": trial.number,
        "state": trial.state,
        "values": trial.values or None,
        "params": trial.params,
        "distributions": {
            name: json.loads(distribution_to_json(one)) for name, one in trial.distributions.items()
        },
        "reports": trial.reports,
        "metrics": trial.metrics,
        "user_attrs": trial.user_attrs,
        "constraints": trial.constraints,
        "start": _time(trial.started_at),
        "complete": _time(trial.completed_at),
        "seconds": trial.seconds,
        "attempts": trial.attempts,
        "reason": trial.reason or None,
    }
    return ("\n" if first else ",\n") + dumped(shown)


def json_tail() -> str:
    """The file after its last trial."""
    return "\n]}\n"


def dumped(value: Any) -> str:
    """A value as strict JSON, in one line."""
    return json.dumps(_strict(value), ensure_ascii=False, allow_nan=False)


def _time(stored: dt.datetime | None) -> str | None:
    return None if stored is None else stored.replace(tzinfo=dt.UTC).isoformat()


def _attr_cell(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float) else dumped(value)


def _line(cells: Sequence[Any]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerow([_guarded(cell) for cell in cells])
    return file.getvalue()


def _guarded(cell: Any) -> Any:
    if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{cell}"
    return "" if cell is None else cell


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _strict(inner) for key, inner in value.items()}
    return [_strict(inner) for inner in value] if isinstance(value, list | tuple) else value
