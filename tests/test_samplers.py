"""Samplers and pruners are made from text, written down again, and draw from a seed alone."""

from __future__ import annotations

import warnings
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from tuner import blind, samplers
from tuner.errors import BadInput

GRID = "grid({'x': [0.0, 0.5, 1.0], 'n': [1, 2, 3], 'k': ['a', 'b']})"
# A specification of each sampler, and the trials that show whether its draws repeat.
ALL = {
    "bruteforce": 15,
    "cmaes": 30,
    "cmaes(n_startup_trials=2, with_margin=True, independent_sampler=random())": 30,
    "gp(n_startup_trials=2)": 5,
    GRID: 15,
    "nsgaii(population_size=5)": 30,
    "nsgaiii(population_size=5)": 30,
    "partialfixed({'x': 0.5}, tpe())": 30,
    "random": 30,
    "tpe": 30,
    "tpe(multivariate=False, n_startup_trials=3)": 30,
    "tpe(group=True)": 30,
}


@pytest.fixture(autouse=True)
def _quiet_optuna() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of experimental and deprecated arguments
        yield


def draws(sampler: BaseSampler, seed: int, count: int, directions: Any = ("minimize",)) -> Any:
    """The parameters of ``count`` trials, the sampler seeded before each as the driver does it."""
    study = optuna.create_study(directions=directions, sampler=sampler)
    drawn = []
    for number in range(count):
        samplers.reseed(sampler, seed * 1000 + number)
        trial = study.ask()
        x = trial.suggest_float("x", 0, 1, step=0.5)
        n = trial.suggest_int("n", 1, 3)
        k = trial.suggest_categorical("k", ["a", "b"])
        drawn.append((x, n, k))
        study.tell(trial, [x + n + len(directions) * (k == "a")] * len(directions))
    return drawn


@pytest.mark.parametrize("spec", ALL)
def test_draws_follow_from_the_seed_alone(spec: str) -> None:
    first = draws(samplers.sampler(spec, 1), 7, ALL[spec])
    assert draws(samplers.sampler(spec, 1), 7, ALL[spec]) == first
    if "gp" not in spec:  # slow
        assert draws(samplers.sampler(spec, 2), 8, ALL[spec]) != first


@pytest.mark.parametrize("name", ["TPESampler", "NSGAIISampler", "RandomSampler", "CmaEsSampler"])
def test_an_object_that_was_made_without_a_seed_repeats_too(name: str) -> None:
    make = getattr(optuna.samplers, name)
    assert draws(make(), 7, 20) == draws(make(), 7, 20)


def test_a_resume_does_not_repeat_the_draws_before_it() -> None:
    sampler = samplers.sampler("random", 1)
    study = optuna.create_study(sampler=sampler)
    drawn = []
    for number in range(6):
        if number == 3:  # a new driver: a fresh object from the same text and seed
            sampler = study.sampler = samplers.sampler("random", 1)
        samplers.reseed(sampler, number)
        drawn.append(study.ask().suggest_float("x", 0, 1))
    assert len(set(drawn)) == 6


def test_several_objectives_repeat_too() -> None:
    both = ("minimize", "maximize")
    first = draws(samplers.sampler("tpe", 1, 2), 7, 20, both)
    assert draws(samplers.sampler("tpe", 1, 2), 7, 20, both) == first


def test_a_samplers_subclass_of_the_users_is_seeded() -> None:
    class Mine(optuna.samplers.TPESampler):
        pass

    assert draws(Mine(), 7, 12) == draws(Mine(), 7, 12)


def test_a_quasi_random_sequence_is_not_disturbed() -> None:
    disturbed = samplers.sampler("qmc(scramble=True)", 3)
    plain = optuna.samplers.QMCSampler(scramble=True, seed=3)

    def points(sampler: BaseSampler, reseed: bool) -> list[dict[str, Any]]:
        study = optuna.create_study(sampler=sampler)
        for number in range(9):
            if reseed and number:  # the first trial has no joint draw yet
                samplers.reseed(sampler, number)
            trial = study.ask()
            study.tell(trial, trial.suggest_float("x", 0, 1) + trial.suggest_float("y", 0, 1))
        return [trial.params for trial in study.trials[1:]]

    assert points(disturbed, True) == points(plain, False)


