"""The list of studies and the overview of each, in every state that a study can be in."""

from __future__ import annotations

import datetime as dt
import shlex
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import Engine
from streamlit.testing.v1 import AppTest

from dashboard.parts import marks
from dashboard.parts.importance import of_sample
from dashboard.rules import condition, estimates
from dashboard.rules.listing import ORDERS, Listed, listed
from storage import Database, progress, reads, samples
from storage.health import Health, health
from tests.dashboard_states import ARGUMENTS, DEAD, add_study, here
from tests.test_dashboard import page, texts
from tuner.cli import main

NOW = dt.datetime(2026, 1, 1)
ENDED = ["COMPLETE", "PRUNED", "COMPLETE", "FAIL"] * 10


def fill(database: Database) -> None:
    """One study in each state."""
    # Optuna's own first: PostgreSQL does not count ids that were given
    url = database.engine.url.render_as_string(hide_password=False)
    multi = optuna.create_study(study_name="multi", storage=url, directions=["minimize", "maximize"])
    multi.add_trials([optuna.create_trial(values=[1.0, 2.0])])
    plain = optuna.create_study(study_name="plain", storage=url)
    plain.enqueue_trial({"x": 1.0})
    plain.ask()
    plain.enqueue_trial({"x": 2.0})
    day = -86400.0  # renewed in a day: it stays driven, however long the tests take
    add_study(
        database,
        "driven",
        ended=ENDED,
        running=2,
        claimed=1,
        retrying=1,
        holder=here(),
        renewed=day,
        every=3600.0,
    )
    add_study(database, "lost", ended=ENDED, running=3, holder=DEAD)
    far = {**here(), "boot_id": "another", "host": "node-8"}
    add_study(database, "silent", ended=ENDED[:3], running=1, holder=far, renewed=900)
    add_study(
        database, "failing", ended=["COMPLETE"] * 5 + ["FAIL"] * 9, stop_reason="9 <b>failed</b> in a row"
    )
    add_study(database, "ended", ended=ENDED, budget=40, stop_reason="budget of 40 trials spent")
    add_study(database, "new")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('overview')}/tuner.db"
    database = Database(url)
    fill(database)
    database.dispose()
    return url


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch, filled: str) -> None:
    monkeypatch.setenv("TUNER_STORAGE", filled)


def overview(name: str) -> tuple[dict[str, str], str]:
    """The counters by label, and all texts with the page's own marks and links."""
    test = page("overview", study=name)
    return {metric.label.split("] ")[-1]: metric.value for metric in test.metric}, everything(test)


def everything(test: AppTest) -> str:
    marks_and_links = [*test.get("html"), *test.get("page_link"), *test.get("metric")]
    return texts(test) + "\n".join(str(part.proto) for part in marks_and_links)


