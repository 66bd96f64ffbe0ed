"""Statements of the write path, past SQLAlchemy's work for each row and each statement.

On SQLite a cursor of the driver's own takes a text that is made once; on PostgreSQL many rows are one
``INSERT ... SELECT FROM unnest`` of one array per column, a single round trip for any number of rows.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import enum
import functools
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

__all__ = ["insert", "rows", "update", "updates"]


def update(connection: Connection, statement: sa.Update, fields: Mapping[str, Any]) -> int:
    """Carry out an UPDATE that is made once, with these values for its parameters; the rows it changed."""
    if connection.dialect.name != "sqlite":
        return connection.execute(statement, dict(fields)).rowcount
    return int(_run(connection, statement, fields).rowcount)


def updates(connection: Connection, statement: sa.Update, each: Sequence[Mapping[str, Any]]) -> list[int]:
    """Carry out an UPDATE of at most one row for each of these, which name the same parameters; the rows that
    each has changed.
    """
    if connection.dialect.name == "sqlite" and len(each) > 1:
        text, known = _named(statement)
        cursor = connection.connection.cursor()
        cursor.execute("SAVEPOINT updates")
        with _conflicts(text):
            cursor.executemany(text, [{**known, **_plain_fields(fields)} for fields in each])
        if cursor.rowcount == len(each):
            cursor.execute("RELEASE updates")
            return [1] * len(each)
        cursor.execute("ROLLBACK TO updates")  # one at a time tells which
        cursor.execute("RELEASE updates")
    return [update(connection, statement, fields) for fields in each]


def rows(connection: Connection, statement: sa.Select[Any], fields: Mapping[str, Any]) -> list[Any]:
    """The rows of a SELECT of whole numbers that is made once."""
    if connection.dialect.name != "sqlite":
        return list(connection.execute(statement, dict(fields)).all())
    found: list[Any] = _run(connection, statement, fields).fetchall()
    return found


def _run(connection: Connection, statement: sa.Update | sa.Select[Any], fields: Mapping[str, Any]) -> Any:
    text, known = _named(statement)
    cursor = connection.connection.cursor()
    with _conflicts(text):
        cursor.execute(text, {**known, **_plain_fields(fields)})
    return cursor


@contextlib.contextmanager
def _conflicts(text: str) -> Iterator[None]:
    """A conflict of rows, of the driver's own cursor, as SQLAlchemy has it."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise sa.exc.IntegrityError(text, None, error) from error


@functools.lru_cache(maxsize=256)
def _named(statement: sa.Update | sa.Select[Any]) -> tuple[str, dict[str, Any]]:
    """A statement as SQLite's driver takes it, and those of its parameters that have a value."""
    dialect = sqlite.dialect(paramstyle="named")
    compiled = statement.compile(dialect=dialect)
    known = compiled.construct_params(_check=False)
    return str(compiled), _plain_fields(known)


def _plain_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value if type(value) in _AS_THEY_ARE else _plain(value) for name, value in fields.items()}


_AS_THEY_ARE = {bool, bytes, float, int, str, type(None)}


def _plain(value: Any) -> Any:
    """A value as SQLAlchemy stores it on SQLite."""
    if isinstance(value, dt.datetime):
        return value.isoformat(sep=" ", timespec="microseconds")
    is_named = isinstance(value, enum.Enum) and not isinstance(value, str)
    return value.name if is_named else value


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
        cursor = connection.connection.cursor()
        text = _sqlite(table, columns, key, replace)
        with _conflicts(text):
            cursor.executemany(
                text, [[one if type(one) in _AS_THEY_ARE else _plain(one) for one in row] for row in rows]
            )
        return
    arrays = tuple(list(column) for column in zip(*rows, strict=True))
    connection.exec_driver_sql(_postgresql(table, columns, key, replace), arrays)


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
