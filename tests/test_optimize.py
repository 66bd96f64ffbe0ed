"""The main job through its public entry, on the inline executor: what a study looks like after it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

import tuner
from storage import Database, reads, studies

Objective = Callable[[Any], Any]


def sphere(trial: Any) -> float:
    x = trial.suggest_float("x", -5, 5)
    return float(x * x)


def make(url: str, name: str = "s", **options: Any) -> optuna.Study:
    return tuner.create_study(name, storage=url, **{"seed": 1, "sampler": "random", **options})


def run(
    study: optuna.Study, objective: Objective, n_trials: int | None = None, **options: Any
) -> optuna.Study:
    return tuner.optimize(study, objective, n_trials, executor="inline", progress=False, **options)


def reasons(url: str, name: str = "s") -> list[str]:
    page = reads.trials(Database(url, create=False).engine, name, descending=False)
    return [row.reason for row in page.rows]


@pytest.mark.fault("38: N in all, over resumes")
def test_the_budget_counts_the_study_and_running_again_resumes(url: str) -> None:
    study = make(url)
    assert run(study, sphere, 5) is study
    assert [trial.number for trial in study.trials] == list(range(5))
    run(study, sphere, 5)
    assert len(study.trials) == 5
    run(study, sphere, 8)
    assert [trial.number for trial in study.trials] == list(range(8))
    assert all(trial.state is TrialState.COMPLETE for trial in study.trials)


def test_the_budget_counts_what_other_programs_finished(sqlite_url: str) -> None:
    study = make(sqlite_url)
    study.tell(study.ask(), 1.0)
    run(study, sphere, 4)
    assert len(study.trials) == 4


def test_a_plain_optuna_study_is_driven_as_it_is(sqlite_url: str) -> None:
    sampler = optuna.samplers.RandomSampler(seed=3)
    study = optuna.create_study(study_name="plain", storage=sqlite_url, sampler=sampler, direction="maximize")
    tuner.optimize(study, sphere, n_trials=3, executor="inline", progress=False)
    assert study.best_value == max(trial.value for trial in study.trials)


def test_a_study_in_memory_is_refused_with_the_line_that_helps() -> None:
    with pytest.raises(tuner.BadInput, match="sqlite:///"):
        run(optuna.create_study(), sphere, 1)


def conditional(trial: Any) -> float:
    kind = trial.suggest_categorical("kind", ["sgd", "adam"])
    if kind == "sgd":
        return float(trial.suggest_float("momentum", 0, 1))
    return float(trial.suggest_float("beta", 0.5, 1) + trial.suggest_int("steps", 1, 3))


def test_define_by_run_with_conditional_parameters(sqlite_url: str) -> None:
    study = run(make(sqlite_url, sampler="tpe(n_startup_trials=3)"), conditional, 20)
    for trial in study.trials:
        wanted = {"kind", "momentum"} if trial.params["kind"] == "sgd" else {"kind", "beta", "steps"}
        assert set(trial.params) == wanted
        assert trial.value == pytest.approx(sum(v for k, v in trial.params.items() if k != "kind"))


def test_the_same_seed_repeats_every_trial_and_a_resume_repeats_none(tmp_path: Path) -> None:
    def params(name: str, budgets: list[int]) -> list[dict[str, Any]]:
        study = make(f"sqlite:///{tmp_path}/{name}.db", sampler="tpe(n_startup_trials=3)")
        for budget in budgets:
            run(study, conditional, budget)
        return [trial.params for trial in study.trials]

    whole = params("whole", [12])
    assert params("again", [12]) == whole
    assert params("resumed", [4, 7, 12]) == whole
    assert len({json.dumps(one, sort_keys=True) for one in whole}) == 12


def everything(trial: Any) -> float:
    assert isinstance(trial, optuna.trial.Trial)
    assert (trial.rank, trial.local_rank, trial.world_size, trial.attempt) == (0, 0, 1, 1)
    assert str(trial.device) == "cpu"
    x = trial.suggest_float("x", 0, 1)
    trial.set_user_attr("note", {"rank": trial.rank})
    trial.set_constraint("memory", -x)
    trial.report(x, 0)
    trial.report(x / 2, 1)
    trial.log({"loss": x, "norm": math.inf}, 1)
    assert trial.should_stop() is False
    assert trial.load_checkpoint() is None
    assert trial.study.study_name == "s"
    assert trial.study.direction.name == "MINIMIZE"
    assert len(trial.study.trials) == trial.number + 1
    if trial.number:
        assert trial.study.best_trial.number < trial.number
    trial.save_checkpoint({"x": x, "list": [1, None]}, 1)
    return float(x)


def test_every_member_of_the_trial_reaches_the_store(url: str) -> None:
    study = run(make(url), everything, 2)
    trial = study.trials[1]
    assert trial.state is TrialState.COMPLETE, reasons(url)
    assert trial.user_attrs == {"note": {"rank": 0}}
    assert trial.intermediate_values == {0: trial.params["x"], 1: trial.params["x"] / 2}
    assert trial.system_attrs["constraints:memory"] == -trial.params["x"]
    detail = reads.trial(Database(url, create=False).engine, "s", 1)
    assert detail is not None
    assert detail.metrics == {"loss": ((1, trial.params["x"]),), "norm": ((1, math.inf),)}
    best = tuner.best_checkpoint(study)
    assert best is not None
    assert best.step == 1
    assert best.state == {"x": study.best_trial.params["x"], "list": [1, None]}
    assert [part.rank for part in best.parts] == [0]


def test_several_objectives_with_a_constraint(sqlite_url: str) -> None:
    def objective(trial: Any) -> tuple[float, float]:
        x = trial.suggest_float("x", 0, 1)
        trial.set_constraint("c", 0.2 - x)
        return x, 1 - x

    study = make(sqlite_url, directions=["minimize", "maximize"], sampler="nsgaii")
    run(study, objective, 6)
    assert all(len(trial.values) == 2 for trial in study.trials)
    assert {direction.name for direction in study.directions} == {"MINIMIZE", "MAXIMIZE"}


def test_enqueued_trials_come_first_and_count(sqlite_url: str) -> None:
    study = make(sqlite_url)
    study.enqueue_trial({"x": 1.5}, user_attrs={"why": "guess"})
    run(study, sphere, 3)
    assert study.trials[0].params == {"x": 1.5}
    assert study.trials[0].user_attrs == {"why": "guess"}
    assert len(study.trials) == 3


def test_enqueued_trials_beyond_the_budget_stay_and_are_reported(sqlite_url: str) -> None:
    study = make(sqlite_url)
    for x in (1.0, 2.0, 3.0):
        study.enqueue_trial({"x": x})
    run(study, sphere, 2)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE", "WAITING"]
    record = studies.find(Database(sqlite_url), "s")
    assert record is not None
    assert "1 enqueued trial still waiting" in str(record.stop_reason)


def pruned(trial: Any) -> float:
    x = trial.suggest_float("x", 0, 1)
    for step in range(3):
        trial.report(x, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return float(x)


def test_pruning_decides_as_optuna_does_for_the_same_reports(sqlite_url: str) -> None:
    study = run(make(sqlite_url, pruner="median(n_startup_trials=2)"), pruned, 15)
    states = [trial.state for trial in study.trials]
    assert TrialState.PRUNED in states
    again = optuna.create_study(pruner=optuna.pruners.MedianPruner(n_startup_trials=2))
    for trial in study.trials:
        again.enqueue_trial(trial.params)
    again.optimize(pruned, n_trials=15)
    assert [trial.state for trial in again.trials] == states
    assert [trial.value for trial in again.trials] == [trial.value for trial in study.trials]


VALUES = [
    (None, "bad_value"),
    ("0.5", "bad_value"),
    ((1.0, 2.0), "bad_value"),
    (float("nan"), "nan"),
    (float("-inf"), "infinite"),
]


@pytest.mark.parametrize(
    ("value", "reason"), VALUES, ids=[reason + str(at) for at, (_, reason) in enumerate(VALUES)]
)
@pytest.mark.fault("16: NaN, None, text, infinity as value")
def test_a_value_that_is_no_result_fails_its_trial_with_a_reason(
    sqlite_url: str, value: Any, reason: str
) -> None:
    study = run(make(sqlite_url), lambda trial: value, 1)
    assert study.trials[0].state is TrialState.FAIL
    assert reasons(sqlite_url) == [reason]


@pytest.mark.fault("16: NaN, None, text, infinity as value")
def test_an_infinity_on_the_losing_side_is_an_ordinary_bad_value(sqlite_url: str) -> None:
    study = run(make(sqlite_url), lambda trial: math.inf if trial.number else 1.0, 2)
    assert [trial.value for trial in study.trials] == [1.0, math.inf]
    assert study.best_value == 1.0


@pytest.mark.fault("17: an exception in the objective")
def test_an_exception_fails_its_trial_with_its_traceback_and_not_the_study(sqlite_url: str) -> None:
    def objective(trial: Any) -> float:
        if trial.number == 1:
            raise ValueError("no luck")
        return 1.0

    study = run(make(sqlite_url), objective, 3)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    detail = reads.trial(Database(sqlite_url).engine, "s", 1)
    assert detail is not None
    (attempt,) = detail.attempt_rows
    assert (attempt.reason, attempt.message, attempt.exception) == (
        "exception",
        "ValueError: no luck",
        "ValueError",
    )
    assert 'raise ValueError("no luck")' in attempt.traceback
    assert "tuner/worker.py" not in attempt.traceback


@pytest.mark.fault("17: the same exception in a row")
def test_identical_failures_in_a_row_stop_the_study_with_their_traceback(sqlite_url: str) -> None:
    def objective(trial: Any) -> float:
        raise RuntimeError(f"always {trial.number}")

    study = make(sqlite_url)
    with pytest.raises(tuner.StudyStopped, match="3 trials in a row failed alike"):
        run(study, objective, 10, retry=tuner.Retry(stop_after=3))
    assert len(study.trials) == 3


def test_a_listed_exception_is_tried_again_from_the_checkpoint(sqlite_url: str) -> None:
    def objective(trial: Any) -> float:
        x = trial.suggest_float("x", 0, 1)
        saved = trial.load_checkpoint()
        start = saved.step + 1 if saved else 0
        for step in range(start, 4):
            trial.report(x + step, step)
            trial.set_user_attr(f"step{step}", trial.attempt)
            if step % 2 == 0:
                trial.save_checkpoint({"step": step}, step)
            if step == 3 and trial.attempt < 3:
                raise ConnectionError("flaky")
        return float(x)

    study = make(sqlite_url)
    run(study, objective, 1, retry=tuner.Retry(retry_on=(ConnectionError,), backoff=0.01))
    (trial,) = study.trials
    assert trial.state is TrialState.COMPLETE
    assert sorted(trial.intermediate_values) == [0, 1, 2, 3]
    assert trial.user_attrs == {"step0": 1, "step1": 1, "step2": 1, "step3": 3}
    detail = reads.trial(Database(sqlite_url).engine, "s", 0)
    assert detail is not None
    assert [(row.attempt, row.reason, row.charged, row.resumed_step) for row in detail.attempt_rows] == [
        (1, "exception", True, None),
        (2, "exception", True, 2),
        (3, "complete", False, 2),
    ]
    assert [(attempt, step) for attempt, step, _ in detail.superseded] == [(1, 3), (2, 3)]


def test_retries_are_bounded(sqlite_url: str) -> None:
    def objective(trial: Any) -> float:
        raise ConnectionError("down")

    policy = tuner.Retry(max_failures=2, retry_on=("ConnectionError",), backoff=0.0, stop_after=0)
    study = run(make(sqlite_url), objective, 1, retry=policy)
    assert study.trials[0].state is TrialState.FAIL
    detail = reads.trial(Database(sqlite_url).engine, "s", 0)
    assert detail is not None
    assert len(detail.attempt_rows) == 3


@pytest.mark.fault("15: a checkpoint torn or changed")
def test_a_damaged_checkpoint_is_refused_and_the_one_before_is_used(sqlite_url: str, tmp_path: Path) -> None:
    resumed: list[int | None] = []

    def objective(trial: Any) -> float:
        saved = trial.load_checkpoint()
        resumed.append(saved.step if saved else None)
        if saved is None:
            trial.save_checkpoint({"a": 1}, 0)
            trial.save_checkpoint({"a": 2}, 1)
            (newest,) = tmp_path.rglob("step-1/rank-0.pt")
            newest.write_bytes(newest.read_bytes()[:-1])
            raise ConnectionError("down")
        return 1.0

    policy = tuner.Retry(retry_on=("ConnectionError",), backoff=0.0)
    run(make(sqlite_url), objective, 1, retry=policy, checkpoints=tmp_path / "checkpoints")
    assert resumed == [None, 0]
    kinds = [event.kind for event in reads.events(Database(sqlite_url).engine, "s")]
    assert "checkpoint_damaged" in kinds


def test_callbacks_run_after_the_commit_and_can_stop_the_study(sqlite_url: str) -> None:
    seen: list[tuple[int, str, str]] = []
    other = make(sqlite_url)

    def callback(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        stored = optuna.load_study(study_name="s", storage=sqlite_url).trials[trial.number].state.name
        seen.append((trial.number, trial.state.name, stored))
        if trial.number == 2:
            study.stop()

    run(other, sphere, 10, callbacks=[callback])
    assert seen == [(number, "COMPLETE", "COMPLETE") for number in range(3)]
    record = studies.find(Database(sqlite_url), "s")
    assert record is not None
    assert record.stop_reason == "stopped by study.stop()"


def test_the_users_own_study_object_can_stop_it_from_a_callback(sqlite_url: str) -> None:
    study = make(sqlite_url)
    run(study, sphere, 10, callbacks=[lambda _, trial: study.stop() if trial.number == 1 else None])
    assert len(study.trials) == 2


def test_an_objective_can_stop_the_study(sqlite_url: str) -> None:
    def objective(trial: Any) -> float:
        if trial.number == 1:
            trial.study.stop()
        return 1.0

    assert len(run(make(sqlite_url), objective, 10).trials) == 2


def test_a_grid_stops_the_study_when_it_is_through(sqlite_url: str) -> None:
    study = run(make(sqlite_url, sampler="grid({'x': [1.0, 2.0, 3.0]})"), sphere, 10)
    assert sorted(trial.params["x"] for trial in study.trials) == [1.0, 2.0, 3.0]


def test_a_space_of_distributions_and_one_of_a_function_are_drawn_in_the_driver(sqlite_url: str) -> None:
    space = {
        "x": optuna.distributions.FloatDistribution(2, 3),
        "y": optuna.distributions.IntDistribution(1, 2),
    }
    study = make(sqlite_url)
    run(study, lambda trial: trial.params["x"] + trial.params["y"], 2, space=space)
    run(study, lambda trial: trial.params["z"], 3, space=lambda trial: trial.suggest_float("z", 7, 8))
    assert set(study.trials[1].params) == {"x", "y"}
    assert 7 <= study.trials[2].value <= 8


def test_a_distribution_that_other_trials_contradict_fails_its_trial_only(sqlite_url: str) -> None:
    def objective(trial: Any) -> float:
        return float(trial.suggest_int("x", 3, 3) if trial.number % 2 else trial.suggest_float("x", 0, 1))

    study = run(make(sqlite_url), objective, 4)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL"] * 2


def test_an_enqueued_value_outside_the_space_fails_its_trial_only(sqlite_url: str) -> None:
    study = make(sqlite_url)
    study.enqueue_trial({"x": "abc"})
    run(study, sphere, 3, space={"x": optuna.distributions.FloatDistribution(-5, 5)})
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert reasons(sqlite_url) == ["exception", "complete", "complete"]
    failed = reads.trial(Database(sqlite_url, create=False).engine, "s", 0)
    assert failed is not None
    assert "abc" in failed.message
    assert "ValueError" in failed.attempt_rows[0].traceback


class BrokenSampler(optuna.samplers.RandomSampler):
    """Fails in one of its methods."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
        if self.where == "relative":
            raise ZeroDivisionError("in the sampler")
        return super().infer_relative_search_space(study, trial)

    def sample_independent(self, *arguments: Any) -> Any:
        if self.where == "independent":
            raise ZeroDivisionError("in the sampler")
        return super().sample_independent(*arguments)


