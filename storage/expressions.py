"""SQL expressions that several reads share, each the quick one on its database."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

__all__ = ["Column", "among", "is_sqlite", "number"]

Column = sa.ColumnElement[Any]


def is_sqlite(connection: Connection) -> bool:
    return connection.dialect.name == "sqlite"


def among(connection: Connection, column: Column, integers: Collection[int]) -> Column:
    """``column IN (...)`` with one parameter, however many integers: SQLAlchemy would write out and
    bind each of them, in every statement anew, which takes longer than the query itself.
    """
    if is_sqlite(connection):
        each = sa.func.json_each(json.dumps(list(integers))).table_valued("value")
        return column.in_(sa.select(each.c.value))
    # of the column's own type: PostgreSQL hashes no array of another one
    return column == sa.any_(sa.bindparam(None, list(integers), sa.ARRAY(column.type)))


def number(value: Column, kind: Column) -> Column:
    """A stored float as a number that SQL compares: infinities as such, NaN as NULL.

    PostgreSQL holds NaN to be larger than every number, which the comparison answers.
    """
    return sa.case(
        (kind == "INF_POS", sa.literal(math.inf)),
        (kind == "INF_NEG", sa.literal(-math.inf)),
        (value <= math.inf, value),
    )
