"""Ranks, drivers, nodes and the database are killed at random, many times, under one study.

``CHAOS_SEED`` and ``CHAOS_KILLS`` make another run; the same seed makes the same choices.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import sqlalchemy as sa

from tests.chaos.cluster import StandingRay, standing_ray
from tests.chaos.history import Record, read
from tests.chaos.observer import events, groups_left, left_behind, trainings
from tests.chaos.programs import Program, until
from tests.chaos.proxy import Proxy
from tests.chaos.training_checker import check_run, steps_run_again
from tests.postgres import postgres_server

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

SEED = int(os.environ.get("CHAOS_SEED", "1"))
KILLS = int(os.environ.get("CHAOS_KILLS", "200"))
STEPS, PACE, FAILURES = 20, 0.05, 10_000
PRUNER = "median(n_startup_trials=3, n_warmup_steps=5)"

Note = Callable[..., None]


class Attack:
    """One study, what drives it, and what kills it."""

    def __init__(
        self, folder: Path, url: str, cluster: StandingRay, lose_database: Callable[[float], Any], n: int
    ) -> None:
        self._folder = folder
        self._url = url
        self._cluster = cluster
        self._lose_database = lose_database
        self._n = n
        self._raylet = cluster.add_node()
        self._drivers: list[Program] = []
        self._chance = random.Random(SEED)
        self.drive()

    @property
    def driver(self) -> Program:
        return self._drivers[-1]

    @property
    def is_over(self) -> bool:
        return not self.driver.alive

    def drive(self) -> None:
        """Start a driver."""
        self._drivers.append(
            Program(
                self._folder,
                self._url,
                *("--n", str(self._n), "--address", self._cluster.address, "--seed", str(SEED)),
                *("--failures", str(FAILURES), "--pruner", PRUNER, "--ranks", "2", "--cpus", "0.5"),
                name=f"driver-{len(self._drivers)}",
                module="ray_driver",
                environment={
                    "TUNER_CHAOS_FOLDER": str(self._folder),
                    "TUNER_CHAOS_STEPS": str(STEPS),
                    "TUNER_CHAOS_PACE": str(PACE),
                },
            )
        )

    def strike(self) -> tuple[str, float]:
        """Kill something, once there has been some progress; what, and seconds until it was made good."""
        wanted = self._progress() + self._chance.randrange(2, 40)
        until(lambda: self._progress() >= wanted or self.is_over, 150)
        kind = self._chance.choices(["rank", "driver", "node", "database"], [10, 5, 1, 3])[0]
        began = time.monotonic()
        is_well = getattr(self, f"_kill_{kind}")()
        until(lambda: is_well() or self.is_over, 150)
        return kind, time.monotonic() - began

    def _progress(self) -> int:
        """Lines in the histories of the trainings."""
        paths = self._folder.glob("trial-*.history")
        return sum(path.read_bytes().count(b"\n") for path in paths)

    def _kill_rank(self) -> Callable[[], bool]:
        """Until the trial trains a step in its next attempt, or its word was out before it died."""
        live = self._live()
        if not live:
            return lambda: True
        victim = self._chance.choice(live)
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim.given["pid"], signal.SIGKILL)

        def is_well() -> bool:
            number, attempt = victim.given["number"], victim.given["attempt"]
            told = any(one.given["number"] == number for one in self._told())
            return told or any(
                one.given["number"] == number and one.given["attempt"] > attempt and one.name == "step"
                for one in trainings(self._folder)
            )

        return is_well

    def _live(self) -> list[Record]:
        """The starts of the ranks that train now."""
        records = trainings(self._folder)
        ended = {(one.given["number"], one.given["rank"]) for one in records if one.name in ("end", "pruned")}
        starts = {(one.given["number"], one.given["rank"]): one for one in records if one.name == "start"}
        return [
            start
            for who, start in starts.items()
            if who not in ended and psutil.pid_exists(start.given["pid"])
        ]

    def _told(self) -> list[Record]:
        return read([one.history for one in self._drivers if one.history.exists()])

    def _kill_driver(self) -> Callable[[], bool]:
        """Until its successor has taken over, or told a trial."""
        before, told = events(self._url).count("taken_over"), len(self._told())
        self.driver.signal(signal.SIGKILL)
        self.driver.wait()
        self.drive()
        return lambda: events(self._url).count("taken_over") > before or len(self._told()) > told

    def _kill_node(self) -> Callable[[], bool]:
        """Until there is another one, and something is trained."""
        self._cluster.lose_node(self._raylet)
        before = self._progress()
        self._raylet = self._cluster.add_node()
        return lambda: self._progress() > before

    def _kill_database(self) -> Callable[[], bool]:
        """Until a trial starts or ends."""
        before = len(events(self._url))
        self._lose_database(self._chance.uniform(0.5, 3.0))
        return lambda: len(events(self._url)) > before

    def drain(self) -> None:
        """Let the study come to its end, with another driver if the last one gave up."""
        for _ in range(5):
            if self.driver.wait(900) == 0:
                return
            self.drive()
        pytest.fail(self.driver.errors())

    def errors(self) -> list[str]:
        """What is wrong in the end."""
        pruner = optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=5)
        return check_run(
            trainings(self._folder),
            self._told(),
            self._url,
            n=self._n,
            steps=STEPS,
            max_failures=FAILURES,
            pruner=pruner,
        )

    def end(self) -> None:
        for one in self._drivers:
            one.end()


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Callable[[float], Any]]]:
    """URL of a database, and what takes it away for some seconds."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/tuner.db"

        def lock(seconds: float) -> None:
            with contextlib.closing(_connect(tmp_path / "tuner.db")) as connection:
                connection.execute("BEGIN EXCLUSIVE")
                began = time.monotonic()
                until(lambda: time.monotonic() - began > seconds)  # the fault's own length
                connection.execute("COMMIT")

        yield url, lock
        return
    with postgres_server() as server:
        proxy = Proxy(Path(sa.make_url(server.get_uri()).query["host"]))

        def cut(seconds: float) -> None:
            proxy.down = True
            began = time.monotonic()
            until(lambda: time.monotonic() - began > seconds)
            proxy.down = False

        yield f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres?sslmode=disable", cut
        proxy.close()


def _connect(path: Path) -> Any:
    import sqlite3

    return sqlite3.connect(path, timeout=60, isolation_level=None)


@pytest.mark.parametrize(
    ("database", "kills"), [("sqlite", KILLS), ("postgres", KILLS // 4)], indirect=["database"]
)
def test_many_random_kills(
    tmp_path: Path, database: tuple[str, Callable[[float], Any]], kills: int, recovered: Note
) -> None:
    url, lose = database
    with standing_ray(cpus=1) as cluster:
        attack = Attack(tmp_path, url, cluster, lose, n=2 * kills)
        try:
            struck = 0
            while struck < kills and not attack.is_over:
                kind, seconds = attack.strike()
                struck += 1
                recovered(f"random: a {kind} killed", seconds)
            attack.drain()
            assert struck == kills, f"the study was over after {struck} kills"
            assert attack.errors() == []
            assert groups_left(cluster.address, url) == []
            until(lambda: not left_behind(url), 70)
            recovered("random: steps run again, of all", None, steps_run_again(trainings(tmp_path)))
        finally:
            attack.end()
