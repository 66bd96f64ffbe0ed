"""Big studies, written with raw statements into Optuna's tables: a million reports in seconds."""

from __future__ import annotations

import datetime as dt
import sqlite3
from collections.abc import Iterable, Iterator, Sequence

import psycopg
from optuna.distributions import distribution_to_json

from tests.benchmarks.sides import create
from tests.benchmarks.works import SPACE

__all__ = ["fill", "report"]

Row = Sequence[object]
Tables = Iterator[tuple[str, str, Iterable[Row]]]


def fill(url: str, *, trials: int, reports: int) -> None:
    """A study of finished trials with 4 parameters, in a database without any rows.

    Ids are left to the database, which counts them from 1 there.
    """
    create(url)
    if url.startswith("sqlite"):
        _fill_sqlite(url.removeprefix("sqlite:///"), _tables(trials, reports))
    else:
        _fill_postgres(url.replace("+psycopg", ""), _tables(trials, reports))


def report(number: int, step: int) -> float:
    """What trial ``number`` reported at a step."""
    return (number * 31 + step * 17) % 1000 / 1000


def _fill_sqlite(path: str, tables: Tables) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA synchronous=OFF")  # of this connection only
    with connection:
        for table, columns, rows in tables:
            marks = ", ".join("?" for _ in columns.split(","))
            connection.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", rows)
    connection.close()


def _fill_postgres(url: str, tables: Tables) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        with connection.transaction(), connection.cursor() as cursor:
            for table, columns, rows in tables:
                with cursor.copy(f"COPY {table} ({columns}) FROM STDIN".encode()) as copy:
                    for row in rows:
                        copy.write_row(row)
        connection.execute("ANALYZE")  # as autovacuum would have done by the time anyone looks


def _tables(trials: int, reports: int) -> Tables:
    """Table, columns, rows: every 20th trial was pruned, every 50th failed."""
    states = [
        "FAIL" if number % 50 == 49 else "PRUNED" if number % 20 == 19 else "COMPLETE"
        for number in range(trials)
    ]
    first = dt.datetime(2025, 1, 1)
    times = [str(first + dt.timedelta(seconds=number, microseconds=1)) for number in range(trials + 60)]
    yield (
        "trials",
        "number, study_id, state, datetime_start, datetime_complete",
        ((number, 1, state, times[number], times[number + 60]) for number, state in enumerate(states)),
    )
    yield (
        "trial_values",
        "trial_id, objective, value, value_type",
        (
            (number + 1, 0, report(number, reports - 1), "FINITE")
            for number, state in enumerate(states)
            if state != "FAIL"
        ),
    )
    texts = {name: distribution_to_json(distribution) for name, distribution in SPACE.items()}
    yield (
        "trial_params",
        "trial_id, param_name, param_value, distribution_json",
        (
            (number + 1, name, value, texts[name])
            for number in range(trials)
            for name, value in zip(
                SPACE,
                (10 ** -(1 + number % 401 / 100), number % 101 / 100, 8 + number % 505, number % 4),
                strict=True,
            )
        ),
    )
    yield (
        "trial_intermediate_values",
        "trial_id, step, intermediate_value, intermediate_value_type",
        (
            (number + 1, step, report(number, step), "FINITE")
            for number in range(trials)
            for step in range(reports)
        ),
    )
