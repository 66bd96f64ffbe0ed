"""A study under a lease, beside other programs and under kills, against Optuna's storage in memory."""

from __future__ import annotations

import os
import uuid

import hypothesis.strategies as st
import optuna
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    rule,
    run_state_machine_as_test,
)
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from storage import SqlStorage
from tests.store_program import Dead, Operation, Program, outcome, picture, replay

EXAMPLES = int(os.environ.get("TUNER_EXAMPLES", "3"))
"""Histories of 40 steps on each database; ``make chaos`` asks for more."""

DISTRIBUTIONS = {
    "x": FloatDistribution(0.0, 1.0),
    "n": IntDistribution(1, 9, log=True),
    "c": CategoricalDistribution(["a", None, 3]),
}
OTHER = {"x": IntDistribution(0, 1), "n": FloatDistribution(1.0, 9.0), "c": CategoricalDistribution(["b"])}
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)

numbers = st.integers(0, 6)
# without -0.0, which SQLite stores as 0
values = st.floats(allow_nan=False, width=64).map(lambda one: one + 0.0)
reported = st.floats(allow_nan=True).map(lambda one: one + 0.0)
attributes = st.one_of(
    st.none(), st.integers(), st.text(max_size=5).filter(lambda s: "\0" not in s and s.isprintable())
)


@st.composite
def templates(draw: st.DrawFn) -> optuna.trial.FrozenTrial | None:
    state = draw(st.sampled_from([None, TrialState.WAITING, TrialState.RUNNING, *FINISHED]))
    if state is None:
        return None
    names = draw(st.sets(st.sampled_from(sorted(DISTRIBUTIONS))))
    return create_trial(
        state=state,
        value=draw(values) if state == TrialState.COMPLETE else None,
        params={name: {"x": 0.5, "n": 3, "c": None}[name] for name in names},
        distributions={name: DISTRIBUTIONS[name] for name in names},
        user_attrs=draw(st.dictionaries(st.sampled_from("ab"), attributes, max_size=1)),
        intermediate_values=draw(st.dictionaries(st.integers(0, 3), reported, max_size=2)),
    )


creations = st.builds(lambda template: Operation("create_new_trial", None, (template,)), templates())
study_attributes = st.builds(
    lambda key, value: Operation("set_study_user_attr", None, (key, value)), st.sampled_from("ab"), attributes
)
reports = st.builds(
    lambda number, step, value: Operation("set_trial_intermediate_value", number, (step, value)),
    numbers,
    st.integers(0, 3),
    reported,
)
trial_attributes = st.builds(
    lambda number, kind, key, value: Operation(f"set_trial_{kind}_attr", number, (key, value)),
    numbers,
    st.sampled_from(["user", "system"]),
    st.sampled_from("ab"),
    attributes,
)
pops = st.builds(lambda n: Operation("set_trial_state_values", n, (TrialState.RUNNING, None)), numbers)
ends = st.builds(
    lambda number, state, value: Operation(
        "set_trial_state_values", number, (state, [value] if state == TrialState.COMPLETE else None)
    ),
    numbers,
    st.sampled_from(FINISHED),
    values,
)


def param(number: int, name: str, internal: float, other: bool) -> Operation:
    dist = (OTHER if other else DISTRIBUTIONS)[name]
    internal = 0.0 if other and name == "c" else internal
    return Operation("set_trial_param", number, (name, internal, dist))


params = st.builds(
    param, numbers, st.sampled_from("xnc"), st.just(1.0), st.integers(0, 9).map(lambda n: n == 0)
)
awaited = st.one_of(creations, pops, ends)
operations = st.one_of(creations, study_attributes, reports, trial_attributes, pops, ends, params)


