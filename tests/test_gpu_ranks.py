"""Ranks that talk over nccl, on one GPU: each takes itself for one of another host. ``make test-gpu``."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

import objectives
import tuner
from storage import Database, reads
from storage.views import TrialDetail
from tests.gpus import needs
from tuner.resources import Resources

RANKS = '''
import os
import signal

import optuna
import torch
import torch.distributed as dist
import tuner.torch
from tuner.torch import compression


def on_one_device(device):
    """The probe is a rank's first act: nccl takes a device twice where it sees two hosts."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "0"
    os.environ["NCCL_HOSTID"] = f"pretended-{device}"
    return ""


def trains(trial):
    """Of the first attempt rank 1 is killed while rank 0 waits in a collective for it."""
    torch.manual_seed(0)
    network = torch.nn.Linear(100, 100)
    model = tuner.torch.prepare(network, trial, compression=tuner.torch.Compression(kind="bf16"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    saved = trial.load_checkpoint()
    if saved:
        network.load_state_dict(saved.state["network"])
    for step in range(saved.step + 1 if saved else 0, 6):
        if step == 4 and not saved and trial.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        optimizer.zero_grad()
        model(torch.full((8, 100), 1.0 + trial.rank, device=trial.device)).square().mean().backward()
        optimizer.step()
        norm = sum(float(one.norm()) for one in network.parameters())
        trial.report(norm, step)
        trial.save_checkpoint({"network": network.state_dict()}, step)
    both = torch.tensor([norm], device=trial.device)
    dist.all_reduce(both)
    trial.set_user_attr("same", abs(both.item() - 2 * norm) < 1e-3)
    trial.set_user_attr("backend", dist.get_backend())
    trial.set_user_attr("began", saved.step + 1 if saved else 0)
    return norm


def raises(trial):
    """Rank 1 raises while rank 0 waits in a collective, or having begun one that rank 0 never joins."""
    began = trial.suggest_categorical("began", [False, True])
    some = torch.ones(1000, device=trial.device)
    dist.all_reduce(some)
    torch.cuda.synchronize()
    if trial.rank == 1:
        if began:
            dist.all_reduce(some)
        raise ValueError("rank 1 has had enough")
    if began:
        signal.pause()
    dist.all_reduce(some)
    return float(some.sum().item())


def is_pruned(trial):
    for step in range(20):
        some = torch.ones(1000, device=trial.device)
        dist.all_reduce(some)
        trial.report(1.0, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return float(some.sum().item())
'''


pytestmark = [pytest.mark.gpu, needs(1)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., TrialDetail]]:
    """One trial of two ranks that share the first device, on a cluster that pretends to have two.

    Nccl takes them for ranks of two hosts, and goes by the loopback device.
    """
    folder = tmp_path_factory.mktemp("pair")
    (folder / "rank_objectives.py").write_text(RANKS)
    url, numbers = f"sqlite:///{folder}/tuner.db", itertools.count()
    context = ray.init(
        address="local",
        num_cpus=4,
        num_gpus=2,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
    )

    def start(target: str, params: dict[str, Any], **settings: Any) -> TrialDetail:
        name = f"s{next(numbers)}"
        study = tuner.create_study(
            name, storage=url, sampler="random", seed=1, pruner=settings.pop("pruner", None)
        )
        study.enqueue_trial(params)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TUNER_PROBE", f"{folder}/rank_objectives.py:on_one_device")
            patch.setenv("NCCL_SOCKET_IFNAME", "lo")
            tuner.optimize(
                study,
                target if ".py" in target else f"{folder}/rank_objectives.py:{target}",
                1,
                address=context.address_info["address"],
                env=("TUNER_PROBE", "NCCL_*"),
                resources=Resources(ranks=2, gpus=1),
                retry=tuner.Retry(backoff=0),
                progress=False,
            )
        found = reads.trial(Database(url, create=False).engine, name, 0)
        assert found is not None
        return found

    yield start
    ray.shutdown()
    shutil.rmtree(context.address_info["session_dir"], ignore_errors=True)


def test_a_rank_that_is_killed_within_a_collective_of_nccl_is_tried_again(pair: Any) -> None:
    trial = pair("trains", {})
    assert [row.reason for row in trial.attempt_rows] == ["rank_lost", "complete"]
    assert (trial.user_attrs["backend"], trial.user_attrs["same"]) == ("nccl", True)
    assert trial.user_attrs["began"] == 4


@pytest.mark.parametrize("began", [False, True])
def test_a_rank_that_raises_frees_its_peers_from_a_collective_of_nccl(pair: Any, began: bool) -> None:
    trial = pair("raises", {"began": began})
    assert [row.reason for row in trial.attempt_rows] == ["exception"]
    assert "rank 1 has had enough" in trial.attempt_rows[0].message


def test_ranks_over_nccl_are_pruned_together(pair: Any) -> None:
    trial = pair("is_pruned", {}, pruner="threshold(upper=0.5, n_warmup_steps=3)")
    assert (trial.state, len(trial.curve)) == ("PRUNED", 4)


def test_a_sharded_model_learns_over_nccl(pair: Any) -> None:
    params = {"lr": 0.02, "width": 64, "layers": 2}
    trial = pair(f"{Path(objectives.__file__).parent}/charlm.py", params)
    assert [row.reason for row in trial.attempt_rows] == ["complete"]
    assert trial.values[0] < 2.5
