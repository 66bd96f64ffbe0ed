"""What a driver makes of attempts that end badly, or that another driver has left; the executor is played."""

from __future__ import annotations

from collections.abc import Iterator

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution, distribution_to_json
from optuna.trial import TrialState

import tuner
from tests.test_commands import Played, drive, until
from tests.test_optimize import make
from tuner.messages import Param
from tuner.outcome import Reason


def test_an_attempt_whose_parameter_is_refused_fails_however_it_has_ended(
    monkeypatch: pytest.MonkeyPatch, sqlite_url: str
) -> None:
    make(sqlite_url)
    monkeypatch.setattr(Played, "kill", lambda self, number, reason, message: None)  # too late

    def play(executor: Played) -> Iterator[None]:
        yield from until(lambda: len(executor.running) == 2)
        for number, distribution in enumerate((FloatDistribution(0, 1), IntDistribution(0, 1))):
            said = Param(name="kind", value=1.0, distribution=distribution_to_json(distribution))
            executor._waiting.append((number, said))
            executor.finish(number)

    drive(monkeypatch, sqlite_url, play, n_trials=2, max_concurrent=2, retry=tuner.Retry(max_failures=0))
    good, refused = tuner.load_study("s", storage=sqlite_url).trials
    assert (good.state, good.params) == (TrialState.COMPLETE, {"kind": 1.0})
    assert (refused.state, refused.params) == (TrialState.FAIL, {})


def test_what_a_driver_left_that_a_callback_ended_goes_on_at_once(
    monkeypatch: pytest.MonkeyPatch, sqlite_url: str
) -> None:
    make(sqlite_url)
    monkeypatch.setattr(Played, "is_gone", lambda self, home, ranks: False)  # as of another driver's Ray

    def leave(executor: Played) -> Iterator[None]:
        yield from until(lambda: len(executor.running) == 2)
        executor.finish(0)
        yield from until(lambda: False)

    def fail(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        raise LookupError("of a callback")

    with pytest.raises(LookupError, match="of a callback"):
        drive(monkeypatch, sqlite_url, leave, n_trials=2, max_concurrent=2, callbacks=[fail])
    states = [trial.state for trial in tuner.load_study("s", storage=sqlite_url).trials]
    assert states == [TrialState.COMPLETE, TrialState.RUNNING]

    def go_on(executor: Played) -> Iterator[None]:
        yield from until(lambda: 1 in executor.running)  # it would take a minute otherwise
        executor.finish(1, Reason.COMPLETE)

    drive(monkeypatch, sqlite_url, go_on, n_trials=2, max_concurrent=2)
    states = [trial.state for trial in tuner.load_study("s", storage=sqlite_url).trials]
    assert states == [TrialState.COMPLETE, TrialState.COMPLETE]
