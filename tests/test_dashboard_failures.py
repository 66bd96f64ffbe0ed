"""The pages Failures and Workers in every state, without a browser."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from streamlit.testing.v1 import AppTest

import tuner
from storage import Database, failures
from tests.crowd import CROWD, fill_crowd
from tests.dashboard_data import HOSTILE, fill
from tests.test_dashboard import page, texts


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('failures')}/tuner.db"
    fill(url)
    fill_crowd(url, 100)
    fill_crowd(url, 40, live=False, name="lost")
    tuner.create_study("empty", storage=url)
    return url


@pytest.fixture(autouse=True)
def _storage(monkeypatch: pytest.MonkeyPatch, filled: str) -> None:
    monkeypatch.setenv("TUNER_STORAGE", filled)


def groups(url: str, name: str = CROWD) -> list[failures.FailureGroup]:
    database = Database(url, create=False)
    try:
        return failures.groups(database.engine, name)
    finally:
        database.dispose()


def metrics(test: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in test.metric}


def links(test: AppTest) -> list[tuple[str, str, dict[str, list[str]]]]:
    """Label, page and query of every link on a page."""
    return [
        (link.proto.label, urlsplit(link.proto.page).path, parse_qs(link.proto.query_string))
        for link in test.get("page_link")
    ]


def test_failures_are_grouped_the_commonest_first_and_shown_with_a_traceback(filled: str) -> None:
    test = page("failures", study=CROWD)
    shown = texts(test)
    assert metrics(test) == {"Failed trials": "15", "Kinds": "4", "Retries": "4"}
    assert ":red-badge[6 trials]" in shown
    assert ":gray-badge[4 retries]" in shown
    numbered = [query["n"][0] for label, _, query in links(test) if label.startswith("#")]
    first = groups(filled)[0]
    assert numbered == [str(number) for number in first.numbers]


def test_the_address_chooses_the_group_so_that_it_can_be_shared(filled: str) -> None:
    raised = next(group for group in groups(filled) if "1e30" in group.message)
    test = page("failures", study=CROWD, group=raised.key)
    shown = texts(test)
    assert test.subheader[0].value == "FloatingPointError"
    assert "loss is nan at step" in shown
    assert 'work/train.py", line 17, in step' in shown
    assert f"epoch {raised.newest}" in shown  # the end of its log
    assert {query["group"][0] for _, _, query in links(test) if "group" in query} == {
        group.key for group in groups(filled)
    }


def test_a_retry_names_the_trials_that_went_on(filled: str) -> None:
    again = next(group for group in groups(filled) if group.retries)
    test = page("failures", study=CROWD, group=again.key)
    assert "Tried again:" in texts(test)
    assert "It left no traceback" in texts(test)


def test_the_parameter_that_separates_most_is_pointed_out(filled: str) -> None:
    raised = next(group for group in groups(filled) if group.exception)
    test = page("failures", study=CROWD, group=raised.key)
    assert "**lr separates them most**" in texts(test)
    assert len(test.get("vega_lite_chart")) == 3
    test.button_group[0].set_value("all that failed").run()
    assert "15 failed against 77" in texts(test)


def test_what_no_parameter_explains_is_said(filled: str) -> None:
    lost = next(group for group in groups(filled) if group.reason == "rank_lost")
    test = page("failures", study=CROWD, group=lost.key)
    assert "no parameter separates them" in texts(test)


def test_a_group_that_is_not_there_says_so_and_shows_the_commonest(filled: str) -> None:
    test = page("failures", study=CROWD, group="<b>nothing</b>")
    assert "There is no such group" in test.warning[0].value
    assert test.get("page_link")


def test_a_single_failure_is_too_little_to_compare() -> None:
    shown = texts(page("failures", study="main"))
    assert "ValueError: <b>no luck</b>" in shown
    assert "each side needs 3 trials" in shown


def test_without_failures_the_page_says_so_and_where_to_look() -> None:
    assert "No trial has failed" in page("failures", study="multi").success[0].value
    test = page("failures", study="empty")
    assert "No trial has ended yet" in texts(test)
    assert ("See what runs now", "workers") in [(label, where) for label, where, _ in links(test)]


def test_failures_of_other_programs_are_shown_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import optuna

    url = f"sqlite:///{tmp_path}/plain.db"
    study = optuna.create_study(study_name="plain", storage=url)
    study.optimize(lambda trial: 1 / trial.suggest_int("z", 0, 0), n_trials=4, catch=ZeroDivisionError)
    monkeypatch.setenv("TUNER_STORAGE", url)
    shown = texts(page("failures", study="plain"))
    assert "Optuna keeps no reason" in shown
    assert ":red-badge[4 trials]" in shown


def test_workers_show_what_runs_where() -> None:
    test = page("workers", study=CROWD)
    assert metrics(test) == {
        "Attempts running": "6",
        "Hosts": "4",
        "Devices": "8",
        "Without a place": "1",
        "In reserve": "1",
    }
    table = test.dataframe[0].value
    assert list(table["Host"])[:3] == ["waits for a place", "gpu-2", "gpu-3"]
    assert next(iter(table["Trial"])) == f"trial?study={CROWD}&n=93"
    assert list(table["Newest report"])[1] == "0.5 at step 4"
    shown = texts(test)
    assert "heartbeat" in shown
    assert "asks for 2 ranks of 1 CPU and 1 GPU" in shown
    assert "uncorrectable ECC error" in shown


def test_the_window_of_the_timeline_is_in_the_address() -> None:
    test = page("workers", study=CROWD, window="all")
    assert list(test.dataframe[-1].value["Host"]) == ["gpu-0", "gpu-1", "gpu-2", "gpu-3"]
    assert len(test.get("vega_lite_chart")) == 1
    test.button_group[0].set_value("5m").run()
    assert test.query_params["window"] == "5m"
    assert not test.exception
    page("workers", study=CROWD, window="nonsense")


def test_a_driver_that_is_gone_names_the_command_that_resumes() -> None:
    test = page("workers", study="lost")
    assert "The driver is gone" in test.warning[0].value
    assert "tuner resume lost" in test.code[0].value


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("main", "Ended: budget of 8 trials spent"),
        ("empty", "No attempt has begun yet"),
        ("plain", "No attempt has begun yet"),
        (HOSTILE, "Ended: budget of 2 trials spent"),
    ],
)
def test_without_a_driver_the_page_says_what_to_do_next(name: str, said: str) -> None:
    test = page("workers", study=name)
    assert said.replace(":", "") in texts(test).replace(":", "")
    assert any(code.value.startswith(("tuner resume", "tuner run FILE.py")) for code in test.code)


def test_without_a_study_the_page_lists_those_that_are_driven() -> None:
    test = page("workers")
    driven = {query["study"][0] for _, _, query in links(test) if "study" in query}
    assert driven == {CROWD, "lost"}
