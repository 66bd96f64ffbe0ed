"""Column reads for people agree with what Optuna itself loads, and never need our tables."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from storage import Database, failures, reads
from tests.dashboard_data import HOSTILE, fill


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    fill(url)
    database = Database(url, create=False)
    yield database.engine
    database.dispose()


def loaded(engine: Engine, name: str) -> optuna.Study:
    url = engine.url.render_as_string(hide_password=False)
    return optuna.load_study(study_name=name, storage=url)


def test_the_reads_agree_with_optunas_own(engine: Engine) -> None:
    study = loaded(engine, "main")
    page = reads.trials(engine, "main", descending=False)
    assert page.total == len(study.trials) == 8
    for row, trial in zip(page.rows, study.trials, strict=True):
        assert (row.number, row.state, row.params) == (trial.number, trial.state.name, trial.params)
        assert list(row.values) == (trial.values or [])
        assert row.last_step == trial.last_step
        detail = reads.trial(engine, "main", row.number)
        assert detail is not None
        assert dict(detail.curve) == trial.intermediate_values
        assert detail.user_attrs == trial.user_attrs
    (main,) = reads.studies(engine, "main")
    finite = [
        trial for trial in study.trials if trial.state.name == "COMPLETE" and math.isfinite(trial.value)
    ]
    best = min(finite, key=lambda trial: trial.value)
    assert (main.best_number, main.best) == (best.number, best.value)
    assert main.states == {"COMPLETE": 5, "PRUNED": 2, "FAIL": 1}
    points = reads.best_so_far(engine, "main")
    assert sorted(point.number for point in points) == sorted(trial.number for trial in finite)
    assert points[-1].best == best.value


def test_pages_filters_and_orders(engine: Engine) -> None:
    def numbers(**options: object) -> list[int]:
        return [row.number for row in reads.trials(engine, "main", **options).rows]  # type: ignore[arg-type]

    assert numbers(size=3, page=1) == [7, 6, 5]
    assert numbers(size=3, page=3) == [1, 0]
    assert numbers(size=3, page=9) == []
    assert numbers(states=["PRUNED"], descending=False) == [0, 5]
    assert reads.trials(engine, "main", states=["PRUNED", "FAIL"]).total == 3
    by_value = reads.trials(engine, "main", sort="value", descending=False).rows
    values = [row.values[0] for row in by_value if row.values and math.isfinite(row.values[0])]
    assert values == sorted(values)
    assert by_value[-1].state == "FAIL" or math.isinf(by_value[-1].values[0])
    assert set(numbers(sort="duration")) == set(numbers(sort="state")) == set(range(8))
    assert reads.trials(engine, "nothing").total == 0


def test_a_trial_shows_its_attempts_and_what_they_left(engine: Engine) -> None:
    detail = reads.trial(engine, "main", 4)
    assert detail is not None
    assert [(row.attempt, row.reason) for row in detail.attempt_rows] == [(1, "exception"), (2, "complete")]
    assert detail.attempt_rows[1].resumed_step == 1
    assert [(attempt, step) for attempt, step, _ in detail.superseded] == [(1, 2), (1, 3)]
    assert "the second time it works" in detail.attempt_rows[0].traceback
    assert list(detail.metrics) == ["train/loss"]
    assert all(part.whole for part in detail.checkpoint_parts)
    assert {"started", "retry", "finished"} <= {event.kind for event in detail.event_rows}
    (failure,) = failures.of_trials(engine, "main")
    assert (failure.reason, failure.exception, failure.count, failure.newest) == (
        "exception",
        "ValueError",
        1,
        3,
    )
    assert reads.events(engine, "main", limit=1)[0].kind == "stopped"
    assert reads.trial(engine, "main", 99) is None
    assert reads.curves(engine, "main", [3, 4])[3][-1][0] == 2


def test_names_are_data(engine: Engine) -> None:
    (row,) = reads.studies(engine, "DROP TABLE")
    assert row.name == HOSTILE
    assert reads.studies(engine, "%") == []
    assert reads.study(engine, "nothing") is None
    detail = reads.study(engine, "main")
    assert detail is not None
    assert (detail.seed, detail.sampler, detail.pruner, detail.n_trials) == (1, "random", "median", 8)


def test_a_database_that_only_optuna_wrote_is_read(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/plain.db"
    study = optuna.create_study(study_name="plain", storage=url)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    engine = sa.create_engine(url)
    (row,) = reads.studies(engine)
    assert (row.uid, row.owner, row.states) == ("", None, {"COMPLETE": 2})
    detail = reads.trial(engine, "plain", 1)
    assert detail is not None
    assert (detail.attempt_rows, detail.params) == ((), study.trials[1].params)
    assert failures.groups(engine, "plain") == reads.events(engine, "plain") == []
    assert reads.study(engine, "plain") is not None
    engine.dispose()
