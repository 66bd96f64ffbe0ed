"""Which trials the list shows: inputs that follow the address, and write to it what they say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st

from dashboard import data, links
from dashboard.theme import STATES, number, said, shortened, value_text
from storage.conditions import written
from storage.pages import SORTS
from storage.ranges import Names, names
from storage.views import ParamRange, StudyDetail

__all__ = ["Wanted", "asked"]

_SIGNS = ("=", "<", "<=", ">", ">=")
_ADDRESS = ("study", "state", "where", "sort", "order")
_STATES, _WHERE, _SORT, _DOWN = "trials states", "trials where", "trials sort", "trials descending"
_SEEN = "trials address"

Field = tuple[str, str]
"""What a condition is on: kind and name, as :func:`storage.conditions.written` has them."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the list is to show; ``page`` counts from 1."""

    states: tuple[str, ...]
    where: str
    sort: str
    descending: bool
    page: int


def asked(study: StudyDetail) -> Wanted:
    """The inputs, and what they ask for. The page is the address's, and the first one after a change."""
    known = data.read(names, study.name)
    sorts = _sorts(study, known)
    _follow_address(sorts)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        states = st.pills("State", list(STATES), selection_mode="multi", format_func=said, key=_STATES)
        sort = st.selectbox("Sort by", sorts, key=_SORT, format_func=_sort_text, width=220)
        down = st.toggle("largest first", key=_DOWN)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        where = st.text_input(
            "Conditions",
            key=_WHERE,
            placeholder=_example(known),
            help="NAME, a sign of < <= > >= =, a value; several with 'and' between them. NAME is a "
            "parameter, value (value:1 for a second objective), number, or attr:NAME for an attribute. "
            "optimizer=adam,sgd means one of these.",
        )
        _adder(study, known)
        st.button("Clear", on_click=_clear, disabled=not (states or where.strip()))
    before = [links.asked(key) for key in _ADDRESS]
    links.update(
        {
            "state": ",".join(states),
            "where": where.strip(),
            "sort": sort if sort != "number" else None,
            "order": None if down else "asc",
        }
    )
    now = [links.asked(key) for key in _ADDRESS]
    if before != now and st.session_state.get(_SEEN) == before:  # by the inputs, not by the address
        links.update({"page": None})
    st.session_state[_SEEN] = now
    page = max(1, links.asked_number("page", 1) or 1)
    return Wanted(states=tuple(states), where=where.strip(), sort=sort, descending=down, page=page)


def _follow_address(sorts: list[str]) -> None:
    """Set the inputs to what the address says, unless it says what they wrote there."""
    now = [links.asked(key) for key in _ADDRESS]
    sort = links.asked("sort", "number")
    if sort not in sorts and sort.startswith(("attr:", "param:", "value:")):
        sorts.append(sort)  # of another study, or written by hand: the database says what is wrong
    kept = all(key in st.session_state for key in (_STATES, _WHERE, _SORT, _DOWN))
    if kept and st.session_state.get(_SEEN) == now:
        return
    states = links.asked("state").upper().split(",")
    st.session_state[_STATES] = [state for state in STATES if state in states]
    st.session_state[_WHERE] = links.asked("where")
    st.session_state[_SORT] = sort if sort in sorts else "number"
    st.session_state[_DOWN] = links.asked("order") != "asc"
    st.session_state[_SEEN] = now


def _sorts(study: StudyDetail, known: Names) -> list[str]:
    values = (
        [f"value:{at}" for at in range(len(study.directions))] if len(study.directions) > 1 else ["value"]
    )
    fixed = [values if one == "value" else [one] for one in SORTS]
    found = [one for group in fixed for one in group]
    return [*found, *(f"param:{one}" for one in known.params), *(f"attr:{one}" for one in known.attrs)]


def _sort_text(sort: str) -> str:
    kind, colon, name = sort.partition(":")
    if not colon:
        return sort.replace("_", " ")
    label = {"param": "parameter", "attr": "attribute", "value": "value of objective"}[kind]
    return f"{label} {shortened(name, 60)}"


def _example(known: Names) -> str:
    """Conditions on this study's own names, to be copied."""
    parts = []
    for name, drawn in known.ranges[:2]:
        if drawn.choices:
            parts.append(written(name, "=", value_text(drawn.choices[0])))
        elif drawn.low is not None and drawn.high is not None:
            middle = math.sqrt(drawn.low * drawn.high) if drawn.log else (drawn.low + drawn.high) / 2
            parts.append(written(name, "<", f"{middle:.2g}"))
    return shortened(" and ".join([*parts, "value>0.9"]), 80)


def _adder(study: StudyDetail, known: Names) -> None:
    """A condition by choosing, for who does not know the names."""
    fields: list[Field] = [("param", name) for name in known.params]
    fields += [("value", str(at)) for at in range(len(study.directions))]
    fields += [("number", ""), *(("attr", name) for name in known.attrs)]
    with st.popover("Add a condition"):
        st.selectbox("On", fields, format_func=_field_text, key="condition on")
        chosen: Field = st.session_state["condition on"]
        signs = _SIGNS if chosen[0] != "attr" else ("=",)
        sign = st.segmented_control(
            "Sign", signs, default=signs[0], required=True, key=f"sign of {chosen[0]}"
        )
        hint = _hint(chosen, dict(known.ranges))
        value = st.text_input("Value", key="condition value", placeholder=hint)
        st.button(
            "Add", on_click=_add, args=(chosen, sign, value), disabled=not value.strip(), type="primary"
        )


def _field_text(field: Field) -> str:
    kind, name = field
    labels = {
        "param": "parameter",
        "attr": "attribute",
        "value": "value of objective",
        "number": "trial number",
    }
    return f"{labels[kind]} {shortened(name, 60)}".strip()


def _hint(field: Field, ranges: dict[str, ParamRange]) -> str:
    drawn = ranges.get(field[1]) if field[0] == "param" else None
    if drawn is None:
        return ""
    if drawn.low is None:
        return shortened(", ".join(map(value_text, drawn.choices)), 60)
    return f"{number(drawn.low)} to {number(drawn.high)}"


def _add(field: Field, sign: str, value: str) -> None:
    kind, name = field
    before: str = st.session_state[_WHERE].strip()
    added = written(name, sign, value, kind)
    st.session_state[_WHERE] = f"{before} and {added}" if before else added
    st.session_state["condition value"] = ""


def _clear() -> None:
    nothing: Sequence[str] = []
    st.session_state[_STATES] = nothing
    st.session_state[_WHERE] = ""
