"""A page of trials as a person looks at it: with their curves, and a mark to tell later what changed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from storage import selects
from storage.changes import Cursor, look
from storage.curves import curves_of
from storage.expressions import among
from storage.filters import Filter
from storage.pages import page_ids
from storage.tables import optuna_tables
from storage.views import CurvePoint, TrialRow

__all__ = ["POINTS", "Listing", "listing", "thinned"]

POINTS = 40
"""Values of a curve at most: a sparkline is not wider."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A page of trials as of one moment.

    Attributes:
        total: how many trials match, on all pages.
        page, pages: which page this is, from 1, and how many there are.
        curves: finite reports by number, at most :data:`POINTS` of each.
        attrs: user attributes by number.
        cursor: for :func:`storage.reads.changes`; None where there is no such study.
    """

    rows: tuple[TrialRow, ...] = ()
    total: int = 0
    page: int = 1
    pages: int = 1
    curves: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    attrs: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    cursor: Cursor | None = None


def listing(
    engine: Engine,
    name: str,
    *,
    page: int = 1,
    size: int = 50,
    states: Sequence[str] = (),
    where: Sequence[Filter] = (),
    sort: str = "number",
    descending: bool = True,
) -> Listing:
    """One page of a study's trials, the last one for a page beyond it; empty for an unknown study.

    Args: as of :func:`storage.reads.trials`.

    Raises:
        Refused: there is no such order.
    """
    with selects.view(engine) as connection:
        study_id, uid = selects.study_ids(connection, name)
        if study_id is None:
            return Listing()

        def ids_of(asked: int) -> tuple[list[int], int]:
            return page_ids(
                connection,
                study_id,
                states=states,
                where=where,
                sort=sort,
                descending=descending,
                page=asked,
                size=size,
            )

        page = max(1, page)
        ids, total = ids_of(page)
        pages = max(1, math.ceil(total / size))
        if page > pages:
            page = pages
            ids, total = ids_of(page)
        curves = curves_of(connection, ids)
        rows = selects.trial_rows(connection, uid, ids)
        return Listing(
            rows=tuple(rows),
            total=total,
            page=page,
            pages=pages,
            curves={row.number: _values(curves[row.trial_id]) for row in rows},
            attrs=_attrs(connection, {row.trial_id: row.number for row in rows}),
            cursor=look(connection, name, None, 0).cursor,
        )


def _attrs(connection: Connection, numbers: Mapping[int, int]) -> dict[int, dict[str, Any]]:
    table = optuna_tables["trial_user_attributes"]
    query = sa.select(table.c.trial_id, table.c.key, table.c.value_json)
    query = query.where(among(connection, table.c.trial_id, numbers))
    found: dict[int, dict[str, Any]] = {number: {} for number in numbers.values()}
    for trial_id, key, text in connection.execute(query.order_by(table.c.trial_user_attribute_id)):
        found[numbers[trial_id]][key] = json.loads(text)
    return found


def thinned(curve: Sequence[CurvePoint], most: int) -> list[CurvePoint]:
    """At most so many of the points, evenly over the curve; first and last stay.

    Example:
        >>> thinned([(step, 0.0) for step in range(100)], 3)
        [(0, 0.0), (50, 0.0), (99, 0.0)]
    """
    if len(curve) <= most:
        return list(curve)
    return [curve[round(at * (len(curve) - 1) / (most - 1))] for at in range(most)]


def _values(curve: Sequence[CurvePoint]) -> tuple[float, ...]:
    finite = [point for point in curve if math.isfinite(point[1])]
    return tuple(value for _, value in thinned(finite, POINTS))
