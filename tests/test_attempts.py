"""Attempts in the store, step by step, on both databases."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from storage import HeldStudy, reads
from storage.views import TrialDetail
from tests.test_store import held_study
from tuner import checkpoint
from tuner.attempts import Attempts, Running
from tuner.messages import Saved
from tuner.outcome import Outcome, Reason
from tuner.retry import Retry
from tuner.study import DrivenStudy


@pytest.fixture
def held(url: str) -> Iterator[HeldStudy]:
    study = held_study(url)
    yield study
    study.lease.release()
    study.lease.database.dispose()


@pytest.fixture
def attempts(held: HeldStudy) -> Attempts:
    study = DrivenStudy(held, optuna.samplers.RandomSampler(), optuna.pruners.NopPruner())
    return Attempts(study, Retry(backoff=0.0), None, {})


def started(attempts: Attempts, held: HeldStudy, ranks: int = 1) -> Running:
    running = attempts.start(attempts.claim(), {}, ranks)
    held.flush()
    return running


def detail(held: HeldStudy, number: int = 0) -> TrialDetail:
    found = reads.trial(held.lease.database.engine, "s", number)
    assert found is not None
    return found


def part(folder: Path, attempt: int, step: int, ranks: int = 1) -> Saved:
    shard = checkpoint.save(str(folder / "saved"), attempt, step, 0, {"step": step})
    return Saved(id=1, step=step, path=shard.path, digest=shard.digest, size=shard.size, world_size=ranks)


def left(folder: Path) -> list[str]:
    return sorted(file.parent.name for file in folder.rglob("*.pt"))


def test_whatever_a_process_printed_its_end_is_stored(attempts: Attempts, held: HeldStudy) -> None:
    running = started(attempts, held)
    odd = "50 %\r\0\ud800\x1b[0m"
    outcome = Outcome(reason=Reason.BAD_VALUE, message=odd, traceback=odd, exception=odd, log_tail=odd)
    assert attempts.end(running, outcome) is TrialState.FAIL
    (row,) = detail(held).attempt_rows
    assert row.log_tail == row.message == "50 %\r\\0\\ud800\x1b[0m"


def test_ranks_that_do_not_save_together_are_told_of_once(
    attempts: Attempts, held: HeldStudy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    running = started(attempts, held, ranks=2)
    with caplog.at_level(logging.WARNING, "tuner"):
        for step in range(5):
            attempts.save(running, 0, part(tmp_path, 1, step, ranks=2))
    held.flush()
    (record,) = caplog.records
    assert record.getMessage().startswith("trial 0: rank 1 saved none of the last 3 steps; every rank must")
    assert [event.kind for event in detail(held).event_rows].count("checkpoints_apart") == 1
    attempts.end(running, Outcome(reason=Reason.COMPLETE, values=(1.0,)))
    assert left(tmp_path) == []


def test_an_attempt_may_read_where_it_started_from_as_long_as_it_runs(
    attempts: Attempts, held: HeldStudy, tmp_path: Path
) -> None:
    running = started(attempts, held)
    attempts.save(running, 0, part(tmp_path, 1, 0))
    due = attempts.end(running, Outcome(reason=Reason.RANK_LOST))
    assert not isinstance(due, TrialState | None)
    again = attempts.start(due, {}, 1)
    for step in range(1, 5):
        attempts.save(again, 0, part(tmp_path, 2, step))
    assert left(tmp_path) == ["step-0", "step-3", "step-4"]
    attempts.end(again, Outcome(reason=Reason.COMPLETE, values=(1.0,)))
    assert left(tmp_path) == ["step-4"]