@pytest.mark.parametrize("where", ["relative", "independent"])
def test_a_sampler_that_fails_ends_the_study_in_one_line_and_leaves_nothing_open(
    sqlite_url: str, where: str
) -> None:
    study = make(sqlite_url, sampler=BrokenSampler(where))
    with pytest.raises(tuner.StudyStopped, match=r"5 trials in a row failed alike.*in the sampler"):
        run(study, sphere, 20)
    assert [trial.state.name for trial in study.trials] == ["FAIL"] * 5
    assert len(run(make(sqlite_url, load_if_exists=True), sphere, 6).trials) == 6


def test_a_timeout_lets_the_running_trial_finish(sqlite_url: str) -> None:
    study = make(sqlite_url)
    run(study, sphere, timeout=1.5)
    assert study.trials
    assert all(trial.state is TrialState.COMPLETE for trial in study.trials)


@pytest.mark.fault("31: told by another program meanwhile")
def test_a_trial_that_another_program_told_keeps_that_programs_word(sqlite_url: str) -> None:
    def objective(trial: Any) -> float:
        trial.report(1.0, 0)
        optuna.load_study(study_name="s", storage=sqlite_url).tell(trial.number, 42.0)
        return 1.0

    study = run(make(sqlite_url), objective, 1)
    assert study.trials[0].value == 42.0
    assert reasons(sqlite_url) == ["finished_elsewhere"]


