"""Many rows into one table in one statement, past SQLAlchemy's per-row work.

On SQLite the driver's ``executemany``; on PostgreSQL ``INSERT ... SELECT FROM unnest`` of one
array per column, a single round trip for any number of rows.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection

__all__ = ["insert"]


def insert(
    connection: Connection,
    table: sa.Table,
    columns: tuple[str, ...],
    rows: Sequence[tuple[Any, ...]],
    *,
    key: tuple[str, ...] = (),
    replace: tuple[str, ...] = (),
) -> None:
    """Insert rows; enum values are given by name, times as naive UTC.

    Args:
        rows: values in the order of ``columns``.
        key: columns of a unique constraint; a row that is there already stays as it is.
        replace: columns that a row which is there already takes from the new one; then ``rows``
            hold no key twice.
    """
    if not rows:
        return
    if connection.dialect.name == "sqlite":
        times = [at for at, name in enumerate(columns) if isinstance(table.c[name].type, sa.DateTime)]
        given = [_with_text(row, times) for row in rows] if times else list(rows)
        connection.exec_driver_sql(_sqlite(table, columns, key, replace), given)
        return
    arrays = tuple(list(column) for column in zip(*rows, strict=True))
    connection.exec_driver_sql(_postgresql(table, columns, key, replace), arrays)


def _with_text(row: tuple[Any, ...], times: Sequence[int]) -> tuple[Any, ...]:
    """The row with its times as SQLAlchemy stores them on SQLite."""
    changed = list(row)
    for at in times:
        moment = changed[at]
        if isinstance(moment, dt.datetime):
            changed[at] = moment.isoformat(sep=" ", timespec="microseconds")
    return tuple(changed)


def _on_conflict(key: tuple[str, ...], replace: tuple[str, ...]) -> str:
    if not key:
        return ""
    updates = ", ".join(f"{name} = excluded.{name}" for name in replace)
    return f" ON CONFLICT ({', '.join(key)}) DO " + (f"UPDATE SET {updates}" if replace else "NOTHING")


@functools.cache
def _sqlite(table: sa.Table, columns: tuple[str, ...], key: tuple[str, ...], replace: tuple[str, ...]) -> str:
    names, marks = ", ".join(columns), ", ".join("?" * len(columns))
    return f"INSERT INTO {table.name} ({names}) VALUES ({marks})" + _on_conflict(key, replace)  # noqa: S608 - names of tables and columns


@functools.cache
def _postgresql(
    table: sa.Table, columns: tuple[str, ...], key: tuple[str, ...], replace: tuple[str, ...]
) -> str:
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    kinds = [table.c[name].type.compile(dialect) for name in columns]
    names, arrays = ", ".join(columns), ", ".join(f"%s::{kind}[]" for kind in kinds)
    return f"INSERT INTO {table.name} ({names}) SELECT * FROM unnest({arrays})" + _on_conflict(key, replace)  # noqa: S608 - names of tables and columns
