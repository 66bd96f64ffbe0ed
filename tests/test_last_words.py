"""Last words: what a rank left is taken in, and what no rank could have left is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

import tuner
from storage import Database, reads
from tuner import checkpoint, last_words
from tuner.dispatch import inline
from tuner.messages import Ended, Finished, Report, Saved, encode
from tuner.outcome import Outcome, Reason


def lines(*messages: Any) -> list[str]:
    return [message if isinstance(message, str) else encode(message) for message in messages]


REPORT = Report(step=0, value=0.5)


def finished(**fields: Any) -> str:
    outcome = {"reason": "complete", "values": [0.5], **dict.fromkeys(_TEXTS, ""), **fields}
    return json.dumps(["Finished", {"outcome": outcome, "collateral": False}])


def saved(**fields: Any) -> str:
    return json.dumps(["Saved", {"id": 1, "step": 1, "digest": "0" * 64, "size": 1, **fields}])


_TEXTS = ("message", "traceback", "exception", "log_tail")


@pytest.mark.parametrize(
    "hostile",
    [
        "[" * 100_000,
        "{}",
        '["Nothing", {}]',
        '["Report", {"step": "x", "value": 1}]',
        '["Log", {"step": 1, "metrics": {"a": "text"}}]',
        '["UserAttr", {"key": 1, "value": 2}]',
        '["Saved", {"id": 1, "step": 1, "path": "/etc", "digest": "' + "0" * 64 + '", "size": 1}]',
        '["Saved", {"id": 1, "step": 1, "path": "ROOT/a1/step-1/../../x", "digest": "'
        + "0" * 64
        + '", "size": 1}]',
        '["Saved", {"id": 1, "step": 1, "path": "ROOT/a1/step-1/r", "digest": null, "size": 1}]',
        finished(values=["zz"]),
        finished(values=[1, 2, 3]),
        finished(values=[]),
        finished(message=["a", "list"]),
        finished(reason="no reason"),
        "\0\0\0",
    ],
)
def test_what_no_rank_could_have_said_ends_its_words(tmp_path: Path, hostile: str) -> None:
    root = str(tmp_path / "trial")
    hostile = hostile.replace("ROOT", root)
    last_words.keep(root, 1, 0, lines(REPORT, hostile, Report(step=1, value=0.5)))
    assert last_words.hear(root, 1, 2, 1) == {0: [REPORT]}


def test_what_is_too_large_or_no_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(tmp_path)
    last_words.keep(root, 1, 0, lines(*[REPORT] * 50))
    monkeypatch.setattr(last_words, "MOST", 100)
    assert last_words.hear(root, 1, 1, 1) == {}
    (tmp_path / "a2").mkdir()
    (tmp_path / "a2" / "last-words-0.jsonl").symlink_to("/dev/zero")
    assert last_words.hear(root, 2, 1, 1) == {}


def test_they_come_back_as_they_were_said_and_go(tmp_path: Path) -> None:
    root = str(tmp_path / "trial")
    said = [
        REPORT,
        Saved(id=3, step=4, path=f"{root}/a1/step-4/rank-0.pt", digest="ab" * 32, size=9),
        Finished(outcome=Outcome(reason=Reason.COMPLETE, values=(0.5,))),
    ]
    last_words.keep(root, 1, 0, lines(*said))
    second = [Finished(outcome=Outcome(reason=Reason.COMPLETE))]
    last_words.keep(root, 1, 1, lines(*second))
    assert last_words.hear(root, 1, 2, 1) == {0: said, 1: second}
    last_words.remove(root, 1, 2)
    assert not Path(root).exists()


@pytest.fixture
def abandoned(tmp_path: Path, sqlite_url: str) -> Callable[..., Any]:
    """A trial whose driver died while it ran, with these last words; then the study is resumed."""

    def resume(*words: Any, ended: Outcome | None = None, **given: Any) -> Any:
        def dies(trial: Any) -> float:
            trial.report(0.5, 0)
            trial.save_checkpoint({"step": 0}, 0)
            raise SystemExit("as if killed")

        study = tuner.create_study("s", storage=sqlite_url, sampler="random", seed=1)
        tuner.optimize(
            study,
            dies,
            n_trials=1,
            executor="inline",
            progress=False,
            checkpoints=str(tmp_path / "c"),
            retry=tuner.Retry(max_failures=0, stop_after=0),
        )
        engine = sa.create_engine(sqlite_url)
        with engine.begin() as connection:  # back to what a kill leaves
            connection.exec_driver_sql("UPDATE trials SET state = 'RUNNING', datetime_complete = NULL")
            connection.exec_driver_sql(
                "UPDATE tuner_attempts SET state = 'running', reason = NULL, charged = NULL"
            )
        engine.dispose()
        (uid,) = [path.name for path in (tmp_path / "c").iterdir()]
        root = str(tmp_path / "c" / uid / "0")
        last_words.keep(root, 1, 0, lines(*(word(root) if callable(word) else word for word in words)))
        tuner.optimize(
            study, lambda trial: 7.0, n_trials=1, executor="inline", progress=False,
            checkpoints=str(tmp_path / "c"), **given
        )  # fmt: skip
        database = Database(sqlite_url, create=False)
        found = reads.trial(database.engine, "s", 0)
        database.dispose()
        assert not Path(root, "a1", "last-words-0.jsonl").exists()
        return found

    return resume


def test_a_trial_that_ended_without_a_driver_is_told_as_any_other(abandoned: Callable[..., Any]) -> None:
    told: list[int] = []
    trial = abandoned(
        Report(step=1, value=0.25),
        Finished(outcome=Outcome(reason=Reason.COMPLETE, values=(0.25,))),
        callbacks=[lambda study, trial: told.append(trial.number)],
    )
    assert (trial.state, trial.values, told) == ("COMPLETE", (0.25,), [0])
    assert [step for step, _ in trial.curve] == [0, 1]


def test_a_checkpoint_that_was_saved_without_a_driver_is_where_it_goes_on(
    abandoned: Callable[..., Any],
) -> None:
    def save(root: str) -> Saved:
        shard = checkpoint.save(root, 1, 6, 0, {"step": 6})
        return Saved(id=1, step=6, path=shard.path, digest=shard.digest, size=shard.size)

    trial = abandoned(save)
    assert [row.reason for row in trial.attempt_rows] == ["driver_lost", "complete"]
    assert trial.attempt_rows[1].resumed_step == 6


def test_one_that_is_not_what_was_written_does_not_count(abandoned: Callable[..., Any]) -> None:
    def forged(root: str) -> Saved:
        shard = checkpoint.save(root, 1, 6, 0, {"step": 6})
        return Saved(id=1, step=6, path=shard.path, digest="0" * 64, size=shard.size)

    assert abandoned(forged).attempt_rows[1].resumed_step == 0


def test_lost_drivers_are_bounded_too(abandoned: Callable[..., Any]) -> None:
    trial = abandoned(REPORT, retry=tuner.Retry(max_preemptions=0))
    assert (trial.state, [row.reason for row in trial.attempt_rows]) == ("FAIL", ["driver_lost"])


def test_what_is_saved_on_a_node_that_was_cut_off_is_where_its_trial_goes_on(
    tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its driver lives, and reaches it no more: the attempt ends only when it must have ended itself."""
    deliver = inline._InlineChannel.deliver

    def cut_off(channel: Any, message: Any) -> None:
        if isinstance(message, Ended) and channel._assignment.attempt == 1:
            root = channel._assignment.checkpoints
            shard = checkpoint.save(root, 1, 6, 0, {"step": 6})
            saved = Saved(id=1, step=6, path=shard.path, digest=shard.digest, size=shard.size)
            last_words.keep(root, 1, 0, lines(REPORT, saved))
            message = Ended(outcome=Outcome(reason=Reason.NODE_LOST, message="its node died"), may_live=0.5)
        deliver(channel, message)

    monkeypatch.setattr(inline._InlineChannel, "deliver", cut_off)
    study = tuner.create_study("s", storage=sqlite_url, sampler="random", seed=1)
    tuner.optimize(
        study,
        lambda trial: float(trial.load_checkpoint().step) if trial.attempt > 1 else 0.0,
        n_trials=1,
        executor="inline",
        progress=False,
        checkpoints=str(tmp_path / "c"),
        retry=tuner.Retry(backoff=0),
    )
    database = Database(sqlite_url, create=False)
    trial = reads.trial(database.engine, "s", 0)
    database.dispose()
    assert trial is not None
    assert [row.reason for row in trial.attempt_rows] == ["node_lost", "complete"]
    assert trial.values == (6.0,)