@pytest.mark.fault("39: a value that a database refuses")
def test_a_value_that_no_database_holds_fails_only_its_trial(url: str) -> None:
    def objective(trial: Any) -> float:
        if trial.number == 1:
            trial.set_user_attr("k" * 600, 1)
        return 1.0

    study = run(make(url), objective, 3)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "COMPLETE"]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"n_trials": 0}, "n_trials=0"),
    ({"n_trials": 2.5}, "n_trials=2.5"),
    ({"timeout": -1}, "timeout=-1"),
    ({"max_concurrent": 0}, "max_concurrent=0"),
    ({"executor": "spark"}, "executor='spark'"),
    ({"isolation": "none"}, "isolation='none'"),
    ({"env": ("A=1",)}, "values are never stored"),
    ({"space": [1]}, "space="),
    ({"alerts": ("ftp://x",)}, "alerts: 'ftp:...' is no web address"),
    ({"objective": 3}, "not callable"),
    ({"objective": "nothing.py"}, "nothing.py"),
    ({"objective": "no.such.module:f"}, "no.such.module"),
    ({"resources": {"ranks": 0}}, "ranks=0"),
    ({"resources": {"ranks": 2}}, "executor='inline'"),
]


@pytest.mark.parametrize(("options", "part"), BAD, ids=[part for _, part in BAD])
@pytest.mark.fault("19: an objective that cannot be found or sent")
def test_bad_input_is_one_line_that_names_the_value_and_nothing_is_written(
    sqlite_url: str, options: dict[str, Any], part: str
) -> None:
    study = make(sqlite_url)
    options = {"n_trials": 1, "objective": sphere, "executor": "inline", "progress": False, **options}
    resources = options.pop("resources", {})
    with pytest.raises(tuner.TunerError) as caught:
        tuner.optimize(study, **options, resources=tuner.Resources(**resources))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert study.trials == []


