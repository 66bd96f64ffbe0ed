"""Parquet: a row a trial with everything, for pandas, Polars, DuckDB and Spark.

Numbers are numbers: a parameter's column has the type of its distribution; a categorical one whose
choices are of several types is text. ``reports`` and ``metrics`` are lists of points, infinities and
NaN as such; attributes are JSON text. Times are UTC.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from pyarrow.parquet import ParquetWriter

from storage.exports import ExportedStudy, ExportedTrial
from storage.texts import dumped
from tuner.errors import BadInput
from tuner.exporters.base import Exporter
from tuner.exporters.files import NewFile

__all__ = ["Parquet"]

ROWS = 100  # trials in a group of rows, and in memory

_TIME = pa.timestamp("us", tz="UTC")
_POINT = [("step", pa.int64()), ("value", pa.float64())]
_LARGEST = 2**63


class Parquet(Exporter):
    """One file; the output is its path."""

    takes = "end"

    def __init__(self, output: str | None) -> None:
        if output is None:
            raise BadInput("parquet needs a file: --output FILE.parquet, or --export parquet=FILE.parquet")
        super().__init__(output)
        self._new = NewFile(output)
        self._file: Any = None
        self._writer: ParquetWriter | None = None
        self._rows: list[dict[str, Any]] = []

    def begin(self, study: ExportedStudy) -> None:
        self._study = study
        self._schema = _schema(study)
        self._file = self._new.open()
        self._writer = ParquetWriter(self._file, self._schema)

    def trial(self, trial: ExportedTrial) -> None:
        self._rows.append(_row(self._study, self._schema, trial))
        if len(self._rows) >= ROWS:
            self._write()

    def end(self, study: ExportedStudy) -> None:
        assert self._writer is not None
        self._write()
        self._writer.close()
        self._new.finish(self._file)

    def close(self) -> None:
        if self._file is not None:
            try:
                if self._writer is not None and not self._file.closed:
                    self._writer.close()
                self._file.close()
            finally:
                self._new.discard()

    def _write(self) -> None:
        assert self._writer is not None
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []


def _schema(study: ExportedStudy) -> pa.Schema:
    count = len(study.directions)
    values = [f"value_{k}" if count > 1 else "value" for k in range(count)]
    fields = [
        ("number", pa.int64()),
        ("state", pa.string()),
        ("start", _TIME),
        ("complete", _TIME),
        ("seconds", pa.float64()),
        ("attempts", pa.int64()),
        ("reason", pa.string()),
        *((name, pa.float64()) for name in values),
        *((f"params_{name}", _type(drawn)) for name, drawn in study.space.items()),
        *((f"user_attrs_{name}", pa.string()) for name in study.attr_names),
        ("constraints", pa.list_(pa.struct([("name", pa.string()), ("value", pa.float64())]))),
        ("reports", pa.list_(pa.struct(_POINT))),
        ("metrics", pa.list_(pa.struct([("name", pa.string()), *_POINT]))),
    ]
    about = {"study": study.name, "directions": list(study.directions), "sampler": study.sampler}
    return pa.schema(fields, metadata={"tuner": dumped(about)})


def _type(drawn: Sequence[BaseDistribution]) -> pa.DataType:
    """The type that holds every value that a parameter can have; text where there is no better one."""
    kinds: set[pa.DataType] = set()
    for one in drawn:
        if isinstance(one, CategoricalDistribution):
            kinds |= {_type_of(choice) for choice in one.choices if choice is not None}
        elif isinstance(one, IntDistribution):
            kinds |= {_type_of(one.low), _type_of(one.high)}
        else:
            kinds.add(pa.float64())
    if len(kinds) == 1:
        return kinds.pop()
    return pa.float64() if kinds == {pa.int64(), pa.float64()} else pa.string()


def _type_of(value: Any) -> pa.DataType:
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        return pa.int64() if -_LARGEST <= value < _LARGEST else pa.string()
    return pa.float64() if isinstance(value, float) else pa.string()


def _row(study: ExportedStudy, schema: pa.Schema, trial: ExportedTrial) -> dict[str, Any]:
    count = len(study.directions)
    row: dict[str, Any] = {
        "number": trial.number,
        "state": trial.state,
        "start": _moment(trial.started_at),
        "complete": _moment(trial.completed_at),
        "seconds": trial.seconds,
        "attempts": trial.attempts,
        "reason": trial.reason or None,
        "constraints": [{"name": name, "value": value} for name, value in trial.constraints.items()],
        "reports": [{"step": step, "value": value} for step, value in trial.reports],
        "metrics": [
            {"name": name, "step": step, "value": value}
            for name, points in trial.metrics.items()
            for step, value in points
        ],
    }
    for k, value in enumerate(trial.values):
        row[f"value_{k}" if count > 1 else "value"] = value
    for name, value in trial.params.items():
        row[f"params_{name}"] = _cell(value, schema, f"params_{name}")
    for name, value in trial.user_attrs.items():
        row[f"user_attrs_{name}"] = dumped(value)
    return row


def _cell(value: Any, schema: pa.Schema, column: str) -> Any:
    """A parameter as its column takes it; one that came while we export has no column, and is left out."""
    if value is None or column not in schema.names:
        return None
    kind = schema.field(column).type
    return str(value) if kind == pa.string() else float(value) if kind == pa.float64() else value


def _moment(stored: dt.datetime | None) -> dt.datetime | None:
    return None if stored is None else stored.replace(tzinfo=dt.UTC)
