"""What the pages of a study have in common: the way between them, and what is said when it is not there."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

import streamlit as st

from dashboard import data, driver, links, live
from dashboard.theme import escape, shortened
from storage.views import StudyDetail

__all__ = ["OF_A_STUDY", "asked_study"]

OF_A_STUDY: Mapping[str, str] = {
    "Overview": "views/overview.py",
    "Trials": "views/trials.py",
    "Analyse": "views/analyse.py",
    "Failures": "views/failures.py",
    "Workers": "views/workers.py",
    "Compare": "views/compare.py",
}
"""The pages of one study, as the row of links below its name shows them."""


def asked_study(here: str, *, refreshes: bool = True) -> StudyDetail | None:
    """The head of a page of the study that the address names; None where there is none, which it says.

    Args:
        here: this page's name among :data:`OF_A_STUDY`, or "" for one that is below them.
        refreshes: whether parts of the page are live, so that it shows the switch.
    """
    name = links.asked("study")
    study = data.study(name) if name else None
    if study is None:
        st.page_link("views/studies.py", label="← all studies")
        st.title("No such study")
        st.text(f"There is no study {name[:200]!r} in {data.database_name()}.")
        return None
    with st.container(horizontal=True, vertical_alignment="center"):
        st.page_link("views/studies.py", label="← all studies")
        st.markdown(driver.badge(study))
        st.space("stretch")
        if refreshes:
            live.switch()
        else:
            _as_of()
    st.title(escape(shortened(name, 80)))
    with st.container(horizontal=True, gap="small", key="pages"):
        for label, view in OF_A_STUDY.items():
            shown = f"**{label}**" if label == here else label
            st.page_link(view, label=shown, query_params={"study": name})
    return study


def _as_of() -> None:
    """When the page was read, and the way to read it again: charts that are studied must not move."""
    st.caption(f"as of {dt.datetime.now():%H:%M:%S}", width="content")
    st.button("Read again", type="tertiary")
