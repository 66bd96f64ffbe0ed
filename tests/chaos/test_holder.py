"""A holder is killed, stopped, cut off and doubted at every boundary of its write path.

Faults 5, 6, 8 to 13 and 23 of the catalogue. Seeds are in the names of the tests; ``CHAOS_SEED``
moves those of the random kills.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from storage import Database
from tests.chaos.checker import check
from tests.chaos.history import read
from tests.chaos.programs import Program, until
from tests.chaos.proxy import Proxy
from tests.postgres import postgres_server

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

POINTS = ["begun", "fenced", "written", "committed"]
SEED = int(os.environ.get("CHAOS_SEED", "1"))
N = 30

Note = Callable[[str, float], None]


@pytest.fixture
def start(tmp_path: Path, url: str) -> Iterator[Callable[..., Program]]:
    """Starts a program on the database of the test, and ends it afterwards."""
    programs: list[Program] = []

    def start(*arguments: str, n: int = N, seed: int = 1, url: str = url, **given: Any) -> Program:
        programs.append(Program(tmp_path, url, "--n", str(n), "--seed", str(seed), *arguments, **given))
        return programs[-1]

    Database(url).dispose()  # the schema, once: two programs that make it are another test's
    yield start
    for program in programs:
        program.signal(signal.SIGCONT) if program.alive else None
        program.end()


def clean(url: str, *programs: Program, n: int = N) -> None:
    """The checker finds nothing."""
    histories = sorted({program.history for program in programs})
    assert check(read(histories), url, "s", n=n) == []


# ------------------------------------------------------------------ killed


@pytest.mark.parametrize("passage", [1, 4, 17])
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_boundary(
    url: str, start: Callable[..., Program], recovered: Note, point: str, passage: int
) -> None:
    first = start(fault=f"{point}:{passage}:kill")
    assert first.wait() == -signal.SIGKILL
    killed = time.monotonic()
    second = start(name="two", seed=2)
    assert second.line() == "held"
    recovered(f"5 to 7: holder killed, {point}", time.monotonic() - killed)
    assert second.wait() == 0
    clean(url, first, second)


@pytest.mark.parametrize("seed", range(SEED, SEED + 4))
def test_killed_at_random(url: str, start: Callable[..., Program], recovered: Note, seed: int) -> None:
    chance = random.Random(seed)
    programs = []
    for turn in range(8):
        began = time.monotonic()
        program = start(name=f"p{turn}", seed=100 * seed + turn, n=60)
        programs.append(program)
        assert program.line() == "held"
        if turn:
            recovered("6: holder killed at random", time.monotonic() - began)
        lines = chance.randrange(5, 120)
        until(lambda program=program, lines=lines: program.lines_written() >= lines or not program.alive)
        program.signal(signal.SIGKILL)
        program.wait()
    last = start(name="last", seed=99, n=60)
    assert last.wait() == 0
    clean(url, *programs, last, n=60)


# ------------------------------------------------------------------ stopped, and woken too late


@pytest.mark.parametrize("point", POINTS)
def test_stopped_at_a_boundary_on_this_host(
    url: str, start: Callable[..., Program], recovered: Note, point: str
) -> None:
    """It is killed by who takes over, so that it cannot wake up."""
    first = start("--duration", "3", fault=f"{point}:6:stop")
    until(first.is_stopped)
    stopped = time.monotonic()
    second = start("--duration", "3", name="two", seed=2)
    assert second.line() == "held"
    recovered(f"9: stopped here, {point}, lease of 3 s", time.monotonic() - stopped)
    assert first.wait() == -signal.SIGKILL
    assert second.wait() == 0
    clean(url, first, second)


@pytest.mark.parametrize("point", POINTS)
def test_stopped_at_a_boundary_on_another_host(
    url: str, start: Callable[..., Program], recovered: Note, point: str
) -> None:
    """Nobody can kill it. It wakes up after the take-over, changes nothing, and says so."""
    if url.startswith("sqlite") and point != "committed":
        pytest.skip("a SQLite file is one host's, and its lock is its process's")
    first = start("--foreign", "--duration", "3", n=N + 10, fault=f"{point}:6:stop")
    until(first.is_stopped)
    stopped = time.monotonic()
    second = start("--duration", "3", name="two", seed=2)
    assert second.line() == "held"
    recovered(f"9: stopped elsewhere, {point}, lease of 3 s", time.monotonic() - stopped)
    assert second.wait() == 0
    assert first.line() == "held"
    first.signal(signal.SIGCONT)
    assert first.wait() == 3, first.errors()
    assert first.line().startswith("lost: ")
    clean(url, first, second)


@pytest.mark.fault("16 of the checker: mutant without the fence")
def test_without_the_fence_the_sleeper_is_noticed(url: str, start: Callable[..., Program]) -> None:
    first = start("--foreign", "--duration", "3", "--mutant", "fence", n=N + 10, fault="committed:6:stop")
    until(first.is_stopped)
    second = start("--duration", "3", name="two", seed=2)
    assert second.wait() == 0
    first.signal(signal.SIGCONT)
    first.wait()
    assert check(read([first.history, second.history]), url, "s", n=N) != []


@pytest.mark.fault("8: two drivers at once")
def test_two_at_once(url: str, start: Callable[..., Program]) -> None:
    """The second is refused while the first lives, and neither harms the other."""
    first = start("--duration", "3", n=4000)
    assert first.line() == "held"
    second = start("--duration", "3", name="two", seed=2)
    assert second.wait() == 1
    assert "is held by a live driver" in second.history.with_suffix(".errors").read_text()
    first.signal(signal.SIGKILL)
    first.wait()
    finished = len([one for one in read([first.history]) if one.name in ("tell", "add")])
    third = start("--duration", "3", name="three", seed=3, n=finished + 5)
    assert third.wait() == 0
    clean(url, first, third, n=finished + 5)


# ------------------------------------------------------------------ the reply, the server, the lock


@pytest.mark.parametrize("commit", [1, 2, 9])
@pytest.mark.fault("12: the reply to COMMIT lost")
def test_a_lost_reply_to_commit(url: str, start: Callable[..., Program], commit: int) -> None:
    program = start("--lose", str(commit))
    assert program.wait() == 0
    clean(url, program)


@pytest.mark.fault("16 of the checker: mutant that creates twice")
def test_a_create_that_is_repeated_is_noticed(url: str, start: Callable[..., Program]) -> None:
    program = start("--lose", "9", "--mutant", "repeat")
    program.wait()
    assert check(read([program.history]), url, "s", n=N) != []


@pytest.fixture
def server() -> Iterator[Any]:
    """A PostgreSQL of the test's own, which may be killed."""
    with postgres_server() as found:
        yield found
        found.ensure_postgres_running()