@pytest.mark.usefixtures("storage")
class TestOverview:
    def test_a_driven_study_says_who_drives_what_waits_and_how_long_it_takes(self) -> None:
        shown, said = overview("driven")
        assert shown["Finished"] == "40 of 100"
        assert [shown[label] for label in ("Running", "Waiting", "Retried")] == ["2", "2", "1"]
        assert [shown[label] for label in ("Complete", "Pruned", "Failed")] == ["20", "10", "10"]
        assert shown["Time left"] == "about 2 d"  # 60 trials, one each hour
        assert shown["Elapsed"] == "2 d"
        assert "tuner run train.py" in said.replace("\\", "").replace("\u2060", "")
        assert ":blue[Trial 41]" in said
        assert "gpu-box, device 2" in said
        assert "tuner-spark" in said
        assert "tuner resume" not in said
        assert ":red-badge[failing] 5 of the newest 20 trials failed." in said

    def test_a_lost_driver_is_said_with_the_command_that_goes_on(self) -> None:
        shown, said = overview("lost")
        assert shown["Time left"] == "-"
        assert "is gone" in said
        assert "3 attempts that it began" in said
        assert "tuner resume lost --storage" in said

    def test_a_silent_driver_on_another_host_counts_as_none(self) -> None:
        _, said = overview("silent")
        assert ":red-badge[driver silent" in said
        assert ":red-badge[stale]" in said
        assert "tuner resume silent" in said

    def test_a_study_that_stopped_on_failures_says_so(self) -> None:
        _, said = overview("failing")
        assert "9 of the newest 14 trials failed" in said
        assert "Ended: 9 \\<b\\>failed" in said
        assert "tuner resume failing" in said

    def test_a_study_that_spent_its_budget_needs_nothing(self) -> None:
        shown, said = overview("ended")
        assert shown["Finished"] == "40 of 40"
        assert "Ended: budget of 40 trials spent." in said
        assert "--trials 50" in said  # the one command that goes on from here
        assert "0123456789ab with uncommitted changes" in said.replace("\\", "")
        assert "of 20 of 20 complete trials" in said
        assert "PED-ANOVA" in said
        assert "No trial runs." in said

    def test_a_study_without_trials_says_what_will_come(self) -> None:
        shown, said = overview("new")
        assert (shown["Finished"], shown["Best"], shown["Elapsed"]) == ("0 of 100", "-", "-")
        assert "No trial is complete yet" in said
        assert "No driver works on it." in said

    def test_several_objectives_lead_to_the_pareto_front(self) -> None:
        shown, said = overview("multi")
        assert shown["Best"] == "-"
        assert "the Pareto front" in said
        assert "view=pareto" in said

    def test_a_study_of_optunas_alone_is_shown_without_a_driver(self) -> None:
        shown, said = overview("plain")
        assert [shown[label] for label in ("Finished", "Running", "Waiting")] == ["0", "1", "1"]
        assert "Tuner has not run it yet" in said
        assert "tuner resume" not in said  # which refuses it
        assert "run by another program" in said
        assert ":red-badge[stale]" not in said

    def test_the_history_goes_by_trial_or_by_time(self) -> None:
        for by in ("trial", "time"):
            test = page("overview", study="ended", by=by)
            assert by in test.get("vega_lite_chart")[0].proto.spec
        assert test.query_params["by"] == "time"


@pytest.mark.usefixtures("storage")
class TestStudies:
    def names(self, **asked: str) -> list[str]:
        test = AppTest.from_file(page.__globals__["APP"], default_timeout=60)
        for key, value in asked.items():
            test.query_params[key] = value
        test.run()
        assert [error.value for error in test.exception] == []
        self.said = everything(test)
        asked_for = [link.proto.query_string for link in test.get("page_link")]
        return [query.split("study=")[-1] for query in asked_for if query]  # not the ways to other pages

    def test_the_list_flags_what_needs_a_person(self) -> None:
        assert self.names(show="stale", sort="name") == ["lost", "silent"]
        assert self.names(show="failing", sort="name") == ["driven", "ended", "failing", "lost"]
        assert self.names(show="running") == ["driven"]
        assert self.names(show="running,stale,nonsense") == []
        assert "No study is running and stale" in self.said

    def test_the_address_orders_and_searches_the_list(self) -> None:
        assert self.names(q="i", sort="name") == ["driven", "failing", "multi", "plain", "silent"]
        assert self.names(q="i", sort="name", order="reverse", x="y")[0] == "silent"
        assert self.names(sort="nonsense", page="99") == self.names()


def test_the_list_is_paged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path}/many.db"
    monkeypatch.setenv("TUNER_STORAGE", url)
    database = Database(url)
    for number in range(21):
        add_study(database, f"s{number:02}")
    database.dispose()
    test = page()
    assert "page 1 of 2, 21 studies" in texts(test)
    assert len([link for link in test.get("page_link") if link.proto.query_string]) == 20
    next(button for button in test.button if button.label == "next →").click()
    test.run()
    assert "page 2 of 2, 21 studies" in texts(test)
    assert len([link for link in test.get("page_link") if link.proto.query_string]) == 1


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    database = Database(url)
    fill(database)
    yield database.engine
    database.dispose()


