"""Curves, slices and fronts: how values depend on parameters. Only the view that is open reads and draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import streamlit as st

from dashboard import data, links
from dashboard.page import asked_study
from dashboard.parts import param_views, value_views
from storage import columns
from storage.columns import ValueColumns
from storage.views import StudyDetail

__all__ = ["show"]


@dataclass(frozen=True, kw_only=True)
class _View:
    """One view: its label, what it draws, and for how many objectives (None: any)."""

    label: str
    draw: Callable[[StudyDetail, ValueColumns], None]
    several: bool | None = None


_VIEWS: Mapping[str, _View] = {
    "curves": _View(label="Curves", draw=value_views.curves, several=False),
    "pareto": _View(label="Pareto front", draw=value_views.pareto, several=True),
    "slice": _View(label="Slices", draw=param_views.slices),
    "parallel": _View(label="Parallel coordinates", draw=param_views.parallel),
    "contour": _View(label="Contour", draw=param_views.contour),
    "edf": _View(label="Distribution", draw=value_views.edf),
}


def show() -> None:
    """The page."""
    study = asked_study("Analyse", refreshes=False)
    if study is None:
        return
    several = len(study.directions) > 1
    names = [name for name, view in _VIEWS.items() if view.several in (None, several)]
    asked = links.asked("view", names[0])
    key = f"view of {study.name}"
    if key not in st.session_state:
        st.session_state[key] = asked if asked in names else names[0]
    chosen = st.segmented_control(
        "View",
        names,
        key=key,
        required=True,
        format_func=lambda name: _VIEWS[name].label,
        label_visibility="collapsed",
        on_change=lambda: links.update({"top": None}),  # it has another meaning in another view
    )
    if asked in _VIEWS and asked not in names:
        objectives = "several objectives" if several else "one objective"
        st.caption(f"{_VIEWS[asked].label}: not for a study with {objectives}.")
    links.update({"view": chosen if chosen != names[0] else None})
    found = data.read(columns.values, study.name)
    if not found.numbers:
        st.info("No trial is complete yet: there are no values to draw.")
        st.page_link("views/trials.py", label="See the trials", query_params={"study": study.name})
        return
    _VIEWS[chosen or names[0]].draw(study, found)


if __name__ == "__main__":
    show()
