"""The pages Analyse and Compare in every state, without a browser, and what their charts are made of."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from streamlit.testing.v1 import AppTest

from dashboard import server
from dashboard.charts import params as param_charts
from dashboard.rules import analysis, comparison
from storage import Database, studies
from storage.columns import History, ParamColumn
from tests.dashboard_data import HOSTILE

APP = str(Path(server.__file__).with_name("app.py"))
VIEWS = ("curves", "pareto", "slice", "parallel", "contour", "edf")
PARAM = HOSTILE[:200] + "\"'."
UNIT = FloatDistribution(0.0, 1.0)


def trial(number: int, rng: random.Random) -> FrozenTrial:
    """One of a study whose parameter ``momentum`` depends on another one; every tenth is infinite."""
    params = {PARAM: rng.random(), "lr": 10 ** rng.uniform(-5, -1), "kind": rng.choice(["sgd", None])}
    distributions = {
        PARAM: UNIT,
        "lr": FloatDistribution(1e-5, 0.1, log=True),
        "kind": CategoricalDistribution(["sgd", None]),
    }
    if params["kind"] == "sgd":
        params["momentum"], distributions["momentum"] = rng.random(), UNIT
    value = math.inf if number % 10 == 9 else rng.random()
    return create_trial(
        value=value,
        params=params,
        distributions=distributions,
        intermediate_values={step: step + value for step in range(3)} if math.isfinite(value) else {},
    )


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Studies as Optuna alone writes them, which has none of our tables."""
    url = f"sqlite:///{tmp_path_factory.mktemp('analyse')}/tuner.db"
    rng = random.Random(1)
    main = optuna.create_study(study_name="main", storage=url)
    main.add_trials([trial(number, rng) for number in range(30)])
    for name, count in ((HOSTILE, 3), ("one", 1)):
        study = optuna.create_study(study_name=name, storage=url)
        study.add_trials(
            [create_trial(value=n / 3, params={"x": n / 3}, distributions={"x": UNIT}) for n in range(count)]
        )
    three = optuna.create_study(study_name="three", storage=url, directions=["minimize", "maximize"] * 2)
    three.add_trials(
        [
            create_trial(
                values=[rng.random() for _ in range(4)],
                params={"y": rng.random()},
                distributions={"y": UNIT},
                system_attrs={"constraints:memory": number - 5.0},
            )
            for number in range(8)
        ]
    )
    broken = optuna.create_study(study_name="broken", storage=url, directions=["minimize", "maximize"])
    broken.add_trial(create_trial(values=[1.0, 2.0], system_attrs={"constraints:memory": 1.0}))
    empty = optuna.create_study(study_name="empty", storage=url, direction="maximize")
    empty.add_trial(create_trial(state=TrialState.FAIL))
    infinite = optuna.create_study(study_name="infinite", storage=url, direction="maximize")
    infinite.add_trial(create_trial(value=-math.inf))
    return url


@pytest.fixture(autouse=True)
def _storage(monkeypatch: pytest.MonkeyPatch, filled: str) -> None:
    monkeypatch.setenv("TUNER_STORAGE", filled)


def page(view: str, /, **asked: str | list[str]) -> AppTest:
    test = AppTest.from_file(APP, default_timeout=60).run().switch_page(f"views/{view}.py")
    for key, value in asked.items():
        test.query_params[key] = value
    test.run()
    assert [error.value for error in test.exception] == []
    return test


def texts(test: AppTest) -> str:
    parts = [*test.title, *test.subheader, *test.markdown, *test.caption, *test.text, *test.info]
    return "\n".join(str(part.value) for part in [*parts, *test.warning])


def charts(test: AppTest) -> list[dict[str, object]]:
    """The specifications of the charts on the page."""
    return [json.loads(chart.proto.spec) for chart in test.get("arrow_vega_lite_chart")] or [
        json.loads(chart.proto.spec) for chart in test.get("vega_lite_chart")
    ]


@pytest.mark.parametrize(
    ("view", "count", "said"),
    [
        ("curves", 1, "The reports of the best 10 of 27 complete trials"),
        ("slice", 4, "27 complete trials; 3 without a finite value."),
        ("parallel", 1, "27 complete trials"),
        ("contour", 1, "27 trials that have both"),
        ("edf", 1, "the further to the left, the better"),
    ],
)
def test_each_view_draws_and_says_what_it_shows(view: str, count: int, said: str) -> None:
    test = page("analyse", study="main", view=view)
    assert len(charts(test)) == count
    assert said in texts(test)
    assert all(chart["description"] for chart in charts(test))


