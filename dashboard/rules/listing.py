"""The list of studies: which are shown, in which order. No page, no database."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dashboard.rules.condition import Driver, is_failing, is_stale
from storage.health import Health
from storage.views import StudyRow

__all__ = ["FLAGS", "ORDERS", "Listed", "listed"]


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A study in the list, how it fares, and who drives it."""

    row: StudyRow
    health: Health
    driver: Driver

    @property
    def flags(self) -> tuple[str, ...]:
        """Those of :data:`FLAGS` that hold."""
        return tuple(name for name, holds in FLAGS.items() if holds(self))


FLAGS: Mapping[str, Callable[[Listed], bool]] = {
    "running": lambda one: one.driver in ("running", "elsewhere"),
    "stale": lambda one: is_stale(one.driver, one.health.running),
    "failing": lambda one: is_failing(one.health.newest),
}
"""What a study may be shown by; see :mod:`dashboard.rules.condition`."""

_NEVER = dt.datetime.min


def _of_state(*names: str) -> Callable[[StudyRow], Any]:
    return lambda row: sum(row.states.get(name, 0) for name in names)


ORDERS: Mapping[str, tuple[Callable[[StudyRow], Any], bool]] = {
    "activity": (lambda row: row.last_activity or row.created_at or _NEVER, True),
    "name": (lambda row: row.name.casefold(), False),
    "best": (lambda row: row.best, True),
    "failures": (_of_state("FAIL"), True),
    "finished": (_of_state("COMPLETE", "PRUNED", "FAIL"), True),
    "progress": (
        lambda row: row.n_trials and _of_state("COMPLETE", "PRUNED", "FAIL")(row) / row.n_trials,
        True,
    ),
}
"""What the list is sorted by: what of a study, and whether the largest comes first."""


def listed(
    studies: Sequence[Listed], *, show: Sequence[str] = (), sort: str = "activity", reverse: bool = False
) -> list[Listed]:
    """The studies with all of the flags ``show``, in the order ``sort``; those without it come last.

    Args:
        reverse: the order's other direction. Equal ones are by name in both.
    """
    of, largest_first = ORDERS[sort]
    chosen = [one for one in studies if set(show) <= set(one.flags)]
    chosen.sort(key=lambda one: one.row.name)
    there = [one for one in chosen if of(one.row) is not None]
    missing = [one for one in chosen if of(one.row) is None]
    there.sort(key=lambda one: of(one.row), reverse=largest_first != reverse)
    return there + missing
