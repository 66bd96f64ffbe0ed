"""Trials as a table, of which one can be chosen: never another one than was seen."""

from __future__ import annotations

import datetime as dt
import hashlib
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import pandas as pd
import streamlit as st

from dashboard.theme import STATES, duration, number, params_text, said, shortened, value_text
from storage.listing import Listing
from storage.views import TrialRow

__all__ = ["choose"]

_COLUMNS = 12  # of parameters; more go together into one
_ATTRS = 4
_TEXT = 200

_NOTHING: Any = object()  # no value, which is not the value None

Config = Mapping[str, Any]


def choose(name: str, found: Listing) -> int | None:
    """Show the trials; the number of the one whose box was clicked on, or None.

    The browser answers with a position. The element's key is made of the study and the numbers
    shown: when they change, so does the element, and a click on the one before counts for nothing.
    """
    shown = [row.number for row in found.rows]
    frame, config = _frame(found)
    event = st.dataframe(
        frame,
        hide_index=True,
        width="stretch",
        height=min(35 * (len(shown) + 1) + 3, 600),
        column_config=config,
        placeholder="",
        on_select="rerun",
        selection_mode="single-row",  # not of cells: a click on a header, which sorts, would select one
        key=f"trials {hashlib.sha256(repr((name, shown)).encode()).hexdigest()}",
        alt=f"{len(shown)} trials, with state, values, curve, time, attempts and parameters",
    )
    rows = event["selection"]["rows"]
    return shown[rows[0]] if rows and 0 <= rows[0] < len(shown) else None


def _frame(found: Listing) -> tuple[pd.DataFrame, Config]:
    column = st.column_config
    rows = found.rows
    objectives = max((len(row.values) for row in rows), default=1) or 1
    config: dict[str, Any] = {
        "Trial": column.NumberColumn("Trial", width=60, pinned=True, format="%d"),
        "State": column.MultiselectColumn(
            "State",
            options=[said(state) for state in STATES],
            color=[colour for colour, _ in STATES.values()],
            width=100,
        ),
        "curve": column.LineChartColumn(
            "Curve", width=130, help="Its reports by step, each on its own scale."
        ),
        "last": column.TextColumn("Last report", width=120),
        "time": column.TextColumn("Time", width=80),
        "attempts": column.NumberColumn(
            "Attempts", width=75, help="0: not tried yet, or run by another program."
        ),
        "reason": column.TextColumn("Reason", width=130),
    }
    columns: dict[str, list[Any]] = {
        "Trial": [row.number for row in rows],
        "State": [[said(row.state)] for row in rows],
    }
    for at in range(objectives):
        label = "Value" if objectives == 1 else f"Value {at}"
        values = [row.values[at] if at < len(row.values) else None for row in rows]
        columns[f"value {at}"], config[f"value {at}"] = _numbers(label, values)
    curves = [list(found.curves.get(row.number, ())) for row in rows]
    columns["curve"] = [curve if len(curve) > 1 else [] for curve in curves]  # one report is no line
    columns["last"] = [_last(row) for row in rows]
    columns["time"] = [duration(_seconds(row)) for row in rows]
    columns["attempts"] = [row.attempts for row in rows]
    if any(_why(row) for row in rows):
        columns["reason"] = [_why(row) for row in rows]
    _add_params(columns, config, rows)
    attrs = list(dict.fromkeys(key for row in rows for key in found.attrs.get(row.number, ())))
    for key in attrs[:_ATTRS]:
        kept = [found.attrs.get(row.number, {}).get(key, _NOTHING) for row in rows]
        columns[f"attr {key}"], config[f"attr {key}"] = _mixed(shortened(key, 40), kept)
    if any(row.message for row in rows):
        columns["message"] = [shortened(row.message, _TEXT) for row in rows]
        config["message"] = column.TextColumn("Message", width=300)
    return pd.DataFrame(columns), config


def _add_params(columns: dict[str, list[Any]], config: dict[str, Any], rows: Sequence[TrialRow]) -> None:
    names = sorted({name for row in rows for name in row.params})
    for name in names[:_COLUMNS]:
        values = [row.params.get(name, _NOTHING) for row in rows]
        columns[f"param {name}"], config[f"param {name}"] = _mixed(shortened(name, 40), values)
    rest = set(names[_COLUMNS:])
    if rest:
        columns["params"] = [
            shortened(params_text({name: row.params[name] for name in row.params if name in rest}), _TEXT)
            for row in rows
        ]
        config["params"] = st.column_config.TextColumn("Further parameters", width=300)


def _mixed(label: str, values: Sequence[Any]) -> tuple[list[Any], Any]:
    """Numbers where all are, so that the column sorts as such, else text."""
    if all(value is _NOTHING or _is_number(value) for value in values):
        return _numbers(label, [None if value is _NOTHING else value for value in values])
    texts = ["" if value is _NOTHING else shortened(value_text(value), _TEXT) for value in values]
    return texts, st.column_config.TextColumn(label)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numbers(label: str, values: Sequence[Any]) -> tuple[list[Any], Any]:
    """A column of numbers; of text where one is no number that a browser knows."""
    if all(value is None or (math.isfinite(value) and abs(value) < 2**53) for value in values):
        floats = [None if value is None else float(value) for value in values]
        known = [value for value in floats if value is not None]
        small = any("e-" in number(value) for value in known)  # of which the browser would write zeros
        texts = [f"{value:.4e}" if small else f"{Decimal(number(value)):f}" for value in known]
        form = "%.4e" if small else "%.5g"
        return floats, st.column_config.NumberColumn(label, format=form, width=_width(label, texts))
    texts = ["" if value is None else number(value) for value in values]
    return texts, st.column_config.TextColumn(label, alignment="right")


def _width(label: str, texts: Sequence[str]) -> int:
    """Pixels that show each number whole: the table measures only the first, and cuts digits in front."""
    longest = max(map(len, texts), default=0)
    return min(320, max(75, 24 + 8 * longest, 22 + 7 * len(label)))


def _last(row: TrialRow) -> str:
    return "" if row.last_step is None else f"{number(row.last_value)} at {row.last_step}"


def _seconds(row: TrialRow) -> float | None:
    if row.duration is not None or row.started_at is None or row.state != "RUNNING":
        return row.duration
    return max(0.0, (dt.datetime.now(dt.UTC).replace(tzinfo=None) - row.started_at).total_seconds())


def _why(row: TrialRow) -> str:
    """What the state does not say: why it failed, or that it waits for its next attempt."""
    if row.live and (row.reason or row.live != row.state.lower()):
        return f"{row.live}, after {row.reason}" if row.reason else row.live
    return "" if row.reason == row.state.lower() else row.reason