class StoreMachine(RuleBasedStateMachine):
    """One holder, in a process that is killed now and then, and another program beside it."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.other = SqlStorage(self.url)
        self.name = f"s{uuid.uuid4().hex[:8]}"
        self.study_id = self.other.create_new_study([optuna.study.StudyDirection.MINIMIZE], self.name)
        self.done: list[Operation] = []
        self.durable = 0
        self.model, self.model_id = replay([])
        self.holder = Program(self.url, self.name, leased=True)

    @rule(operation=operations)
    def the_holder_does(self, operation: Operation) -> None:
        if self._is_told_apart(operation):
            return
        self.done.append(operation)
        expected = outcome(self.model, self.model_id, operation)
        assert self.holder.do(operation) == expected, operation

    @rule(operation=operations)
    def another_program_does(self, operation: Operation) -> None:
        if self._is_told_apart(operation):
            return
        self._flush()
        self.done.append(operation)
        self.durable = len(self.done)
        expected = outcome(self.model, self.model_id, operation)
        assert outcome(self.other, self.study_id, operation) == expected, operation
        self.holder.ask("picture")  # so that the holder has seen it, as it does within half a second

    @rule()
    def both_see_the_model(self) -> None:
        expected = picture(self.model, self.model_id)
        assert self.holder.ask("picture") == expected
        self.durable = len(self.done)
        assert picture(self.other, self.study_id) == expected

    @rule()
    def the_holder_is_killed(self) -> None:
        self.holder.kill()
        self._take_over()

    @rule(operation=awaited, point=st.sampled_from(["begun", "fenced", "written", "committed"]))
    def the_holder_dies_in_a_transaction(self, operation: Operation, point: str) -> None:
        if self._is_told_apart(operation):
            return
        self._flush()
        self.holder.ask("die at", point)
        before = len(self.done)
        self.done.append(operation)
        try:
            self.holder.do(operation)
            self.holder.ask("flush")
        except Dead:
            self._take_over()
            assert len(self.done) == before + (point == "committed")
        else:
            self.holder.kill()  # the operation wrote nothing
            self._take_over()

    @rule()
    def the_holder_leaves_and_another_comes(self) -> None:
        self.holder.end()
        self.durable = len(self.done)
        self.holder = Program(self.url, self.name, leased=True)

    def _flush(self) -> None:
        self.holder.ask("flush")
        self.durable = len(self.done)

    def _take_over(self) -> None:
        """What is found is what was acknowledged as durable, and then a beginning of the rest, in order."""
        found = picture(self.other, self.study_id)
        for count in range(len(self.done), self.durable - 1, -1):
            model, model_id = replay(self.done[:count])
            if picture(model, model_id) == found:
                break
        else:
            raise AssertionError(f"{found} is not what {self.done} gives after {self.durable} or more")
        self.done, self.durable = self.done[:count], count
        self.model, self.model_id = model, model_id
        self.holder = Program(self.url, self.name, leased=True)

    def _is_told_apart(self, operation: Operation) -> bool:
        """Where Optuna's databases, and we, differ from the model.

        They drop a parameter's second value, and compare a distribution with those of added trials too.
        """
        if operation.method != "set_trial_param" or operation.number is None:
            return False
        name, _, distribution = operation.arguments
        trials = self.model.get_all_trials(self.model_id, deepcopy=False)
        if any(name in trial.params for trial in trials if trial.number == operation.number):
            return True
        known = self.model._studies[self.model_id].param_distribution
        return distribution == OTHER[name] and name not in known

    def teardown(self) -> None:
        self.both_see_the_model()
        plain = optuna.storages.RDBStorage(self.url, skip_table_creation=True)
        try:
            assert picture(plain, self.study_id) == picture(self.model, self.model_id)
        finally:
            plain.engine.dispose()
            self.holder.end()
            self.other.remove_session()


def test_a_study_is_what_optuna_in_memory_makes_of_the_same_calls(url: str) -> None:
    class Machine(StoreMachine):
        pass

    Machine.url = url
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=40,
            suppress_health_check=list(HealthCheck),
            phases=[
                Phase.explicit,
                Phase.reuse,
                Phase.generate,
            ],  # to shrink takes longer than to read what failed
        ),
    )
