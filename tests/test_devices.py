"""GPUs and other resources as Ray gives them out, on a cluster that pretends to have some.

What is shown here needs no GPU: which devices a trial is given, that no two have the same one, that one
which fails its probe is set aside, and what a trial is given in place of what it would rather have.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray._private.state import state
from ray.core.generated import autoscaler_pb2
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_put
from ray.util.placement_group import placement_group, remove_placement_group

import tuner
from storage import Database, reads
from storage.views import TrialDetail
from tuner import device
from tuner.dispatch.ray_cluster import RayExecutor
from tuner.errors import Infeasible, StudyStopped
from tuner.resources import Resources
from tuner.snapshot import Snapshot

OBJECTIVES = '''
import json, os, signal, time
from pathlib import Path

HERE = Path(__file__).parent

def tell(trial, event):
    line = {"event": event, "trial": trial.number, "attempt": trial.attempt, "rank": trial.rank,
            "ranks": trial.world_size, "at": time.monotonic(), "threads": os.environ["OMP_NUM_THREADS"],
            "devices": [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]}
    with open(HERE / "lines", "a") as file:
        file.write(json.dumps(line) + "\\n")

def holds(trial):
    """Holds what it was given until as many trials as the file says have begun, or half a second."""
    tell(trial, "begin")
    deadline = time.monotonic() + 20
    want = int((HERE / "together").read_text()) if (HERE / "together").exists() else 0
    while time.monotonic() < deadline:
        begun = [line for line in open(HERE / "lines") if '"begin"' in line]
        if len(begun) >= want:
            break
        time.sleep(0.01)
    time.sleep(0.05)
    tell(trial, "end")
    return 0.0

def sized(trial):
    trial.suggest_int("cpus", 1, 4)
    return holds(trial)

def goes_on(trial):
    """Of its first attempt the first rank's shell is killed once every rank has saved."""
    saved = trial.load_checkpoint()
    tell(trial, "begin")
    if saved is None:
        trial.save_checkpoint({"world": trial.world_size}, 0)
        (HERE / f"saved-{trial.rank}").touch()
        time.sleep(60)
    trial.set_user_attr("worlds", [saved.state["world"], trial.world_size])
    return 0.0
