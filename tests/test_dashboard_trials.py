"""The list of trials and the page of one trial, in every state, without a browser."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Iterator

import optuna
import pytest
from sqlalchemy.engine import Engine
from streamlit.proto.WidgetStates_pb2 import WidgetState
from streamlit.testing.v1 import AppTest

from dashboard.parts.attempts import differences
from dashboard.parts.trial_filters import Wanted
from dashboard.rules import pruning
from dashboard.views.trials import csv_of
from storage import Database, reads
from storage.conditions import parse_all, written
from storage.filters import AttrFilter, NumberFilter, ParamFilter, ValueFilter
from storage.listing import POINTS, listing, thinned
from storage.ranges import names
from storage.references import references
from tests.test_dashboard import page, texts
from tests.trials_data import RUNNING, fill_states


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('trials')}/tuner.db"
    fill_states(url)
    return url


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch, filled: str) -> str:
    monkeypatch.setenv("TUNER_STORAGE", filled)
    return filled


def trial_page(number: int, study: str = "states") -> str:
    return texts(page("trial", study=study, n=str(number))).replace("\u2060", "").replace("\\", "")


# ---------------------------------------------------------------------- one trial


def test_a_pruned_trial_says_what_the_pruner_compared(storage: str) -> None:
    shown = trial_page(3)
    assert "Why it was pruned" in shown
    assert "MedianPruner said at step 0 to prune it: its best report until then, 3, is above 0.99" in shown
    assert "the median of the 3 complete trials with a report at this step" in shown
    test = page("trial", study="states", n="3")
    compared: dict[str, str] = dict(test.dataframe[0].value.itertuples(index=False))
    assert compared["pruner"] == "MedianPruner"
    assert compared["its best report so far"] == "3"


def test_successive_halving_says_the_place_at_the_rung(storage: str) -> None:
    assert "with 2.1 at rung 0 it came 2nd of the 2 trials that got there" in trial_page(2, "halving")


def test_an_exception_shows_its_traceback_and_a_nan_its_reason(storage: str) -> None:
    shown = trial_page(4)
    assert "**Why:** exception" in shown
    assert 'raise ValueError("<b>no luck</b>")' in shown
    assert "**Why:** nan" in trial_page(5)


def test_a_retried_trial_shows_attempts_and_checkpoints_by_step(storage: str) -> None:
    test = page("trial", study="states", n="6")
    shown = texts(test)
    assert shown.index("**Attempt 2**") < shown.index("**Attempt 1**")
    assert "from the checkpoint of step 2" in shown
    assert "ConnectionError: the second time it works" in shown
    tables = [table.value for table in test.dataframe]
    (checkpoints,) = [table for table in tables if "whole" in table]
    assert list(checkpoints["whole"].unique()) == ["yes"]
    assert list(checkpoints["ranks"].unique()) == ["1 of 1"]
    (events,) = [table for table in tables if "what happened" in table]
    assert "failed (exception)" in "\n".join(events["what happened"])


def test_reports_that_cannot_be_drawn_are_named(storage: str) -> None:
    assert "Not drawn: inf at step 1." in trial_page(7)
    assert "Not drawn: nan at step 0." in trial_page(1, "optunas")


def test_running_and_claimed_trials_show_what_their_attempt_does(storage: str) -> None:
    running = page("trial", study="states", n=str(RUNNING["running"]))
    shown = texts(running)
    assert "epoch 1 of 9" in shown
    assert "cuda" in shown
    assert "updated " in shown  # it refreshes
    changed = [table.value for table in running.dataframe if "before" in table.value]
    assert changed[0].to_dict("records") == [{"what": "packages.torch", "before": "2.12", "now": "2.13"}]
    shown = trial_page(RUNNING["claimed"])
    assert "waits for its next attempt" in shown
    assert "waits for a place to run" in shown
    assert "oom" in shown
    assert "counts as a failure" in shown


def test_a_trial_that_waits_shows_the_parameters_it_was_enqueued_with(storage: str) -> None:
    waiting = page("trial", study="optunas", n="2")
    rows = [row for table in waiting.dataframe for row in table.value.to_dict("records")]
    assert {"name": "x", "value": "0.5", "drawn from": "given when it was enqueued"} in rows


def test_trials_of_other_programs_have_their_page(storage: str) -> None:
    assert "run by another program" in trial_page(0, "optunas")
    assert "Optuna keeps no reason" in trial_page(1, "optunas")
    shown = trial_page(2, "optunas")
    assert "It waits in the queue" in shown
    assert "It has reported nothing." in shown


def test_parameters_show_their_value_as_every_page_does_and_what_they_were_drawn_from(storage: str) -> None:
    test = page("trial", study="states", n="0")
    (table,) = [table.value for table in test.dataframe if "drawn from" in table.value]
    assert list(table["drawn from"]) == ["1e-05 to 0.1, log", "adam | sgd | None"]
    lr = optuna.load_study(study_name="states", storage=storage).trials[0].params["lr"]
    assert table["value"][0] == f"{lr:.5g}"


def test_a_retry_and_an_objective_that_prunes_itself_are_told(storage: str, filled: str) -> None:
    database = Database(filled, create=False)
    trial = reads.trial(database.engine, "states", 0)
    assert trial is not None
    pruned = trial.__class__(**{**trial.__dict__, "state": "PRUNED", "event_rows": ()})
    assert "by itself" in pruning.sentence(pruned)
    assert pruning.sentence(trial) == ""
    study = optuna.load_study(study_name="optunas", storage=filled)
    study.add_trial(optuna.trial.create_trial(value=1.0, system_attrs={"failed_trial": 1}))
    again = page("trial", study="optunas", n="3")
    assert reads.trial(database.engine, "optunas", 3).retry_of == 1  # type: ignore[union-attr]
    assert "Trial 3" in texts(again)
    database.dispose()


def test_the_trial_before_and_after_are_a_click_away(storage: str) -> None:
    test = page("trial", study="states", n="8")
    [following] = [button for button in test.button if button.label == "next →"]
    following.click().run()
    assert test.query_params["n"] == "9"
    assert "Trial 9" in texts(test)
    [following] = [button for button in test.button if button.label == "next →"]
    assert following.disabled


def test_differences_name_what_changed_in_depth() -> None:
    assert differences({"a": {"b": 1, "c": 2}, "d": None}, {"a": {"b": 1, "c": 3}, "d": 4}) == [
        {"what": "a.c", "before": "2", "now": "3"},
        {"what": "d", "before": "-", "now": "4"},
    ]


# ---------------------------------------------------------------------- the list


def numbers(test: AppTest) -> list[int]:
    return list(test.dataframe[-1].value["Trial"])


def test_the_inputs_follow_the_address_and_write_to_it(storage: str) -> None:
    test = page("trials", study="states", state="FAIL", sort="param:lr", order="asc", nonsense="x")
    assert set(numbers(test)) == {4, 5}
    test.button_group[0].set_value(["PRUNED"]).run()
    assert numbers(test) == [3]
    assert test.query_params["state"] == "PRUNED"
    test.query_params["state"] = "COMPLETE"  # as a link does
    test.run()
    assert 0 in numbers(test)
    assert 3 not in numbers(test)
    test.text_input(key="trials where").set_value("number>=6 and attr:note='=trial 6'").run()
    assert numbers(test) == [6]
    [clear] = [button for button in test.button if button.label == "Clear"]
    clear.click().run()
    assert len(numbers(test)) == 10
    assert "where" not in test.query_params


def test_a_condition_can_be_put_together_by_choosing(storage: str) -> None:
    test = page("trials", study="states")
    test.selectbox(key="condition on").set_value(("param", "optimizer")).run()
    test.text_input(key="condition value").set_value("adam,sgd").run()
    [add] = [button for button in test.button if button.label == "Add"]
    add.click().run()
    assert test.query_params["where"] == "optimizer=adam,sgd"
    assert set(test.dataframe[-1].value["param optimizer"]) <= {"adam", "sgd"}


def clicked(test: AppTest, element: str, row: int) -> AppTest:
    """The page after a browser has answered that this row of this element was clicked on."""
    states = test._tree.get_widget_states()
    answer = {"selection": {"rows": [row], "columns": [], "cells": []}}
    states.widgets.append(WidgetState(id=element, string_value=json.dumps(answer)))
    return test._run(states)


def test_a_click_never_opens_another_trial_than_the_one_seen(
    monkeypatch: pytest.MonkeyPatch, sqlite_url: str
) -> None:
    study = optuna.create_study(study_name="moving", storage=sqlite_url)
    study.optimize(lambda trial: float(trial.number), n_trials=3)
    monkeypatch.setenv("TUNER_STORAGE", sqlite_url)
    opened: list[str] = []
    monkeypatch.setattr("streamlit.switch_page", lambda view, query_params: opened.append(query_params["n"]))
    test = page("trials", study="moving")
    assert numbers(test) == [2, 1, 0]
    element = test.dataframe[-1].proto.id
    clicked(test, element, 0)
    assert opened == ["2"]
    study.optimize(lambda trial: float(trial.number), n_trials=1)
    from dashboard.data import _read

    _read.clear()
    test = clicked(page("trials", study="moving"), element, 0)  # the browser still shows trial 2 in row 0
    assert numbers(test) == [3, 2, 1, 0]
    assert opened == ["2"]
    clicked(test, test.dataframe[-1].proto.id, 1)
    assert opened == ["2", "2"]


def test_what_changed_since_the_table_was_read_is_said_beside_it(
    monkeypatch: pytest.MonkeyPatch, sqlite_url: str
) -> None:
    study = optuna.create_study(study_name="moving", storage=sqlite_url)
    trial = study.ask()
    database = Database(sqlite_url, create=False)
    cursor = listing(database.engine, "moving").cursor
    study.tell(trial, 1.0)
    assert [row.number for row in reads.changes(database.engine, "moving", cursor).trials] == [0]
    monkeypatch.setenv("TUNER_STORAGE", sqlite_url)
    assert "changed since" not in texts(page("trials", study="moving"))
    database.dispose()


def test_an_empty_list_names_the_next_step(storage: str) -> None:
    assert "Clear the filters" in texts(page("trials", study="states", where="number>99"))


def test_the_file_has_all_that_is_filtered_and_runs_no_formula(filled: str) -> None:
    database = Database(filled, create=False)
    wanted = Wanted(states=("FAIL", "PRUNED"), where="", sort="number", descending=True, page=1)
    rows = list(csv.DictReader(io.StringIO(csv_of(database, "states", wanted, ())().decode())))
    assert [row["number"] for row in rows] == ["5", "4", "3"]
    assert rows[0]["user_attrs_note"] == "'=trial 5"
    database.dispose()


def test_a_written_condition_is_read_as_it_was_meant() -> None:
    odd = 'a "b" <= c'
    assert parse_all(written("lr", "<=", "0.1")) == (ParamFilter(name="lr", high=0.1),)
    assert parse_all(written("value", "=", "2")) == (ParamFilter(name="value", any_of=(2,)),)
    assert parse_all(written(odd, "=", "x and y")) == (ParamFilter(name=odd, any_of=("x and y",)),)
    assert parse_all(written("1", ">=", "0.5", "value")) == (ValueFilter(objective=1, low=0.5),)
    assert parse_all(written("", "=", "7", "number")) == (NumberFilter(low=7, high=7),)
    assert parse_all(written(odd, "=", "x", "attr")) == (AttrFilter(key=odd, equals="x"),)


# ---------------------------------------------------------------------- the reads, on both databases


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    study = optuna.create_study(study_name="s", storage=url)
    for number in range(3):
        reports = {step: float(number + step) if step else float("nan") for step in range(100)}
        study.add_trial(
            optuna.trial.create_trial(
                value=float(number),
                params={"lr": 0.01, "n": 4},
                distributions={
                    "lr": optuna.distributions.FloatDistribution(1e-3, 1e-1, log=True),
                    "n": optuna.distributions.IntDistribution(2, 8, step=2),
                },
                user_attrs={"k": number},
                intermediate_values=reports,
            )
        )
    database = Database(url, create=False)
    yield database.engine
    database.dispose()


def test_a_listing_is_a_page_with_thin_curves_of_one_moment(engine: Engine) -> None:
    found = listing(engine, "s", size=2, page=9)
    assert ([row.number for row in found.rows], found.page, found.pages, found.total) == ([0], 2, 2, 3)
    assert (len(found.curves[0]), found.curves[0][0], found.curves[0][-1]) == (POINTS, 1.0, 99.0)
    assert found.attrs == {0: {"k": 0}}
    assert reads.changes(engine, "s", found.cursor).trials == ()
    assert listing(engine, "none").rows == ()
    assert thinned([(0, 1.0)], 40) == [(0, 1.0)]


def test_names_and_ranges_of_a_study(engine: Engine) -> None:
    found = names(engine, "s")
    assert (found.params, found.attrs) == (("lr", "n"), ("k",))
    ranges = dict(found.ranges)
    assert (ranges["lr"].low, ranges["lr"].high, ranges["lr"].log) == (1e-3, 1e-1, True)
    assert (ranges["n"].step, ranges["n"].choices) == (2, ())
    assert names(engine, "none").params == ()


def test_references_are_the_median_and_the_best_curve(engine: Engine) -> None:
    found = references(engine, "s")
    assert (found.sampled, found.trials, found.best_number) == (3, 3, 0)
    assert dict(found.median)[5] == statistics.median([5.0, 6.0, 7.0])
    assert 0 not in dict(found.median)  # NaN is no report to compare with
    assert len(found.best) == 100
    assert references(engine, "none").median == ()
