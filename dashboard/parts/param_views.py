"""The views of the page Analyse that show parameters: slices, parallel coordinates, contour."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import streamlit as st

from dashboard import data, links
from dashboard.charts import params as param_charts
from dashboard.parts import objective
from dashboard.rules import analysis
from dashboard.theme import shortened
from storage import columns
from storage.columns import ParamColumn, ValueColumns
from storage.views import StudyDetail

__all__ = ["contour", "parallel", "slices"]

_TRIALS = 2000  # points of a chart
_SLICES = 6000  # points of all slices together: what a browser draws in half a second
_LINES = 500
_PARAMS = 8  # parameters that are shown unless others are chosen


def _chosen_params(params: Mapping[str, ParamColumn], key: str) -> dict[str, ParamColumn]:
    """The parameters to draw: the first ones, unless others are chosen."""
    if len(params) <= 1:
        return dict(params)
    names = st.multiselect(
        "Parameters",
        list(params),
        default=list(params)[:_PARAMS],
        format_func=lambda name: shortened(name, 60),
        max_selections=12,
        key=f"{key} of {links.asked('study')}",
    )
    return {name: params[name] for name in names}


def _params(of: objective.Objective, places: list[int]) -> dict[str, ParamColumn]:
    """The parameters of trials, those that most have first; where there are none it is said."""
    found = data.read(columns.params, of.study, tuple(of.numbers(places)))
    if not found:
        st.info("The trials have no parameters: the objective asked for none.")
    there = {name: sum(value is not None for value in column.values) for name, column in found.items()}
    return dict(sorted(found.items(), key=lambda item: -there[item[0]]))


def slices(study: StudyDetail, found: ValueColumns) -> None:
    of = objective.chosen(study, found)
    if of is None:
        return
    places = analysis.sampled(sorted(of.ranked), _TRIALS, of.ranked[:1])
    params = _chosen_params(_params(of, places), "slice")
    if not params:
        return
    # thinner the more slices there are: what a browser draws in half a second
    few = analysis.sampled(range(len(places)), max(200, _SLICES // len(params)), [places.index(of.ranked[0])])
    drawn = [places[at] for at in few]
    objective.say_shown(len(drawn), of, ", evenly over their numbers, the best among them")
    numbers, values = of.numbers(drawn), of.values_at(drawn)
    across = st.columns(min(3, len(params)))
    for cell, (name, column) in zip(itertools.cycle(across), params.items(), strict=False):
        thin = ParamColumn(
            values=tuple(column.values[at] for at in few), choices=column.choices, log=column.log
        )
        with cell:
            objective.draw(param_charts.slice_chart(name, thin, numbers, values, of.name))
    st.caption("The later the trial, the stronger its colour.")


def parallel(study: StudyDetail, found: ValueColumns) -> None:
    of = objective.chosen(study, found)
    if of is None:
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        top = objective.top("parallel", "Best trials", 200, _LINES, len(of.ranked))
        best = of.ranked[:top]
        params = _chosen_params(_params(of, best), "parallel")
    if not params:
        return
    chart = param_charts.parallel_chart(
        params,
        of.numbers(best),
        of.values_at(best),
        of.name,
        of.direction,
        dark=st.context.theme.type == "dark",
    )
    objective.draw(chart)
    objective.say_shown(top, of, ", the best")
    st.caption("A line ends where a trial does not have the next parameter.")


def contour(study: StudyDetail, found: ValueColumns) -> None:
    of = objective.chosen(study, found)
    if of is None:
        return
    places = analysis.sampled(sorted(of.ranked), _TRIALS // 2, of.ranked[:1])
    params = {name: column for name, column in _params(of, places).items() if _varies(column)}
    if len(params) < 2:
        st.info("A contour needs two parameters that vary. The slices show one alone.")
        return
    left, right = st.columns(2)
    names = list(params)
    chosen = []
    for at, (cell, key, label) in enumerate(((left, "x", "Across"), (right, "y", "Along"))):
        options = [name for name in names if name not in chosen]
        asked = links.asked(key)
        index = options.index(asked) if asked in options else 0
        chosen.append(cell.selectbox(label, options, index, format_func=lambda name: shortened(name, 60)))
        links.update({key: chosen[at] if chosen[at] != options[0] else None})
    across, along = ((name, params[name]) for name in chosen)
    both = [a is not None and b is not None for a, b in zip(across[1].values, along[1].values, strict=True)]
    if sum(both) < 3:
        st.info("Fewer than three trials have both parameters: choose two others.")
        return
    numbers, values = of.numbers(places), of.values_at(places)
    chart = param_charts.contour_chart(across, along, numbers, values, of.name, of.direction)
    objective.draw(chart)
    st.caption(
        f"{sum(both):,} trials that have both. Between them the colour is interpolated (inverse distance): "
        "far from any it is a guess."
    )


def _varies(column: ParamColumn) -> bool:
    return len({value for value in column.values if value is not None}) > 1
