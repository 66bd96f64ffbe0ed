"""The benchmarks run, say what they measured, and refuse to compare sides that differ."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from objectives.functions import branin
from tests.benchmarks import (
    ahead,
    contents,
    goals,
    growth,
    live,
    measures,
    ratios,
    readme,
    rows,
    sides,
    starts,
    store,
    train,
    tuning,
    workplace,
)
from tests.benchmarks.databases import temporary
from tests.benchmarks.figures import FIGURES, QUICK
from tests.benchmarks.measures import Result
from tests.benchmarks.works import asks


@pytest.fixture(autouse=True)
def _databases_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "databases").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "databases"))


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.chaos)])
def test_the_store_is_measured_and_its_rows_are_those_of_optuna(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if kind == "postgres":
        monkeypatch.setenv("TUNER_TEST_POSTGRES", request.getfixturevalue("postgres"))
    file = tmp_path / "results.json"
    assert store.main(["--quick", "--pairs", "1", "--database", kind, "--json", str(file)]) == 0
    results = json.loads(file.read_text())["results"]
    assert [result["figure"]["key"] for result in results] == list(FIGURES) == list(measures.MEASURES)
    for result in results:
        assert result["database"] == kind
        assert 0 < result["reached"]["low"] <= result["reached"]["median"] <= result["reached"]["high"]
        assert result["passed"] is None
    assert list((tmp_path / "databases").glob("tuner-bench-*")) == []


def result(key: str, reached: float) -> Result:
    figure = FIGURES[key]
    return Result(
        figure=figure,
        database="sqlite",
        reached=ratios.spread([reached]),
        ours="",
        theirs="",
        passed=figure.reached(reached, "sqlite"),
    )


@pytest.mark.parametrize(
    ("key", "reached", "code"), [("open", 14.9, 1), ("open", 15.0, 0), ("page", 20.1, 1), ("page", 20.0, 0)]
)
def test_a_missed_figure_is_marked_and_exits_1(
    key: str, reached: float, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(measures.MEASURES, key, lambda databases, kind, sizes: result(key, reached))
    assert store.main(["--only", key, "--database", "sqlite"]) == code
    assert ("✗ missed" in capsys.readouterr().out) == bool(code)


def test_a_side_that_writes_other_rows_voids_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def wrong(url: str) -> Iterator[sides.Opened]:
        with sides.ours(url) as opened:
            yield opened
        engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
        with engine.begin() as connection:
            connection.execute(sa.text("DELETE FROM trial_params WHERE param_name = 'lr' AND trial_id = 3"))

    monkeypatch.setattr(measures, "ours", wrong)
    different = pytest.raises(contents.Different, match="ask-tell, sqlite, ours: trial 2 has params")
    with temporary() as databases, different:
        measures.measure_asks(databases, "sqlite", QUICK)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("state", "FAIL"),
        ("started", False),
        ("completed", False),
        ("values", ("INF_POS",)),
        ("params", {}),
        ("reports", {0: "NAN"}),
        ("attributes", {("system", "a"): 1}),
    ],
)
def test_every_field_of_a_trial_is_compared(field: str, value: object) -> None:
    study = sides.model()
    asks(2)(study)
    expected = contents.of_trials(study.trials)
    found = [expected[0], dataclasses.replace(expected[1], **{field: value})]  # type: ignore[arg-type]
    with pytest.raises(contents.Different, match=f"here: trial 1 has {field} "):
        contents.compare(found, expected, "here")


def test_a_missing_trial_is_a_difference() -> None:
    study = sides.model()
    asks(2)(study)
    found = contents.of_trials(study.trials)
    contents.compare(found, list(found), "here")
    with pytest.raises(contents.Different, match="here: 1 trials, expected 2"):
        contents.compare(found[:1], found, "here")


@pytest.mark.parametrize(
    "key",
    ["start", "throughput", "reports"],
)
@pytest.mark.chaos
def test_what_a_training_pays_is_measured(key: str, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    assert train.main(["--quick", "--only", key, "--json", str(file)]) == 0
    results = json.loads(file.read_text())["results"]
    wanted = ["report-torch", "report-busy"] if key == "reports" else [key]
    assert [result["figure"]["key"] for result in results] == wanted
    for result in results:
        assert result["reached"]["low"] <= result["reached"]["median"] <= result["reached"]["high"]
        assert result["passed"] is None
    assert list((tmp_path / "databases").glob("tuner-bench-*")) == []


@pytest.mark.parametrize(
    ("key", "reached", "code"),
    [("start", 50.1, 1), ("start", 50.0, 0), ("throughput", 0.979, 1), ("throughput", 0.98, 0)],
)
def test_a_missed_figure_of_a_training_is_marked_and_exits_1(
    key: str, reached: float, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = goals.judge(train.FIGURES[key], [reached], "", judged=True)
    monkeypatch.setitem(train.MEASURES, key, lambda sizes, folder: [found])
    assert train.main(["--only", key]) == code
    assert ("✗ missed" in capsys.readouterr().out) == bool(code)


def test_the_wait_for_the_peers_is_no_cost_of_the_start() -> None:
    names = ("fork", "run: begin", "store: end", "group: begin", "group: end", "load: end", "first line")
    stamps = dict(zip(names, (1.0, 1.5, 2.0, 2.25, 5.0, 5.5, 6.0), strict=True))
    found = starts.stages(0.5, stamps)
    assert found["whole"] == 5500.0
    assert found["beyond"] == 2750.0
    assert sum(found[stage] for stage in starts.STAGES) == found["whole"]


@pytest.mark.parametrize(
    "key",
    [
        "simulation",
        pytest.param("memory", marks=pytest.mark.chaos),
        pytest.param("trivial", marks=pytest.mark.chaos),
        pytest.param("reports", marks=pytest.mark.chaos),
        pytest.param("questions", marks=pytest.mark.chaos),
        pytest.param("seconds", marks=pytest.mark.chaos),
        pytest.param("first-line", marks=pytest.mark.chaos),
        pytest.param("growth", marks=pytest.mark.chaos),
    ],
)
def test_what_a_study_costs_is_measured(key: str, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    assert tuning.main(["--quick", "--only", key, "--json", str(file)]) == 0
    results = json.loads(file.read_text())["results"]
    assert results
    for result in results:
        assert result["reached"]["low"] <= result["reached"]["median"] <= result["reached"]["high"]
        assert result["passed"] is None
    assert list((tmp_path / "databases").glob("tuner-bench-*")) == []


@pytest.mark.chaos
def test_many_live_trials_are_measured(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    sizes = ["--quick", "--real", "1", "--stubs", "3", "--seconds", "5"]
    assert live.main([*sizes, "--json", str(file)]) == 0
    reached = {
        one["figure"]["key"]: one["reached"]["median"] for one in json.loads(file.read_text())["results"]
    }
    assert list(reached) == list(live.FIGURES)
    assert reached["lost"] == 0


def test_sides_take_turns_forwards_and_backwards() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = tuning.in_turn(2, {name: lambda name=name: side(name) for name in "abc"})  # type: ignore[misc]
    assert order == ["a", "b", "c", "c", "b", "a"]
    assert found == {"a": [1.0, 6.0], "b": [2.0, 5.0], "c": [3.0, 4.0]}


def test_slots_that_start_late_count_from_their_start(tmp_path: Path) -> None:
    (tmp_path / workplace.NOTES).write_text("".join(f'{{"began": {at}}}\n' for at in (0.0, 0.5, 1.0, 1.5)))
    found = workplace.busy_share([1.0, 1.5, 2.0, 2.5], tmp_path)
    assert found["share"] == pytest.approx(4 / 4.5)
    assert workplace.rate([0.0, *(10 + at / 4 for at in range(9))]) == 4.0


def tuning_result(key: str, reached: float, **sides: str) -> goals.Result:
    return goals.judge(rows.FIGURES[key], [reached], "", judged=True, sides=sides)


@pytest.mark.parametrize(
    ("key", "reached", "code"),
    [("seconds", 0.979, 1), ("seconds", 0.98, 0), ("simulation", 60.1, 1), ("growth/trial", 99.0, 0)],
)
def test_a_missed_figure_of_a_study_exits_1(
    key: str, reached: float, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = key.partition("/")[0]
    monkeypatch.setitem(tuning.MEASURES, work, lambda bench: [tuning_result(key, reached)])  # type: ignore[arg-type]
    assert tuning.main(["--only", work]) == code
    assert ("✗ missed" in capsys.readouterr().out) == bool(code)


def test_the_table_of_the_readme_is_what_was_measured() -> None:
    page = readme.README.read_text()
    assert readme.inserted(page, json.loads(readme.FILE.read_text())) == page


def test_the_table_has_a_row_for_each_work_and_a_verdict_for_each_figure(tmp_path: Path) -> None:
    page, file = tmp_path / "README.md", tmp_path / "results" / "tuning.json"
    page.write_text(f"before\n{readme.BEGIN}old\n{readme.END}after\n")
    readme.keep([tuning_result("simulation", 70.0)], file, page)
    both = [
        tuning_result("shared/optuna", 12.0, Tuner="600/s", Optuna="50/s"),
        tuning_result("shared/ray", 0.5, Tuner="600/s", Optuna="50/s"),
    ]
    readme.keep(both, file, page)
    readme.keep([tuning_result("simulation", 50.0)], file, page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    table = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert [line.split(" | ")[-1] for line in table] == [
        "12.0 times Optuna (≥ 11) ✓<br>0.500 times bare Ray (≥ 0.4) ✓ |",
        "50.00 s (≤ 60) ✓ |",
    ]
    assert table[0].split(" | ")[1:3] == ["600/s", "50/s"]
    with pytest.raises(ValueError, match="no place for the table"):
        readme.inserted("a page", json.loads(file.read_text()))


def test_too_little_work_is_not_kept(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        tuning.main(["--quick", "--keep"])
    assert exit_.value.code == 2
    assert "too little to keep" in capsys.readouterr().err


def test_results_of_another_machine_are_not_kept(tmp_path: Path) -> None:
    page, file = tmp_path / "README.md", tmp_path / "tuning.json"
    page.write_text(readme.BEGIN + readme.END)
    readme.keep([tuning_result("simulation", 50.0)], file, page)
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, "machine": {**said["machine"], "cores": 999}}))
    readme.keep([tuning_result("memory", 900.0)], file, page)
    assert [one["figure"]["key"] for one in json.loads(file.read_text())["results"]] == ["memory"]


def test_the_picture_of_the_growth_is_small(tmp_path: Path) -> None:
    points = [growth.Point(trials=10**at, trial=0.001, report=1e-5) for at in (2, 3, 4)]
    growth.keep(points, tmp_path)
    assert 5_000 < (tmp_path / "growth.png").stat().st_size < 60_000
    assert [point["trials"] for point in json.loads((tmp_path / "growth.json").read_text())] == [
        100,
        1000,
        10_000,
    ]


@pytest.mark.parametrize(
    ("slower", "lost", "missed"), [(0.0, 0, []), (0.01, 0, ["lag", "lag-growth"]), (0.0, 3, ["lost"])]
)
def test_a_lag_that_grows_and_a_lost_report_are_seen(slower: float, lost: int, missed: list[str]) -> None:
    watch = live.Watch(
        lags=[(float(at), 0.2 + slower * at) for at in range(100)],
        driver=[(float(at), 0.3 * at, 10**8 + 100 * at) for at in range(100)],
    )
    results = live.judged(watch, live.FULL, lost)
    assert [result.figure.key for result in results if not result.passed] == missed
    assert [result.reached.median for result in results if result.figure.key == "cpu"] == pytest.approx([0.3])


def test_what_asking_ahead_costs_is_measured_on_the_same_seeds(tmp_path: Path) -> None:
    best = ahead.distances(branin, 0, seed=1, trials=12)
    assert len(best) == 12
    assert best == sorted(best, reverse=True)
    assert best == ahead.distances(branin, 0, seed=1, trials=12)
    found = {0: [[1.0, 0.1], [1.0, 0.2]], 1: [[1.0, 1.0], [1.0, 0.2]]}
    after = ahead.compare(found, [2])["2"]["1"]
    assert (after["median"], after["worse"]) == (0.6, 1)
    assert after["log_ratio"] == pytest.approx(0.5)
    file = tmp_path / "kept" / "ahead.json"
    assert ahead.main(["--seeds", "2", "--trials", "20", "--keep", str(file)]) == 0
    said = json.loads(file.read_text())
    assert set(said) == {"places", "seeds", "trials", "branin", "rosenbrock", "hartmann6"}