# ---------------------------------------------------------------------------- from text


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_every_name_makes_its_sampler(name: str) -> None:
    arguments = {"grid": "({'x': [1]})", "partialfixed": "({'x': 1}, tpe)"}.get(name, "")
    made = samplers.sampler(name + arguments, 1)
    assert type(made) is getattr(optuna.samplers, samplers.SAMPLERS[name])
    assert type(samplers.sampler(samplers.SAMPLERS[name] + (arguments or "()"), 1)) is type(made)
    assert samplers.text_of(made) == name + arguments


@pytest.mark.parametrize("name", samplers.PRUNERS)
def test_every_name_makes_its_pruner(name: str) -> None:
    arguments = {
        "patient": "(median(n_startup_trials=2), patience=3)",
        "percentile": "(25.0)",
        "threshold": "(upper=1)",
    }
    made = samplers.pruner(name + arguments.get(name, ""))
    assert type(made) is getattr(optuna.pruners, samplers.PRUNERS[name])


def test_arguments_arrive() -> None:
    sampler: Any = samplers.sampler("TPESampler(n_startup_trials=3, n_ei_candidates=7)", 1)
    assert (sampler._n_startup_trials, sampler._n_ei_candidates) == (3, 7)
    pruner: Any = samplers.pruner("patient(median(4), patience=2, min_delta=0.5)")
    assert (pruner._wrapped_pruner._n_startup_trials, pruner._patience, pruner._min_delta) == (4, 2, 0.5)
    assert isinstance(samplers.sampler(" tpe ", 1), optuna.samplers.TPESampler)


def test_a_seed_in_the_text_wins() -> None:
    one = samplers.sampler("random(seed=5)", 1)
    study = optuna.create_study(sampler=one)
    other = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=5))
    assert study.ask().suggest_float("x", 0, 1) == other.ask().suggest_float("x", 0, 1)


@pytest.mark.parametrize("seed", [0, 2**32, 2**63 - 1])
def test_every_seed_of_a_study_is_taken(seed: int) -> None:
    assert draws(samplers.sampler("tpe", seed), 7, 3) == draws(samplers.sampler("tpe", seed), 7, 3)


def test_nothing_given_is_optunas_default() -> None:
    assert type(samplers.sampler(None, 1)) is optuna.samplers.TPESampler
    assert type(samplers.pruner(None)) is optuna.pruners.MedianPruner


def test_an_object_is_returned_as_it_is() -> None:
    sampler, pruner = optuna.samplers.RandomSampler(), optuna.pruners.NopPruner()
    assert samplers.sampler(sampler, 1) is sampler
    assert samplers.pruner(pruner) is pruner


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("tpee", "did you mean 'tpe'? choose from: bruteforce, cmaes"),
        ("hyperband", "there is no sampler 'hyperband'"),
        ("", "neither a name nor a call"),
        ("tpe(", "neither a name nor a call"),
        ("tpe; import os", "neither a name nor a call"),
        ("optuna.samplers.TPESampler()", "neither a name nor a call"),
        ("\0", "neither a name nor a call"),
        ("tpe(startup=3)", "startup"),
        ("tpe(n_startup_trials='3')", "n_startup_trials='3'"),
        ("tpe(n_startup_trials=0.5)", "n_startup_trials=0.5"),
        ("tpe(**{'seed': 1})", "without **"),
        ("tpe(seed=open('x'))", "there is no sampler 'open'"),
        ("tpe(seed=1 if 1 else 2)", "1 if 1 else 2"),
        ("tpe(weights=lambda n: 1)", "lambda"),
        ("grid", "search_space"),
        ("partialfixed({'x': 1})", "base_sampler"),
        ("nsgaii(population_size=1)", "population_size"),
        ("qmc(qmc_type='no')", "no"),
        ("random(x=1)", "unexpected keyword argument 'x'; it takes seed"),
        (3, "sampler=3"),
    ],
)
def test_a_bad_sampler_is_one_line_that_names_what_is_wrong(text: Any, named: str) -> None:
    with pytest.raises(BadInput) as caught:
        samplers.sampler(text, 1)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("hyperbnd", "did you mean 'hyperband'?"),
        ("tpe", "there is no pruner 'tpe'"),
        ("percentile", "percentile"),
        ("percentile(200.0)", "0 and 100"),
        ("patient(tpe(), 3)", "wrapped_pruner"),
        ("asha(min_resource=0)", "min_resource"),
        (["median"], "pruner=['median']"),
    ],
)
def test_a_bad_pruner_is_one_line_that_names_what_is_wrong(text: Any, named: str) -> None:
    with pytest.raises(BadInput) as caught:
        samplers.pruner(text)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------- to text

