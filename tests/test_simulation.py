"""Simulated studies: the driver's decisions on a virtual clock."""

from __future__ import annotations

import datetime as dt
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution

import tuner
from tuner import samplers
from tuner.cli.app import main
from tuner.errors import BadInput
from tuner.replay import replay
from tuner.seeds import derived_seed

SPACE = {"x": FloatDistribution(0.0, 1.0), "lr": FloatDistribution(1e-3, 1.0, log=True)}
STEPS = 9


def curve(params: Mapping[str, Any]) -> Iterator[tuple[float, float]]:
    for step in range(1, STEPS + 1):
        yield params["x"] + params["lr"] / step, 10.0


def study(sampler: str = "random", pruner: str = "none", **options: Any) -> optuna.Study:
    return optuna.create_study(
        study_name="sketch", sampler=samplers.sampler(sampler, 1), pruner=samplers.pruner(pruner), **options
    )


@pytest.mark.parametrize(
    "pruner", ["none", "asha(min_resource=1, reduction_factor=3)", "median", "hyperband"]
)
@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_one_worker_finds_what_optuna_finds_in_turn(sampler: str, pruner: str) -> None:
    found = tuner.simulate(study(sampler, pruner), SPACE, curve, max_concurrent=1, n_trials=40, seed=3)
    again = study(sampler, pruner)
    for trial in found.trials:
        samplers.reseed(again.sampler, derived_seed(3, trial.number))
        asked = again.ask(SPACE)
        assert asked.params == trial.params
        for step, (value, _) in enumerate(curve(asked.params), 1):
            asked.report(value, step)
            if asked.should_prune():
                again.tell(asked, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            again.tell(asked, value)
        told = again.trials[trial.number]
        assert (told.state, told.intermediate_values) == (trial.state, trial.intermediate_values)
    assert found.epochs == sum(len(trial.intermediate_values) for trial in found.trials)
    assert found.best == again.best_value


def test_a_simulation_is_the_same_for_a_seed_and_leaves_the_study_alone() -> None:
    faults = tuner.Faults(mean_life=150.0, repair=5.0, stragglers=0.2, start_delay=2.0, checkpoint_every=2)
    given = study("tpe", "asha(min_resource=1, reduction_factor=3)")
    found = [
        tuner.simulate(given, SPACE, curve, max_concurrent=8, n_trials=60, faults=faults, seed=seed)
        for seed in (1, 1, 2)
    ]
    for one in found:
        assert sum(one.states.values()) == 60
    assert [one.seconds for one in found[:2]] == [found[0].seconds] * 2
    assert found[0].history == found[1].history
    for mine, other in zip(found[0].trials, found[1].trials, strict=True):
        assert (mine.params, mine.intermediate_values) == (other.params, other.intermediate_values)
    assert found[2].history != found[0].history
    assert given.trials == []


def test_losses_cost_steps_and_checkpoints_save_them() -> None:
    def run(every: int) -> tuner.Simulation:
        faults = tuner.Faults(mean_life=100.0, checkpoint_every=every)
        return tuner.simulate(study(), SPACE, curve, max_concurrent=4, n_trials=50, faults=faults)

    bare, saved = run(0), run(1)
    for found in (bare, saved):
        assert found.states == {"COMPLETE": 50}
        assert found.attempts > 50
        assert found.epochs == 50 * STEPS + found.repeated
        assert {len(trial.intermediate_values) for trial in found.trials} == {STEPS}
    assert bare.repeated > 0
    assert saved.repeated == 0
    assert saved.seconds < bare.seconds


def test_failures_follow_the_policy() -> None:
    faults = tuner.Faults(mean_life=5.0)  # half a step: nothing ever ends
    policy = tuner.Retry(max_preemptions=2, backoff=7.0)
    found = tuner.simulate(
        study(), SPACE, curve, max_concurrent=1, n_trials=4, faults=faults, retry=policy, seed=2
    )
    assert found.states == {"FAIL": 4}
    assert found.attempts == 12


def test_the_clock_and_the_workers_bound_what_is_done() -> None:
    slow = tuner.Faults(stragglers=1.0, slowdown=2.0, start_delay=5.0)
    found = tuner.simulate(study(), SPACE, curve, max_concurrent=2, n_trials=4, faults=slow)
    assert found.seconds == 2 * (5.0 + STEPS * 20.0)
    assert found.utilisation == pytest.approx(STEPS * 20.0 / (5.0 + STEPS * 20.0))
    ended = tuner.simulate(study(), SPACE, curve, max_concurrent=2, until=100.0)
    assert ended.seconds == 100.0
    assert ended.states == {"COMPLETE": 2, "RUNNING": 2}
    values = [value for _, value in ended.history]
    assert values == sorted(values, reverse=True)


def test_the_samplers_time_can_be_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count(0.0, 4.0)
    monkeypatch.setattr("tuner.simulation.simulator.perf_counter", lambda: next(ticks))
    charged = tuner.simulate(study(), SPACE, curve, max_concurrent=3, n_trials=3, charge_sampler=True)
    assert charged.seconds == 3 * 4.0 + STEPS * 10.0  # the third trial waits for the two before it
    free = tuner.simulate(study(), SPACE, curve, max_concurrent=3, n_trials=3)
    assert free.seconds == STEPS * 10.0


def test_what_is_asked_ahead_lacks_the_results_that_come_meanwhile() -> None:
    told: list[tuple[int, int]] = []

    class Telling(optuna.samplers.RandomSampler):
        def sample_relative(self, study: optuna.Study, trial: Any, search_space: Any) -> dict[str, Any]:
            told.append((trial.number, sum(one.state.is_finished() for one in study.get_trials())))
            return {}

    def run(ahead: int, **options: Any) -> tuner.Simulation:
        told.clear()
        given = optuna.create_study(sampler=Telling(), pruner=optuna.pruners.NopPruner())
        return tuner.simulate(given, SPACE, curve, max_concurrent=2, ahead=ahead, n_trials=6, **options)

    # the two that end at the same moment are told one after the other
    assert run(0).seconds == 3 * STEPS * 10.0
    assert told == [(0, 0), (1, 0), (2, 1), (3, 2), (4, 3), (5, 4)]
    found = run(2)
    assert (found.seconds, found.utilisation, found.states) == (3 * STEPS * 10.0, 1.0, {"COMPLETE": 6})
    assert told == [(0, 0), (1, 0), (2, 0), (3, 0), (4, 1), (5, 2)]
    lossy = run(2, faults=tuner.Faults(mean_life=100.0, repair=1000.0))
    assert lossy.states == {"COMPLETE": 6}
    assert lossy.attempts > 6
    assert lossy.utilisation < 1.0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "n_trials"),
        ({"n_trials": 3, "max_concurrent": 0}, "max_concurrent=0"),
        ({"n_trials": 3, "ahead": -1}, "ahead=-1"),
        ({"until": -1.0}, "until=-1.0"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInput, match=named):
        tuner.simulate(study(), SPACE, curve, **options)


