"""Several studies beside each other: what they reached, how fast, and how they were set up."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from dashboard import data, driver, links
from dashboard.charts import comparison as comparison_charts
from dashboard.charts import values as value_charts
from dashboard.parts import objective
from dashboard.rules import analysis, comparison
from dashboard.theme import duration, escape, number, shortened
from storage import columns, reads
from storage.views import StudyDetail

__all__ = ["show"]

_MOST = len(comparison_charts.SERIES)
_STEPS = 300  # of a distribution function


def show() -> None:
    """The page."""
    st.page_link("views/studies.py", label="← all studies")
    st.title("Compare")
    known = [] if data.read(reads.is_empty) else [row.name for row in data.read(reads.studies)]
    asked = links.asked_all("study")
    unknown = [name for name in asked if name not in known]
    if unknown:
        st.warning(f"There is no study of {'this name' if len(unknown) == 1 else 'these names'}:")
        st.text("\n".join(shortened(name, 200) for name in unknown[:_MOST]))
    if not known:
        st.info("There is no study in this database yet. Start one:")
        st.code(f"tuner run FILE.py --study NAME --trials 20{driver.storage_option()}", language="shell")
        return
    if "compared" not in st.session_state:
        st.session_state["compared"] = [name for name in asked if name in known][:_MOST]
    chosen = st.multiselect(
        "Studies",
        known,
        key="compared",
        format_func=lambda name: shortened(name, 60),
        max_selections=_MOST,
        placeholder="Search by name and add",
    )
    links.update({"study": chosen})
    found = [study for study in (data.study(name) for name in chosen) if study is not None]
    if found:
        _studies(found)
    if len(found) < 2:
        st.info("Choose two studies or more above to compare them.")


def _studies(studies: Sequence[StudyDetail]) -> None:
    labels = analysis.apart([shortened(study.name, 40) for study in studies])
    colours = dict(zip(labels, comparison_charts.SERIES, strict=False))
    _summary(studies, labels)
    groups: dict[tuple[str, ...], list[tuple[str, StudyDetail]]] = {}
    for label, study in zip(labels, studies, strict=True):
        groups.setdefault(study.directions, []).append((label, study))
    if len(groups) > 1:
        st.warning("These studies have different directions: their values cannot be compared.")
    for directions, group in groups.items():
        if len(groups) > 1:
            names = ", ".join(label for label, _ in group)
            st.subheader(f"{' and '.join(directions)}: {escape(names)}")
        _values(directions, dict(group), {label: colours[label] for label, _ in group})
    _settings(studies, labels)


def _summary(studies: Sequence[StudyDetail], labels: Sequence[str]) -> None:
    rows = []
    for label, study in zip(labels, studies, strict=True):
        share = comparison.failed_share(study)
        rows.append(
            {
                "Study": label,
                "Trials": sum(study.states.values()),
                "Complete": study.states.get("COMPLETE", 0),
                "Best": number(study.best) if len(study.directions) == 1 else "several objectives",
                "Best trial": "-" if study.best_number is None else str(study.best_number),
                "Time": duration(data.read(columns.wall_time, study.name)),
                "Failed": "-" if share != share else f"{share:.1%}",
            }
        )
    st.dataframe(pd.DataFrame(rows), hide_index=True, width="stretch")
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        st.caption("Open:", width="content")
        for label, study in zip(labels, studies, strict=True):
            st.page_link("views/overview.py", label=escape(label), query_params={"study": study.name})


def _values(directions: tuple[str, ...], group: dict[str, StudyDetail], colours: dict[str, str]) -> None:
    if len(directions) == 1:
        histories = {label: data.read(columns.history, study.name) for label, study in group.items()}
        if not any(history.numbers for history in histories.values()):
            st.info("None of them has a complete trial yet.")
            return
        left, right = st.columns(2)
        way = directions[0]
        with left:
            st.markdown("**Best so far by trial**")
            bests = {label: comparison.best_by_trial(one, way) for label, one in histories.items()}
            objective.draw(comparison_charts.best_chart(bests, colours, "trial"))
        with right:
            st.markdown("**Best so far by time**")
            bests = {label: comparison.best_by_time(one, way) for label, one in histories.items()}
            name, unit = _unit(max(one.seconds[-1] for one in histories.values() if one.seconds))
            title = f"{name} since the study's start"
            objective.draw(comparison_charts.best_chart(bests, colours, title, unit))
    else:
        st.caption("Several objectives have no single best: their distributions follow one by one.")
    _distributions(directions, group, colours)


def _unit(seconds: float) -> tuple[str, float]:
    if seconds < 180:
        return "seconds", 1.0
    return ("minutes", 60.0) if seconds < 10_800 else ("hours", 3600.0)


def _distributions(
    directions: tuple[str, ...], group: dict[str, StudyDetail], colours: dict[str, str]
) -> None:
    found = {label: data.read(columns.values, study.name) for label, study in group.items()}
    if not any(one.numbers for one in found.values()):
        st.info("None of them has a complete trial yet.")
        return
    st.markdown("**Distribution of the values**")
    names = next(one.names for one in found.values() if one.numbers)
    for at, direction in enumerate(directions):
        series = {
            label: analysis.thinned(analysis.edf(one.values[at]), _STEPS) for label, one in found.items()
        }
        if any(series.values()):
            objective.draw(value_charts.edf_chart(series, names[at], colours))
        better = "left" if direction == "minimize" else "right"
        st.caption(f"The share of complete trials with at most a value; {better} is better.")


def _settings(studies: Sequence[StudyDetail], labels: Sequence[str]) -> None:
    setups = [comparison.setup(study, data.read(columns.space, study.name)) for study in studies]
    differ, same = comparison.differing(setups)
    st.subheader("Settings")
    heads = analysis.apart(["Setting", *labels])  # a study may have this name, too
    if len(studies) > 1 and differ:
        st.dataframe(pd.DataFrame(differ, columns=heads), hide_index=True, width="stretch")
    elif len(studies) > 1:
        st.caption("All settings are equal.")
    if same:
        equal = [row[:2] for row in same]
        with st.expander(f"{len(same)} equal settings" if len(studies) > 1 else f"{len(same)} settings"):
            st.dataframe(pd.DataFrame(equal, columns=["Setting", "Value"]), hide_index=True, width="stretch")


if __name__ == "__main__":
    show()
