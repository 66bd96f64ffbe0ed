"""What the address of a page asks for. Unknown keys are ignored, and what is no number is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

import streamlit as st

__all__ = ["TRIAL_COLUMN", "asked", "asked_all", "asked_number", "to_trial", "update"]

TRIAL_COLUMN = st.column_config.LinkColumn(display_text=r"[?&]n=(\d+)$", width="small")
"""A column of a table that holds what :func:`to_trial` gives: it shows the number."""


def to_trial(study_name: str, number: int) -> str:
    """The address of a trial's page, from any other page."""
    return f"trial?{urlencode({'study': study_name, 'n': number})}"


def asked(key: str, default: str = "") -> str:
    """What the address says under ``key``."""
    return str(st.query_params.get(key, default)).replace("\0", "")


def asked_number(key: str, default: int | None = None) -> int | None:
    """The same as a whole number of at least 0; the default for anything else."""
    text = asked(key)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else default  # fits 32 bits


def asked_all(key: str) -> list[str]:
    """Everything that the address says under ``key``, each once, in order."""
    texts = (str(text).replace("\0", "") for text in st.query_params.get_all(key))
    return list(dict.fromkeys(text for text in texts if text))


def update(changes: Mapping[str, str | int | Sequence[str] | None]) -> None:
    """Write to the address what the page shows now, so that it can be shared; None removes a key.

    Several texts are written under the key one after the other.
    """
    for key, value in changes.items():
        if value is None or value == "" or value == []:
            if key in st.query_params:
                del st.query_params[key]
        elif isinstance(value, Sequence) and not isinstance(value, str):
            if st.query_params.get_all(key) != list(value):
                st.query_params[key] = list(value)
        elif st.query_params.get(key) != str(value):
            st.query_params[key] = str(value)
