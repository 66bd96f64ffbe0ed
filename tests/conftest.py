"""Databases for the tests: each test that takes ``url`` runs on SQLite and on PostgreSQL."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import shutil
import signal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import optuna
import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory
from optuna.storages._rdb import storage as optunas

from dashboard.access.login import VARIABLES
from storage import Database
from tests.chaos.table import pytest_runtest_makereport, pytest_terminal_summary, recovered
from tests.postgres import postgres_server
from tuner import config, takeover
from tuner.dispatch import shell

__all__ = ["pytest_runtest_makereport", "pytest_terminal_summary", "recovered"]

optuna.logging.set_verbosity(optuna.logging.WARNING)
assert takeover.OUT_OF_REACH < 120, "it has read the constant by now"
shell.WITHOUT_DRIVER = 900.0  # one that a test holds would end the process of the tests, with exit code 0
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, also by what the tests start
hypothesis.settings.register_profile("tuner", deadline=None)  # no timing assertions: cores are shared
hypothesis.settings.load_profile("tuner")


@functools.cache
def _revisions() -> ScriptDirectory:
    return ScriptDirectory(str(Path(optunas.__file__).parent / "alembic"))


# Optuna imports all its revisions anew, several times, for each database that it makes or opens: two thirds
# of the time that this takes. Here a process does so once.
optunas._VersionManager._create_alembic_script = lambda self: _revisions()  # type: ignore[method-assign]


LONGEST = (
    *("test_readme", "test_faults", "test_sqlstorage", "test_browser_live", "test_devices"),
    *("test_dispatch_ray", "test_dashboard_accessibility", "test_standing", "test_command_ray"),
    *("test_optuna_code", "test_objectives_sharded", "test_browser_hostile", "test_shared_study"),
    *("test_ahead", "test_daily"),
)
"""Files that take about a minute or more begin first: else one of them ends long after all others."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


@pytest.fixture(autouse=True)
def _no_settings_of_the_developer(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", *VARIABLES, *map(config.variable, config.KEYS)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


_frozen = 0  # modules that were there when the garbage collector was last told of them


@pytest.fixture(autouse=True)
def _modules_are_no_garbage() -> None:
    """Streamlit collects all garbage after each run of a page, and most of what it would look through is
    what the files of tests have imported: 0.7 s each time.
    """
    global _frozen
    if len(sys.modules) > _frozen + 50:
        gc.collect()
        gc.freeze()
        _frozen = len(sys.modules)


@pytest.fixture(scope="session", autouse=True)
def _components_are_looked_for_once() -> None:
    """Streamlit reads what every installed package says of itself for each AppTest, and a server once:
    more than half of the time that the pages' tests take.
    """
    if "streamlit" in sys.modules:
        from streamlit.components.v2 import manifest_scanner

        manifest_scanner.scan_component_manifests = functools.cache(manifest_scanner.scan_component_manifests)


@pytest.fixture(scope="module", autouse=True)
def _ray_goes_with_the_file() -> Iterator[None]:
    """A connection that one file has left would be taken for the user's own by the next one."""
    yield
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()


@pytest.fixture(autouse=True)
def _main_stays_main() -> Iterator[None]:
    """Streamlit's AppTest puts its page in the place of ``__main__``, which a spawned process would run."""
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a PostgreSQL server: ``$TUNER_TEST_POSTGRES``, else one that is started here."""
    given = os.environ.get("TUNER_TEST_POSTGRES")
    if given:
        yield given
        return
    with postgres_server() as server:
        yield server.get_uri()


@pytest.fixture(scope="session")
def sqlite_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite database with Optuna's tables and ours, to copy."""
    file = tmp_path_factory.mktemp("tables") / "tuner.db"
    Database(f"sqlite:///{file}").dispose()
    return file


@pytest.fixture(scope="session")
def postgres_tables(postgres: str) -> Iterator[str]:
    """The name of a PostgreSQL database with Optuna's tables and ours, to copy."""
    with postgres_database(postgres) as url:
        Database(url).dispose()
        gc.collect()  # Optuna's connections: a database that is in use is not copied
        yield sa.make_url(url).database


@contextlib.contextmanager
def postgres_database(server: str, template: str = "template1") -> Iterator[str]:
    """URL of a new database of a server."""
    base = sa.make_url(server).set(drivername="postgresql+psycopg")
    name = f"test_{uuid.uuid4().hex[:12]}"
    admin = sa.create_engine(base, isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool)
    with admin.connect() as connection:  # copying files costs a third of writing them to the log
        connection.execute(sa.text(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy"))
    yield base.set(database=name).render_as_string(hide_password=False)
    if os.environ.get("TUNER_TEST_POSTGRES"):  # a server of our own goes with all it holds
        with admin.connect() as connection:
            connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of an empty database of its own."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/tuner.db"
        return
    with postgres_database(request.getfixturevalue("postgres")) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a database of its own, with Optuna's tables and ours: it is copied, which costs a tenth."""
    tables = request.getfixturevalue(f"{request.param}_tables")
    if request.param == "sqlite":
        shutil.copy(tables, tmp_path / "tuner.db")
        yield f"sqlite:///{tmp_path}/tuner.db"
        return
    with postgres_database(request.getfixturevalue("postgres"), tables) as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """URL of an empty SQLite database."""
    return f"sqlite:///{tmp_path}/tuner.db"


@pytest.fixture
def chromium() -> str:
    """Its program; outside of CI, skips the test where there is none."""
    found = shutil.which("chromium")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("CI has no Chromium: install Debian's package 'chromium'")
        pytest.skip("there is no Chromium on this machine")
    return found
