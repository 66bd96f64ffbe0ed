"""The views of the page Analyse that show values: curves, Pareto front, distribution."""

from __future__ import annotations

import itertools
import math

import pandas as pd
import streamlit as st

from dashboard import data, links
from dashboard.charts import values as value_charts
from dashboard.parts import objective
from dashboard.rules import analysis
from dashboard.theme import COLOURS, shortened
from storage import reads
from storage.columns import ValueColumns
from storage.views import StudyDetail

__all__ = ["curves", "edf", "pareto"]

_TRIALS = 2000  # points of a chart
_STEPS = 500  # of a distribution function
_CURVES = 50
_POINTS = 200  # of a curve
_OTHERS = 100  # curves behind the median and the quartiles
_PAIRS = 6


def curves(study: StudyDetail, found: ValueColumns) -> None:
    of = objective.chosen(study, found)
    if of is None:
        return
    top = objective.top("curves", "Best trials", 10, _CURVES, len(of.ranked))
    best = of.ranked[:top]
    others = analysis.sampled(sorted(of.ranked[top:]), _OTHERS)
    numbers = of.numbers([*best, *others])
    reported = data.read(reads.curves, of.study, tuple(numbers))
    best_curves = {number: analysis.thinned(reported.get(number, []), _POINTS) for number in numbers[:top]}
    if not any(best_curves.values()):
        st.info(
            "The best trials reported nothing. `trial.report(value, step)` in the objective makes curves."
        )
        return
    rest = analysis.quartiles([reported.get(number, []) for number in numbers[top:]])
    values = dict(zip(of.numbers(best), of.values_at(best), strict=True))
    objective.draw(value_charts.curves_chart(best_curves, values, analysis.thinned(rest, _POINTS), of.name))
    said = f"The reports of the best {top:,} of {len(of.ranked):,} complete trials, the best one bold."
    if rest:
        whole = len(of.ranked) - top
        sample = (
            f"{len(others):,} of the {whole:,} others" if len(others) < whole else f"the {whole:,} others"
        )
        said += f" Grey: median and quartiles of {sample}."
    st.caption(said)


def pareto(study: StudyDetail, found: ValueColumns) -> None:
    feasible = [place for place, kept in enumerate(found.feasible) if kept]
    of_feasible = [[column[place] for place in feasible] for column in found.values]
    front = [feasible[at] for at in analysis.pareto_front(of_feasible, found.directions)]
    on_front = set(front)
    finite = [
        place
        for place in range(len(found.numbers))
        if all(math.isfinite(column[place]) for column in found.values)
    ]
    drawn = analysis.sampled(finite, _TRIALS, analysis.sampled(sorted(on_front & set(finite)), _TRIALS))
    drawn.sort(key=lambda place: place in on_front)  # the front is drawn last, on top

    def kind(place: int) -> str:
        return "front" if place in on_front else "dominated" if found.feasible[place] else "infeasible"

    pairs = list(itertools.combinations(range(len(found.names)), 2))
    across = st.columns(min(len(pairs), 2))
    for cell, (x, y) in zip(itertools.cycle(across), pairs[:_PAIRS], strict=False):
        rows = [
            (found.numbers[place], found.values[x][place], found.values[y][place], kind(place))
            for place in drawn
        ]
        names = [f"{shortened(found.names[at], 30)} ({found.directions[at]})" for at in (x, y)]
        with cell:
            chart = value_charts.pareto_chart((names[0], names[1]), rows, connected=len(pairs) == 1)
            objective.draw(chart)
    said = f"{len(front):,} of {len(found.numbers):,} complete trials are on the front"
    if found.constrained:
        said += f", {len(found.numbers) - len(feasible):,} break a constraint"
    if len(drawn) < len(found.numbers):
        said += f"; {len(drawn):,} of {len(found.numbers):,} trials shown, all of the front among them"
    if len(pairs) > _PAIRS:
        said += f"; {_PAIRS} of {len(pairs)} pairs of objectives shown"
    st.caption(f"{said}.")
    if not front:
        st.info("No trial keeps all constraints: there is no front yet.")
        return
    _table(study.name, found, front)


def _table(study_name: str, found: ValueColumns, front: list[int]) -> None:
    st.markdown("**On the front**")
    front = sorted(front, key=lambda place: found.values[0][place])[:200]
    frame = pd.DataFrame({"trial": [links.to_trial(study_name, found.numbers[place]) for place in front]})
    for at, name in enumerate(analysis.apart([shortened(name, 40) for name in found.names])):
        frame[name] = [f"{found.values[at][place]:.5g}" for place in front]
    columns = {"trial": links.TRIAL_COLUMN}
    height = min(36 * (len(front) + 1), 320)
    st.dataframe(frame, hide_index=True, width="stretch", height=height, column_config=columns)


def edf(study: StudyDetail, found: ValueColumns) -> None:
    of = objective.chosen(study, found)
    if of is None:
        return
    steps = analysis.thinned(analysis.edf(of.values), _STEPS)
    objective.draw(value_charts.edf_chart({study.name: steps}, of.name, {study.name: COLOURS["blue"]}))
    better = "left" if of.direction == "minimize" else "right"
    st.caption(f"The share of trials with at most a value: the further to the {better}, the better.")
    objective.say_shown(len(of.ranked), of)
    st.page_link("views/compare.py", label="Compare with other studies", query_params={"study": study.name})