def test_the_address_chooses_how_many_and_which() -> None:
    assert "7 of 27 trials shown, the best" in texts(page("analyse", study="main", view="parallel", top="7"))
    assert "best 27 of 27" in texts(page("analyse", study="main", view="curves", top="999"))
    test = page("analyse", study="main", view="contour", x="momentum", y="lr", nonsense="1")
    assert [box.value for box in test.selectbox] == ["momentum", "lr"]
    test = page("analyse", study="three", view="edf", objective="1")
    assert "the further to the right, the better" in texts(test)
    test = page("analyse", study="main", view="nonsense")
    assert "The reports of the best 10" in texts(test)


def test_a_view_that_does_not_apply_says_so_and_another_one_opens() -> None:
    assert "not for a study with one objective" in texts(page("analyse", study="main", view="pareto"))
    test = page("analyse", study="three", view="curves")
    assert "not for a study with several objectives" in texts(test)
    assert "are on the front, 2 break a constraint." in texts(test)
    assert len(charts(test)) == 6  # the pairs of four objectives


@pytest.mark.parametrize(
    ("study", "view", "said"),
    [
        ("empty", "slice", "No trial is complete yet"),
        ("infinite", "parallel", "No value is finite"),
        ("broken", "pareto", "No trial keeps all constraints"),
        ("broken", "slice", "The trials have no parameters"),
        ("one", "curves", "The best trials reported nothing"),
        ("one", "contour", "A contour needs two parameters"),
        (HOSTILE, "contour", "A contour needs two parameters"),
    ],
)
def test_what_cannot_be_drawn_is_said(study: str, view: str, said: str) -> None:
    assert said in texts(page("analyse", study=study, view=view))


@pytest.mark.parametrize("view", ["slice", "parallel", "edf"])
def test_one_trial_is_enough(view: str) -> None:
    test = page("analyse", study="one", view=view)
    assert len(charts(test)) == 1
    assert "1 complete trial." in texts(test)


def test_names_of_parameters_are_no_fields_and_no_mark_up() -> None:
    column = ParamColumn(values=(0.1, 0.2), choices=None, log=False)
    chart = param_charts.slice_chart(PARAM, column, [0, 1], [1.0, 2.0], PARAM).to_dict()
    fields = {chart["encoding"][channel]["field"] for channel in ("x", "y", "color")}
    assert fields == {"x", "value", "trial"}
    assert chart["encoding"]["x"]["title"] == PARAM[:37] + "..."


def test_studies_are_compared() -> None:
    test = page("compare", study=["main", HOSTILE, "main", "nothing"])
    shown = texts(test)
    assert "There is no study of this name" in shown
    assert "nothing" in shown
    assert test.multiselect[0].value == ["main", HOSTILE]
    summary = test.dataframe[0].value
    assert list(summary["Trials"]) == [30, 3]
    assert summary["Failed"][0] == "0.0%"
    assert len(charts(test)) == 3
    settings = {row[0]: row[1:] for row in test.dataframe[1].value.values.tolist()}
    assert settings["space.lr"] == ["float 1e-05 to 0.1, log", "-"]
    assert "direction" not in settings
    test.multiselect[0].set_value(["main", "one"]).run()
    assert test.query_params["study"] == ["main", "one"]


def test_other_directions_are_shown_apart() -> None:
    test = page("compare", study=["main", "empty", "three"])
    assert "their values cannot be compared" in texts(test)
    assert [head.value for head in test.subheader] == [
        "minimize: main",
        "maximize: empty",
        "minimize and maximize and minimize and maximize: three",
        "Settings",
    ]
    assert "None of them has a complete trial yet" in texts(test)


@pytest.mark.parametrize("asked", [{}, {"study": "one"}])
def test_fewer_than_two_studies_ask_for_more(asked: dict[str, str]) -> None:
    assert "Choose two studies or more" in texts(page("compare", **asked))


NUMBERS = st.floats(-3, 3) | st.sampled_from([math.inf, -math.inf, math.nan, 0.0, 1.0])


@given(st.lists(NUMBERS))
def test_the_distribution_is_the_share_at_most_that_large(values: list[float]) -> None:
    counted = [value for value in values if not math.isnan(value)]
    expected = [
        (step, sum(value <= step for value in counted) / len(counted))
        for step in sorted({value for value in counted if math.isfinite(value)})
    ]
    assert analysis.edf(values) == expected


@given(
    st.lists(st.sampled_from(["minimize", "maximize"]), min_size=1, max_size=4).flatmap(
        lambda ways: st.tuples(
            st.just(ways), st.lists(st.tuples(*[st.integers(0, 4) | st.floats(0, 4) for _ in ways]))
        )
    )
)
def test_the_front_is_what_nothing_dominates(drawn: tuple[list[str], list[tuple[float, ...]]]) -> None:
    ways, points = drawn
    losses = [[-x if way == "maximize" else x for x, way in zip(p, ways, strict=True)] for p in points]
    expected = [
        at
        for at, one in enumerate(losses)
        if not any(all(a <= b for a, b in zip(other, one, strict=True)) and other != one for other in losses)
    ]
    columns = [[point[k] for point in points] for k in range(len(ways))]
    assert analysis.pareto_front(columns, ways) == expected