CREATE: list[tuple[dict[str, Any], str]] = [
    ({"sampler": "tpee"}, "'tpe'"),
    ({"sampler": "tpe(n_startup=3)"}, "n_startup"),
    ({"pruner": "hyperbandd"}, "'hyperband'"),
    ({"direction": "up"}, "'up'"),
    ({"directions": []}, "at least one"),
    ({"direction": "minimize", "directions": ["minimize"]}, "not both"),
    ({"seed": -1}, "seed=-1"),
]


@pytest.mark.parametrize(("options", "part"), CREATE, ids=[part for _, part in CREATE])
def test_a_study_that_cannot_be_made_is_refused_before_the_file_exists(
    tmp_path: Path, options: dict[str, Any], part: str
) -> None:
    with pytest.raises(tuner.BadInput) as caught:
        make(f"sqlite:///{tmp_path}/none.db", **options)
    assert part in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_study_that_exists_or_does_not_is_one_line(sqlite_url: str) -> None:
    study = make(sqlite_url)
    with pytest.raises(tuner.BadInput, match="study 's' has no complete trial yet"):
        tuner.best_checkpoint(study)
    with pytest.raises(tuner.StudyExists, match="'s' exists already") as caught:
        make(sqlite_url)
    assert str(caught.value).endswith(f"or go on with tuner.resume('s', storage={sqlite_url!r})")
    assert make(sqlite_url, load_if_exists=True).study_name == "s"
    with pytest.raises(tuner.BadInput, match=r"to minimize, not to maximize; give its own direction, or"):
        make(sqlite_url, load_if_exists=True, direction="maximize")
    with pytest.raises(tuner.StudyNotFound, match="it has: s"):
        tuner.load_study("t", storage=sqlite_url)
    with pytest.raises(tuner.StudyNotFound):
        tuner.resume("t", storage=sqlite_url)