def test_bad_faults_and_bad_seconds_are_named() -> None:
    with pytest.raises(BadInput, match="stragglers=2"):
        tuner.Faults(stragglers=2)
    with pytest.raises(BadInput, match="step 1 takes -1"):
        tuner.simulate(study(), SPACE, lambda _: [(0.0, -1.0)], n_trials=1)
    with pytest.raises(BadInput, match="2 objectives"):
        tuner.simulate(study(directions=["minimize"] * 2), SPACE, curve, n_trials=1)


def recorded(url: str) -> optuna.Study:
    """A study in a database: 20 trials of three reports and a value each, one that failed."""
    made = tuner.create_study("past", storage=url, sampler="random", pruner="none", seed=1)
    begin = dt.datetime(2026, 1, 1)
    for number in range(20):
        value = (number * 7 % 20) / 20
        made.add_trial(
            optuna.trial.FrozenTrial(
                number=-1,
                trial_id=-1,
                state=optuna.trial.TrialState.COMPLETE,
                value=value,
                datetime_start=begin,
                datetime_complete=begin + dt.timedelta(seconds=30),
                params={},
                distributions={},
                user_attrs={},
                system_attrs={},
                intermediate_values={1: value + 0.1, 2: value + 0.05, 3: value},
            )
        )
    made.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL))
    return made


def test_a_replay_says_what_another_pruner_would_have_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path / 'past.db'}"
    recorded(url)

    def run(*options: str) -> dict[str, Any]:
        assert main(["replay", "past", "--storage", url, "--json", *options]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    as_it_was = run("--max-concurrent", "4")
    assert as_it_was["seconds"] == pytest.approx(20 / 4 * 30.0)
    assert as_it_was["epochs"] == as_it_was["recorded_epochs"] == 60
    assert (as_it_was["complete"], as_it_was["left_out"], as_it_was["best"]) == (20, 1, 0.0)
    halved = run("--max-concurrent", "4", "--pruner", "asha(min_resource=1, reduction_factor=2)")
    assert halved["epochs"] < 60
    assert halved["seconds"] < as_it_was["seconds"]
    assert halved["complete"] + halved["pruned"] == 20
    assert main(["replay", "past", "--storage", url, "--pruner", "median"]) == 0
    said = capsys.readouterr()
    assert "recorded epochs" in said.out
    assert not said.err  # Optuna would say that it made a study
    assert main(["replay", "past", "--storage", url, "--max-concurrent", "0"]) == 2
    assert "max_concurrent=0" in capsys.readouterr().err


def test_a_trial_that_would_have_gone_on_is_counted(tmp_path: Path) -> None:
    made = tuner.create_study("cut", storage=f"sqlite:///{tmp_path / 'cut.db'}", sampler="random")
    with pytest.raises(BadInput, match="nothing to replay"):
        replay(made, optuna.pruners.NopPruner(), max_concurrent=2)
    for _ in range(3):
        made.add_trial(
            optuna.trial.create_trial(state=optuna.trial.TrialState.PRUNED, intermediate_values={1: 0.5})
        )
    found = replay(made, optuna.pruners.NopPruner(), max_concurrent=2)
    assert found.unknown == 3
    assert found.simulation.states == {"PRUNED": 3}
    assert found.recorded_best is None
