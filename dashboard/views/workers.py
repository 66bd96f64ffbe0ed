"""Where trials run, and how busy it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import data, driver, links, live
from dashboard.charts import gantt
from dashboard.page import asked_study
from dashboard.theme import ago, escape, number, shortened
from storage import owner as owners
from storage import reads, workers
from storage.views import StudyDetail
from storage.workers import Now, OpenAttempt

__all__ = ["show"]

_ROWS = 50  # attempts in the table of those that run


def show() -> None:
    """The page; of all studies that are driven where the address names none."""
    if not links.asked("study"):
        _every_study()
        return
    study = asked_study("Workers")
    if study is None:
        return
    _current(study.name)
    gantt.section(study)


# ---------------------------------------------------------------------- all studies


def _every_study() -> None:
    st.page_link("views/studies.py", label="← all studies")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.title("Workers", width="stretch")
        live.switch()
    _driven()


@live.refreshed
def _driven() -> None:
    rows = [] if data.read(reads.is_empty) else data.read(reads.studies)
    driven = [row for row in rows if row.owner is not None]
    if not driven:
        st.info("No study is driven now. Start one, or go on with one of the list:")
        st.code(f"tuner run FILE.py --study NAME --trials 20{driver.storage_option()}", language="shell")
        return
    for row in driven[:50]:
        with st.container(border=True, horizontal=True, vertical_alignment="center"):
            label = f"**{escape(shortened(row.name, 60))}**"
            st.page_link("views/workers.py", label=label, query_params={"study": row.name})
            st.markdown(driver.badge(row), width="content")
            st.space("stretch")
            running = row.states.get("RUNNING", 0)
            st.caption(f"{running} running, driver seen {ago(row.renewed_at)}", width="content")


# ---------------------------------------------------------------------- now


@live.refreshed
def _current(name: str) -> None:
    study = data.study(name)
    if study is None:
        st.warning("This study was deleted meanwhile.")
        return
    now = data.read(workers.now, name)
    placed = [one for one in now.open if one.ranks]
    hosts = {rank.host for one in placed for rank in one.ranks}
    devices = {(rank.host, device) for one in placed for rank in one.ranks for device in rank.devices}
    counters = {
        "Attempts running": str(len(placed) + now.total - len(now.open)),
        "Hosts": str(len(hosts)),
        "Devices": str(len(devices)),
        "Without a place": str(len(now.open) - len(placed)),
        "In reserve": str(now.claimed),
    }
    hints = {
        "Without a place": "Attempts that wait for free resources.",
        "In reserve": "Trials that wait for a slot, or to be tried again.",
    }
    with st.container(horizontal=True, gap="medium"):
        for label, text in counters.items():
            st.metric(label, text, width="content", help=hints.get(label))
    _heartbeat(study)
    if now.open:
        _attempts(name, now)
    _waiting(study, now)
    _set_aside(name, now)


def _heartbeat(study: StudyDetail) -> None:
    """Whether the driver lives, and what to do where it does not."""
    if study.owner is None:
        reason = f"Ended: {escape(study.stop_reason)}." if study.stop_reason else "No driver runs."
        newest = f" Last activity {ago(study.last_activity)}." if study.last_activity else ""
        how, command = driver.next_step(study)
        st.caption(f"{reason}{newest} {how}")
        st.code(command, language="shell", wrap_lines=True)
        return
    who = escape(owners.shown(study.owner))
    seen = f"Driver: {who}, heartbeat {ago(study.renewed_at)}"
    moment = None if study.renewed_at is None else f"{study.renewed_at:%Y-%m-%d %H:%M:%S} UTC"
    if owners.alive(study.owner) is False:
        st.warning(f"The driver is gone ({who}). What it ran goes on from its checkpoints:")
        st.code(driver.resume_command(study), language="shell", wrap_lines=True)
        return
    st.caption(f"{seen}.", help=moment)


def _attempts(name: str, now: Now) -> None:
    rows = [_row(one) for one in now.open[:_ROWS]]
    for row, one in zip(rows, now.open, strict=False):
        row["Trial"] = links.to_trial(name, one.number)
    st.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        width="stretch",
        column_config={"Trial": links.TRIAL_COLUMN},
    )
    if now.total > _ROWS:
        st.caption(f"The first {_ROWS} of {now.total}.")


def _row(one: OpenAttempt) -> dict[str, Any]:
    hosts = list(dict.fromkeys(rank.host for rank in one.ranks))
    nodes = list(dict.fromkeys(rank.node[:8] for rank in one.ranks if rank.node))
    several = len(hosts) > 1
    devices = [f"{rank.host}: {one}" if several else one for rank in one.ranks for one in rank.devices]
    return {
        "Trial": "",
        "Attempt": one.attempt,
        "Host": ", ".join(hosts) or "waits for a place",
        "Node": ", ".join(nodes),
        "Ranks": str(len(one.ranks) or ""),
        "Devices": ", ".join(devices) or ("CPU" if one.ranks else ""),
        "Processes": ", ".join(str(rank.pid) for rank in one.ranks),
        "Began": ago(one.began_at),
        "Newest report": "none yet" if one.step is None else f"{number(one.value)} at step {one.step}",
        "Checkpoint": "" if one.saved_step is None else f"step {one.saved_step}, {ago(one.saved_at)}",
    }


def _waiting(study: StudyDetail, now: Now) -> None:
    waiting = [one for one in now.open if not one.ranks]
    if waiting:
        oldest = min((one.began_at for one in waiting if one.began_at), default=None)
        st.caption(
            f"{len(waiting)} without a place, the oldest since {ago(oldest).removesuffix(' ago')}."
            f"{escape(_asked(study))}"
        )
    if now.foreign:
        st.caption(f"{now.foreign} running in other programs: where, Optuna does not keep.")


def _asked(study: StudyDetail) -> str:
    """What one trial needs, in words; "" where that is not known before it starts."""
    known = study.settings.get("resources")
    first = known[0] if isinstance(known, list) and known else known
    if not isinstance(first, Mapping):
        return ""
    parts = [f"{first.get('cpus') or 1:g} CPU"]
    if first.get("gpus"):
        parts.append(f"{first['gpus']:g} GPU")
    ranks = first.get("ranks") or 1
    many = " to ".join(map(str, ranks)) if isinstance(ranks, list) else str(ranks)
    return f" Each trial asks for {'' if many == '1' else f'{many} ranks of '}{' and '.join(parts)}."


def _set_aside(name: str, now: Now) -> None:
    if not now.aside:
        return
    with st.expander(f"Devices that failed in this run: {len(now.aside)} reports", expanded=True):
        st.caption("They are set aside until the run ends; the next run tries them again.")
        for message in dict.fromkeys(one.message for one in now.aside):
            of = [one for one in now.aside if one.message == message]
            st.text(message)
            with st.container(horizontal=True, gap="small", vertical_alignment="center"):
                st.caption(f"{ago(of[0].ended_at)}, seen by", width="content")
                for one in of[:5]:
                    target = {"study": name, "n": str(one.number)}
                    st.page_link("views/trial.py", label=f"#{one.number}", query_params=target)


if __name__ == "__main__":
    show()
