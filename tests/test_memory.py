"""Memory: which rank has to go, and what becomes of its trial."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tuner
from storage import Database, reads
from tests.local_cluster import local_cluster
from tuner.dispatch import memory
from tuner.dispatch.memory import Node, verdict
from tuner.outcome import Reason

MIB = 2**20


@given(
    held=st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.integers(0, 1000), min_size=1),
    total=st.integers(1, 1000),
    free=st.floats(0, 1),
    limit=st.none() | st.integers(1, 1000),
)
def test_on_a_full_node_one_rank_goes_at_most_and_it_holds_the_most(
    held: dict[str, int], total: int, free: float, limit: int | None
) -> None:
    node = Node(total=total, available=int(free * total))
    gone = {one: why for one in held if (why := verdict(one, held, node, limit)) is not None}
    for one, why in gone.items():
        above = limit is not None and held[one] > limit
        assert above or (node.is_full and held[one] == max(held.values()))
        assert why.reason is (Reason.OOM if above else why.reason)
        if limit is not None and not above:
            assert why.reason is Reason.NODE_MEMORY, "it held no more than it may"
    if limit is None:
        assert len(gone) <= 1


def test_a_rank_that_holds_little_is_not_what_fills_the_node() -> None:
    assert verdict("a", {"a": 4, "b": 3}, Node(total=100, available=1), None) is None


def test_who_holds_its_share_of_a_full_node_is_not_charged() -> None:
    outcome = verdict("a", {"a": 40, "b": 30}, Node(total=100, available=1), None)
    assert outcome is not None
    assert outcome.reason is Reason.NODE_MEMORY


def test_what_is_measured_is_what_a_process_holds() -> None:
    code = "import time; held = b'x' * (200 * 2**20); print(1, flush=True); time.sleep(60)"
    shell = subprocess.Popen(["sh", "-c", f'{sys.executable} -c "{code}"; true'], stdout=subprocess.PIPE)
    try:
        assert shell.stdout is not None
        shell.stdout.readline()
        exact = memory.held_by(shell.pid)
        assert 200 * MIB <= exact <= 240 * MIB
        assert memory.held_by(shell.pid, above=10**12) >= exact
    finally:
        subprocess.run(["pkill", "-P", str(shell.pid)], check=False)
        shell.wait(timeout=10)
        shell.stdout.close()
    node = memory.node()
    assert 0 < node.available <= node.total


HUNGRY = """
import os, time

def objective(trial):
    greedy = trial.suggest_categorical("greedy", [False, True])
    size = trial.user_attrs.get("size", 900)
    if greedy:
        held = []
        for step in range(size // 50):
            held.append(bytearray(os.urandom(1024)) * (50 * 1024))
            time.sleep(0.02)
    elif trial.user_attrs.get("stays"):
        time.sleep(6)
    return float(greedy)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_cluster():
        yield


def half(trial: optuna.trial.FrozenTrial, attempt: int) -> tuner.Again:
    """A hook: tell the objective to take less."""
    return tuner.Again(hint={"size": 100})


@pytest.mark.parametrize(
    ("policy", "reasons", "state"),
    [
        (tuner.Retry(backoff=0), ["oom", "oom"], "FAIL"),
        (tuner.Retry(on_oom="fail", infeasible=("oom",)), ["oom"], "PRUNED"),
        (tuner.Retry(on_oom=half, backoff=0), ["oom", "complete"], "COMPLETE"),
    ],
    ids=["alone", "infeasible", "hook"],
)
@pytest.mark.fault("21: out of memory")
@pytest.mark.usefixtures("cluster")
def test_a_trial_that_takes_too_much_is_ended_alone_and_answered_as_was_asked(
    tmp_path: Path, sqlite_url: str, policy: Any, reasons: list[str], state: str
) -> None:
    (tmp_path / "hungry.py").write_text(HUNGRY)
    study = tuner.create_study("s", storage=sqlite_url, sampler="random", seed=1)
    for greedy in (False, True):
        study.enqueue_trial({"greedy": greedy}, user_attrs={"stays": len(reasons) == 2})
    tuner.optimize(
        study,
        f"{tmp_path}/hungry.py:objective",
        n_trials=2,
        resources=tuner.Resources(cpus=1, gpus=0, memory=600 * MIB),
        retry=policy,
        progress=False,
    )
    database = Database(sqlite_url, create=False)
    modest, greedy = (reads.trial(database.engine, "s", number) for number in range(2))
    database.dispose()
    assert modest is not None
    assert greedy is not None
    assert (modest.state, [row.reason for row in modest.attempt_rows]) == ("COMPLETE", ["complete"])
    assert (greedy.state, [row.reason for row in greedy.attempt_rows]) == (state, reasons)
    assert "above resources.memory=600 MiB" in greedy.attempt_rows[0].message
    if reasons == ["oom", "oom"]:
        first, second = (row.ended_at for row in (modest.attempt_rows[0], greedy.attempt_rows[1]))
        assert first <= second, "it was to be alone on its node"
    assert not os.path.exists(f"/proc/{greedy.attempt_rows[0].ranks[0]['pid']}")
