"""Groups on Ray: ranks that train together, die and hang; clusters too small, absent or left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from tuner.assignment import Assignment, ObjectiveRef
from tuner.dispatch import connection, ray_cluster, ray_group
from tuner.dispatch.ray_cluster import RayExecutor
from tuner.dispatch.shell import Begun
from tuner.errors import ClusterUnavailable, Infeasible
from tuner.messages import (
    Answer,
    Ask,
    Ended,
    Envelope,
    Question,
    RankInfo,
    Released,
    Report,
    Sample,
    Saved,
    Started,
    UserAttr,
)
from tuner.outcome import Outcome, Reason
from tuner.processes import is_gone, marked
from tuner.resources import Resources, alternatives

RUN = f"ray-tests-{os.getpid()}"

OBJECTIVES = """
import os, sys, subprocess, time
import optuna
import torch
import torch.distributed as dist

def trains(trial):
    x = trial.suggest_float("x", 0, 1)
    total = torch.tensor([x * (trial.rank + 1)])
    for step in range(3):
        dist.all_reduce(total)
        trial.report(total.item(), step)
        if trial.should_prune():
            raise optuna.TrialPruned
    trial.set_user_attr("zygote", os.getppid())
    return total.item()

def waits_together(trial):
    trial.report(0.0, 0)
    while True:
        dist.all_reduce(torch.ones(1))
        time.sleep(0.01)

def waits_apart(trial):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    trial.report(0.0, 0)
    while True:
        time.sleep(0.01)

def second_rank_raises(trial):
    if trial.rank == 1:
        raise ValueError("rank 1 cannot")
    while True:
        dist.all_reduce(torch.ones(1))

def cannot_leave(trial):
    # as with nccl, whose group waits for a collective that no other rank joins
    if trial.rank == 1:
        dist.destroy_process_group = lambda: time.sleep(600)
        raise ValueError("rank 1 has had enough")
    while True:
        time.sleep(0.01)

def first_rank_returns(trial):
    while trial.rank:
        time.sleep(0.01)
    return 1.0

def second_rank_saves_last(trial):
    while trial.rank and not os.path.exists(os.path.join(os.path.dirname(__file__), "rank-0-ended")):
        time.sleep(0.01)
    trial.save_checkpoint({"rank": trial.rank}, 7)
    return 1.0

def devices(trial):
    trial.set_user_attr("devices", os.environ.get("CUDA_VISIBLE_DEVICES"))
    return 0.0
"""


class Driver:
    """Opens an executor, answers questions, and keeps what arrives."""

    def __init__(self, file: Path, resources: Resources, executor: RayExecutor | None = None) -> None:
        self.file = file
        self.resources = resources
        self.executor = executor or RayExecutor()
        self.seen: list[Envelope] = []
        self.prune_at = 10**9
        self.cluster = self.executor.open(RUN, 1, alternatives(resources), self.sink)

    def sink(self, envelope: Envelope) -> None:
        self.seen.append(envelope)
        message: Any = envelope.message
        if isinstance(message, Question):
            value: Any = None
            if isinstance(message, Sample):
                value = 0.5
            elif isinstance(message, Ask):
                value = message.ordinal >= self.prune_at
            self.executor.answer(envelope.number, envelope.rank, Answer(id=message.id, value=value))
        self.executor.committed(envelope.number, envelope.rank, envelope.seq)

    def start(self, name: str, number: int) -> None:
        self.executor.start(assignment(self.file, name, number, self.resources))

    def messages(self, number: int) -> list[Any]:
        return [envelope.message for envelope in self.seen if envelope.number == number]

    def until(self, number: int, found: Callable[[Any], bool], bound: float = 90) -> Any:
        deadline = time.monotonic() + bound
        while True:
            for message in self.messages(number):
                if found(message):
                    return message
            assert time.monotonic() < deadline, self.messages(number)
            self.executor.poll(0.1)

    def run(self, name: str, number: int) -> Outcome:
        self.start(name, number)
        return self.until_released(number)

    def until_reported(self, number: int) -> tuple[RankInfo, ...]:
        self.until(number, lambda message: isinstance(message, Report))
        return self.until(number, lambda message: isinstance(message, Started)).ranks  # type: ignore[no-any-return]

    def until_released(self, number: int) -> Outcome:
        self.until(number, lambda message: isinstance(message, Released))
        kinds = [type(message) for message in self.messages(number)]
        assert kinds[-2:] == [Ended, Released] or kinds[-1] is Released
        assert kinds.count(Ended) == kinds.count(Released) == 1
        (ended,) = [message for message in self.messages(number) if isinstance(message, Ended)]
        return ended.outcome  # type: ignore[no-any-return]


def assignment(file: Path, name: str, number: int, resources: Resources, run: str = RUN) -> Assignment:
    return Assignment(
        run=run,
        epoch=1,
        study="s",
        directions=("minimize",),
        number=number,
        attempt=1,
        seed=1,
        started="2026-01-01T00:00:00",
        objective=ObjectiveRef(file=str(file), module=file.stem, name=name),
        resources=resources,
        checkpoints=str(file.parent / "checkpoints"),
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("objectives") / "ray_objectives.py"
    path.write_text(OBJECTIVES)
    return path


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Address of four pretended cores and two pretended GPUs."""
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


