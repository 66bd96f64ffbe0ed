"""Small marks of a page's own as HTML and SVG: the bar of states, the sparkline, a time, a table.

Streamlit has none of the first two, and one for each of many rows is cheap this way. Whatever comes
from the database goes through :func:`html.escape`, or through ``escape`` where it is Markdown.
"""

from __future__ import annotations

import base64
import datetime as dt
import html
import math
from collections.abc import Mapping, Sequence

from dashboard.theme import COLOURS, STATES, ago, escape, number, said, shortened, value_text

__all__ = ["moment", "shares", "sparkline", "state_bar", "table", "text"]

_WIDTH, _HEIGHT = 160, 28


def state_bar(states: Mapping[str, int], budget: int | None) -> str:
    """The trials of a study as one bar, coloured by state; empty at its end is what the budget leaves.

    Args:
        states: count of trials by state name.
        budget: finished trials that are wanted, or None: then the bar is full.
    """
    total = max(sum(states.values()), budget or 0)
    if total == 0:
        parts, told = "", "no trials"
    else:
        counted = [(name, states.get(name, 0)) for name in STATES if states.get(name)]
        parts = "".join(
            f'<i style="width:{100 * count / total:.4g}%;background:{STATES[name][0]}"></i>'
            for name, count in counted
        )
        told = ", ".join(f"{count} {said(name)}" for name, count in counted) or "no trials"
    told += f", of {budget} wanted" if budget else ""
    return f'<div class="tuner-bar" role="img" title="{told}" aria-label="{told}">{parts}</div>'


def sparkline(points: Sequence[tuple[float, float]]) -> str:
    """A curve as a small line without axes, the newest point marked; "" without a finite value."""
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    if not finite:
        return ""
    xs, ys = [x for x, _ in finite], [y for _, y in finite]
    across, down = (max(xs) - min(xs)) or 1, (max(ys) - min(ys)) or 1
    if not math.isfinite(down):  # the two ends of the floats
        return ""
    places = [
        (3 + (x - min(xs)) / across * (_WIDTH - 6), _HEIGHT - 3 - (y - min(ys)) / down * (_HEIGHT - 6))
        for x, y in finite
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    told = f"from {number(ys[0])} to {number(ys[-1])} in {len(finite)} points"
    drawn = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}">'
        f'<polyline points="{line}" fill="none" stroke="{COLOURS["blue"]}" stroke-width="1.5"/>'
        f'<circle cx="{places[-1][0]:.1f}" cy="{places[-1][1]:.1f}" r="2.5" fill="{COLOURS["blue"]}"/></svg>'
    )
    # as a picture in the page itself: Streamlit takes SVG elements out
    source = f"data:image/svg+xml;base64,{base64.b64encode(drawn.encode()).decode()}"
    return f'<img class="tuner-spark" src="{source}" width="{_WIDTH}" height="{_HEIGHT}" alt="{told}">'


def moment(when: dt.datetime | None) -> str:
    """A naive UTC time as the time since, the absolute one on hover; HTML."""
    if when is None:
        return "-"
    return f'<span title="{when:%Y-%m-%d %H:%M:%S} UTC">{html.escape(ago(when))}</span>'


def table(rows: Mapping[str, object], heads: tuple[str, str]) -> str:
    """Two columns as a Markdown table; names and values are text, cut at 300 characters."""
    lines = [f"| {heads[0]} | {heads[1]} |", "| :-- | :-- |"]
    for name, value in rows.items():
        left, right = (escape(shortened(text, 300)) for text in (name, value_text(value)))
        lines.append(f"| {left} | {right} |")
    return "\n".join(lines)


def text(plain: str) -> str:
    """Text from the database as HTML that shows it as it is, cut at 300 characters."""
    return html.escape(shortened(plain, 300))


def shares(rows: Sequence[tuple[str, float]]) -> str:
    """Shares of a whole by name as bars with their percentages; HTML."""
    most = max((share for _, share in rows), default=0) or 1
    lines = "".join(
        f"<tr><th>{html.escape(shortened(name, 40))}</th>"
        f'<td><i style="width:{100 * share / most:.4g}%"></i></td><td>{100 * share:.0f} %</td></tr>'
        for name, share in rows
    )
    return f'<table class="tuner-shares">{lines}</table>'
