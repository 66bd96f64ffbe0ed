"""The trials of a study by page, as the address asks for them."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from dashboard import data, links
from dashboard.page import asked_study
from dashboard.theme import STATES, duration, escape, number, params_text
from storage import StorageError, reads
from storage.conditions import parse_all
from storage.views import StudyDetail, TrialPage, TrialRow

__all__ = ["show"]

_PAGE = 50
_SORTS = ("number", "value", "duration", "state", "last_step")


def show() -> None:
    """The page."""
    study = asked_study("Trials")
    if study is not None:
        _trials(study)


def _trials(study: StudyDetail) -> None:
    name, params = study.name, list(study.best_params)
    asked = [state for state in links.asked("state").upper().split(",") if state in STATES]
    left, middle, right = st.columns([3, 2, 1], vertical_alignment="bottom")
    states = left.pills("State", list(STATES), selection_mode="multi", default=asked, format_func=str.lower)
    sort_asked = links.asked("sort", "number")
    options = [*_SORTS, *(f"param:{param}" for param in params)]
    if sort_asked not in options and sort_asked.startswith(("attr:", "param:", "value:")):
        options.append(sort_asked)
    at = options.index(sort_asked) if sort_asked in options else 0
    sort = middle.selectbox("Sort by", options, index=at)
    descending = right.toggle("descending", value=links.asked("order") != "asc")
    conditions = st.text_input(
        "Conditions", links.asked("where"), placeholder="lr<0.1 and optimizer=adam and value>0.9"
    ).strip()
    page_asked = max(1, links.asked_number("page", 1) or 1)
    try:
        found, page_asked = _found(name, page_asked, states, sort, descending, conditions)
    except StorageError as error:
        st.error(escape(str(error)))
        return
    pages = max(1, (found.total - 1) // _PAGE + 1)
    links.update(
        {
            "state": ",".join(states),
            "where": conditions,
            "sort": sort if sort != "number" else None,
            "order": None if descending else "asc",
            "page": page_asked if page_asked > 1 else None,
        }
    )
    if not found.rows:
        st.caption("No trial is like this." if states or conditions else "No trial yet.")
        return
    _table(name, found.rows)
    _pager(found.total, page_asked, pages)


def _found(
    name: str, page: int, states: Sequence[str], sort: str, descending: bool, conditions: str
) -> tuple[TrialPage, int]:
    """The page that was asked for, or the last one, and its number."""
    where = parse_all(conditions)

    def read(asked: int) -> TrialPage:
        return data.read(
            reads.trials,
            name,
            page=asked,
            size=_PAGE,
            states=tuple(states),
            where=where,
            sort=sort,
            descending=descending,
        )

    found = read(page)
    pages = max(1, (found.total - 1) // _PAGE + 1)
    return (found, page) if page <= pages else (read(pages), pages)


def _table(name: str, rows: tuple[TrialRow, ...]) -> None:
    frame = pd.DataFrame(
        [
            {
                "Trial": row.number,
                "State": [row.state.lower()],
                "Value": ", ".join(number(value) for value in row.values),
                "Last report": ""
                if row.last_step is None
                else f"{number(row.last_value)} at {row.last_step}",
                "Duration": duration(row.duration),
                "Attempts": row.attempts,
                "Reason": _why(row),
                "Parameters": params_text(row.params),
                "Message": row.message,
            }
            for row in rows
        ]
    )
    shown = [row.number for row in rows]
    event = st.dataframe(
        frame,
        hide_index=True,
        width="stretch",
        height=min(36 * (len(rows) + 1), 560),
        column_config={
            "State": st.column_config.MultiselectColumn(
                "State",
                options=[state.lower() for state in STATES],
                color=[colour for colour, _ in STATES.values()],
            )
        },
        on_select="rerun",
        selection_mode="single-row",
        # the key holds the ids: a refresh that moves rows drops the selection instead of moving it
        key=f"trials-{hash((name, tuple(shown)))}",
    )
    chosen = event["selection"]["rows"]
    if chosen and chosen[0] < len(shown):
        st.switch_page("views/trial.py", query_params={"study": name, "n": str(shown[chosen[0]])})
    st.caption("Select a row to see the trial.")


def _why(row: TrialRow) -> str:
    """What the state does not say: why it failed, or that it waits for its next attempt."""
    if row.live:
        return f"{row.live}, after {row.reason}" if row.reason else row.live
    return "" if row.reason == row.state.lower() else row.reason


def _pager(total: int, page: int, pages: int) -> None:
    if pages == 1:
        st.caption(f"{total} trials")
        return
    back, text, forth = st.columns([1, 3, 1], vertical_alignment="center")
    if back.button("← previous", disabled=page <= 1, width="stretch"):
        links.update({"page": page - 1 if page > 2 else None})
        st.rerun()
    text.caption(f"page {page} of {pages}, {total} trials")
    if forth.button("next →", disabled=page >= pages, width="stretch"):
        links.update({"page": page + 1})
        st.rerun()


if __name__ == "__main__":
    show()