def test_the_reads_agree_with_optunas_own_on_both_databases(engine: Engine) -> None:
    url = engine.url.render_as_string(hide_password=False)
    study = optuna.load_study(study_name="driven", storage=url)
    complete = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    for by in ("trial", "time"):
        found = progress.history(engine, "driven", by=by)
        assert [(row[0], row[2]) for row in found.shown] == [(one.number, one.value) for one in complete]
        assert found.best[-1][2] == study.best_value
    few = progress.history(engine, "driven", most=5)
    assert len(few.shown) == 5
    assert few.total == 20
    assert few.best == found.best
    assert (few.shown[0], few.shown[-1]) == (found.shown[0], found.shown[-1])
    assert progress.history(engine, "multi").total == progress.history(engine, "nothing").total == 0

    at = progress.progress(engine, "driven")
    assert at is not None
    assert (at.claimed, at.retrying, at.retried, len(at.runs), len(at.finishes)) == (1, 1, 1, 1, 40)
    assert list(at.finishes) == sorted(at.finishes)
    assert at.last_end == at.finishes[-1]
    plain = progress.progress(engine, "plain")
    assert plain is not None
    assert (plain.runs, plain.finishes) == ((), ())
    assert progress.progress(engine, "nothing") is None

    now = progress.running(engine, "driven", limit=1)
    assert (now.total, [(row.number, row.attempt, row.devices) for row in now.rows]) == (2, [(41, 1, ("2",))])
    assert dict(now.rows[0].curve) == study.trials[41].intermediate_values
    assert [row.attempt for row in progress.running(engine, "plain").rows] == [None]

    ids = {row.name: row.study_id for row in reads.studies(engine)}
    fares = health(engine, tuple(ids.values()))
    assert fares[ids["driven"]].newest == {"COMPLETE": 10, "PRUNED": 5, "FAIL": 5}
    assert {name: fares[ids[name]].running for name in ("driven", "lost", "plain")} == {
        "driven": 2,
        "lost": 3,
        "plain": 0,
    }
    assert fares[ids["lost"]].arguments == tuple(ARGUMENTS)
    assert fares[ids["plain"]] == Health(newest={}, running=0, arguments=())

    sample = samples.complete(engine, "driven", most=10)
    assert (len(sample.trials), sample.total) == (10, 20)
    by_number = {one.number: one for one in complete}
    assert all(
        (one.params, one.value) == (by_number[one.number].params, by_number[one.number].value)
        for one in sample.trials
    )


def test_importance_is_optunas_own() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    study.optimize(
        lambda trial: trial.suggest_float("a", 0, 1) ** 2 + trial.suggest_float("b", 0, 1) / 100, n_trials=60
    )
    sample = samples.Sample(directions=("minimize",), trials=tuple(study.trials), total=60)
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    assert dict(of_sample(sample).shares) == optuna.importance.get_param_importances(
        study, evaluator=evaluator
    )
    few = samples.Sample(directions=("minimize",), trials=tuple(study.trials[:5]), total=5)
    assert (of_sample(few).shares, of_sample(few).looked_at) == ((), 5)


def ends(*seconds: float) -> list[dt.datetime]:
    return [NOW + dt.timedelta(seconds=one) for one in seconds]


def test_the_time_left_is_a_range_that_a_silence_makes_longer() -> None:
    steady = ends(0, 10, 20, 30, 40)
    assert estimates.remaining(steady, 6, steady[-1]) == (60, 60)
    uneven = ends(0, 2, 20, 22, 40)
    low, high = estimates.remaining(uneven, 6, uneven[-1]) or (0, 0)
    assert low < 60 < high
    late = estimates.remaining(steady, 6, steady[-1] + dt.timedelta(hours=1))
    assert late is not None
    assert sum(late) / 2 > 3600
    assert estimates.remaining(steady[:3], 6, steady[-1]) is None
    assert estimates.remaining(steady, 0, steady[-1]) is None