def test_short_ones_behind_one_that_is_not_short_go_elsewhere(cluster: str, file: Path) -> None:
    driver = Driver(file, Resources(cpus=2, gpus=0))  # two places
    try:
        for number in range(6):
            name = "waits_apart" if number == 0 else "devices"
            given = assignment(file, name, number, driver.resources)
            driver.executor.start(dataclasses.replace(given, short=True))
        driver.executor.kill(1, Reason.FINISHED_ELSEWHERE, "another program told it")
        outcomes = [driver.until_released(number) for number in range(1, 6)]
        assert outcomes[0].reason is Reason.FINISHED_ELSEWHERE
        assert [one.reason for one in outcomes[1:]] == [Reason.COMPLETE] * 4
        assert not [one for one in driver.messages(1) if isinstance(one, Started)]
        assert all(isinstance(driver.messages(number)[0], Started) for number in (2, 3, 4, 5))
        driver.until(0, lambda message: isinstance(message, Started))
        driver.executor.kill(0, Reason.TIMEOUT, "too long")
        assert driver.until_released(0).reason is Reason.TIMEOUT
        assert driver.executor.queued() == 0
    finally:
        driver.executor.close()


def test_a_shell_that_is_lost_takes_its_whole_series_with_it(
    cluster: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_group, "LONG", 1e9)
    driver = Driver(file, Resources(cpus=4, gpus=0))  # one place
    try:
        for number in range(4):
            given = assignment(file, "waits_apart", number, driver.resources)
            driver.executor.start(dataclasses.replace(given, short=True))
        driver.until_reported(0)
        (group,) = driver.executor._groups
        assert len(group.behind) == 3
        os.kill(group.info(0)["pid"], signal.SIGKILL)
        for number in range(4):
            assert driver.until_released(number).reason is Reason.NODE_LOST
    finally:
        driver.executor.close()


@pytest.fixture(scope="module")
def pair(cluster: str, file: Path) -> Iterator[Driver]:
    """A driver of trials on two ranks; its group stays warm over the tests."""
    made = Driver(file, Resources(ranks=2, gpus=0))
    yield made
    made.executor.close()
    assert marked(RUN) == []
    assert ray.is_initialized(), "the executor ends no Ray that it did not start"


def test_two_ranks_train_together_and_rank_0_speaks(pair: Driver) -> None:
    outcome = pair.run("trains", 0)
    assert outcome == Outcome(reason=Reason.COMPLETE, values=(6.0,))  # (0.5 + 1.0) * 2 * 2
    kinds = [type(message).__name__ for message in pair.messages(0)]
    assert kinds[0] == "Started"
    assert {one.rank for one in pair.seen if isinstance(one.message, Report)} == {0}
    started = pair.messages(0)[0]
    assert [info.rank for info in started.ranks] == [0, 1]
    assert len({info.pid for info in started.ranks}) == 2
    assert {info.node for info in started.ranks} == {ray.get_runtime_context().get_node_id()}
    assert all(is_gone(info.pid) for info in started.ranks)


def test_both_ranks_leave_together_when_the_trial_is_pruned(pair: Driver) -> None:
    pair.prune_at = 2
    try:
        assert pair.run("trains", 1).reason is Reason.PRUNED
    finally:
        pair.prune_at = 10**9