def test_a_front_has_no_nan_and_is_optunas() -> None:
    assert analysis.pareto_front([[1.0, math.nan], [2.0, 0.0]], ["minimize", "minimize"]) == [0]
    rng = random.Random(3)
    study = optuna.create_study(directions=["minimize", "maximize", "minimize"])
    study.add_trials([create_trial(values=[rng.random() for _ in range(3)]) for _ in range(60)])
    columns = [[trial.values[k] for trial in study.trials] for k in range(3)]
    front = analysis.pareto_front(columns, ["minimize", "maximize", "minimize"])
    assert front == sorted(trial.number for trial in study.best_trials)


@given(st.integers(0, 60), st.integers(1, 20), st.sets(st.integers(0, 59), max_size=5))
def test_a_sample_is_bounded_sorted_and_keeps_the_best(count: int, most: int, keep: set[int]) -> None:
    keep = {place for place in keep if place < count}
    chosen = analysis.sampled(range(count), most, keep)
    assert keep <= set(chosen)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(count, max(most, len(keep))) or count <= most
    assert chosen == analysis.sampled(range(count), most, keep)


def test_the_best_come_first_and_the_feasible_before_them() -> None:
    values = [3.0, math.nan, 1.0, 2.0, math.inf, 1.0]
    assert analysis.best_first(values, "minimize", [True] * 6) == [2, 5, 3, 0]
    assert analysis.best_first(values, "maximize", [False, *[True] * 5]) == [3, 2, 5, 0]


def test_the_best_so_far_by_trial_and_by_time() -> None:
    history = History(numbers=(2, 0, 1), seconds=(1.0, 2.0, 4.0), values=(5.0, 3.0, 4.0))
    assert comparison.best_by_trial(history, "minimize") == [(0, 0.0, 3.0), (2, 2.0, 3.0)]
    assert comparison.best_by_time(history, "minimize") == [(2, 1.0, 5.0), (0, 2.0, 3.0), (1, 4.0, 3.0)]
    assert comparison.best_by_time(history, "maximize") == [(2, 1.0, 5.0), (1, 4.0, 5.0)]
    assert comparison.best_by_trial(History(), "minimize") == []


def test_places_on_an_axis_follow_its_scale() -> None:
    log = ParamColumn(values=(1e-4, None, 1e-2, 1e-3), choices=None, log=True)
    places, marks = analysis.positions(log)
    assert places == pytest.approx([0.0, math.nan, 1.0, 0.5], nan_ok=True)
    assert [text for _, text in marks] == ["1e-4", "1e-3", "1e-2"]
    kinds = ParamColumn(values=("b", None, "a"), choices=("a", "b"), log=False)
    assert analysis.positions(kinds)[0] == pytest.approx([1.0, math.nan, 0.0], nan_ok=True)
    assert analysis.positions(ParamColumn(values=(2.0, 2.0), choices=None, log=False))[0] == [0.5, 0.5]


def test_a_surface_goes_through_its_points() -> None:
    import numpy as np

    between = analysis.surface(
        [0.0, 1.0], [0.0, 1.0], [10.0, 20.0], np.array([0.0, 1.0]), np.array([0.0, 1.0])
    )
    assert between[0, 0] == pytest.approx(10.0, abs=0.1)
    assert between[1, 1] == pytest.approx(20.0, abs=0.1)
    assert between[0, 1] == pytest.approx(15.0)


def test_quartiles_by_step_leave_out_what_is_not_finite() -> None:
    curves = [[(0, 1.0), (1, math.nan)], [(0, 3.0)], [(0, 2.0), (2, math.inf)]]
    assert analysis.quartiles(curves) == [(0, 1.5, 2.0, 2.5)]


def test_names_that_are_cut_to_the_same_stay_apart() -> None:
    assert analysis.apart(["a", "a", "a (2)"]) == ["a", "a (2)", "a (2) (2)"]


def test_a_study_with_the_name_of_a_column_is_compared_as_any_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/tuner.db"
    monkeypatch.setenv("TUNER_STORAGE", url)
    database = Database(url)
    for name, seed in (("Setting", 1), ("one", 2)):
        studies.create(database, name, ["minimize"], seed=seed, sampler="tpe", pruner="median")
    database.dispose()
    test = page("compare", study=["Setting", "one"])
    assert list(test.dataframe[-1].value.columns)[:1] == ["Setting"]
