"""All studies: counts, best, progress against the budget, who drives them, which need a person."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from dashboard import data, driver, links, live
from dashboard.parts import marks
from dashboard.rules.listing import FLAGS, ORDERS, Listed, listed
from dashboard.theme import badges, escape, number, shortened
from storage import reads
from storage.health import health

__all__ = ["show"]

_PAGE = 20
_COLOURS = {"stale": "red", "failing": "red"}


def show() -> None:
    """The page."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.title("Studies", width="stretch")
        st.page_link("views/compare.py", label="Compare")
        st.page_link("views/workers.py", label="Workers")
        live.switch()
    st.caption(f"in {escape(data.database_name())}")
    if data.read(reads.is_empty) or not data.read(reads.studies):
        st.info("There is no study in this database yet. Start one:")
        st.code(f"tuner run FILE.py --study NAME --trials 20{driver.storage_option()}", language="shell")
        return
    search, flags, sort, reverse = _asked()
    found = _found(search, flags, sort, reverse)
    if not found:
        _say_nothing(search, flags)
        return
    page = _pager(len(found))
    _cards(search, flags, sort, reverse, page)


def _asked() -> tuple[str, tuple[str, ...], str, bool]:
    """Search, flags, order and its direction: widgets that begin as the address says, and write it."""
    if "search" not in st.session_state:
        st.session_state["search"] = links.asked("q")
    left, middle, right, last = st.columns([4, 3, 2, 1.3], vertical_alignment="bottom")
    search = left.text_input("Search", key="search", placeholder="part of a name")
    flags_asked = [flag for flag in links.asked("show").split(",") if flag in FLAGS]
    flags = middle.pills("Show only", list(FLAGS), selection_mode="multi", default=flags_asked)
    orders = list(ORDERS)
    sort_asked = links.asked("sort")
    sort = right.selectbox("Sort by", orders, orders.index(sort_asked) if sort_asked in orders else 0)
    reverse = last.toggle("reverse", links.asked("order") == "reverse")
    changes = {
        "q": search,
        "show": ",".join(flags),
        "sort": sort if sort != orders[0] else None,
        "order": "reverse" if reverse else None,
    }
    links.update(changes)
    return search, tuple(flags), sort, reverse


def _found(search: str, flags: Sequence[str], sort: str, reverse: bool) -> list[Listed]:
    rows = data.read(reads.studies, search)
    healths = data.read(health, tuple(row.study_id for row in rows))
    all_of = [Listed(row=row, health=healths[row.study_id], driver=driver.condition(row)) for row in rows]
    return listed(all_of, show=flags, sort=sort, reverse=reverse)


def _pager(total: int) -> int:
    """The page to show, which the address asks for; buttons where there are several."""
    pages = (total - 1) // _PAGE + 1
    page = min(pages, max(1, links.asked_number("page", 1) or 1))
    said = f"{total} {'study' if total == 1 else 'studies'}"
    if pages == 1:
        st.caption(said)
    else:
        with st.container(horizontal=True, vertical_alignment="center"):
            if st.button("← previous", disabled=page <= 1):
                page -= 1
            if st.button("next →", disabled=page >= pages):
                page += 1
            st.caption(f"page {page} of {pages}, {said}")
    if links.asked("page", "1") != str(page):
        links.update({"page": page if page > 1 else None})
        st.rerun()  # the buttons above are those of the new page
    return page


@live.refreshed
def _cards(search: str, flags: Sequence[str], sort: str, reverse: bool, page: int) -> None:
    found = _found(search, flags, sort, reverse)
    for one in found[(page - 1) * _PAGE : page * _PAGE]:
        _card(one)


def _card(one: Listed) -> None:
    row = one.row
    with st.container(border=True, gap="xsmall", key=f"study-{row.study_id}"):
        left, middle, right = st.columns([3, 4, 2], vertical_alignment="center")
        with left:
            label = f"**{escape(shortened(row.name, 60))}**"
            flags = [f":{_COLOURS[flag]}-badge[{flag}]" for flag in one.flags if flag in _COLOURS]
            with st.container(horizontal=True, gap="small", vertical_alignment="center"):
                st.page_link("views/overview.py", label=label, query_params={"study": row.name})
                st.markdown(" ".join([driver.badge(row), *flags]), width="content")
        with middle:
            st.html(marks.state_bar(row.states, row.n_trials))
            done = row.finished
            of = f"{done} of {row.n_trials} trials" if row.n_trials else f"{done} trials finished"
            st.markdown(f"{of} {badges(row.states)}")
        with right:
            objectives = len(row.directions)
            best = "no best yet" if row.best is None else f"best {number(row.best)}"
            best = best if objectives == 1 else f"{objectives} objectives"
            newest = marks.moment(row.last_activity) if row.last_activity else "never run"
            st.html(f"<b>{best}</b><br><small>{newest}</small>")
        said = driver.owner_text(row, one.health.arguments) or escape(shortened(row.stop_reason or "", 160))
        if said:
            st.caption(said)


def _say_nothing(search: str, flags: Sequence[str]) -> None:
    if flags:
        st.info(f"No study {'with this in its name ' if search else ''}is {' and '.join(flags)}.")
    else:
        st.info("No study has this in its name:")
    if search:
        st.text(search[:200])


if __name__ == "__main__":
    show()
