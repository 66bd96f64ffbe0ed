"""The entry of every page: who is not logged in gets no further; it chooses the page."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from dashboard import data
from dashboard.access import gate
from storage import StorageError

PAGES = [
    st.Page("views/studies.py", title="Studies", url_path="studies", default=True),
    st.Page("views/overview.py", title="Study", url_path="study"),
    st.Page("views/trials.py", title="Trials", url_path="trials"),
    st.Page("views/trial.py", title="Trial", url_path="trial"),
    st.Page("views/analyse.py", title="Analyse", url_path="analyse"),
    st.Page("views/failures.py", title="Failures", url_path="failures"),
    st.Page("views/compare.py", title="Compare", url_path="compare"),
    st.Page("views/workers.py", title="Workers", url_path="workers"),
]


def main() -> None:
    """Show the chosen page, or why there is none to show."""
    st.set_page_config(page_title="Tuner", page_icon="🎛️", layout="wide")
    st.html(Path(__file__).with_name("style.css"))
    page = st.navigation(PAGES, position="hidden")
    if not gate.is_open():
        return
    gate.account()
    trouble = data.problem()
    if trouble is None:
        try:
            page.run()
        except StorageError as error:  # it went away, or is locked, under the page
            st.error("This page could not be read to its end. Load it again.")
            st.text(str(error))
        return
    st.title("Tuner")
    st.error("The database cannot be read.")
    st.text(trouble)
    st.caption("Start a study, which makes the database, or name another one with --storage:")
    st.code("tuner run FILE.py --study NAME --trials 20", language="shell")


main()
