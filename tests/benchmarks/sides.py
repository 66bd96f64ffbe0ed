"""The two sides of a comparison: Optuna's RDBStorage, and SqlStorage in the hands of a driver."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import optuna
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage

from storage import SqlStorage

__all__ = ["STUDY", "Opened", "Side", "create", "model", "ours", "theirs"]

STUDY = "bench"


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A study that is open.

    Attributes:
        flush: returns when all that was said to the study is durable.
    """

    study: optuna.Study
    flush: Callable[[], object]


Side = Callable[[str], AbstractContextManager[Opened]]
"""Opens the study of a database's URL, and closes every connection afterwards."""


def create(url: str) -> None:
    """Optuna's tables and an empty study, written by Optuna."""
    storage = RDBStorage(url)
    optuna.create_study(study_name=STUDY, storage=storage)
    _close(storage)


@contextlib.contextmanager
def theirs(url: str) -> Iterator[Opened]:
    """Optuna's RDBStorage as ``optuna.load_study`` makes it from a URL; each call commits by itself."""
    storage = RDBStorage(url)
    try:
        yield Opened(study=_load(storage), flush=lambda: None)
    finally:
        _close(storage)


@contextlib.contextmanager
def ours(url: str) -> Iterator[Opened]:
    """SqlStorage, with the study's lease."""
    storage = SqlStorage(url)
    try:
        with storage.lease(STUDY) as held:
            yield Opened(study=_load(storage), flush=held.flush)
    finally:
        storage.remove_session()


def model() -> optuna.Study:
    """The same study in memory: what both sides must have written in the end."""
    return optuna.create_study(study_name=STUDY, storage=InMemoryStorage(), sampler=_sampler())


def _load(storage: BaseStorage) -> optuna.Study:
    return optuna.load_study(study_name=STUDY, storage=storage, sampler=_sampler())


def _sampler() -> optuna.samplers.BaseSampler:
    return optuna.samplers.RandomSampler(seed=1)


def _close(storage: RDBStorage) -> None:
    storage.remove_session()
    storage.engine.dispose()
