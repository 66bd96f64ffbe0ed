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

from tests.benchmarks import contents, measures, ratios, sides, starts, store, train
from tests.benchmarks.databases import temporary
from tests.benchmarks.figures import FIGURES, QUICK
from tests.benchmarks.measures import Result
from tests.benchmarks.works import asks


@pytest.fixture(autouse=True)
def _databases_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "databases").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "databases"))


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_the_store_is_measured_and_its_rows_are_those_of_optuna(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if kind == "postgres":
        monkeypatch.setenv("TUNER_TEST_POSTGRES", request.getfixturevalue("postgres"))
    file = tmp_path / "results.json"
    assert store.main(["--quick", "--pairs", "1", "--database", kind, "--json", str(file)]) == 0
    results = json.loads(file.read_text())
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


@pytest.mark.parametrize("key", ["start", pytest.param("throughput", marks=pytest.mark.chaos), "reports"])
def test_what_a_training_pays_is_measured(key: str, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    assert train.main(["--quick", "--only", key, "--json", str(file)]) == 0
    results = json.loads(file.read_text())
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
    figure = train.FIGURES[key]
    found = train.Result(
        figure=figure, reached=ratios.spread([reached]), details="", passed=figure.reached(reached)
    )
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
