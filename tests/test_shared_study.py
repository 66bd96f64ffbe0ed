"""Ranks of a real study share one copy of their data, which outlives attempts and goes with the study."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

HOME = Path(__file__).parent.parent

SCRIPT = """
import os
from pathlib import Path

import numpy, optuna, torch, tuner

MIB = 64


def load():
    with open(os.environ["LOADS"], "a") as file:
        print(os.getpid(), file=file)
    return {"x": numpy.ones((MIB, 2**20), numpy.uint8), "y": torch.arange(1000)}


def held(field):
    lines = Path("/proc/self/smaps").read_text().split("\\n")
    at = next(i for i, one in enumerate(lines) if "/tuner-shared-" in one)
    return next(int(one.split()[1]) for one in lines[at + 1 :] if one.startswith(field))


def objective(trial):
    data = tuner.shared(load)
    assert int(data["x"].sum()) == MIB * 2**20
    assert int(data["y"].sum()) == 499500
    if trial.world_size > 1:
        torch.distributed.barrier()  # all ranks have read all of it
        pss = torch.tensor(held("Pss:"))
        torch.distributed.all_reduce(pss)
        trial.set_user_attr("rss", held("Rss:"))
        trial.set_user_attr("pss", int(pss))
        torch.distributed.barrier()
    if "HANG" in os.environ:
        Path(os.environ["HANG"]).touch()
        while True:
            trial.report(0.0, 0)
    return trial.suggest_float("x", 0, 1)


if __name__ == "__main__":
    study = optuna.create_study(study_name="s", storage=os.environ["DB"], load_if_exists=True)
    tuner.optimize(study, objective, n_trials=3, resources=tuner.Resources(ranks=2, cpus=0.5))
"""


def start(tmp_path: Path, **more: str) -> subprocess.Popen[bytes]:
    (tmp_path / "shared").mkdir()
    (tmp_path / "train.py").write_text(SCRIPT)
    where = {"DB": f"sqlite:///{tmp_path}/tuner.db", "LOADS": f"{tmp_path}/loads"}
    environment = {
        **os.environ,
        **where,
        **more,
        "PYTHONPATH": str(HOME),
        "TUNER_SHARED": f"{tmp_path}/shared",
    }
    return subprocess.Popen([sys.executable, "train.py"], cwd=tmp_path, env=environment)


def test_the_ranks_of_all_trials_read_one_copy_and_it_goes_with_the_study(tmp_path: Path) -> None:
    import optuna

    assert start(tmp_path).wait(timeout=200) == 0
    assert len((tmp_path / "loads").read_text().splitlines()) == 1
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/tuner.db")
    assert len(study.trials) == 3
    for trial in study.trials:
        assert trial.user_attrs["rss"] >= 64 * 1024
        assert trial.user_attrs["pss"] < 64 * 1024 * 1.1
    assert os.listdir(tmp_path / "shared") == []


FAULT = "the driver of a local Ray killed while its ranks share data"


@pytest.mark.fault(FAULT)
def test_the_data_goes_when_the_driver_of_a_local_ray_is_killed(
    tmp_path: Path, recovered: Callable[..., None]
) -> None:
    hangs = tmp_path / "hangs"
    driver = start(tmp_path, HANG=str(hangs))
    deadline = time.monotonic() + 150
    while not hangs.exists():
        assert driver.poll() is None
        assert time.monotonic() < deadline, "no trial began"
        time.sleep(0.1)
    assert len(os.listdir(tmp_path / "shared")) == 1
    driver.send_signal(signal.SIGKILL)
    driver.wait(timeout=30)
    killed = time.monotonic()
    while os.listdir(tmp_path / "shared"):
        assert time.monotonic() < killed + 60, "the data is still there"
        time.sleep(0.1)
    recovered(FAULT, time.monotonic() - killed)