def test_a_killed_rank_is_the_cause_and_the_same_group_takes_the_next_trial(pair: Driver) -> None:
    pair.run("trains", 2)
    pair.start("waits_together", 3)
    ranks = pair.until_reported(3)
    os.kill(ranks[1].pid, signal.SIGKILL)
    outcome = pair.until_released(3)
    assert (outcome.reason, outcome.message) == (Reason.RANK_LOST, "rank 1 was killed by SIGKILL")
    assert all(is_gone(info.pid) for info in ranks)
    pair.run("trains", 4)
    zygotes = [
        message.value for one in (2, 4) for message in pair.messages(one) if isinstance(message, UserAttr)
    ]
    assert zygotes[0] == zygotes[1]


def test_the_error_of_one_rank_frees_the_other_and_gives_the_reason(pair: Driver) -> None:
    outcome = pair.run("second_rank_raises", 5)
    assert (outcome.reason, outcome.message) == (Reason.EXCEPTION, "ValueError: rank 1 cannot")


def test_the_error_of_a_rank_whose_group_does_not_let_it_go_is_the_reason(
    pair: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_group, "LEAVING", 0.2)
    outcome = pair.run("cannot_leave", 14)
    assert (outcome.reason, outcome.message) == (Reason.EXCEPTION, "ValueError: rank 1 has had enough")


def test_a_rank_that_stays_when_rank_0_has_returned_is_ended(
    pair: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_group, "LEAVING", 0.2)
    assert pair.run("first_rank_returns", 6) == Outcome(reason=Reason.COMPLETE, values=(1.0,))
    ranks = pair.messages(6)[0].ranks
    assert all(is_gone(info.pid) for info in ranks)


def test_what_a_rank_saves_after_rank_0_has_returned_counts(pair: Driver) -> None:
    pair.start("second_rank_saves_last", 13)
    (group,) = pair.executor._groups
    deadline = time.monotonic() + 90
    while group._attempt is None or not group._attempt.endings:  # until rank 0's return is known here
        assert time.monotonic() < deadline
        pair.executor.poll(0.1)
    (pair.file.parent / "rank-0-ended").touch()
    assert pair.until_released(13) == Outcome(reason=Reason.COMPLETE, values=(1.0,))
    saved = {one.rank for one in pair.seen if one.number == 13 and isinstance(one.message, Saved)}
    assert saved == {0, 1}


def test_a_stopped_rank_is_killed_with_what_it_started(pair: Driver) -> None:
    pair.start("waits_apart", 7)
    ranks = pair.until_reported(7)
    helpers = [child for info in ranks for child in psutil.Process(info.pid).children()]
    assert len(helpers) == 2
    os.kill(ranks[0].pid, signal.SIGSTOP)
    pair.executor.kill(7, Reason.TIMEOUT, "ran longer than trial_timeout=1 s")
    outcome = pair.until_released(7)
    assert (outcome.reason, outcome.message) == (Reason.TIMEOUT, "ran longer than trial_timeout=1 s")
    assert all(is_gone(process.pid) for process in (*ranks, *helpers))


def test_an_attempt_that_is_killed_at_once_ends(pair: Driver) -> None:
    pair.start("waits_apart", 8)
    pair.executor.kill(8, Reason.STOPPED, "by a person")
    assert pair.until_released(8).reason is Reason.STOPPED


