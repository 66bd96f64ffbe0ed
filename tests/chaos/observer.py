"""What tests see of trainings under attack: their histories, the database, and the cluster."""

from __future__ import annotations

import glob
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from storage import Database, owner, reads
from tests.chaos.history import Record, read
from tuner.processes import marked

__all__ = ["details", "events", "groups_left", "left_behind", "steps_done", "steps_run", "trainings"]


def trainings(folder: Path) -> list[Record]:
    """What the ranks of all trials did; see :mod:`tests.chaos.training`."""
    return read(sorted(folder.glob("trial-*.history")))


def steps_done(folder: Path, number: int | None = None) -> int:
    """Steps that were run to their end, of all trials or of one, by rank 0."""
    return sum(
        one.name == "step"
        and one.state == "ok"
        and one.given["rank"] == 0
        and number in (None, one.given["number"])
        for one in trainings(folder)
    )


def steps_run(folder: Path) -> dict[tuple[int, int], int]:
    """How often each step of each trial was begun, by rank 0."""
    return Counter(
        (one.given["number"], one.given["step"])
        for one in trainings(folder)
        if one.name == "step" and one.given["rank"] == 0
    )


def details(url: str, n: int) -> list[Any]:
    """The first ``n`` trials with all their attempts; None for one that is not there."""
    database = Database(url, create=False)
    try:
        return [reads.trial(database.engine, "s", number) for number in range(n)]
    finally:
        database.dispose()


def events(url: str) -> list[str]:
    """The kinds of the events so far, in order."""
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    try:
        with engine.connect() as connection:
            query = sa.text("SELECT kind FROM tuner_events ORDER BY event_id")
            return list(connection.execute(query).scalars())
    except sa.exc.DatabaseError:
        return []  # nobody has made the database yet
    finally:
        engine.dispose()


def left_behind(url: str) -> list[str]:
    """Processes and temporary folders of the runs of a study that are still there."""
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    try:
        with engine.connect() as connection:
            ranks = connection.execute(sa.text("SELECT ranks FROM tuner_attempts")).scalars().all()
            owners = connection.execute(sa.text("SELECT owner FROM tuner_leases")).scalars().all()
    except sa.exc.DatabaseError:
        return []  # nobody has made the database
    finally:
        engine.dispose()
    processes = [rank["process"] for text in ranks if text for rank in json.loads(text)]
    processes += [json.loads(text) for text in owners if text]
    runs = {str(process["run"]) for process in processes if process}
    found = [f"process {pid} of run {run}" for run in runs for pid in marked(run)]
    found += [path for run in runs for path in glob.glob(f"{tempfile.gettempdir()}/tuner-{run}-*")]
    return found + [f"rank {process['pid']}" for process in processes if process and owner.alive(process)]


def groups_left(address: str, url: str) -> list[str]:
    """Groups of the study that are on a standing cluster: asked in a process of its own."""
    database = Database(url, create=False)
    (row,) = reads.studies(database.engine)
    database.dispose()
    code = (
        "import ray, sys; from tuner.dispatch.connection import show_token; show_token(sys.argv[1]);"
        "ray.init(address=sys.argv[1], logging_level='ERROR', log_to_driver=False);"
        "from tuner.dispatch.standing import find; print(*(one.name for one in find(sys.argv[2])))"
    )
    command = [sys.executable, "-c", code, address, row.uid]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.split()
