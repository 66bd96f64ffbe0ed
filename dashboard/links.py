"""What the address of a page asks for. Unknown keys are ignored, and what is no number is none."""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st

__all__ = ["asked", "asked_number", "update"]


def asked(key: str, default: str = "") -> str:
    """What the address says under ``key``."""
    return str(st.query_params.get(key, default)).replace("\0", "")


def asked_number(key: str, default: int | None = None) -> int | None:
    """The same as a whole number of at least 0; the default for anything else."""
    text = asked(key)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else default  # fits 32 bits


def update(changes: Mapping[str, str | int | None]) -> None:
    """Write to the address what the page shows now, so that it can be shared; None removes a key."""
    for key, value in changes.items():
        if value is None or value == "":
            if key in st.query_params:
                del st.query_params[key]
        elif st.query_params.get(key) != str(value):
            st.query_params[key] = str(value)