def test_a_driver_that_was_stopped_for_long_loses_no_rank(
    pair: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.start("waits_apart", 9)
    pair.until_reported(9)
    now = time.monotonic()
    monkeypatch.setattr(ray_group.time, "monotonic", lambda: now + 3600)
    pair.executor.poll(0)
    monkeypatch.undo()
    assert not any(isinstance(message, Ended) for message in pair.messages(9))
    pair.executor.kill(9, Reason.STOPPED, "enough")
    pair.until_released(9)


def test_lines_that_break_in_the_middle_of_a_trial_lose_nothing(
    pair: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.start("waits_apart", 20)
    pair.until_reported(20)
    (group,) = pair.executor._groups
    deadline = time.monotonic() + 20
    while not all(line.is_made for line in group._lines):
        assert time.monotonic() < deadline
        pair.executor.poll(0.1)
    pair.executor.kill(20, Reason.STOPPED, "enough")
    pair.until_released(20)

    def sever(envelope: Envelope) -> None:
        pair.sink(envelope)
        if isinstance(envelope.message, Report) and envelope.message.step == 1:
            for line in group._lines:
                line._socket.shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]

    monkeypatch.setattr(pair.executor, "_sink", sever)
    assert pair.run("trains", 21) == Outcome(reason=Reason.COMPLETE, values=(6.0,))
    assert [one.step for one in pair.messages(21) if isinstance(one, Report)] == [0, 1, 2]
    assert not any(line.is_made for line in group._lines)
    monkeypatch.undo()
    assert pair.run("trains", 22).reason is Reason.COMPLETE, "by Ray"


def test_when_a_shell_dies_the_rank_is_lost_and_a_new_group_takes_the_next_trial(
    pair: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_group, "LEAVING", 0.2)
    pair.start("waits_apart", 10)
    pair.until_reported(10)
    (group,) = pair.executor._groups
    os.kill(group._infos[1]["pid"], signal.SIGKILL)
    outcome = pair.until_released(10)
    until_nothing_is_left(RUN)
    assert (outcome.reason, outcome.message) == (Reason.NODE_LOST, "rank 1 is lost: its shell died")
    assert pair.run("trains", 11).reason is Reason.COMPLETE


def test_a_rank_that_speaks_before_its_start_is_known_leaves_no_other_unheard(
    cluster: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = ray_group.Group._on_started

    def after_its_first_words(group: Any, attempt: Any, rank: int, begun: Begun) -> None:
        batch = ray.get(group._shells[rank].drain.remote(0, 1, [], 60, 0))
        started(group, attempt, rank, replace(begun, batch=batch))

    monkeypatch.setattr(ray_group.Group, "_on_started", after_its_first_words)
    driver = Driver(file, Resources(ranks=2, gpus=0))
    try:
        assert driver.run("trains", 0).reason is Reason.COMPLETE
    finally:
        driver.executor.close()


def test_gpus_are_assigned_by_ray_one_to_each_trial(cluster: str, pair: Driver, file: Path) -> None:
    driver = Driver(file, Resources())
    try:
        assert driver.cluster.slots == 2
        assert driver.cluster.description == "1 node, 4 CPUs, 2 GPUs"
        for number in (0, 1):
            driver.start("devices", number)
        shown = []
        for number in (0, 1):
            assert driver.until_released(number).reason is Reason.COMPLETE
            (attribute,) = [one.value for one in driver.messages(number) if isinstance(one, UserAttr)]
            assert driver.messages(number)[0].ranks[0].devices == (attribute,)
            shown.append(attribute)
        assert sorted(shown) == ["0", "1"]
    finally:
        driver.executor.close()


def test_gpus_that_are_not_asked_for_are_hidden(pair: Driver) -> None:
    pair.run("devices", 12)
    (shown,) = [one.value for one in pair.messages(12) if isinstance(one, UserAttr)]
    assert shown == ""


def test_a_trial_that_can_never_fit_is_refused_with_both_numbers(cluster: str) -> None:
    with pytest.raises(Infeasible, match=r"one trial needs 4 GPUs \(2 ranks, 2 each\), the cluster has 2"):
        RayExecutor().open(RUN, 1, [Resources(ranks=2, gpus=2)], lambda envelope: None)
    with pytest.raises(Infeasible, match="one trial needs 5 CPUs"):
        RayExecutor().open(RUN, 1, [Resources(cpus=5, gpus=0)], lambda envelope: None)


def test_a_cluster_where_shells_cannot_start_is_named_with_the_cause(
    cluster: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(ray_group.RayShell):
        def __init__(self, *arguments: Any) -> None:
            raise ImportError("No module named 'tuner'")

    monkeypatch.setattr(ray_cluster, "HOPELESS", 2)
    monkeypatch.setattr(ray_group, "RayShell", Broken)
    driver = Driver(file, Resources(gpus=0))
    driver.start("devices", 0)
    with pytest.raises(ClusterUnavailable, match=r"No module named 'tuner'.*every node needs the same Tuner"):
        driver.until_released(0)
    driver.executor.close()


DRIVER = """
import pickle, sys, time
from pathlib import Path
from tuner.dispatch.ray_cluster import RayExecutor
from tuner.messages import Question, Released, Report
from tuner.resources import Resources

def main():
    run, given, wanted = sys.argv[1], pickle.loads(Path(sys.argv[2]).read_bytes()), sys.argv[3]
    executor, kinds = RayExecutor(), []
    executor.open(run, 1, [Resources(gpus=0)], lambda envelope: kinds.append(type(envelope.message).__name__))
    executor.start(given)
    while wanted not in kinds:
        executor.poll(0.1)
    import ray
    print(ray._private.worker._global_node.get_session_dir_path(), flush=True)
    sys.stdin.readline()
    executor.close()

main()
"""


@contextlib.contextmanager
def driver_of(file: Path, folder: Path, run: str, **environment: str) -> Iterator[tuple[Any, Path]]:
    """A driver in a process of its own whose trial has reported, and the folder of its Ray's session."""
    request = folder / "assignment"
    request.write_bytes(pickle.dumps(assignment(file, "waits_apart", 0, Resources(gpus=0), run)))
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, run, str(request), "Report"],
        env=inherited | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert driver.stdout is not None
        yield driver, Path(driver.stdout.readline().strip())
    finally:
        driver.kill()
        driver.wait(timeout=10)


def until_nothing_is_left(run: str, session: Path | None = None, bound: float = 10) -> None:
    """Where the machine is idle it takes two seconds."""
    deadline = time.monotonic() + bound
    while left := [
        *(pid for pid in marked(run) if not is_gone(pid)),
        *Path(tempfile.gettempdir()).glob(f"tuner-{run}-*"),
        *([session] if session is not None and session.exists() else []),
    ]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "closed"])