def test_a_resume_takes_its_settings_from_the_store(sqlite_url: str) -> None:
    study = make(sqlite_url, sampler="tpe(n_startup_trials=3)")
    run(study, conditional, 4)
    tuner.resume("s", storage=sqlite_url, progress=False)
    assert len(study.trials) == 4
    again = tuner.resume("s", storage=sqlite_url, n_trials=6, progress=False)
    assert len(again.trials) == 6
    assert isinstance(again.sampler, optuna.samplers.TPESampler)
    assert again.sampler._n_startup_trials == 3
    with pytest.raises(tuner.BadInput, match="resume has no setting 'trials'"):
        tuner.resume("s", storage=sqlite_url, trials=9)


def test_a_resume_asks_for_what_could_not_be_stored(sqlite_url: str) -> None:
    study = make(sqlite_url, sampler=optuna.samplers.CmaEsSampler())
    run(study, lambda trial: 1.0, 1)
    with pytest.raises(tuner.BadInput, match="objective="):
        tuner.resume("s", storage=sqlite_url)
    with pytest.raises(tuner.BadInput, match="sampler="):
        tuner.resume("s", storage=sqlite_url, objective=sphere)
    tuner.resume("s", storage=sqlite_url, objective=sphere, sampler="random", n_trials=2, progress=False)
    assert len(study.trials) == 2


