"""A cluster that stands: jobs that are submitted to it, and folders that are sent to its nodes."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from storage import Database, Unavailable, reads
from storage.views import StudyDetail, TrialDetail
from tests.chaos.cluster import StandingRay, standing_ray
from tuner.processes import is_gone

# The job server has many packages, and starts with every Ray: minutes, on a busy machine.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[1]

OBJECTIVE = """
import os
import time
from pathlib import Path

import helper

GATE = Path(os.environ["GATE"])


def objective(trial):
    x = trial.suggest_float("x", -1, 1)
    saved = trial.load_checkpoint()
    start = saved.step + 1 if saved else 0
    trial.set_user_attr("started_at", start)
    trial.set_user_attr("file", __file__)
    trial.set_user_attr("beside", Path("beside.txt").read_text())
    trial.set_user_attr("helper", helper.VALUE)
    Path("left.txt").write_text(str(trial.number))
    for step in range(start, 200):
        trial.report(x * x, step)
        trial.save_checkpoint({"step": step}, step)
        trial.should_prune()
        if (GATE / "open").exists():
            break
        time.sleep(0.1)
    return x * x
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[StandingRay]:
    """A head with a job server, whose node alone has "here", and another one that alone has "there"."""
    if importlib.util.find_spec("aiohttp_cors") is None:
        pytest.skip("Ray's job server is not installed: pip install 'tuner[cluster]'")
    with standing_ray(cpus=1, jobs=True) as found:
        found.add_node(cpus=1, has="there")
        yield found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project: the objective, a module and a file beside it."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "train.py").write_text(OBJECTIVE)
    (project / "helper.py").write_text("VALUE = 1\n")
    (project / "beside.txt").write_text("a file of the project")
    return project


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/tuner.db"


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Trials run until this file is there."""
    monkeypatch.setenv("GATE", str(tmp_path))
    return tmp_path / "open"


_NOT_YET = (Unavailable, sa.exc.OperationalError)  # its tables are being made


def trial_of(url: str, number: int = 0) -> TrialDetail | None:
    with contextlib.suppress(*_NOT_YET):
        database = Database(url, create=False)
        try:
            return None if reads.is_empty(database.engine) else reads.trial(database.engine, "s", number)
        finally:
            database.dispose()
    return None


def until(what: Callable[[], Any], bound: float = 200) -> Any:
    deadline = time.monotonic() + bound
    while not (found := what()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


def study_of(url: str) -> StudyDetail | None:
    with contextlib.suppress(*_NOT_YET):
        database = Database(url, create=False)
        try:
            return None if reads.is_empty(database.engine) else reads.study(database.engine, "s")
        finally:
            database.dispose()
    return None


def runs(url: str, attempt: int = 1) -> bool:
    """Whether trial 0 has been going for a while, in its first attempt or a later one."""
    trial = trial_of(url)
    return trial is not None and len(trial.attempt_rows) >= attempt and len(trial.checkpoint_parts) > 0


class Jobs:
    """``ray job submit -- tuner run ...``, as one types it."""

    def __init__(self, cluster: StandingRay, folder: Path, url: str, gate: Path) -> None:
        self._cluster, self._folder, self._url = cluster, folder, url
        self._variables = {"TUNER_STORAGE": url, "GATE": str(gate.parent), "RAY_JOB_STOP_WAIT_TIME_S": "30"}

    def submit(self, name: str, *options: str, wait: bool = False) -> subprocess.CompletedProcess[str]:
        variables = json.dumps({"env_vars": self._variables})
        command = [
            *("job", "submit", f"--address={self._cluster.jobs}", f"--submission-id={name}"),
            *([] if wait else ["--no-wait"]),
            *("--working-dir", str(self._folder), "--runtime-env-json", variables),
            *("--", sys.executable, "-m", "tuner", "run", "train.py", "--study", "s", "--load-if-exists"),
            *("--custom", "there=0.5", "--seed", "1", *options),
        ]
        deadline = time.monotonic() + 240
        while True:
            done = self._cluster.ray(*command)
            early = "No available agent" in done.stderr + done.stdout  # the cluster has just started
            if not early or time.monotonic() > deadline:
                return done

    def stop(self, name: str) -> None:
        self._cluster.ray("job", "stop", f"--address={self._cluster.jobs}", name)

    def status(self, name: str) -> str:
        return str(self._info(name)["status"])

    def message(self, name: str) -> str:
        return str(self._info(name)["message"])

    def _info(self, name: str) -> Any:
        token = Path.home() / ".ray/auth_token"  # Ray makes one, and then asks for it
        headers = {"Authorization": f"Bearer {token.read_text().strip()}"} if token.exists() else {}
        request = urllib.request.Request(f"{self._cluster.jobs}/api/jobs/{name}", headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)


def test_a_job_uses_its_cluster_is_adopted_stopped_and_goes_on(
    cluster: StandingRay, folder: Path, url: str, gate: Path
) -> None:
    jobs = Jobs(cluster, folder, url, gate)
    kept = ("--trials", "2", "--checkpoints", str(folder.parent / "checkpoints"))
    began = jobs.submit("killed", *kept)
    assert began.returncode == 0, began.stdout + began.stderr
    until(lambda: runs(url))
    owner = study_of(url).owner
    os.kill(owner["pid"], signal.SIGKILL)
    until(lambda: jobs.status("killed") == "FAILED")

    jobs.submit("stopped", *kept)
    until(lambda: study_of(url).owner not in (owner, None))
    until(lambda: any(row.kind == "adopted" for row in trial_of(url).event_rows))
    (attempt,) = trial_of(url).attempt_rows  # the first one still runs
    jobs.stop("stopped")
    until(lambda: jobs.status("stopped") == "STOPPED")
    assert study_of(url).stop_reason == "interrupted by SIGTERM"
    assert trial_of(url).attempt_rows[0].reason == "interrupted"
    assert is_gone(attempt.ranks[0]["pid"])

    gate.touch()
    done = jobs.submit("goes-on", *kept, wait=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 complete" in done.stdout
    assert jobs.status("goes-on") == "SUCCEEDED"
    first = trial_of(url)
    assert first.user_attrs["started_at"] > 0, "it went on from its checkpoint"
    assert f"{cluster.folder}/there/" in first.user_attrs["file"], "the other node's own copy"
    assert first.user_attrs["beside"] == "a file of the project"


def test_a_job_that_cannot_run_fails_with_the_reason(
    cluster: StandingRay, folder: Path, url: str, gate: Path
) -> None:
    jobs = Jobs(cluster, folder, "sqlite:///lost.db", gate)
    done = jobs.submit("lost", "--trials", "1", wait=True)
    assert done.returncode == 1
    assert "would go with this Ray job's own folder; name one elsewhere" in done.stdout
    assert "exit code 2" in jobs.message("lost")


@contextlib.contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """It does not outlive a test that failed."""
    try:
        yield
    finally:
        process.kill()


class Runs:
    """``tuner``, from a folder that is not the project."""

    def __init__(self, cluster: StandingRay, folder: Path, url: str) -> None:
        self._command = [sys.executable, "-m", "tuner"]
        self._options = ["--storage", url, "--address", cluster.address, "--custom", "there=0.5"]
        self._options += ["--checkpoints", str(folder.parent / "checkpoints"), "--env", "GATE"]
        self._folder = folder.parent

    def start(self, *arguments: str, cwd: Path | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self._command, *arguments, *self._options],
            cwd=cwd or self._folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def test_a_folder_is_sent_with_the_run_and_again_with_a_resume(
    cluster: StandingRay, folder: Path, url: str, gate: Path
) -> None:
    tuner = Runs(cluster, folder, url)
    command = ["run", "project/train.py", "--study", "s", "--seed", "1", "--working-dir", "project"]
    with tuner.start(*command, "--trials", "2") as driver, ended(driver):
        until(lambda: runs(url) or driver.poll() is not None)
        hidden = folder.rename(folder.with_name("hidden"))  # what the node has not got, it was sent
        gate.touch()
        assert "2 complete" in driver.communicate(timeout=200)[0]
    trials = [trial_of(url, number).user_attrs for number in (0, 1)]
    assert {attrs["helper"] for attrs in trials} == {1}
    assert {attrs["beside"] for attrs in trials} == {"a file of the project"}
    assert all(f"{cluster.folder}/there/" in attrs["file"] for attrs in trials)
    assert len({attrs["file"] for attrs in trials}) == 1

    hidden.rename(folder)
    (folder / "helper.py").write_text("VALUE = 2\n")
    with tuner.start("resume", "s", "--trials", "3") as driver, ended(driver):
        assert "3 complete" in driver.communicate(timeout=200)[0]
    attrs = trial_of(url, 2).user_attrs
    assert attrs["helper"] == 2, "it is sent as it is by then"
    assert attrs["file"] != trials[0]["file"]


def test_a_node_without_the_objective_is_named_before_anything_is_written(
    cluster: StandingRay, folder: Path, url: str, gate: Path
) -> None:
    (folder / ".gitignore").write_text("train.py\n")  # so that it is not sent
    with Runs(cluster, folder, url).start(
        *("run", "project/train.py", "--study", "s", "--trials", "1", "--working-dir", "project")
    ) as driver:
        said = driver.communicate(timeout=200)[0]
    assert driver.returncode == 2
    assert said.startswith("error: not every node has the objective (")
    assert "train.py: No such file or directory" in said
    assert not Path(url.removeprefix("sqlite:///")).exists()
