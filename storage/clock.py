"""Times as Optuna 5 stores them: naive UTC in the database, naive local time in its trials."""

from __future__ import annotations

import datetime as dt

__all__ = ["to_local", "to_utc", "utcnow"]


def utcnow() -> dt.datetime:
    """Now, as naive UTC, for a DateTime column."""
    return dt.datetime.now(dt.UTC).replace(tzinfo=None)


def to_local(stored: dt.datetime | None) -> dt.datetime | None:
    """A stored naive UTC time as Optuna's naive local time."""
    return None if stored is None else stored.replace(tzinfo=dt.UTC).astimezone().replace(tzinfo=None)


def to_utc(local: dt.datetime | None) -> dt.datetime | None:
    """Optuna's naive local time, or an aware one, as naive UTC for a column."""
    return None if local is None else local.astimezone(dt.UTC).replace(tzinfo=None)
