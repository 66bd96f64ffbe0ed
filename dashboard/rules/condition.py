"""The condition of a study as plain rules: driven or not, stale, failing. No page, no database.

A study is *stale* when attempts of ours have begun and no driver will end them: it is gone, or has
renewed nothing for :data:`SILENT` seconds. ``tuner resume`` takes such a study over. Trials that
other programs run are not counted: nobody here can say whether those still work.

A study is *failing* when at least :data:`FEW` of its newest finished trials failed, and they are
at least :data:`PART` of those that were looked at. A FAIL trial has used up its attempts, so a
quarter of them is a fault of the objective or of the cluster, and no bad luck; fewer than three
are not yet a pattern.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Literal

__all__ = ["FEW", "PART", "SILENT", "Driver", "driver_of", "is_failing", "is_stale"]

SILENT = 60.0
"""Seconds without a renewal after which a driver counts as silent: four leases of the default length."""

FEW = 3
PART = 0.25

Driver = Literal["running", "elsewhere", "silent", "gone", "none"]
"""``running`` on this host; ``elsewhere``, by its renewals; ``none``: nobody holds the lease."""


def driver_of(held: bool, alive: bool | None, renewed_at: dt.datetime | None, now: dt.datetime) -> Driver:
    """What is known of the process that holds a study's lease.

    Args:
        held: whether anybody holds it.
        alive: whether its process lives; None when it is on another host, so nobody can say.
        renewed_at: its newest renewal, naive UTC by its own host's clock.
        now: naive UTC.
    """
    if not held:
        return "none"
    if alive is False:
        return "gone"
    if renewed_at is None or (now - renewed_at).total_seconds() > SILENT:
        return "silent"
    return "running" if alive else "elsewhere"


def is_stale(driver: Driver, running: int) -> bool:
    """Whether attempts that began have no driver that will end them.

    Example:
        >>> is_stale("gone", 2), is_stale("running", 2), is_stale("none", 0)
        (True, False, False)
    """
    return running > 0 and driver in ("silent", "gone", "none")


def is_failing(newest: Mapping[str, int]) -> bool:
    """Whether many of the newest finished trials failed.

    Args:
        newest: their count by state name.

    Example:
        >>> is_failing({"COMPLETE": 15, "FAIL": 5}), is_failing({"FAIL": 2})
        (True, False)
    """
    failed = newest.get("FAIL", 0)
    return failed >= FEW and failed >= PART * sum(newest.values())