@pytest.fixture
def proxy(server: Any) -> Iterator[Proxy]:
    found = Proxy(Path(sa.make_url(server.get_uri()).query["host"]))
    yield found
    found.close()


def through(proxy: Proxy) -> str:
    return f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres?sslmode=disable"


@pytest.mark.fault("12: the reply to COMMIT lost in the network")
def test_the_network_loses_the_reply_to_commit(tmp_path: Path, proxy: Proxy) -> None:
    program = Program(tmp_path, through(proxy), "--n", "200", "--seed", "5")
    try:
        assert program.line() == "held"
        for _ in range(3):
            before = program.lines_written()
            proxy.lost.clear()
            proxy.lose_commit = True
            assert proxy.lost.wait(30), "the fault did not fire"
            until(lambda before=before: program.lines_written() > before + 20 or not program.alive)
        assert program.wait() == 0
        clean(through(proxy), program, n=200)
    finally:
        program.end()


@pytest.mark.parametrize("killed", [False, True], ids=["lives", "killed"])
def test_the_database_is_away_for_longer_than_the_lease(
    tmp_path: Path, proxy: Proxy, recovered: Note, killed: bool
) -> None:
    """What runs goes on; what it said is in the database once that is back, by it or its successor."""
    url = through(proxy)
    one = ["--n", "150", "--seed", "7", "--reports", "40", "--duration", "2"]
    first = Program(tmp_path, url, *one)
    second = None
    try:
        assert first.line() == "held"
        until(lambda: first.lines_written() > 50)
        proxy.down = True
        away = time.monotonic()
        spill = tmp_path / "spill"
        until(lambda: spill.is_dir() and any(path.stat().st_size for path in spill.iterdir()))
        until(lambda: time.monotonic() - away > 5)  # the fault's own length
        if killed:
            first.signal(signal.SIGKILL)
            first.wait()
            assert any(spill.iterdir())
        proxy.down = False
        back = time.monotonic()
        if killed:
            second = Program(tmp_path, url, *one, name="two")
            assert second.line() == "held"
            recovered("11: database away, holder killed", time.monotonic() - back)
            assert second.wait() == 0
        else:
            until(lambda: not any(spill.iterdir()))
            recovered("11: database away", time.monotonic() - back)
            assert first.wait() == 0
        assert not any(spill.iterdir())
        clean(url, *filter(None, [first, second]), n=150)
    finally:
        for program in filter(None, [first, second]):
            program.end()