def test_provenance_is_kept_with_each_attempt(sqlite_url: str) -> None:
    run(make(sqlite_url), sphere, 1)
    detail = reads.trial(Database(sqlite_url).engine, "s", 0)
    assert detail is not None
    found = detail.attempt_rows[0].provenance
    assert found["packages"]["optuna"] == optuna.__version__
    assert found["study_seed"] == 1
    assert {"git", "objective_digest", "arguments", "host", "seed"} <= set(found)


def test_a_script_that_starts_its_study_when_it_is_imported_is_refused(
    sqlite_url: str, tmp_path: Path
) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text(
        "import optuna, tuner\n"
        "def objective(trial):\n    return 1.0\n"
        f"study = optuna.create_study(study_name='inner', storage={sqlite_url!r}, load_if_exists=True)\n"
        "tuner.optimize(study, objective, n_trials=1, executor='inline')\n"
    )
    with pytest.raises(tuner.BadObjective, match=r"unguarded.py starts a study when it is imported"):
        run(make(sqlite_url), f"{script}:objective", 1)  # type: ignore[arg-type]


def test_the_best_ten_and_the_failed_keep_their_last_checkpoint_and_no_other_file_stays(
    sqlite_url: str, tmp_path: Path
) -> None:
    def objective(trial: Any) -> float:
        for step in range(3):
            trial.save_checkpoint({"step": step}, step)
        (Path(trial._root()) / "a1" / ".half-written.tmp").write_text("torn")
        if trial.number == 3:
            raise ValueError("no")
        if trial.number == 4:
            raise optuna.TrialPruned
        return float(-trial.number)

    study = tuner.create_study("s", storage=sqlite_url, sampler="random", seed=1)
    for n in (9, 16):  # over a resume too
        tuner.optimize(
            study, objective, n_trials=n, executor="inline", progress=False, checkpoints=str(tmp_path / "c")
        )
    files = sorted(path.relative_to(tmp_path / "c").parts[1:] for path in (tmp_path / "c").rglob("*.*"))
    kept = [3, *range(6, 16)]
    assert files == sorted((str(number), "a1", "step-2", "rank-0.pt") for number in kept)
    best = tuner.best_checkpoint(study)
    assert best is not None
    assert best.state == {"step": 2}
