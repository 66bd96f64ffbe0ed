"""The pages' only way to the database: reads that are cached for seconds, never a whole study.

They go through connections on which the database refuses every change, and only for who is logged in.

::

    study = data.read(reads.study, name)
    page = data.read(reads.trials, name, page=2, sort="value")
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar

import streamlit as st

from dashboard.access import auth
from storage import Database, Displaced, StorageError, mask_url, reads
from storage.views import StudyDetail

__all__ = ["database", "database_name", "forget", "problem", "read", "study"]

SECONDS = 2.0
"""For how long what was read is shown to all viewers."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _url() -> str:
    return os.environ.get("TUNER_STORAGE") or "sqlite:///tuner.db"


def database_name() -> str:
    """The database for a person, without its password."""
    return mask_url(_url())


def database() -> Database:
    """The database, for what :mod:`dashboard.actions` writes; pages only :func:`read`.

    Raises:
        Refused: this viewer may not change anything.
    """
    auth.require_editor()
    return _current(read_only=False)


@st.cache_resource(show_spinner=False, max_entries=4)
def _opened(url: str, read_only: bool) -> Database:
    return Database(url, create=False, timeout=5, read_only=read_only)


def _current(*, read_only: bool) -> Database:
    """The database that is there now: a SQLite file that was removed and made again is another one."""
    database = _opened(_url(), read_only)
    try:
        database.check_file()
    except Displaced:
        _opened.clear()
        _read.clear()
        database = _opened(_url(), read_only)
    return database


def problem() -> str | None:
    """Why the database cannot be read, in one line, or None."""
    auth.require_login()
    try:
        database = _current(read_only=True)
        with database.errors(), database.read():
            return None
    except StorageError as error:
        return str(error)


def read(function: Callable[Concatenate[Any, _P], _T], /, *arguments: _P.args, **options: _P.kwargs) -> _T:
    """What one of :mod:`storage`'s reads returns, at most :data:`SECONDS` old; arguments are plain values.

    Raises:
        StorageError: one line that says what is wrong with the arguments, or with the database.
    """
    auth.require_login()
    name = f"{function.__module__}.{function.__qualname__}"
    found: _T = _read(function, _current(read_only=True), _url(), name, arguments, options)
    return found


@st.cache_data(ttl=SECONDS, max_entries=100, show_spinner=False)
def _read(
    _function: Callable[..., Any],
    _database: Database,
    url: str,
    name: str,
    arguments: tuple[Any, ...],
    options: Mapping[str, Any],
) -> Any:
    with _database.errors():
        return _function(_database.engine, *arguments, **options)


def forget() -> None:
    """Read everything anew from now on: something was written."""
    _read.clear()


def study(name: str) -> StudyDetail | None:
    """The study of that name, or None."""
    return None if read(reads.is_empty) else read(reads.study, name)
