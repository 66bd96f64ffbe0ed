"""The pages in every state, without a browser."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from dashboard import data, server, theme
from storage import Database, progress
from tests.dashboard_data import HOSTILE, fill

APP = str(Path(server.__file__).with_name("app.py"))


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('dashboard')}/tuner.db"
    fill(url, n_trials=55)
    return url


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch, filled: str) -> str:
    monkeypatch.setenv("TUNER_STORAGE", filled)
    return filled


def page(view: str = "", **asked: str) -> AppTest:
    """The page ``views/VIEW.py`` with an address that asks for something; the list of studies without."""
    test = AppTest.from_file(APP, default_timeout=90)  # seconds; a page takes one, on a busy machine more
    if view:
        test = test.run().switch_page(f"views/{view}.py")
        for key, value in asked.items():
            test.query_params[key] = value
    test.run()
    assert [error.value for error in test.exception] == []
    return test


def texts(test: AppTest) -> str:
    parts = [*test.title, *test.subheader, *test.markdown, *test.caption, *test.text, *test.code, *test.info]
    return "\n".join(str(part.value) for part in [*parts, *test.error])


def test_the_list_shows_every_study_with_its_counts(storage: str) -> None:
    test = page()
    assert test.title[0].value == "Studies"
    assert "4 studies" in texts(test)
    assert ":red-badge[1 failed]" in texts(test)
    test.text_input[0].set_value("mai").run()
    assert "1 study" in texts(test)
    test.text_input[0].set_value("nothing like this").run()
    assert "No study has this in its name" in texts(test)


def test_a_study_shows_counters_best_and_a_page_of_trials(storage: str) -> None:
    test = page("overview", study="main")
    shown = {metric.label: metric.value for metric in test.metric}
    assert shown["Finished"] == "55 of 55"
    assert shown[":red[■] Failed"] == "1"
    assert "Ended: budget of 55 trials spent" in texts(test)
    test = page("trials", study="main")
    assert list(test.dataframe[-1].value["Trial"]) == list(range(54, 4, -1))
    assert "page 1 of 2, 55 trials" in texts(test)


def test_the_address_chooses_page_state_and_order(storage: str) -> None:
    assert list(page("trials", study="main", page="2").dataframe[-1].value["Trial"]) == [4, 3, 2, 1, 0]
    assert list(page("trials", study="main", state="FAIL").dataframe[-1].value["Trial"]) == [3]
    assert list(page("trials", study="main", state="FAIL,nonsense", x="y").dataframe[-1].value["Trial"]) == [
        3
    ]
    assert next(iter(page("trials", study="main", order="asc").dataframe[-1].value["Trial"])) == 0
    assert list(page("trials", study="main", page="99").dataframe[-1].value["Trial"]) == [4, 3, 2, 1, 0]
    assert len(page("trials", study="main", page="99999999999").dataframe[-1].value) == 50
    assert (
        list(
            page("trials", study="main", where="number<3 and x>=0", sort="param:x")
            .dataframe[-1]
            .value["Trial"]
        )[3:]
        == []
    )
    assert list(
        page("trials", study="main", where="number=7", sort="nonsense").dataframe[-1].value["Trial"]
    ) == [7]


def test_a_bad_condition_is_said_in_one_line(storage: str) -> None:
    test = page("trials", study="main", where="<b>x</b>!=3")
    assert "is not among the signs" in test.error[0].value
    assert "<b>" not in test.error[0].value


def test_a_failed_trial_shows_why(storage: str) -> None:
    test = page("trial", study="main", n="3")
    assert "Trial 3" in texts(test)
    assert "ValueError: <b>no luck</b>" in texts(test)
    assert 'raise ValueError("<b>no luck</b>")' in texts(test)


def test_a_retried_trial_shows_its_attempts(storage: str) -> None:
    shown = texts(page("trial", study="main", n="4"))
    assert "Attempt 2" in shown
    assert "from the checkpoint of step 1" in shown
    assert "ConnectionError: the second time it works" in shown


@pytest.mark.parametrize("name", ["multi", "plain", HOSTILE])
def test_every_kind_of_study_and_trial_has_its_page(storage: str, name: str) -> None:
    for view in ("overview", "trials", "analyse", "failures", "workers", "compare"):
        page(view, study=name)
    page("trial", study=name, n="1")


@pytest.mark.parametrize(
    ("view", "asked", "said"),
    [
        ("overview", {"study": "nothing"}, "There is no study 'nothing'"),
        ("overview", {"study": "a\0b"}, "There is no study 'ab'"),
        ("trial", {"study": "main", "n": "99"}, "The study has no trial '99'"),
        ("trial", {"study": "main"}, "The address names no trial"),
    ],
)
def test_what_is_not_there_has_a_page_that_says_so(
    storage: str, view: str, asked: dict[str, str], said: str
) -> None:
    assert said in texts(page(view, **asked))


def test_a_number_that_is_none_is_ignored(storage: str) -> None:
    assert "page 1 of 2" in texts(page("trials", study="main", n="x", page="-1"))


def test_a_database_that_is_missing_or_empty_names_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNER_STORAGE", f"sqlite:///{tmp_path}/none.db")
    assert "there is no database" in texts(page())
    assert "tuner run FILE.py" in texts(page())
    Database(f"sqlite:///{tmp_path}/none.db").dispose()
    shown = texts(page())
    assert "There is no study in this database yet" in shown
    assert "tuner run FILE.py" in shown


def test_the_server_stays_on_the_loopback_and_hides_the_password() -> None:
    argv, environment = server.command("postgresql://ann:secret@db/tuner", port=8600)
    assert "secret" not in " ".join(argv)
    assert environment["TUNER_STORAGE"] == "postgresql://ann:secret@db/tuner"
    assert argv[argv.index("--server.address") + 1] == "127.0.0.1"
    for host in ("0.0.0.0", "192.168.1.2", "example.org"):
        with pytest.raises(ValueError, match="needs a login"):
            server.command("sqlite:///tuner.db", host=host)
    with pytest.raises(ValueError, match="port 0"):
        server.command("sqlite:///tuner.db", port=0)


def test_numbers_and_times_are_short() -> None:
    assert [theme.number(value) for value in (None, 1 / 3, float("nan"), 1e-9)] == [
        "-",
        "0.33333",
        "nan",
        "1e-09",
    ]
    assert [theme.duration(value) for value in (None, 1.25, 59.6, 90, 7200, 172800)] == [
        "-",
        "1.2 s",
        "60 s",
        "2 min",
        "2.0 h",
        "2 d",
    ]


def test_a_database_that_goes_away_under_a_page_is_told_in_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/tuner.db"
    monkeypatch.setenv("TUNER_STORAGE", url)
    fill(url)
    test = page("overview", study="main")
    with sqlite3.connect(tmp_path / "tuner.db") as other:
        other.execute("ALTER TABLE trial_values RENAME TO gone")
    data.forget()
    test.run()
    assert [error.value for error in test.exception] == []
    assert "This page could not be read to its end. Load it again." in texts(test)
    assert "no such table: trial_values" in texts(test)
    with sqlite3.connect(tmp_path / "tuner.db") as other:
        other.execute("ALTER TABLE gone RENAME TO trial_values")
    monkeypatch.setattr(
        progress, "running", lambda engine, name: engine.connect().exec_driver_sql("nonsense")
    )
    data.forget()
    test.run()
    assert [error.value for error in test.exception] == []
    assert "This part could not be read." in texts(test)
    assert "Best trial" in texts(test)
