"""The attempts of a trial, one under the other: where each ran, how it ended, what differed."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from dashboard.theme import duration, escape
from storage.views import AttemptRow

__all__ = ["differences", "show"]

_COLOURS = {"complete": "green", "pruned": "orange", "": "blue"}
_TEXT = 20_000  # characters of a traceback or an output; the last ones count
_FEW_RANKS = 2


def show(attempts: Sequence[AttemptRow]) -> None:
    """All attempts, the newest first."""
    for at in reversed(range(len(attempts))):
        with st.container(border=True):
            _attempt(attempts[at], attempts[at - 1] if at else None)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[dict[str, str]]:
    """Where the provenance of two attempts differs, for a table; plain text.

    Example:
        >>> differences({"packages": {"torch": "2.12"}}, {"packages": {"torch": "2.13"}})
        [{'what': 'packages.torch', 'before': '2.12', 'now': '2.13'}]
    """
    old, new = dict(_leaves(before)), dict(_leaves(now))
    return [
        {"what": name, "before": old.get(name, "-"), "now": new.get(name, "-")}
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]


def _attempt(attempt: AttemptRow, before: AttemptRow | None) -> None:
    colour = _COLOURS.get(attempt.reason, "red")
    charged = " · counts as a failure" if attempt.charged else ""
    st.markdown(
        f"**Attempt {attempt.attempt}** :{colour}-badge[{escape(attempt.reason or attempt.state)}] "
        f"{_start(attempt)} · {duration(_seconds(attempt))}{charged}",
        help=_moments(attempt),
    )
    if attempt.message:
        st.text(attempt.message[:_TEXT])
    _ranks(attempt.ranks)
    if attempt.traceback:
        st.code(
            attempt.traceback[-_TEXT:], language="python", wrap_lines=True, height=_height(attempt.traceback)
        )
    if attempt.log_tail:
        with (
            st.expander("Last output", expanded=attempt.state != "ended"),
            st.container(height=_height(attempt.log_tail), border=False, autoscroll=True),
        ):
            st.code(attempt.log_tail[-_TEXT:], language=None, wrap_lines=True)
    changed = differences(before.provenance, attempt.provenance) if before is not None else []
    if before is not None and changed and attempt.provenance and before.provenance:
        with st.expander(f"Differs from attempt {before.attempt} in {len(changed)}"):
            st.dataframe(pd.DataFrame(changed), hide_index=True, width="stretch")


def _start(attempt: AttemptRow) -> str:
    if attempt.state == "claimed":
        return "waits for a place to run"
    if attempt.resumed_step is None:
        return "from nothing"
    return f"from the checkpoint of step {attempt.resumed_step}"


def _seconds(attempt: AttemptRow) -> float | None:
    if attempt.started_at is None:
        return None
    end = attempt.ended_at or dt.datetime.now(dt.UTC).replace(tzinfo=None)
    return max(0.0, (end - attempt.started_at).total_seconds())


def _moments(attempt: AttemptRow) -> str:
    moments = {
        "claimed": attempt.created_at,
        "started": attempt.started_at,
        "ended": attempt.ended_at,
    }
    return ", ".join(f"{name} {moment:%Y-%m-%d %H:%M:%S} UTC" for name, moment in moments.items() if moment)


def _ranks(ranks: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        {
            "rank": str(rank.get("rank", "")),
            "host": str(rank.get("host", "")),
            "process": str(rank.get("pid", "")),
            "devices": ", ".join(map(str, rank.get("devices") or ())) or "CPU",
        }
        for rank in ranks
    ]
    if len(rows) > _FEW_RANKS:
        st.dataframe(
            pd.DataFrame(rows), hide_index=True, width="stretch", height=min(35 * len(rows) + 38, 220)
        )
        return
    for row in rows:
        text = f"rank {row['rank']}: {row['host']}, process {row['process']}, {row['devices']}"
        st.caption(escape(text))


def _height(text: str) -> int | Any:
    """Pixels of a box that long texts scroll in."""
    return 320 if text.count("\n") > 14 or len(text) > 1500 else "content"


def _leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", "-" if value is None else str(value)
