"""Why trials failed: by class and traceback, and what the failed ones have in common."""

from __future__ import annotations

import datetime as dt
from typing import Literal

import streamlit as st

from dashboard import actions, data, links, live
from dashboard.charts import contrast
from dashboard.page import asked_study
from dashboard.theme import ago, escape, shortened
from storage import failures
from storage.failures import FailureGroup
from storage.views import StudyDetail

__all__ = ["show"]

_PAGE = 8  # groups in the list at once
_LINKS = 20
_RETURNED = ("nan", "infinite", "bad_value", "refused")  # by what the objective returned, or asked for


def show() -> None:
    """The page."""
    study = asked_study("Failures")
    if study is None:
        return
    groups = data.read(failures.groups, study.name)
    if not groups:
        _say_nothing(study)
        return
    chosen = _chosen(groups)
    left, right = st.columns([2, 3], gap="medium")
    with left:
        _list(study.name, chosen.key)
    with right:
        _detail(study, chosen)
    contrast.section(study.name, chosen, choice=len(groups) > 1)


def _say_nothing(study: StudyDetail) -> None:
    done = sum(study.states.get(state, 0) for state in ("COMPLETE", "PRUNED"))
    if done:
        st.success(
            f"No trial has failed, and no attempt: {done} trials are complete or pruned.",
            icon=":material/check_circle:",
        )
    else:
        st.info("No trial has ended yet. Failures will be grouped here by their class and traceback.")
    st.page_link("views/workers.py", label="See what runs now", query_params={"study": study.name})


def _chosen(groups: list[FailureGroup]) -> FailureGroup:
    """The group that the address names, else the most frequent one."""
    asked = links.asked("group")
    for group in groups:
        if group.key == asked:
            return group
    if asked:
        st.warning("There is no such group of failures in this study; this is the most frequent one.")
        links.update({"group": None})
    return groups[0]


# ---------------------------------------------------------------------- the list


@live.refreshed
def _list(study: str, chosen: str) -> None:
    groups = data.read(failures.groups, study)
    trials, retries = sum(group.count for group in groups), sum(group.retries for group in groups)
    with st.container(horizontal=True, gap="medium"):
        st.metric("Failed trials", trials, width="content")
        st.metric("Kinds", len(groups), width="content")
        st.metric("Retries", retries, width="content", help="Attempts that failed, and whose trial went on.")
    pages = (len(groups) - 1) // _PAGE + 1
    page = min(pages, max(1, links.asked_number("page", 1) or 1))
    if pages > 1:
        page = int(st.number_input(f"Page, of {pages}", 1, pages, page))
        links.update({"page": page if page > 1 else None})
    for group in groups[(page - 1) * _PAGE : page * _PAGE]:
        _card(study, group, here=group.key == chosen)


def _card(study: str, group: FailureGroup, here: bool) -> None:
    with st.container(border=True, gap="small"):
        with st.container(
            horizontal=True, vertical_alignment="center", gap="small", key=f"group-{group.key}"
        ):
            mark = "▸ " if here else ""
            label = f"{mark}**{escape(shortened(_title(group), 50))}**"
            target = {"study": study, "group": group.key}
            st.page_link("views/failures.py", label=label, query_params=target)
            st.space("stretch")
            st.markdown(_counts(group), width="content")
        said = group.message.removeprefix(f"{_title(group)}: ")
        if said:
            st.caption(escape(shortened(said, 110)))
        st.caption(f"newest {ago(group.newest_at)}{_where(group)}", help=_moments(group))


def _title(group: FailureGroup) -> str:
    """The exception, else the reason in words."""
    if not group.reason:
        return "another program"
    return group.exception.rpartition(".")[2] or group.reason.replace("_", " ")


def _counts(group: FailureGroup) -> str:
    parts = []
    if group.count:
        parts.append(f":red-badge[{_many(group.count, 'trial')}]")
    if group.retries:
        parts.append(f":gray-badge[{_many(group.retries, 'retry')}]")
    return " ".join(parts)


def _many(count: int, noun: str) -> str:
    if count == 1:
        return f"1 {noun}"
    return f"{count} {noun[:-1]}ies" if noun.endswith("y") else f"{count} {noun}s"


def _where(group: FailureGroup) -> str:
    if not group.hosts:
        return ""
    first = escape(shortened(next(iter(group.hosts)), 40))
    return f" on {first}" if len(group.hosts) == 1 else f" on {first} and {len(group.hosts) - 1} more"


def _moments(group: FailureGroup) -> str | None:
    if group.first_at is None or group.newest_at is None:
        return None
    return f"first {_absolute(group.first_at)}, newest {_absolute(group.newest_at)}"


def _absolute(moment: dt.datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


# ---------------------------------------------------------------------- one group


def _detail(study: StudyDetail, group: FailureGroup) -> None:
    st.subheader(escape(shortened(_title(group), 80)), anchor=False)
    st.markdown(f":red-badge[{escape(group.reason or 'no reason known')}] {_counts(group)}")
    if not group.reason:
        st.caption("Another program ran these trials and told them as failed; Optuna keeps no reason.")
    if group.message:
        st.text(group.message)
    st.caption(
        f"first {ago(group.first_at)}, newest {ago(group.newest_at)}: trial {group.newest}"
        + (f", attempt {group.attempt}" if group.attempt else ""),
        help=_moments(group),
    )
    _places(group)
    _links(study.name, "Failed", group.numbers)
    _links(study.name, "Tried again", group.retried)
    _act(study, group)
    if not group.attempt:
        return
    found = data.read(failures.attempt, study.name, group.newest, group.attempt)
    if found is None:
        return
    if found.traceback:
        st.code(found.traceback, language="python", wrap_lines=True, height=_height(found.traceback))
    else:
        raised = group.reason not in _RETURNED
        st.caption(
            "It left no traceback: its process ended from outside."
            if raised
            else "There is no traceback: the objective raised nothing, its answer could not be used."
        )
    if found.log_tail:
        with st.expander(f"Last output of trial {group.newest}", expanded=not found.traceback):
            st.code(found.log_tail, language=None, wrap_lines=True, height=_height(found.log_tail))


def _height(text: str) -> int | Literal["content"]:
    """A long text scrolls in its own box."""
    return 420 if text.count("\n") > 18 or len(text) > 3000 else "content"


def _places(group: FailureGroup) -> None:
    for label, places in (("Hosts", group.hosts), ("Devices", group.devices)):
        if places:
            shown = [f"{escape(shortened(place, 60))} ({count})" for place, count in list(places.items())[:8]]
            more = f" and {len(places) - 8} more" if len(places) > 8 else ""
            st.markdown(f"{label}: {', '.join(shown)}{more}")


def _links(study: str, label: str, numbers: tuple[int, ...]) -> None:
    if not numbers:
        return
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        st.markdown(f"{label}:", width="content")
        for one in numbers[:_LINKS]:
            st.page_link("views/trial.py", label=f"#{one}", query_params={"study": study, "n": str(one)})
        if len(numbers) > _LINKS:
            more = f"and {len(numbers) - _LINKS} more"
            if label == "Failed":
                target = {"study": study, "state": "FAIL"}
                st.page_link("views/trials.py", label=more, query_params=target)
            else:
                st.caption(more, width="content")


def _act(study: StudyDetail, group: FailureGroup) -> None:
    """What acts on the whole group, where this dashboard can act."""
    if group.numbers:
        actions.retry_all(study, group.numbers, key=group.key)


if __name__ == "__main__":
    show()
