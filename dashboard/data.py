"""The pages' only way to the database: reads that are cached for seconds, never a whole study."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

import streamlit as st

from storage import Database, StorageError, mask_url, reads
from storage.conditions import parse_all
from storage.database import normalise_url
from storage.views import BestPoint, FailureRow, StudyDetail, StudyRow, TrialDetail, TrialPage

__all__ = ["best_so_far", "database_name", "failures", "problem", "studies", "study", "trial", "trials"]

_SECONDS = 2.0


def _url() -> str:
    return os.environ.get("TUNER_STORAGE") or "sqlite:///tuner.db"


def database_name() -> str:
    """The database for a person, without its password."""
    return mask_url(_url())


def _database(url: str) -> Database:
    return _opened(url, _file_of(url))


@st.cache_resource(show_spinner=False, max_entries=2)
def _opened(url: str, file: int) -> Database:
    return Database(url, create=False, timeout=5)


def _file_of(url: str) -> int:
    """The inode of a SQLite file: one that was deleted and made again is another database."""
    with contextlib.suppress(OSError, StorageError):
        found = normalise_url(url)
        return os.stat(str(found.database)).st_ino if found.get_backend_name() == "sqlite" else 0
    return 0


def problem() -> str | None:
    """Why the database cannot be read, in one line, or None."""
    try:
        with _database(_url()).errors(), _database(_url()).read():
            return None
    except StorageError as error:
        return str(error)


def studies(search: str) -> list[StudyRow]:
    """The studies whose name contains ``search``; none in a database that is still empty."""
    return _studies(_url(), search)


@st.cache_data(ttl=_SECONDS, max_entries=50, show_spinner=False)
def _studies(url: str, search: str) -> list[StudyRow]:
    engine = _database(url).engine
    return [] if reads.is_empty(engine) else reads.studies(engine, search)


def study(name: str) -> StudyDetail | None:
    """The study of that name, or None."""
    return _study(_url(), name)


@st.cache_data(ttl=_SECONDS, max_entries=50, show_spinner=False)
def _study(url: str, name: str) -> StudyDetail | None:
    engine = _database(url).engine
    return None if reads.is_empty(engine) else reads.study(engine, name)


def trials(
    name: str, page: int, states: Sequence[str], sort: str, descending: bool, conditions: str = ""
) -> TrialPage:
    """One page of 50 trials that meet the conditions, such as ``lr<0.1 and optimizer=adam``.

    Raises:
        StorageError: one line that says what is wrong with the conditions, or with ``sort``.
    """
    return _trials(_url(), name, page, tuple(states), sort, descending, conditions)


@st.cache_data(ttl=_SECONDS, max_entries=50, show_spinner=False)
def _trials(
    url: str, name: str, page: int, states: tuple[str, ...], sort: str, descending: bool, conditions: str
) -> TrialPage:
    where = parse_all(conditions)
    engine = _database(url).engine
    return reads.trials(engine, name, page=page, states=states, where=where, sort=sort, descending=descending)


def trial(name: str, number: int) -> TrialDetail | None:
    """One trial with all that is known of it, or None."""
    return _trial(_url(), name, number)


@st.cache_data(ttl=_SECONDS, max_entries=50, show_spinner=False)
def _trial(url: str, name: str, number: int) -> TrialDetail | None:
    return reads.trial(_database(url).engine, name, number)


def best_so_far(name: str) -> list[BestPoint]:
    """COMPLETE trials in order of completion, with the best up to each."""
    return _best_so_far(_url(), name)


@st.cache_data(ttl=_SECONDS, max_entries=20, show_spinner=False)
def _best_so_far(url: str, name: str) -> list[BestPoint]:
    return reads.best_so_far(_database(url).engine, name)


def failures(name: str) -> list[FailureRow]:
    """Failed trials by reason and exception."""
    return _failures(_url(), name)


@st.cache_data(ttl=_SECONDS, max_entries=20, show_spinner=False)
def _failures(url: str, name: str) -> list[FailureRow]:
    return reads.failures(_database(url).engine, name)
