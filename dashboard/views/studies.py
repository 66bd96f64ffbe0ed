"""All studies: counts, best, progress against the budget, who drives them."""

from __future__ import annotations

import streamlit as st

from dashboard import data, driver, links, live
from dashboard.theme import ago, badges, escape, number, shortened
from storage import reads
from storage.views import StudyRow

__all__ = ["show"]

_PAGE = 20


def show() -> None:
    """The page."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.title("Studies", width="stretch")
        live.switch()
    st.caption(f"in {escape(data.database_name())}")
    if "search" not in st.session_state:
        st.session_state["search"] = links.asked("q")
    search = st.text_input("Search", key="search", placeholder="Search by name", label_visibility="collapsed")
    links.update({"q": search})
    _list(search)


@live.refreshed
def _list(search: str) -> None:
    rows = [] if data.read(reads.is_empty) else data.read(reads.studies, search)
    if not rows:
        _say_nothing(search)
        return
    pages = (len(rows) - 1) // _PAGE + 1
    page = min(pages, max(1, links.asked_number("page", 1) or 1))
    if pages > 1:
        page = int(st.number_input("Page", 1, pages, page))
        links.update({"page": page if page > 1 else None})
    for row in rows[(page - 1) * _PAGE : page * _PAGE]:
        _card(row)
    st.caption(f"{len(rows)} {'study' if len(rows) == 1 else 'studies'}, newest activity first")


def _card(row: StudyRow) -> None:
    with st.container(border=True):
        left, middle, right = st.columns([3, 4, 2], vertical_alignment="center")
        with left:
            label = f"**{escape(shortened(row.name, 60))}**"
            st.page_link("views/overview.py", label=label, query_params={"study": row.name})
            st.markdown(driver.badge(row))
        with middle:
            st.markdown(badges(row.states))
            done = driver.finished(row)
            if row.n_trials:
                st.progress(min(1.0, done / row.n_trials), text=f"{done} of {row.n_trials} trials")
            else:
                st.caption(f"{done} trials finished")
        with right:
            best = (
                f"best {number(row.best)}"
                if len(row.directions) == 1
                else f"{len(row.directions)} objectives"
            )
            st.markdown(f"**{escape(best)}**")
            moment = row.last_activity
            st.caption(
                ago(moment),
                help=None if moment is None else f"{moment:%Y-%m-%d %H:%M:%S} UTC",
            )
        if row.stop_reason:
            st.caption(escape(row.stop_reason))


def _say_nothing(search: str) -> None:
    if search:
        st.info("No study has this in its name:")
        st.text(search[:200])
        return
    st.info("There is no study in this database yet. Start one:")
    st.code("tuner run FILE.py --study NAME --trials 20", language="shell")


if __name__ == "__main__":
    show()