def test_nothing_is_left_of_a_local_ray(file: Path, tmp_path: Path, killed: bool) -> None:
    run = f"{RUN}-{killed}"
    with driver_of(file, tmp_path, run) as (driver, session):
        assert session.name.startswith("session_")
        processes = [psutil.Process(pid) for pid in marked(run)]
        servers = {one.name(): one for one in processes if one.name() in ("raylet", "gcs_server")}
        assert set(servers) == {"raylet", "gcs_server"}
        programs = {os.path.basename(part) for one in processes for part in one.cmdline()}
        assert not programs & {"monitor.py", "log_monitor.py", "dashboard.py"}, "nobody needs them here"
        zygotes = [one for one in processes if "tuner.dispatch.zygote" in one.cmdline()]
        assert len({one.cmdline()[-1] for one in zygotes}) == 1, "the rank is not a fork of it"
        if killed:
            driver.kill()
        else:
            driver.communicate("\n", timeout=30)
            assert driver.returncode == 0
        driver.wait(timeout=10)
        until_nothing_is_left(run, session, bound=10 if killed else 0)


def test_nothing_of_a_killed_driver_is_left_on_a_standing_cluster(
    cluster: str, file: Path, tmp_path: Path
) -> None:
    run = f"{RUN}-standing"
    with driver_of(file, tmp_path, run, RAY_ADDRESS=cluster) as (driver, _):
        assert len(marked(run)) >= 3  # zygote, rank and its helper
        driver.kill()
        driver.wait(timeout=10)
        until_nothing_is_left(run)
    assert RayExecutor().open(RUN, 1, [Resources()], lambda envelope: None).slots == 2


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9"])
def test_a_cluster_that_does_not_answer_is_named_in_one_line(address: str) -> None:
    code = """if True:
        import sys
        from tuner.dispatch.ray_cluster import RayExecutor
        from tuner.errors import ClusterUnavailable
        from tuner.resources import Resources
        try:
            RayExecutor(sys.argv[1]).open("r", 1, [Resources()], print)
        except ClusterUnavailable as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", code, address], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    assert repr(address) in done.stdout
    assert "ray start --head" in done.stdout


def test_of_an_answer_of_ray_only_what_happened_is_said_beside_our_own_advice() -> None:
    said = "Could not find any running Ray instance. Please specify the one to connect to by `--address`."
    assert connection.first_line(ConnectionError(said)) == "Could not find any running Ray instance"
