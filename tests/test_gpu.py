"""On real GPUs: nccl, the devices that trials get, and the memory that they give back. ``make test-gpu``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import ray
import torch

import objectives
import tuner
from objectives import charlm, fashion
from storage import Database, reads
from storage.views import TrialDetail
from tests.gpus import count, needs, used
from tests.ranks import RankTrial
from tuner import device
from tuner.resources import Resources

OBJECTIVES = '''
import os
import signal
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
import tuner.torch
from tuner.torch import compression

def reduces(trial):
    one = torch.ones(1000, device=trial.device)
    dist.all_reduce(one)
    trial.set_user_attr("backend", dist.get_backend())
    trial.set_user_attr("device", str(trial.device))
    return float(one.sum().item())

def alone_in_a_group(trial):
    """One rank has no group of its own: nccl starts in a forked process all the same."""
    store = dist.HashStore()
    dist.init_process_group("nccl", store=store, rank=0, world_size=1)
    model = DistributedDataParallel(tuner.torch.prepare(torch.nn.Linear(1000, 1000), trial))
    compression.compress(model, tuner.torch.Compression(kind="bf16"))
    model(torch.ones(8, 1000, device=trial.device)).sum().backward()
    trial.set_user_attr("sent", tuner.torch.traffic(model).bytes_sent)
    one = torch.ones(1000, device=trial.device)
    dist.all_reduce(one)
    trial.set_user_attr("backend", dist.get_backend())
    dist.destroy_process_group()
    return float(one.sum().item())

def descends(trial):
    """Saves tensors of the device; its first attempt is killed with its memory held."""
    held = torch.ones(2**28, device=trial.device)
    saved = trial.load_checkpoint()
    if saved:
        trial.set_user_attr("at", [saved.step, str(saved.state["w"].device)])
        return float(saved.state["w"].to(trial.device).sum().item())
    trial.save_checkpoint({"w": torch.full((1000,), 2.0, device=trial.device), "deep": [held[:3]]}, 3)
    trial.should_prune()
    os.kill(os.getpid(), signal.SIGKILL)

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

def asserts(trial):
    """The first trial's kernel breaks CUDA in its process."""
    if trial.number == 0:
        torch.ones(3, device=trial.device)[torch.tensor([7], device=trial.device)]
        torch.cuda.synchronize()
    return float(torch.ones(3, device=trial.device).sum().item())

def asserts_unseen(trial):
    """So does this one's, and nobody looks before it has returned."""
    if trial.number == 0:
        torch.ones(3, device=trial.device)[torch.tensor([7], device=trial.device)]
        return 0.0
    return float(torch.ones(3, device=trial.device).sum().item())

def draws(trial):
    return float(torch.rand(1, device=trial.device).item())

def holds(trial):
    """Four GiB, until its driver dies."""
    held = torch.ones(2**30, device=trial.device)
    torch.cuda.synchronize()
    open(os.environ["TUNER_TEST_HOLDS"], "w").close()
    signal.pause()
