"""External programs on a cluster: MPI and torchrun, lost ranks, a driver that is interrupted, devices."""

from __future__ import annotations

import ast
import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

import tuner
from objectives import command
from storage import Database, reads
from storage.views import TrialDetail
from tuner.cli import main
from tuner.processes import is_gone
from tuner.retry import Retry

HOME = Path(__file__).parent.parent

RANKS = """
import os, signal, sys
from mpi4py import MPI

world, attempt = MPI.COMM_WORLD, os.environ["TUNER_ATTEMPT"]
with open(sys.argv[1], "a") as file:
    file.write(f"{attempt} {world.rank} {os.getpid()}\\n")
world.Barrier()
if attempt == "1" and world.rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
total = world.allreduce(world.rank + 1)
if world.rank == 0:
    print(f"total {total}", flush=True)
"""

GOES_ON = """#!/bin/sh
cd "$TUNER_FOLDER"
n=$(cat saved 2>/dev/null || echo 0)
echo "{\\"value\\": $n, \\"step\\": $n}"
[ $n = 1 ] && exit 0
trap 'echo 1 > saved; exit 0' TERM
echo $$ > "$1.new" && mv "$1.new" "$1"
while :; do sleep 0.01; done
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Address of four pretended cores and two pretended GPUs; workers find this environment's programs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        context = ray.init(
            address="local",
            num_cpus=4,
            num_gpus=2,
            include_dashboard=False,
            logging_level="ERROR",
            log_to_driver=False,
        )
        yield context.address_info["address"]
        ray.shutdown()
    shutil.rmtree(context.address_info["session_dir"], ignore_errors=True)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "objectives").symlink_to(HOME / "objectives")
    return tmp_path


@pytest.fixture
def mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open MPI, also for root."""
    if shutil.which("mpirun") is None or importlib.util.find_spec("mpi4py") is None:
        if os.environ.get("CI"):
            pytest.fail("CI has no Open MPI: pip install -e '.[mpi]'")
        pytest.skip("there is no Open MPI here: pip install -e '.[mpi]'")
    for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"):
        monkeypatch.setenv(name, "1")


def documented(name: str) -> list[str]:
    """The command in the docstring of a program."""
    program = ast.parse((HOME / f"objectives/programs/{name}.py").read_text())
    text = ast.get_docstring(program, clean=False) or ""
    _, _, after = text.partition("\n    tuner run ")
    return ["run", *shlex.split(after.partition("\n\n")[0].replace("\\\n", " "))]


def detail(name: str, number: int = 0) -> TrialDetail:
    found = reads.trial(Database("sqlite:///tuner.db", create=False).engine, name, number)
    assert found is not None
    return found


def tune(objective: object, cluster: str, **options: object) -> None:
    study = tuner.create_study("s", sampler="random", seed=1)
    given = {"n_trials": 1, "address": cluster, "progress": False, **options}
    tuner.optimize(study, objective, **given)  # type: ignore[arg-type]


def test_the_mpi_program_runs_as_its_docstring_says(cluster: str, here: Path, mpi: None) -> None:
    assert main([*documented("matmul_mpi"), "--env", "OMPI_*", "--trials", "1", "--address", cluster]) == 0
    for trial in tuner.load_study("matmul").trials:
        assert 0 < trial.value < 60  # seconds
        tail = detail("matmul", trial.number).attempt_rows[0]
        assert (tail.reason, trial.params["ranks"] in (1, 2)) == ("complete", True)


def test_a_killed_mpi_rank_is_retried_as_a_whole(cluster: str, here: Path, mpi: None) -> None:
    (here / "ranks.py").write_text(RANKS)
    objective = command(
        ["mpirun", "--oversubscribe", "-n", "2", sys.executable, "ranks.py", f"{here}/seen"],
        metrics=r"regex:total (\d+)",
    )
    resources = tuner.Resources(cpus=2, gpus=0)
    tune(objective, cluster, resources=resources, env=("OMPI_*",), retry=Retry(backoff=0))
    seen = [line.split() for line in (here / "seen").read_text().splitlines()]
    assert sorted(line[:2] for line in seen) == [["1", "0"], ["1", "1"], ["2", "0"], ["2", "1"]]
    found = detail("s")
    assert [one.reason for one in found.attempt_rows] == ["rank_lost", "complete"]
    assert "SIGKILL" in found.attempt_rows[0].message
    assert found.values == (3.0,)
    assert all(is_gone(int(pid)) for _, _, pid in seen)


def test_the_torchrun_program_runs_as_its_docstring_says(cluster: str, here: Path) -> None:
    assert main([*documented("digits_torchrun"), "--trials", "1", "--gpus", "0", "--address", cluster]) == 0
    trial = tuner.load_study("torchrun").trials[0]
    assert list(trial.intermediate_values) == list(range(10))
    assert set(trial.params) == {"lr", "width"}
    assert detail("torchrun").attempt_rows[0].reason == "complete"


def test_an_interrupted_driver_lets_a_program_save_and_a_resume_goes_on(cluster: str, here: Path) -> None:
    (here / "goes_on.sh").write_text(GOES_ON)
    (here / "goes_on.sh").chmod(0o755)
    options = ["--gpus", "0", "--address", cluster, "--study", "s", "--trials", "1"]
    words = [sys.executable, "-m", "tuner", "run", "--command", f"./goes_on.sh {here}/running", *options]
    environment = {**os.environ, "PYTHONPATH": str(HOME)}
    driver = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    while not (here / "running").exists():
        assert driver.poll() is None, driver.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    driver.send_signal(signal.SIGINT)
    said, _ = driver.communicate(timeout=60)
    assert driver.returncode == 130, said
    assert is_gone(int((here / "running").read_text()))
    assert main(["resume", "s"]) == 0
    found = detail("s")
    assert [one.reason for one in found.attempt_rows] == ["interrupted", "complete"]
    assert found.values == (1.0,)


def test_a_program_sees_the_devices_that_its_trial_was_given(cluster: str, here: Path) -> None:
    text = f"echo $CUDA_VISIBLE_DEVICES > {here}/seen; echo '{{{{\"value\": 1}}}}'"
    tune(command(text, shell=True), cluster, resources=tuner.Resources(gpus=1))
    (rank,) = detail("s").attempt_rows[-1].ranks
    assert [(here / "seen").read_text().strip()] == list(rank["devices"])


def test_the_log_of_a_failed_program_is_kept_and_devices_that_it_was_not_given_are_hidden(
    cluster: str, here: Path
) -> None:
    text = 'echo "sees [$CUDA_VISIBLE_DEVICES]"; echo "no licence" >&2; exit 3'
    tune(command(text, shell=True), cluster, resources=tuner.Resources(gpus=0))
    attempt = detail("s").attempt_rows[-1]
    assert (attempt.reason, attempt.traceback) == ("exception", "no licence")
    assert attempt.message.endswith("sh exited with code 3; its last line: no licence")
    assert {"sees []", "no licence"} <= set(attempt.log_tail.splitlines())
