"""Where a side does its work: a folder with a database and notes, and what the trials there are told."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "NOTES",
    "SLOTS",
    "Found",
    "busy_share",
    "ends",
    "environment",
    "flooded",
    "notes",
    "peak",
    "rate",
    "rows",
    "url",
]

SLOTS = 2
FILE, NOTES = "bench.db", "notes"

Found = Mapping[str, Any]
"""What was measured, by name."""


def rate(ends: Sequence[float]) -> float:
    """Trials a second, without the first tenth of them, by the end of which all slots are there.

    Example:
        >>> rate([10.0, 10.5, 11.0])
        2.0
    """
    counted = sorted(ends)[len(ends) // 10 :]
    return (len(counted) - 1) / (counted[-1] - counted[0])


def busy_share(ends: Sequence[float], folder: Path) -> Found:
    """The part of the slots' time, each from its first line on, that went into trials of a second."""
    begins = sorted(found["began"] for found in notes(folder))
    if len(begins) != len(ends):
        raise RuntimeError(f"{len(begins)} trials began and {len(ends)} ended")
    return {"share": len(ends) / sum(max(ends) - begin for begin in begins[:SLOTS])}


def flooded(heard: Sequence[float], count: int, folder: Path) -> Found:
    """The notes of the one trial of a folder, and its reports a second until it was heard to have ended."""
    (end,), (found,) = heard, notes(folder)
    return {**found, "rate": count / (end - found["flood_began"])}


def url(folder: Path) -> str:
    """Of a folder's database."""
    return f"sqlite:///{folder}/{FILE}"


def rows(folder: Path, table: str, where: str = "1") -> int:
    """How many a table of a folder's database has."""
    ((count,),) = _select(folder, f"SELECT count(*) FROM {table} WHERE {where}")
    return int(count)


def ends(folder: Path) -> list[float]:
    """When each trial ended, in seconds since 1970, as the database has it."""
    found = _select(folder, "SELECT datetime_complete FROM trials WHERE datetime_complete IS NOT NULL")
    return [dt.datetime.fromisoformat(text).timestamp() for (text,) in found]


def notes(folder: Path) -> list[dict[str, Any]]:
    """What the trials have noted."""
    return [json.loads(line) for line in (folder / NOTES).read_text().splitlines()]


def _select(folder: Path, statement: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(folder / FILE)) as connection:
        return connection.execute(statement).fetchall()


@contextlib.contextmanager
def environment(count: int, step: float, asleep: bool = False) -> Iterator[None]:
    """How much there is to do, for the processes that this one starts."""
    wanted = {"TUNER_BENCH_COUNT": str(count), "TUNER_BENCH_STEP": str(step)}
    os.environ.update(wanted | ({"TUNER_BENCH_ASLEEP": "1"} if asleep else {}))
    try:
        yield
    finally:
        for name in (*wanted, "TUNER_BENCH_ASLEEP"):
            os.environ.pop(name, None)


def peak() -> float:
    """The greatest resident size in MB; ``getrusage`` would count the parent's from before the exec."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError("/proc/self/status has no VmHWM")
