"""The buttons: what they ask, who may press them, and what is shown of what came of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from dashboard import asking, data
from dashboard.access import auth
from storage import Database, Lease, commands, reads, tables
from storage.views import StudyDetail
from tests.dashboard_data import fill
from tests.test_dashboard import page, texts

ROOT = Path(__file__).parent.parent
ACTING = ("Pause", "Trials at once…", "Stop…", "Stop now…", "Retry", "Enqueue again")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('actions')}/tuner.db"
    fill(url)
    return url


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch, filled: str) -> Iterator[Database]:
    monkeypatch.setenv("TUNER_STORAGE", filled)
    monkeypatch.setattr(asking, "ANSWER_WITHIN", 0.3)
    found = Database(filled)
    yield found
    found.dispose()


@pytest.fixture
def driven(database: Database) -> Iterator[StudyDetail]:
    """The study ``main`` while this process holds its lease, as its driver would."""
    study = seen(database)
    lease = Lease(database, study.uid, study_name="main", run="test")
    lease.acquire()
    yield seen(database)
    lease.release()


def seen(database: Database) -> StudyDetail:
    study = reads.study(database.engine, "main")
    assert study is not None
    return study


def buttons(test: AppTest) -> dict[str, Any]:
    return {button.label: button for button in test.button}


def answering(monkeypatch: pytest.MonkeyPatch, answer: str) -> list[tuple[str, dict[str, Any], str]]:
    """Have a driver that answers everything so; what it was asked."""
    asked: list[tuple[str, dict[str, Any], str]] = []

    def send(database: Database, uid: str, name: str, arguments: dict[str, Any], author: str) -> int:
        asked.append((name, dict(arguments), author))
        return 1

    monkeypatch.setattr(commands, "send", send)
    monkeypatch.setattr(commands, "result", lambda database, command: answer)
    return asked


def test_without_a_driver_nothing_can_be_steered_and_the_page_says_what_resumes(database: Database) -> None:
    test = page("overview", study="main")
    found = buttons(test)
    assert all(found[label].disabled for label in ("Pause", "Trials at once…", "Stop…", "Stop now…"))
    assert "No driver runs this study" in texts(test)
    assert "tuner resume main --storage" in texts(test)
    outcome = asking.command("main", seen(database).uid, "stop", {"now": False}, "stops")
    assert (outcome.done, outcome.next_command.startswith("tuner resume main")) == (False, True)
    assert commands.recent(database.engine, "main", 1) == []


def test_a_viewer_sees_the_buttons_and_can_press_none(
    monkeypatch: pytest.MonkeyPatch, driven: StudyDetail, database: Database
) -> None:
    monkeypatch.setattr(auth, "is_editor", lambda: False)
    for test in (page("overview", study="main"), page("trial", study="main", n="3")):
        acting = [button for label, button in buttons(test).items() if label in ACTING]
        assert len(acting) >= 2
        assert all(button.disabled for button in acting)
        assert "an editor may change it" in texts(test)
    before = reads.trials(database.engine, "main").total
    assert not asking.command("main", driven.uid, "stop", {"now": True}, "stops").done
    assert not asking.again("main", driven.uid, [3], from_checkpoint=True).done
    assert commands.recent(database.engine, "main", 1) == []
    assert reads.trials(database.engine, "main").total == before


def test_pressing_pause_asks_the_driver_and_shows_its_answer(
    monkeypatch: pytest.MonkeyPatch, driven: StudyDetail
) -> None:
    monkeypatch.setattr(auth, "name", lambda: "ann")
    asked = answering(monkeypatch, "done")
    test = page("overview", study="main")
    buttons(test)["Pause"].click()
    test.run()
    assert "nothing new starts" in test.success[0].value
    assert asked == [("pause", {}, "ann")]
    answering(monkeypatch, "trial 3 is not <b>running</b>")
    outcome = asking.command("main", driven.uid, "stop_trial", {"number": 3}, "asked")
    assert (outcome.done, outcome.text) == (False, "The driver refused: trial 3 is not <b>running</b>")


def test_stopping_names_its_target_and_its_effect_and_sends_nothing_by_itself(
    monkeypatch: pytest.MonkeyPatch, driven: StudyDetail
) -> None:
    asked = answering(monkeypatch, "done")
    test = page("overview", study="main")
    buttons(test)["Stop now…"].click()
    test.run()
    shown = texts(test)
    assert "Study main" in shown
    assert "Nothing new starts, and the driver ends. No trial runs now." in shown
    assert {"Stop now", "Cancel"} <= set(buttons(test))
    assert asked == []


def test_a_run_that_was_started_with_more_trials_at_once_than_are_offered_can_be_narrowed(
    driven: StudyDetail, database: Database
) -> None:
    driving = json.dumps({"phase": "running", "why": "", "most": 10**6})
    with database.write() as connection:
        connection.execute(tables.studies.update().values(driving=driving))
    data.forget()
    test = page("overview", study="main")
    buttons(test)["Trials at once…"].click()
    test.run()
    with database.write() as connection:
        connection.execute(tables.studies.update().values(driving=None))
    data.forget()
    assert [error.value for error in test.exception] == []
    assert [one.value for one in test.number_input] == [100_000]


def test_a_command_that_no_driver_answers_is_taken_back(driven: StudyDetail, database: Database) -> None:
    outcome = asking.command("main", driven.uid, "pause", {}, "paused")
    assert outcome.text == "The driver did not answer within 0.3 s, and the command was taken back."
    assert commands.recent(database.engine, "main", 1) == []
    gone = asking.command("main", "another uid", "pause", {}, "paused")
    assert gone.text == "The study main was deleted meanwhile."


def test_a_retry_is_shown_with_the_command_that_runs_it(database: Database) -> None:
    test = page("trial", study="main", n="3")
    assert buttons(test)["Retry"].help == (
        "A new trial with the same parameters, from the checkpoint of step 1."
    )
    buttons(test)["Retry"].click()
    test.run()
    said = test.success[0].value.replace("\\", "")
    number = reads.trials(database.engine, "main").total - 1
    assert said.startswith(f"Trial {number} is a retry of trial 3. The budget of 8 does not reach so far")
    assert f"--trials {number + 1}" in texts(test)
    assert "Retry" not in buttons(page("trial", study="main", n=str(number)))
    uid = seen(database).uid
    assert asking.again("main", uid, [number], from_checkpoint=True).text.startswith(
        f"trial {number} of study 'main' did not end yet"
    )
    fresh = asking.again("main", uid, [3, 4], from_checkpoint=False)
    assert fresh.trials == (number + 1, number + 2)
    asked = commands.recent(database.engine, "main", 2)
    assert [(row.name, row.author) for row in asked] == [("enqueue", "dashboard"), ("retry", "dashboard")]
    assert "What was asked" in [expander.label for expander in page("overview", study="main").expander]


def test_a_click_on_a_page_that_was_left_acts_on_no_other_trial(database: Database) -> None:
    """As when somebody pages on, and presses the button of the page that is still seen."""
    before = reads.trials(database.engine, "main").total
    test = page("trial", study="main", n="5")
    buttons(test)["Retry"].click()
    test.query_params["n"] = "6"
    test.run()
    assert "Trial 6" in texts(test)
    assert [*test.success, *test.error] == []
    assert reads.trials(database.engine, "main").total == before


def test_a_double_click_makes_one_trial_and_another_study_of_that_name_none(
    monkeypatch: pytest.MonkeyPatch, database: Database
) -> None:
    def script() -> None:
        from dashboard import asking, data

        study = data.study("main")
        assert study is not None
        for _ in range(2):
            asking.again("main", study.uid, [5], from_checkpoint=True)
        asking.again("main", "uid of one that was deleted", [6], from_checkpoint=True)

    before = reads.trials(database.engine, "main").total
    test = AppTest.from_function(script, default_timeout=30).run()
    assert [error.value for error in test.exception] == []
    assert reads.trials(database.engine, "main").total == before + 1
    outcome = asking.again("main", "uid of one that was deleted", [6], from_checkpoint=True)
    assert outcome.text == "the study 'main' was deleted meanwhile, and another one has its name"
    monkeypatch.setattr(asking, "DOUBLE_CLICK", -1.0)
    test.run()
    assert reads.trials(database.engine, "main").total == before + 3


def test_a_group_is_named_before_it_is_retried(database: Database) -> None:
    def script() -> None:
        from dashboard import actions, data

        study = data.study("main")
        assert study is not None
        actions.retry_all(study, range(40), key="g")

    before = reads.trials(database.engine, "main").total
    test = AppTest.from_function(script, default_timeout=30).run()
    buttons(test)["Retry all 40…"].click()
    test.run()
    assert [error.value for error in test.exception] == []
    shown = texts(test)
    assert "Trials 0, 1, 2" in shown
    assert "29 and 10 more" in shown
    assert "The 40 count against the budget. 8 of 8 are spent." in shown
    assert reads.trials(database.engine, "main").total == before