'''

PROBE = """
import os
def look(device):
    assert "CUDA_VISIBLE_DEVICES" in os.environ
    return "it computes 7 where 8 is right" if device in {bad!r} else ""
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Eight cores, three GPUs that are not there, and a custom resource."""
    context = ray.init(
        address="local",
        num_cpus=8,
        num_gpus=3,
        resources={"fast_disk": 1, "accelerator_type:A100": 1},
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
    )
    yield context.address_info["address"]
    ray.shutdown()
    shutil.rmtree(context.address_info["session_dir"], ignore_errors=True)


class Bench:
    """Runs studies on the cluster and reads what their trials told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"sqlite:///{folder}/tuner.db"
        (folder / "resource_objectives.py").write_text(OBJECTIVES)

    def run(self, name: str, n_trials: int, *, together: int = 0, **settings: Any) -> list[TrialDetail]:
        if together:
            (self.folder / "together").write_text(str(together))
        study = tuner.create_study("s", storage=self.url, sampler="random", seed=1, load_if_exists=True)
        target = f"{self.folder}/resource_objectives.py:{name}"
        plain: dict[str, Any] = {
            "progress": False,
            "retry": tuner.Retry(backoff=0.05, stop_after=0),
            "env": ("TUNER_PROBE",),  # else each rank imports torch to look
        }
        tuner.optimize(study, target, n_trials=n_trials, **{**plain, **settings})
        return self.trials()

    def trials(self) -> list[TrialDetail]:
        engine = Database(self.url, create=False).engine
        found = [reads.trial(engine, "s", number) for number in range(50)]
        return [one for one in found if one is not None]

    def lines(self, event: str = "begin") -> list[dict[str, Any]]:
        path = self.folder / "lines"
        found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [line for line in found if line["event"] == event]

    def most_at_once(self) -> Counter[str]:
        """The most ranks that held each device at a moment."""
        ends = {(line["trial"], line["attempt"], line["rank"]): line["at"] for line in self.lines("end")}
        most: Counter[str] = Counter()
        for line in self.lines():
            for one in line["devices"]:
                at = line["at"]
                there = [
                    other
                    for other in self.lines()
                    if one in other["devices"]
                    and other["at"] <= at <= ends[other["trial"], other["attempt"], other["rank"]]
                ]
                most[one] = max(most[one], len(there))
        return most


@pytest.fixture
def bench(cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    (tmp_path / "probe.py").write_text(PROBE.replace("{bad!r}", "()"))
    monkeypatch.setenv("TUNER_PROBE", f"{tmp_path}/probe.py:look")
    return Bench(tmp_path)


def devices_of(trial: TrialDetail) -> list[tuple[str, ...]]:
    """By rank, of the last attempt, as they are recorded."""
    return [tuple(rank["devices"]) for rank in trial.attempt_rows[-1].ranks]


@pytest.fixture
def other_work(cluster: str) -> Iterator[Callable[[dict[str, float]], Any]]:
    """What another program holds on the cluster."""
    held = []

    def hold(bundle: dict[str, float]) -> Any:
        group = placement_group([bundle])
        held.append(group)
        assert group.wait(30)
        return group

    yield hold
    for group in held:
        remove_placement_group(group)


def test_whole_devices_go_to_one_trial_at_a_time_and_are_recorded(bench: Bench) -> None:
    trials = bench.run("holds", 7, together=3, resources=Resources(gpus=1), env=())  # torch looks itself
    assert [trial.state for trial in trials] == ["COMPLETE"] * 7
    assert bench.most_at_once() == {"0": 1, "1": 1, "2": 1}
    seen = {line["trial"]: tuple(line["devices"]) for line in bench.lines()}
    assert {trial.number: devices_of(trial)[0] for trial in trials} == seen


def test_fractions_share_a_device(bench: Bench, other_work: Callable[[dict[str, float]], Any]) -> None:
    other_work({"GPU": 2})
    trials = bench.run("holds", 4, together=2, resources=Resources(gpus=0.5))
    assert [trial.state for trial in trials] == ["COMPLETE"] * 4
    assert list(bench.most_at_once().values()) == [2]


@pytest.mark.parametrize(
    ("resources", "by_rank"), [(Resources(gpus=2), [2]), (Resources(ranks=2, gpus=1), [1, 1])]
)
def test_one_trial_has_several_devices(bench: Bench, resources: Resources, by_rank: Sequence[int]) -> None:
    (trial,) = bench.run("holds", 1, resources=resources)
    held = devices_of(trial)
    assert [len(rank) for rank in held] == by_rank
    assert len({one for rank in held for one in rank}) == sum(by_rank)


@pytest.mark.fault("33 an unhealthy GPU (pretended probe)")
def test_a_device_that_fails_its_probe_is_set_aside_and_the_trial_is_tried_elsewhere(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, recovered: Callable[..., None]
) -> None:
    (bench.folder / "my_probe.py").write_text(PROBE.replace("{bad!r}", "('1',)"))
    monkeypatch.setenv("TUNER_PROBE", f"{bench.folder}/my_probe.py:look")
    trials = bench.run("holds", 12, resources=Resources(gpus=1))
    assert [trial.state for trial in trials] == ["COMPLETE"] * 12
    failed = [row for trial in trials for row in trial.attempt_rows if row.reason == "device_failed"]
    assert failed
    assert not any(row.charged for row in failed)
    assert failed[0].message.startswith("GPU 1 of ")
    assert failed[0].message.endswith(": it computes 7 where 8 is right; it is set aside")
    assert {devices_of(trial)[0] for trial in trials} == {("0",), ("2",)}
    assert len(failed) < 4, "it is not given out again and again"
    recovered("33 an unhealthy GPU (pretended probe)")


def test_without_a_healthy_device_the_run_ends_and_says_why(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bench.folder / "no_probe.py").write_text(PROBE.replace("{bad!r}", "('0', '1', '2')"))
    monkeypatch.setenv("TUNER_PROBE", f"{bench.folder}/no_probe.py:look")
    line = r"trials waited 1 s for .*GPU [012] of .*it computes 7.*set aside.*run again to resume"
    with pytest.raises(StudyStopped, match=line):
        bench.run("holds", 3, resources=Resources(gpus=1), resource_timeout=1)
    assert {trial.state for trial in bench.trials()} == {"RUNNING"}


def test_a_trial_takes_the_first_alternative_that_is_free(
    bench: Bench, other_work: Callable[[dict[str, float]], Any]
) -> None:
    other_work({"GPU": 2, "CPU": 3})
    either = [Resources(gpus=1), Resources(cpus=2, gpus=0)]
    trials = bench.run("holds", 3, together=3, resources=either)
    assert sorted(len(devices_of(trial)[0]) for trial in trials) == [0, 0, 1]
    assert Counter(line["threads"] for line in bench.lines()) == {"1": 1, "2": 2}


def test_what_others_hold_is_not_waited_for_where_there_is_an_alternative(
    bench: Bench, other_work: Callable[[dict[str, float]], Any]
) -> None:
    other_work({"GPU": 3})
    (trial,) = bench.run("holds", 1, resources=[Resources(gpus=1), Resources(cpus=2, gpus=0)])
    assert devices_of(trial) == [()]


def test_resources_may_follow_from_the_parameters(bench: Bench) -> None:
    from optuna.distributions import IntDistribution

    study = tuner.create_study("s", storage=bench.url, sampler="random", seed=1)
    for cpus in (1, 3):
        study.enqueue_trial({"cpus": cpus})
    trials = bench.run(
        "sized",
        2,
        space={"cpus": IntDistribution(1, 4)},
        resources=lambda params: Resources(cpus=params["cpus"], gpus=0),
    )
    assert [trial.params["cpus"] for trial in trials] == [1, 3]
    assert {line["trial"]: line["threads"] for line in bench.lines()} == {0: "1", 1: "3"}


def test_a_parameter_that_is_not_known_before_the_start_fails_the_trial_in_one_line(bench: Bench) -> None:
    (trial,) = bench.run("sized", 1, resources=lambda params: Resources(cpus=params["cpus"]))
    assert trial.state == "FAIL"
    assert "asked for parameter 'cpus', and before the trial starts only none is known" in (
        trial.attempt_rows[0].message
    )


def test_a_trial_that_the_cluster_can_never_hold_fails_with_both_numbers(bench: Bench) -> None:
    (trial,) = bench.run("holds", 1, resources=lambda params: Resources(cpus=9, gpus=0))
    assert trial.attempt_rows[0].message.startswith("one trial needs 9 CPUs, the cluster has 8")


def test_an_elastic_trial_starts_with_what_is_free(
    bench: Bench, other_work: Callable[[dict[str, float]], Any]
) -> None:
    other_work({"CPU": 3})
    (trial,) = bench.run("holds", 1, resources=Resources(ranks=(1, 4), cpus=2, gpus=0))
    assert len(trial.attempt_rows[0].ranks) == 2
    assert {line["ranks"] for line in bench.lines()} == {2}


def test_an_elastic_trial_goes_on_with_another_world_size_from_its_checkpoint(bench: Bench) -> None:
    held: list[Any] = []

    def take_half() -> None:
        """Once both ranks have saved: wait in Ray's queue for half the cores, and kill a shell."""
        deadline = time.monotonic() + 120
        while len(list(bench.folder.glob("saved-*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        held.append(placement_group([{"CPU": 4}]))
        shells = [row["Pid"] for row in state.actor_table(None).values() if row["State"] == "ALIVE"]
        os.kill(shells[0], signal.SIGKILL)

    taker = threading.Thread(target=take_half)
    taker.start()
    try:
        elastic = Resources(ranks=(1, 2), cpus=4, gpus=0)
        retry = tuner.Retry(backoff=8.0)  # Ray may be slow to give the other work what came free
        (trial,) = bench.run("goes_on", 1, resources=elastic, retry=retry)
    finally:
        taker.join()
        remove_placement_group(held[0])
    assert [row.reason for row in trial.attempt_rows] == ["node_lost", "complete"]
    assert trial.user_attrs["worlds"] == [2, 1]
    assert trial.attempt_rows[1].resumed_step == 0


def test_a_wait_for_resources_is_shown_and_bounded_and_the_study_resumes(
    bench: Bench, other_work: Callable[[dict[str, float]], Any]
) -> None:
    group = other_work({"GPU": 3})
    shown: list[str] = []

    class Display:
        def update(self, snapshot: Snapshot) -> None:
            shown.extend(trial.waits for trial in snapshot.running)

        def close(self, snapshot: Snapshot | None, message: str) -> None:
            pass

    line = r"trials waited 1\.5 s for 1 CPU, 1 GPU, and got none; run again to resume"
    with pytest.raises(StudyStopped, match=line):
        bench.run("holds", 2, resources=Resources(gpus=1), resource_timeout=1.5, progress=Display())
    assert set(shown) == {"1 CPU, 1 GPU"}
    remove_placement_group(group)
    trials = bench.run("holds", 2, resources=Resources(gpus=1))
    assert [trial.state for trial in trials] == ["COMPLETE"] * 2
    assert {row.charged for trial in trials for row in trial.attempt_rows} == {False}


@pytest.mark.parametrize(
    ("resources", "line"),
    [
        (Resources(ranks=9, gpus=0), r"needs 9 CPUs \(9 ranks, 1 each\), the cluster has 8"),
        (Resources(ranks=2, gpus=2), r"needs 4 GPUs \(2 ranks, 2 each\), the cluster has 3"),
        (Resources(gpus=1, accelerator="H100"), r"an accelerator 'H100', the cluster has 'A100'"),
        (Resources(custom={"slow_disk": 1}), "needs 1 slow_disk"),
        ([Resources(gpus=4), Resources(cpus=9, gpus=0)], "none of 2 alternatives fits; the last: one trial"),
        (Resources(ranks=(9, 12), gpus=0), "none of 4 alternatives fits.*needs 9 CPUs"),
    ],
)
def test_what_can_never_be_held_is_refused_before_anything_is_written(
    bench: Bench, resources: Any, line: str
) -> None:
    with pytest.raises(Infeasible, match=line):
        bench.run("holds", 1, resources=resources)
    assert bench.trials() == []


def test_custom_resources_and_accelerators_bound_the_trials_at_once(bench: Bench) -> None:
    trials = bench.run("holds", 2, resources=Resources(gpus=1, accelerator="A100", custom={"fast_disk": 1}))
    assert [trial.state for trial in trials] == ["COMPLETE"] * 2
    first, second = sorted(bench.lines(), key=lambda line: line["at"])
    (end,) = [line["at"] for line in bench.lines("end") if line["trial"] == first["trial"]]
    assert end < second["at"]


@pytest.fixture
def autoscaler(cluster: str) -> Iterator[None]:
    """The limits that an autoscaler would write down: three nodes of 64 cores and 8 GPUs."""
    kind = autoscaler_pb2.NodeGroupConfig(resources={"CPU": 64, "GPU": 8}, max_count=3, name="big")
    config = autoscaler_pb2.ClusterConfig(node_group_configs=[kind])
    space = ray._raylet.GCS_AUTOSCALER_STATE_NAMESPACE.encode()
    key = ray._raylet.GCS_AUTOSCALER_CLUSTER_CONFIG_KEY.encode()
    _internal_kv_put(key, config.SerializeToString(), overwrite=True, namespace=space)
    yield
    _internal_kv_del(key, namespace=space)


def test_what_an_autoscaler_may_still_start_counts_as_feasible(autoscaler: None) -> None:
    executor = RayExecutor()
    opened = executor.open("autoscaling", 1, [Resources(ranks=2, cpus=32, gpus=8)], lambda envelope: None)
    assert opened.slots == 1
    with pytest.raises(Infeasible, match=r"needs 32 GPUs \(4 ranks, 8 each\), the cluster has 24"):
        executor.open("autoscaling", 1, [Resources(ranks=4, gpus=8)], lambda envelope: None)
    executor.close()


# ----------------------------------------------------------------- the probe itself


class Look:
    """Devices whose memory becomes free step by step."""

    def __init__(self, free: Sequence[float], wrong: str = "", error: Exception | None = None) -> None:
        self.free, self.wrong, self.error = list(free), wrong, error

    def compute(self, index: int) -> str:
        if self.error is not None:
            raise self.error
        return self.wrong if index == 1 else ""

    def memory(self, index: int) -> tuple[int, int]:
        free = self.free.pop(0) if len(self.free) > 1 else self.free[0]
        return int(free * 2**30), 2**30


def look_at(look: Look, count: int = 1, alone: bool = True) -> device.Fault | None:
    now = [0.0]

    def pause(seconds: float) -> None:
        now[0] += seconds

    return device.probe(look, count, alone=alone, patience=1.0, clock=lambda: now[0], pause=pause)


def test_a_device_is_used_once_its_memory_is_free() -> None:
    assert look_at(Look([0.1, 0.5, 0.95])) is None
    fault = look_at(Look([0.25]))
    assert fault == device.Fault(index=0, why="0.8 of its 1.0 GiB are held by other processes")
    assert look_at(Look([0.25]), alone=False) is None


def test_the_device_that_is_wrong_or_raises_is_named() -> None:
    assert look_at(Look([1.0], wrong="7"), count=3) == device.Fault(index=1, why="7")
    broken = Look([1.0], error=RuntimeError("CUDA error: uncorrectable ECC error\nmore"))
    assert look_at(broken) == device.Fault(index=0, why="CUDA error: uncorrectable ECC error")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError(
            "CUDA error: out of memory\nCUDA kernel errors might ..."
        ),  # where there is room for no context
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_device_whose_memory_others_hold_does_work(error: Exception) -> None:
    look = Look([1.0], error=error)
    assert look_at(look) == device.Fault(index=0, why="its memory is held by other processes")
    assert look_at(look, alone=False) is None


def test_memory_that_others_give_back_is_waited_for() -> None:
    class Busy(Look):
        tries = 0

        def compute(self, index: int) -> str:
            self.tries += 1
            if self.tries < 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return ""

    assert look_at(Busy([0.5, 0.95])) is None


def test_a_probe_that_hangs_is_given_up() -> None:
    given_up = threading.Event()
    with device.within(0.01, given_up.set):
        assert given_up.wait(30)
    not_given_up = threading.Event()
    with device.within(30, not_given_up.set):
        pass
    assert not not_given_up.is_set()
