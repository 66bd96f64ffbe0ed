"""On real GPUs: nccl, the devices that trials get, and the memory that they give back. ``make test-gpu``."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

import tuner
from storage import Database, reads
from storage.views import TrialDetail
from tuner import device
from tuner.resources import Resources

OBJECTIVES = '''
import os
import torch
import torch.distributed as dist

def reduces(trial):
    one = torch.ones(1000, device=trial.device)
    dist.all_reduce(one)
    trial.set_user_attr("backend", dist.get_backend())
    trial.set_user_attr("device", str(trial.device))
    return float(one.sum().item())

def fills(trial):
    """Takes most of what is free, and leaves it to its end."""
    free, total = torch.cuda.mem_get_info()
    kept = torch.empty(int(0.8 * free), dtype=torch.uint8, device=trial.device)
    trial.set_user_attr("free", free / total)
    return float(kept[0].item() >= 0)

def remembers(trial):
    trial.set_user_attr("pid", os.getpid())
    trial.set_user_attr("held", torch.cuda.memory_reserved())
    torch.ones(10_000_000, device=trial.device).sum().item()
    return 0.0

def fails(trial):
    with torch.cuda.device(trial.device):
        torch.empty(2**50, dtype=torch.uint8, device=trial.device)
'''


@functools.cache
def count() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def needs(gpus: int) -> pytest.MarkDecorator:
    return pytest.mark.skipif(count() < gpus, reason=f"needs {gpus} CUDA device(s), there are {count()}")


pytestmark = [pytest.mark.gpu, needs(1)]


@pytest.fixture
def run(tmp_path: Path) -> Any:
    (tmp_path / "gpu_objectives.py").write_text(OBJECTIVES)
    url = f"sqlite:///{tmp_path}/tuner.db"

    def start(name: str, n_trials: int, **settings: Any) -> list[TrialDetail]:
        study = tuner.create_study("s", storage=url, sampler="random", seed=1)
        tuner.optimize(study, f"{tmp_path}/gpu_objectives.py:{name}", n_trials, progress=False, **settings)
        engine = Database(url, create=False).engine
        found = [reads.trial(engine, "s", number) for number in range(n_trials)]
        return [one for one in found if one is not None]

    return start


def test_the_probe_finds_this_machines_devices_well() -> None:
    assert device.probe(device.Cuda(), count(), alone=False) is None


def test_each_trial_has_a_device_and_its_memory_is_free_again_for_the_next(run: Any) -> None:
    trials = run("fills", 2 * count(), resources=Resources(gpus=1))
    assert [trial.state for trial in trials] == ["COMPLETE"] * len(trials)
    assert all(trial.user_attrs["free"] > 0.9 for trial in trials)
    assert {trial.attempt_rows[0].ranks[0]["devices"][0] for trial in trials} <= set(map(str, range(count())))


def test_fractions_share_a_device(run: Any) -> None:
    trials = run("remembers", 2, resources=Resources(cpus=0.5, gpus=0.5))
    assert [trial.state for trial in trials] == ["COMPLETE"] * 2


def test_a_kept_process_gives_its_cache_back(run: Any) -> None:
    trials = run("remembers", 3, resources=Resources(gpus=1), isolation="shared", max_concurrent=1)
    assert [trial.user_attrs["held"] for trial in trials] == [0, 0, 0]
    assert len({trial.user_attrs["pid"] for trial in trials}) == 1


def test_too_much_gpu_memory_is_out_of_memory(run: Any) -> None:
    (trial,) = run("fails", 1, resources=Resources(gpus=1), retry=tuner.Retry(on_oom="fail"))
    assert (trial.state, trial.attempt_rows[0].reason) == ("FAIL", "oom")


@needs(2)
def test_ranks_talk_over_nccl_each_on_a_device_of_its_own(run: Any) -> None:
    (trial,) = run("reduces", 1, resources=Resources(ranks=2, gpus=1))
    assert (trial.values, trial.user_attrs["backend"]) == ((2000.0,), "nccl")
    assert len({rank["devices"][0] for rank in trial.attempt_rows[0].ranks}) == 2