'''

FULL = """
import sys, torch
held, size = [], 2**34
while size >= 2**20:
    try:
        held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
    except torch.OutOfMemoryError:
        size //= 2
print("full", flush=True)
sys.stdin.read()
"""


def until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


pytestmark = [pytest.mark.gpu, needs(1)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Address of this machine's cores and GPUs."""
    context = ray.init(address="local", include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield context.address_info["address"]
    ray.shutdown()
    shutil.rmtree(context.address_info["session_dir"], ignore_errors=True)


@pytest.fixture
def run(tmp_path: Path, cluster: str) -> Any:
    (tmp_path / "gpu_objectives.py").write_text(OBJECTIVES)
    url = f"sqlite:///{tmp_path}/tuner.db"

    def start(target: str, n_trials: int, name: str = "s", **settings: Any) -> list[TrialDetail]:
        study = tuner.create_study(name, storage=url, sampler="random", seed=1)
        file = f"{tmp_path}/gpu_objectives.py"
        tuner.optimize(study, f"{file}:{target}", n_trials, address=cluster, progress=False, **settings)
        engine = Database(url, create=False).engine
        found = [reads.trial(engine, name, number) for number in range(n_trials)]
        return [one for one in found if one is not None]

    return start


@pytest.fixture
def full() -> Iterator[subprocess.Popen[str]]:
    """A process that holds all memory of the first device, until its input is closed."""
    piped = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", FULL], **piped)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "full\n"
    yield process
    process.stdin.close()
    process.wait()


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
    held = [trial.user_attrs["held"] for trial in trials]
    assert max(held) < 40_000_000, "the probe's work space alone, and not what a trial has used"
    assert len(set(held)) == 1
    assert len({trial.user_attrs["pid"] for trial in trials}) == 1


def test_too_much_gpu_memory_is_out_of_memory(run: Any) -> None:
    (trial,) = run("fails", 1, resources=Resources(gpus=1), retry=tuner.Retry(on_oom="fail"))
    assert (trial.state, trial.attempt_rows[0].reason) == ("FAIL", "oom")


@needs(2)
def test_ranks_talk_over_nccl_each_on_a_device_of_its_own(run: Any) -> None:
    (trial,) = run("reduces", 1, resources=Resources(ranks=2, gpus=1))
    assert (trial.values, trial.user_attrs["backend"]) == ((2000.0,), "nccl")
    assert len({rank["devices"][0] for rank in trial.attempt_rows[0].ranks}) == 2


def test_nccl_starts_in_a_forked_process(run: Any) -> None:
    (trial,) = run("alone_in_a_group", 1, resources=Resources(gpus=1))
    assert (trial.values, trial.user_attrs["backend"]) == ((1000.0,), "nccl")
    assert trial.user_attrs["sent"] == 2 * 1000 * 1001, "bf16 sends two bytes a parameter"


def test_a_killed_attempt_gives_its_memory_back_and_its_tensors_come_back_on_the_device(run: Any) -> None:
    (trial,) = run("descends", 1, resources=Resources(gpus=1), retry=tuner.Retry(backoff=0))
    assert [row.reason for row in trial.attempt_rows] == ["rank_lost", "complete"]
    assert (trial.values, trial.user_attrs["at"][0]) == ((2000.0,), 3)


def test_a_kernel_that_asserts_costs_its_own_trial_alone(run: Any) -> None:
    first, second = run("asserts", 2, resources=Resources(gpus=1))
    assert [row.reason for row in first.attempt_rows] == ["exception"]
    assert "device-side assert" in first.attempt_rows[0].message
    assert (second.values, [row.reason for row in second.attempt_rows]) == ((3.0,), ["complete"])


def test_one_that_asserts_after_all_costs_the_next_trial_of_a_kept_process_nothing(run: Any) -> None:
    _, second = run("asserts_unseen", 2, resources=Resources(gpus=1), isolation="shared", max_concurrent=1)
    assert (second.values, [row.reason for row in second.attempt_rows]) == ((3.0,), ["complete"])


def test_memory_that_neighbours_hold_is_no_fault_of_a_shared_device(
    run: Any, full: subprocess.Popen[str]
) -> None:
    (trial,) = run("remembers", 1, resources=Resources(gpus=0.5), retry=tuner.Retry(on_oom="fail"))
    assert [row.reason for row in trial.attempt_rows] == ["oom"]


def test_a_seed_gives_the_same_numbers_on_the_device(run: Any) -> None:
    first, second = run("draws", 2, resources=Resources(gpus=1))
    assert first.values != second.values
    (again, _) = run("draws", 2, resources=Resources(gpus=1), name="again")
    assert again.values == first.values


def test_of_a_killed_driver_no_memory_of_the_device_stays(tmp_path: Path) -> None:
    (tmp_path / "gpu_objectives.py").write_text(OBJECTIVES)
    before, begun = used(), tmp_path / "begun"
    command = [sys.executable, "-m", "tuner", "run", f"{tmp_path}/gpu_objectives.py:holds", "--study", "s"]
    options = ["--trials", "1", "--gpus", "1", "--storage", f"sqlite:///{tmp_path}/tuner.db"]
    driver = subprocess.Popen(
        [*command, *options, "--env", "TUNER_TEST_HOLDS"],
        env={**os.environ, "TUNER_TEST_HOLDS": str(begun)},
        stdout=subprocess.DEVNULL,
    )
    try:
        assert until(begun.exists, 60)
        assert used() - before >= 4096
    finally:
        driver.kill()
        driver.wait()
    assert until(lambda: used() - before < 256, 5), f"{used() - before} MiB more than before"


@pytest.mark.parametrize(
    ("name", "direction", "good"), [("fashion", "maximize", 0.8), ("charlm", "minimize", 2.5)]
)
def test_the_examples_learn_on_a_device(
    name: str, direction: str, good: float, tmp_path: Path, cluster: str
) -> None:
    url = f"sqlite:///{tmp_path}/tuner.db"
    study = tuner.create_study("s", storage=url, direction=direction, sampler="random", seed=1)
    target = f"{Path(objectives.__file__).parent}/{name}.py"
    tuner.optimize(study, target, 4, resources=Resources(gpus=1), address=cluster, progress=False)
    assert {trial.state.name for trial in study.trials} == {"COMPLETE"}
    assert study.best_value > good if direction == "maximize" else study.best_value < good


@pytest.mark.parametrize("module", [fashion, charlm])
def test_a_training_that_resumes_on_a_device_ends_about_where_the_whole_one_does(
    module: ModuleType, tmp_path: Path
) -> None:
    params: dict[str, Any] = {
        "lr": 0.02,
        "channels": 16,
        "dropout": 0.1,
        "batch_size": 128,
        "width": 64,
        "layers": 2,
    }
    whole = RankTrial(params, tmp_path / "whole")
    first = RankTrial(params, tmp_path / "parts", stop_at=4)
    whole.device = first.device = torch.device("cuda", 0)
    value = module.objective(whole)
    module.objective(first)
    second = RankTrial(params, tmp_path / "parts", start=first.last())
    second.device = whole.device
    assert module.objective(second) == pytest.approx(value, abs=0.03)
    assert first.reports[4] == pytest.approx(whole.reports[4], abs=0.03)
    assert min(second.reports) == 5
