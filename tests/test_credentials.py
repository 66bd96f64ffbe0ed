"""Passwords: where a driver finds them, and that no process of ours shows one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from tuner import credentials, optimize
from tuner.cli import main

ROOT = Path(__file__).parents[1]
SECRET = "kept-to-itself"

OBJECTIVE = """
import time
from pathlib import Path

HOME = Path(__file__).parent


def objective(trial):
    (HOME / "runs").touch()
    while not (HOME / "open").exists():
        time.sleep(0.05)
    return 1.0
"""


class Login:
    """A role of PostgreSQL that needs a password, and a database of its own."""

    def __init__(self, url: sa.URL) -> None:
        self.url = sa.URL.create("postgresql", username="ann", database=url.database, query=url.query)
        self.with_password = self.url.set(password=SECRET).render_as_string(hide_password=False)
        self.host = str(url.query["host"])


@pytest.fixture(scope="module")
def login(postgres: str) -> Iterator[Login]:
    server = sa.make_url(postgres).set(drivername="postgresql+psycopg")
    name = f"login_{uuid.uuid4().hex[:8]}"
    admin = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool)
    with admin.connect() as connection:
        rules = Path(connection.execute(sa.text("SHOW hba_file")).scalar_one())
        if "host" not in server.query or not os.access(rules, os.W_OK):
            pytest.skip("the server's rules for logins cannot be changed from here")
        before = rules.read_text()
        rules.write_text(f"local all ann scram-sha-256\n{before}")
        connection.execute(sa.text("SELECT pg_reload_conf()"))
        connection.execute(sa.text(f"CREATE ROLE ann LOGIN PASSWORD '{SECRET}'"))
        connection.execute(sa.text(f"CREATE DATABASE {name} OWNER ann"))
        try:
            yield Login(server.set(database=name))
        finally:
            connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
            connection.execute(sa.text("DROP ROLE ann"))
            rules.write_text(before)
            connection.execute(sa.text("SELECT pg_reload_conf()"))
    admin.dispose()


def plain_environment(**more: str) -> dict[str, str]:
    """Without a password that the machine has somewhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**kept, "PYTHONPATH": str(ROOT), "PGPASSFILE": "/not/here", **more}


def test_no_process_of_a_run_shows_the_password(login: Login, tmp_path: Path) -> None:
    (tmp_path / "waits.py").write_text(OBJECTIVE)
    options = ("--study", "s", "--trials", "1", "--cpus", "1", "--storage", login.with_password)
    secrets = {"PGPASSWORD": SECRET, "TUNER_ALERTS": f"http://127.0.0.1:9/{SECRET}"}
    run = subprocess.Popen(
        [sys.executable, "-m", "tuner", "run", "waits.py", *options],
        cwd=tmp_path,
        env=plain_environment(**secrets),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with run, ended(run):
        until_there(tmp_path / "runs", run)
        arguments, variables, names = {}, set(), set()
        for process in psutil.process_iter():
            try:
                found = Path(f"/proc/{process.pid}/cmdline").read_text(errors="replace")
                environ = Path(f"/proc/{process.pid}/environ").read_text(errors="replace")
                name = process.name()
            except (OSError, psutil.Error):
                continue
            if str(tmp_path) in environ or process.pid == run.pid or run.pid in parents(process):
                names.add(name)
            if SECRET in found:
                arguments[process.pid] = found
            if SECRET in environ:
                variables.add(process.pid)
        (tmp_path / "open").touch()
        said = run.communicate(timeout=200)
    assert run.returncode == 0, said
    assert names >= {"raylet", "gcs_server"}
    assert arguments == {}
    assert variables - {os.getpid()} == {run.pid}, "the driver itself has it, of this test"
    assert said[1].count("\n") >= 1
    assert said[1].startswith("warning: a password on the command line stays in the history of your shell")
    assert "~/.pgpass or $PGPASSWORD" in said[1]
    assert SECRET not in said[0] + said[1]


@contextlib.contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """It does not outlive a test that failed."""
    try:
        yield
    finally:
        process.kill()


def parents(process: psutil.Process) -> set[int]:
    try:
        return {parent.pid for parent in process.parents()}
    except psutil.Error:
        return set()


def until_there(path: Path, run: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not path.exists():
        assert time.monotonic() < deadline
        assert run.poll() is None, run.communicate()
        time.sleep(0.05)


def test_the_password_is_found_where_postgresql_keeps_it(
    login: Login, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = login.url.render_as_string()
    passwords = tmp_path / "pgpass"
    passwords.write_text(f"*:*:*:ann:{SECRET}\n")
    passwords.chmod(0o600)
    services = tmp_path / "services"
    services.write_text(
        f"[tuner]\nhost={login.host}\nuser=ann\ndbname={login.url.database}\npassword={SECRET}\n"
    )
    (tmp_path / "parabola.py").write_text(
        "def objective(trial):\n    return trial.suggest_float('x', 0, 1)\n"
    )
    inline = ("run", "parabola.py", "--study", "q", "--trials", "1", "--executor", "inline")
    ways = {
        "file": {"TUNER_STORAGE": url, "PGPASSFILE": str(passwords)},
        "variable": {"TUNER_STORAGE": url, "PGPASSWORD": SECRET},
        "service": {"TUNER_STORAGE": "postgresql://", "PGSERVICE": "tuner", "PGSERVICEFILE": str(services)},
        "url": {"TUNER_STORAGE": login.with_password},
    }
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)  # a password that the machine has somewhere
    monkeypatch.setenv("PGPASSFILE", "/not/here")

    def tuner(*arguments: str, **variables: str) -> tuple[int, str, str]:
        with pytest.MonkeyPatch.context() as environment:
            for name, value in variables.items():
                environment.setenv(name, value)
            code = main(arguments)
        return code, *capsys.readouterr()

    code, _, said = tuner(*inline, **ways["file"])
    assert code == 0, said
    for name, variables in ways.items():
        code, listed, said = tuner("studies", **variables)
        assert code == 0, (name, said)
        assert "q" in listed
    code, _, refused = tuner("studies", TUNER_STORAGE=url)
    assert code == 2
    assert refused.count("\n") == 1
    assert "no password supplied; keep it in ~/.pgpass or $PGPASSWORD, or the whole" in refused


def test_variables_with_passwords_are_not_given_to_ranks_whatever_the_pattern(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in credentials.VARIABLES:
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("TUNER_OTHER", "x")
    given = sys.modules[optimize.__module__].environment(["TUNER_*", "PG*"])
    assert given == {"TUNER_OTHER": "x"}
