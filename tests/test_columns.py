"""Columns of whole studies agree with what Optuna itself loads, on both databases."""

from __future__ import annotations

import datetime as dt
import math
import warnings
from collections.abc import Iterator

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.engine import Engine

from storage import Database, columns

KINDS = CategoricalDistribution(["sgd", None, "1", 1, 2.5])
BEGAN = dt.datetime(2026, 1, 2, 3, 4, 5)


def trial(number: int) -> FrozenTrial:
    """Trial 2 failed, 3 is infinite, the odd ones lack a parameter, and 4 breaks its constraint."""
    params = {"lr": 10.0**-number, "kind": KINDS.choices[number % 5]}
    distributions = {"lr": FloatDistribution(1e-9, 1.0, log=True), "kind": KINDS}
    if number % 2 == 0:
        params["width"] = number
        distributions["width"] = IntDistribution(0, 8)
    state = TrialState.FAIL if number == 2 else TrialState.COMPLETE
    made = create_trial(
        state=state,
        value=None if number == 2 else math.inf if number == 3 else float(number % 4),
        params=params,
        distributions=distributions,
        system_attrs={"constraints:memory": float(number - 3), "other": 1},
    )
    made.datetime_start = BEGAN + dt.timedelta(seconds=number)
    made.datetime_complete = BEGAN + dt.timedelta(seconds=20 - number)  # the last one is done first
    return made


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    single = optuna.create_study(study_name="single", storage=url, direction="maximize")
    single.add_trials([trial(number) for number in range(6)])
    several = optuna.create_study(study_name="several", storage=url, directions=["minimize", "maximize"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        several.set_metric_names(["loss", "accuracy"])
    for constraints in ({}, {"constraints": [0.0, 1.0]}, {"constraints": [0.0]}):
        several.add_trial(create_trial(values=[1.0, 2.0], system_attrs=constraints))
    database = Database(url, create=False)
    yield database.engine
    database.dispose()


def test_values_and_feasibility_are_optunas(engine: Engine) -> None:
    found = columns.values(engine, "single")
    assert (found.directions, found.names) == (("maximize",), ("value",))
    assert found.numbers == (0, 1, 3, 4, 5)
    assert found.values == ((0.0, 1.0, math.inf, 0.0, 1.0),)
    assert found.feasible == (True, True, True, False, False)
    assert found.constrained
    found = columns.values(engine, "several")
    assert found.names == ("loss", "accuracy")
    assert found.values == ((1.0, 1.0, 1.0), (2.0, 2.0, 2.0))
    assert found.feasible == (True, False, True)  # the list that Optuna 4 wrote counts as well
    assert columns.values(engine, "nothing") == columns.values(engine, "a\0b") == columns.ValueColumns()


def test_parameters_are_decoded_in_the_order_asked_for(engine: Engine) -> None:
    found = columns.params(engine, "single", (5, 0, 99, 4))
    assert list(found) == ["kind", "lr", "width"]
    assert found["lr"].values == pytest.approx((1e-5, 1.0, None, 1e-4))
    assert (found["lr"].log, found["lr"].choices) == (True, None)
    assert found["width"].values == (None, 0.0, None, 4.0)
    assert found["kind"].choices == ("sgd", "None", "'1'", "1", "2.5")
    assert found["kind"].values == ("sgd", "sgd", None, "2.5")
    assert columns.params(engine, "single", ()) == columns.params(engine, "nothing", (1,)) == {}


def test_the_space_is_a_text_for_each_parameter(engine: Engine) -> None:
    assert columns.space(engine, "single") == {
        "kind": "sgd | None | '1' | 1 | 2.5",
        "lr": "float 1e-09 to 1, log",
        "width": "int 0 to 8",
    }
    assert columns.space(engine, "nothing") == {}


def test_the_history_is_in_order_of_completion_from_the_first_start(engine: Engine) -> None:
    found = columns.history(engine, "single")
    assert found.numbers == (5, 4, 1, 0)
    assert found.seconds == (15.0, 16.0, 19.0, 20.0)
    assert found.values == (1.0, 0.0, 1.0, 0.0)
    assert columns.wall_time(engine, "single") == 20.0
    assert columns.history(engine, "several") == columns.history(engine, "nothing") == columns.History()
    assert columns.wall_time(engine, "nothing") is None
