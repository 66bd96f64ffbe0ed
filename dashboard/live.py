"""What refreshes itself: fragments that run again every few seconds, and the switch that pauses them.

A fragment that holds a dialog or a selection is not made live: it must not change under a person's hand.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Callable
from typing import Any, ParamSpec

import streamlit as st

from storage import StorageError

__all__ = ["EVERY", "is_live", "refreshed", "switch"]

EVERY = 5.0
"""Seconds between two refreshes."""

_KEY = "live"

_P = ParamSpec("_P")


def is_live() -> bool:
    """Whether the viewer lets the pages refresh themselves."""
    return bool(st.session_state.get(_KEY, True))


def switch() -> None:
    """The switch, once a page; what it says stays over pages."""
    st.session_state[_KEY] = is_live()  # else a widget's state ends with the page that showed it
    st.toggle("live", key=_KEY, help=f"Counters and curves are read again every {EVERY:g} s.")


def refreshed(function: Callable[_P, None]) -> Callable[_P, None]:
    """A part of a page that runs again on its own, and says below when it last did.

    Where the database could not be read it says so, until it can again.
    """

    @functools.wraps(function)
    def shown(*arguments: _P.args, **options: _P.kwargs) -> None:
        try:
            function(*arguments, **options)
        except StorageError as error:
            st.error("This part could not be read.")
            st.text(str(error))
        st.caption(f"updated {dt.datetime.now():%H:%M:%S}", text_alignment="right")

    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> None:
        st.fragment(shown, run_every=EVERY if is_live() else None)(*arguments, **options)

    return run
