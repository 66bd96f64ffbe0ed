"""The same attack on plain Optuna and on Ray Tune: the checker bites, and this is the bar to pass.

What they do is theirs to decide; a test here fails only when the checker finds nothing to say.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.checker import check_trials
from tests.chaos.programs import until
from tuner.processes import sweep

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]

N = 12

OPTUNA = """
import sys, time, optuna
optuna.logging.set_verbosity(optuna.logging.ERROR)
study = optuna.create_study(study_name="s", storage=sys.argv[1], load_if_exists=True)

def objective(trial):
    x = trial.suggest_float("x", 0, 1)
    with open(sys.argv[2], "a") as file:
        print(trial.number, flush=True, file=file)
    time.sleep(0.3)
    return x

study.optimize(objective, n_trials=12)
"""

RAY_TUNE = """
import os, sys, time
os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
import ray
from ray import tune
from ray.tune.search.optuna import OptunaSearch

def objective(config):
    with open(sys_argv[2], "a") as file:
        print(f"begun {config['x']}", flush=True, file=file)
    time.sleep(0.3)
    tune.report({"value": config["x"]})
    with open(sys_argv[2], "a") as file:
        print(f"ended {config['x']}", flush=True, file=file)

sys_argv = list(sys.argv)
ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
path = sys.argv[1] + "/run"
if os.path.exists(path):
    tuner = tune.Tuner.restore(path, trainable=objective)
else:
    tuner = tune.Tuner(
        objective,
        param_space={"x": tune.uniform(0, 1)},
        tune_config=tune.TuneConfig(
            num_samples=12, metric="value", mode="min", search_alg=OptunaSearch(seed=1), reuse_actors=True
        ),
        run_config=tune.RunConfig(name="run", storage_path=sys.argv[1], verbose=0),
    )
tuner.fit()
"""


def start(tmp_path: Path, script: str, *arguments: str) -> subprocess.Popen[bytes]:
    (tmp_path / "peer.py").write_text(script)
    os.makedirs(_session(tmp_path), exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "peer.py", *arguments],
        cwd=tmp_path,
        env={**os.environ, "TUNER_TEST_PEER": tmp_path.name, "RAY_TMPDIR": _session(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=(tmp_path / "errors").open("ab"),
    )


def _session(tmp_path: Path) -> str:
    """Ray's folder of a test: short, for the paths of its sockets have a limit."""
    return f"/tmp/rp-{zlib.crc32(tmp_path.name.encode()):08x}"


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_plain_optuna_leaves_a_trial_running_and_counts_anew(
    tmp_path: Path, sqlite_url: str, recovered: Callable[..., None]
) -> None:
    log = tmp_path / "log"
    first = start(tmp_path, OPTUNA, sqlite_url, str(log))
    until(lambda: len(lines(log)) >= 7)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert start(tmp_path, OPTUNA, sqlite_url, str(log)).wait(120) == 0
    found = check_trials(sqlite_url, "s", n=N)
    assert any("is left RUNNING" in one for one in found)
    assert any("trials instead of 12" in one for one in found)
    recovered(f"peer, plain Optuna: driver killed: {len(found)} violations")


def test_ray_tune_runs_finished_trials_again(tmp_path: Path, recovered: Callable[..., None]) -> None:
    pytest.importorskip("ray.tune", reason="Ray Tune is not installed")
    log = tmp_path / "log"

    def ended() -> list[str]:
        return [line.split()[1] for line in lines(log) if line.startswith("ended")]

    try:
        first = start(tmp_path, RAY_TUNE, str(tmp_path), str(log))
        until(lambda: len(ended()) >= 7 or first.poll() is not None, 120)
        first.send_signal(signal.SIGKILL)
        first.wait()
        done = set(ended())
        sweep(tmp_path.name, "TUNER_TEST_PEER", seconds=10)
        second = start(tmp_path, RAY_TUNE, str(tmp_path), str(log))
        second.wait(200)
        begun = Counter(line.split()[1] for line in lines(log) if line.startswith("begun"))
        again = sum(begun[x] > 1 for x in done)
        lost = second.returncode != 0
        recovered(f"peer, Ray Tune: driver killed: {again} of {len(done)} finished trials run again")
        assert again or lost, (tmp_path / "errors").read_text()[-2000:]
    finally:
        sweep(tmp_path.name, "TUNER_TEST_PEER", folders=[_session(tmp_path)], seconds=10)
        shutil.rmtree(_session(tmp_path), ignore_errors=True)