PRUNERS = [
    optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=3, interval_steps=4),
    optuna.pruners.PercentilePruner(25.0, n_min_trials=2),
    optuna.pruners.HyperbandPruner(min_resource=2, max_resource=9, reduction_factor=2),
    optuna.pruners.HyperbandPruner(),
    optuna.pruners.SuccessiveHalvingPruner(min_resource=3, min_early_stopping_rate=1),
    optuna.pruners.SuccessiveHalvingPruner(),
    optuna.pruners.ThresholdPruner(upper=1.5),
    optuna.pruners.ThresholdPruner(lower=-0.5),
    optuna.pruners.NopPruner(),
]


@pytest.mark.parametrize("pruner", PRUNERS, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("patient", [False, True])
def test_a_pruner_survives_the_store(pruner: BasePruner, patient: bool) -> None:
    if patient:
        pruner = optuna.pruners.PatientPruner(pruner, patience=2, min_delta=0.25)
    text = samplers.text_of(pruner)
    assert text is not None
    again = samplers.pruner(text)
    assert type(again) is type(pruner)
    assert _attributes(again) == _attributes(pruner)


def _attributes(pruner: BasePruner) -> dict[str, Any]:
    plain = {name: value for name, value in vars(pruner).items() if name != "_tuner_text"}
    return {k: _attributes(v) if isinstance(v, BasePruner) else v for k, v in plain.items()}


def test_a_resource_that_was_decided_on_the_way_is_kept() -> None:
    pruner = optuna.pruners.HyperbandPruner()
    study = optuna.create_study(pruner=pruner)
    for step in range(2):
        trial = study.ask()
        for step in range(9):
            trial.report(0, step)
            trial.should_prune()
        study.tell(trial, 0)
    text = samplers.text_of(pruner)
    assert text is not None
    assert f"max_resource={pruner._max_resource}" in text
    assert pruner._max_resource == 9


def test_a_pruner_of_the_users_has_no_text() -> None:
    class Mine(optuna.pruners.NopPruner):
        pass

    assert samplers.text_of(Mine()) is None
    assert samplers.text_of(optuna.pruners.PatientPruner(Mine(), patience=1)) is None


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"seed": 3}, "tpe"),
        ({"n_startup_trials": 3}, None),
        ({"multivariate": False}, None),
        ({"gamma": lambda n: 3}, None),
        ({"weights": lambda n: [1] * n}, None),
        ({"constraints_func": lambda trial: [0]}, None),
    ],
)
def test_only_a_tpe_sampler_as_optuna_makes_it_has_a_text(arguments: Any, text: str | None) -> None:
    assert samplers.text_of(optuna.samplers.TPESampler(**arguments)) == text


def test_what_is_given_as_text_is_kept_and_other_objects_are_not() -> None:
    assert samplers.text_of(optuna.create_study().sampler) == "tpe"
    assert samplers.text_of(optuna.samplers.RandomSampler()) == "random"
    assert samplers.text_of(optuna.samplers.NSGAIISampler()) is None
    assert samplers.text_of("tpe(n_startup_trials=3)") == "tpe(n_startup_trials=3)"
    assert samplers.text_of(None) is None


def test_draws_from_a_whole_space_are_those_of_a_random_sampler_asked_for_one_at_a_time() -> None:
    space = {
        "x": FloatDistribution(-3.0, 3.0),
        "step": FloatDistribution(0.0, 1.0, step=0.25),
        "rate": FloatDistribution(1e-5, 1.0, log=True),
        "one": FloatDistribution(2.0, 2.0),
        "width": IntDistribution(1, 512, log=True),
        "layers": IntDistribution(1, 9, step=2),
        "kind": CategoricalDistribution(["a", "bb", None]),
    }
    whole, alone = optuna.samplers.RandomSampler(), optuna.samplers.RandomSampler()
    draws = blind.Draws(whole, space)
    for number in range(200):
        samplers.reseed(whole, number)
        samplers.reseed(alone, number)
        trial = optuna.create_study(sampler=alone).ask()
        asked = {name: dist.to_internal_repr(trial._suggest(name, dist)) for name, dist in space.items()}
        assert {name: value for name, _, value in draws} == asked


def test_draws_from_a_space_of_single_values_draw_nothing() -> None:
    one = FloatDistribution(2.0, 2.0)
    assert list(blind.Draws(optuna.samplers.RandomSampler(), {"one": one})) == [("one", one, 2.0)]
    assert list(blind.Draws(optuna.samplers.RandomSampler(), {})) == []