def test_postgres_is_killed_and_started_again(tmp_path: Path, server: Any, recovered: Note) -> None:
    program = Program(tmp_path, server.get_uri(), "--n", "400", "--seed", "3")
    try:
        assert program.line() == "held"
        for _ in range(2):
            before = program.lines_written()
            postmaster = int((Path(server.pgdata) / "postmaster.pid").read_text().split()[0])
            os.kill(postmaster, signal.SIGQUIT)  # immediate: no checkpoint, as after a crash
            until(lambda pid=postmaster: not Path(f"/proc/{pid}").exists())
            server.ensure_postgres_running()
            back = time.monotonic()
            until(lambda before=before: program.lines_written() > before + 20 or not program.alive)
            recovered("10: PostgreSQL killed and started", time.monotonic() - back)
        assert program.wait() == 0
        clean(server.get_uri().replace("postgresql:", "postgresql+psycopg:"), program, n=400)
    finally:
        program.end()


def test_sqlite_is_locked_for_longer_than_the_lease(
    sqlite_url: str, start: Callable[..., Program], recovered: Note
) -> None:
    program = start("--duration", "2", n=150, url=sqlite_url)
    assert program.line() == "held"
    until(lambda: program.lines_written() > 50)
    other = sa.create_engine(sqlite_url, isolation_level=None, connect_args={"timeout": 30})  # type: ignore[arg-type]
    with other.connect() as connection:
        connection.exec_driver_sql("BEGIN EXCLUSIVE")
        locked = time.monotonic()
        until(lambda: time.monotonic() - locked > 6)
        connection.exec_driver_sql("COMMIT")
    other.dispose()
    free, before = time.monotonic(), program.lines_written()
    until(lambda: program.lines_written() > before or not program.alive)
    recovered("13: SQLite locked", time.monotonic() - free)
    assert program.wait() == 0
    clean(sqlite_url, program, n=150)


# ------------------------------------------------------------------ the clock, and much of everything


@pytest.mark.parametrize("offset", ["-1h", "+1h"])
@pytest.mark.fault("23: a clock an hour off")
def test_a_clock_that_is_an_hour_off(url: str, start: Callable[..., Program], offset: str) -> None:
    """Leases go by counters: the taker whose clock is ahead waits as long as any."""
    library = shutil.which("faketime")
    if library is None:
        pytest.skip("faketime is not installed")
    first = start("--duration", "3", n=4000)
    assert first.line() == "held"
    os.environ["FAKETIME"], os.environ["LD_PRELOAD"] = offset, _faketime()
    try:
        second = start("--duration", "3", name="two", seed=2)
    finally:
        del os.environ["FAKETIME"], os.environ["LD_PRELOAD"]
    assert second.wait() == 1
    assert "is held by a live driver" in second.history.with_suffix(".errors").read_text()
    first.signal(signal.SIGKILL)
    first.wait()


def _faketime() -> str:
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    return str(found[0])


MILLION = """
import resource, sys, optuna
from storage import SqlStorage
optuna.logging.set_verbosity(optuna.logging.ERROR)
storage = SqlStorage(sys.argv[1])
study = optuna.create_study(study_name="s", storage=storage)
with storage.lease("s") as held:
    trial, other = study.ask(), study.ask()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for step in range(1_000_000):
        storage.set_trial_intermediate_value(trial._trial_id, step, 0.5)
        if step % 100_000 == 0:
            other.report(float(step), step)
    study.tell(other, 1.0)
    held.flush()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.fault("29: a million reports of one trial")
def test_a_million_reports_of_one_trial(url: str) -> None:
    """All of them are there, memory stays bounded, and another trial is unharmed."""
    done = subprocess.run(
        [sys.executable, "-c", MILLION, url], capture_output=True, text=True, timeout=280, check=True
    )
    assert int(done.stdout) < 600, "MiB more"
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        count = sa.text("SELECT count(*) FROM trial_intermediate_values")
        assert connection.execute(count).scalar_one() == 1_000_010
    engine.dispose()
