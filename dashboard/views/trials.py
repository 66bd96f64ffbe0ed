"""The trials of a study by page, as the address asks for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import streamlit as st

from dashboard import data, driver, links, live
from dashboard.page import asked_study
from dashboard.parts import trial_filters, trial_table
from dashboard.parts.trial_filters import Wanted
from dashboard.theme import escape
from storage import Database, StorageError, exports, reads, texts
from storage.changes import Cursor
from storage.conditions import parse_all
from storage.filters import Filter
from storage.listing import Listing, listing
from storage.views import StudyDetail

__all__ = ["csv_of", "show"]

_PAGE = 50


def show() -> None:
    """The page."""
    study = asked_study("Trials")
    if study is not None:
        _trials(study)


def _trials(study: StudyDetail) -> None:
    wanted = trial_filters.asked(study)
    try:
        where = parse_all(wanted.where)
        found = data.read(
            listing,
            study.name,
            page=wanted.page,
            size=_PAGE,
            states=wanted.states,
            where=where,
            sort=wanted.sort,
            descending=wanted.descending,
        )
    except StorageError as error:
        st.error(escape(str(error)))
        return
    links.update({"page": found.page if found.page > 1 else None})
    st.session_state["trials left"] = {key: links.asked(key) for key in st.query_params}
    if found.cursor is not None:
        _pulse(study.name, found.cursor)
    if not found.rows:
        _say_nothing(study, wanted)
        return
    chosen = trial_table.choose(study.name, found)
    if chosen is not None:
        st.switch_page("views/trial.py", query_params={"study": study.name, "n": str(chosen)})
    _foot(study.name, wanted, where, found)


@live.refreshed
def _pulse(name: str, cursor: Cursor) -> None:
    """What changed since the table was read. The table itself never moves under a person's hand."""
    changes = data.read(reads.changes, name, cursor)
    count = len(changes.trials)
    if not changes.anew and not count:
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        what = "The study has" if changes.anew else "1 trial has" if count == 1 else f"{count} trials have"
        st.markdown(f":blue-badge[{what} changed since this table was read]")
        if st.button("Refresh", key="refresh trials"):
            st.rerun(scope="app")


def _say_nothing(study: StudyDetail, wanted: Wanted) -> None:
    if wanted.states or wanted.where:
        st.info("No trial is like this. Clear the filters to see all of them.")
    else:
        st.info("This study has no trial yet. They are listed here as soon as a run starts them.")
        if not driver.is_driven(study):
            how, command = driver.next_step(study)
            st.caption(how)
            st.code(command, language="shell", wrap_lines=True)


def _foot(name: str, wanted: Wanted, where: Sequence[Filter], found: Listing) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        count = "1 trial" if found.total == 1 else f"{found.total} trials"
        if found.pages == 1:
            st.caption(f"{count}. Select a row to see the trial.", width="content")
        else:
            st.caption(
                f"page {found.page} of {found.pages}, {count}. Select a row to see the trial.",
                width="content",
            )
        st.space("stretch")
        if found.pages > 1:
            turns = {
                "first": 1,
                "← previous": found.page - 1,
                "next →": found.page + 1,
                "last": found.pages,
            }
            for label, page in turns.items():
                idle = not 1 <= page <= found.pages or page == found.page
                st.button(label, disabled=idle, on_click=_turn, args=(page,))
        st.download_button(
            f"CSV of {count}",
            data=csv_of(data.database(), name, wanted, where),
            file_name=f"{_file_name(name)}.csv",
            mime="text/csv",
            on_click="ignore",
            help="All pages, as filtered and sorted here. A text that a spreadsheet would run gets an "
            "apostrophe.",
        )


def csv_of(database: Database, name: str, wanted: Wanted, where: Sequence[Filter]) -> Callable[[], bytes]:
    """What makes the file once it is asked for: all trials that match, not only the page."""

    def made() -> bytes:
        study = exports.study(database, name)
        ids = exports.trial_ids(
            database, study, states=wanted.states, where=where, sort=wanted.sort, descending=wanted.descending
        )
        parts = texts.csv_parts(study, exports.trials(database, study, ids))
        return "".join(parts).encode()

    return made


def _file_name(name: str) -> str:
    return (
        "".join(char if char.isalnum() or char in "-_." else "_" for char in name[:80]).strip(".") or "trials"
    )


def _turn(page: int) -> None:
    links.update({"page": page if page > 1 else None})


if __name__ == "__main__":
    show()
