"""The objective that the views of the page Analyse draw, and what they say around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st

from dashboard import links
from dashboard.charts.axes import Chart
from dashboard.rules import analysis
from dashboard.theme import shortened
from storage.columns import ValueColumns
from storage.views import StudyDetail

__all__ = ["Objective", "chosen", "draw", "say_shown", "top"]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """One objective of the COMPLETE trials: what a view draws.

    Attributes:
        ranked: places in the columns, best first; finite values only.
    """

    study: str
    found: ValueColumns
    name: str
    direction: str
    values: tuple[float, ...]
    ranked: list[int]

    def numbers(self, places: Sequence[int]) -> list[int]:
        return [self.found.numbers[place] for place in places]

    def values_at(self, places: Sequence[int]) -> list[float]:
        return [self.values[place] for place in places]


def chosen(study: StudyDetail, found: ValueColumns) -> Objective | None:
    """The objective that is chosen, where there are several; None, which it says, without finite values."""
    at = 0
    if len(found.names) > 1:
        asked = min(links.asked_number("objective", 0) or 0, len(found.names) - 1)
        at = st.selectbox(
            "Objective",
            range(len(found.names)),
            index=asked,
            format_func=lambda one: f"{shortened(found.names[one], 60)} ({found.directions[one]})",
        )
        links.update({"objective": at or None})
    ranked = analysis.best_first(found.values[at], found.directions[at], found.feasible)
    if not ranked:
        st.info("No value is finite: there is nothing to draw.")
        return None
    return Objective(
        study=study.name,
        found=found,
        name=found.names[at],
        direction=found.directions[at],
        values=found.values[at],
        ranked=ranked,
    )


def say_shown(count: int, of: Objective, which: str = "") -> None:
    """How many of how many trials a chart shows, and which."""
    infinite = len(of.values) - len(of.ranked)
    said = f"{count:,} of {len(of.ranked):,} trials shown{which}" if count < len(of.ranked) else ""
    said = said or f"{count:,} complete {'trial' if count == 1 else 'trials'}"
    st.caption(f"{said}; {infinite:,} without a finite value." if infinite else f"{said}.")


def top(view: str, label: str, default: int, most: int, there: int) -> int:
    """How many of the best, as the address asks for, at most as many as there are."""
    most = min(most, there)
    asked = min(max(1, links.asked_number("top", default) or default), most)
    if most == 1:
        return 1
    chosen = int(
        st.number_input(label, 1, most, asked, key=f"top of {view} of {links.asked('study')}", width=160)
    )
    links.update({"top": chosen if chosen != min(default, most) else None})
    return chosen


def draw(chart: Chart) -> None:
    """A chart over the whole width; its description is its name for who cannot see it."""
    st.altair_chart(chart, width="stretch")