@given(
    st.lists(st.floats(0, 1e5), min_size=5, max_size=50),
    st.integers(1, 10**6),
    st.floats(-1e3, 1e6),
)
def test_the_range_is_in_order_and_grows_with_what_is_left(
    moments: list[float], left: int, later: float
) -> None:
    finishes = sorted(ends(*moments))
    now = finishes[-1] + dt.timedelta(seconds=later)
    found, more = (estimates.remaining(finishes, count, now) for count in (left, left + 1))
    assert found is not None
    assert more is not None
    assert 0 <= found[0] <= found[1] <= more[1]
    assert estimates.range_text(found)


def test_the_time_elapsed_is_that_of_the_runs_without_what_lies_between() -> None:
    a, b, c, d, now = ends(0, 60, 1000, 1030, 1100)
    both = [progress.Run(epoch=1, began=a, last=b), progress.Run(epoch=3, began=c, last=d)]
    assert progress.elapsed(both, None) == 90
    assert progress.elapsed(both, now) == 160
    assert progress.elapsed([], now) == 0


def test_a_driver_is_judged_by_its_process_and_its_renewals() -> None:
    recent, old = NOW - dt.timedelta(seconds=5), NOW - dt.timedelta(seconds=condition.SILENT + 1)
    assert condition.driver_of(False, None, recent, NOW) == "none"
    assert condition.driver_of(True, False, recent, NOW) == "gone"
    assert condition.driver_of(True, True, recent, NOW) == "running"
    assert condition.driver_of(True, True, old, NOW) == "silent"
    assert condition.driver_of(True, None, recent, NOW) == "elsewhere"
    assert condition.driver_of(True, None, old, NOW) == "silent"


@given(st.fixed_dictionaries({"COMPLETE": st.integers(0, 20), "FAIL": st.integers(0, 20)}))
def test_one_more_failure_never_ends_the_flag(newest: dict[str, int]) -> None:
    worse = {**newest, "FAIL": newest["FAIL"] + 1}
    assert condition.is_failing(worse) or not condition.is_failing(newest)
    assert not condition.is_failing({**newest, "FAIL": 2})


def test_studies_without_what_is_sorted_by_come_last(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    for name, ended in (("b", ["FAIL"]), ("a", ["COMPLETE"]), ("c", ["COMPLETE"] * 2)):
        add_study(database, name, ended=ended)
    rows = [Listed(row=row, health=Health(), driver="none") for row in reads.studies(database.engine)]
    database.dispose()
    for reverse in (False, True):
        names = [one.row.name for one in listed(rows, sort="best", reverse=reverse)]
        assert names[-1] == "b"
    for order in ORDERS:
        assert len(listed(rows, sort=order)) == 3
    assert next(one.row.name for one in listed(rows, sort="finished")) == "c"


@given(st.lists(st.tuples(st.integers(0, 100), st.floats()), max_size=20))
def test_a_sparkline_takes_any_curve(points: list[tuple[int, float]]) -> None:
    drawn = marks.sparkline(points)
    assert drawn == "" or drawn.startswith('<img class="tuner-spark" src="data:image/svg+xml;base64,')
    assert "nan" not in drawn


def test_the_command_that_trains_the_best_again_names_a_program_as_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/tuner.db"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNER_STORAGE", url)
    program = ["--command", "echo loss={lr} 'a b'", "--param", "lr=log(1e-5,1e-1)"]
    program += ["--metric", "loss", "--metrics", "regex:loss=(?P<loss>\\S+)", "--shell"]
    assert main(["run", *program, "--study", "a b", "--trials", "2", "--executor", "inline"]) == 0
    (shown,) = [one.value for one in page("overview", study="a b").code if "--params" in one.value]
    words = shlex.split(shown)
    assert words[:2] == ["tuner", "run"]
    capsys.readouterr()
    assert main(words[1:]) == 0
    best = optuna.load_study(study_name="a b", storage=url).best_value
    assert f"value {best:.6g}" in capsys.readouterr().out
