"""What an objective sees of its trial, and what leaves the rank for it."""

from __future__ import annotations

import datetime
import warnings
from pathlib import Path
from typing import Any

import numpy
import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.trial import FrozenTrial, TrialState

from tuner import frozen
from tuner.assignment import Assignment, Draw, ObjectiveRef, Resume
from tuner.channel import Place
from tuner.errors import BadCheckpoint, BadInput, Interrupted
from tuner.messages import (
    Ask,
    Call,
    Constraint,
    Log,
    Message,
    Param,
    Report,
    Sample,
    Saved,
    SystemAttr,
    UserAttr,
)
from tuner.resources import Resources
from tuner.trial import Trial


class FakeChannel:
    """Keeps what is sent, and answers questions by type from ``answers``."""

    def __init__(self, **answers: Any) -> None:
        self.sent: list[Message] = []
        self.asked: list[Any] = []
        self.answers = answers
        self.stop = False

    def send(self, message: Message) -> None:
        self.sent.append(message)

    def ask(self, kind: Any, **fields: Any) -> Any:
        question = kind(id=len(self.asked) + 1, **fields)
        self.asked.append(question)
        answer = self.answers.get(kind.__name__)
        answer = answer(question) if callable(answer) else answer
        if isinstance(answer, Exception):
            raise answer
        return answer

    def stop_requested(self) -> bool:
        return self.stop


class NoStore:
    """A store of which nothing is asked."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"store.{name} was used")


def assignment(**fields: Any) -> Assignment:
    plain: dict[str, Any] = {
        "run": "r",
        "epoch": 1,
        "study": "digits",
        "directions": ("minimize",),
        "number": 7,
        "attempt": 2,
        "seed": 99,
        "started": "2026-01-02T03:04:05.678900",
        "objective": ObjectiveRef(),
        "resources": Resources(),
    }
    return Assignment(**{**plain, **fields})


def make(channel: FakeChannel | None = None, rank: int = 0, store: Any = None, **fields: Any) -> Trial:
    place = Place(rank=rank, local_rank=rank, world_size=1 if store is None else 2)
    return Trial(assignment(**fields), place, channel or FakeChannel(), store)


def draw(value: float, distribution: Any) -> Draw:
    return Draw(value=value, distribution=distribution_to_json(distribution))


# ----------------------------------------------------------------- place


def test_a_trial_is_optunas_and_knows_its_place() -> None:
    trial = make(rank=1, store=NoStore())
    assert isinstance(trial, optuna.trial.Trial)
    assert (trial.rank, trial.local_rank, trial.world_size) == (1, 1, 2)
    assert (trial.number, trial.attempt, trial.seed) == (7, 2, 99)
    assert trial.datetime_start == datetime.datetime(2026, 1, 2, 3, 4, 5, 678900)


def test_without_gpus_the_device_is_the_cpu() -> None:
    import torch

    assert make().device == torch.device("cpu")


# ----------------------------------------------------------------- parameters


def test_a_parameter_that_did_not_travel_is_asked_for_and_recorded() -> None:
    channel = FakeChannel(Sample=lambda question: 1.0 if question.name == "c" else 0.25)
    trial = make(channel)
    assert trial.suggest_float("x", 0, 1) == 0.25
    assert trial.suggest_categorical("c", ["a", None]) is None
    assert [type(question) for question in channel.asked] == [Sample, Sample]
    assert channel.sent == [
        Param(name="x", value=0.25, distribution=distribution_to_json(FloatDistribution(0, 1))),
        Param(name="c", value=1.0, distribution=distribution_to_json(CategoricalDistribution(["a", None]))),
    ]
    assert trial.params == {"x": 0.25, "c": None}


def test_the_joint_draw_travels_with_the_trial() -> None:
    channel = FakeChannel()
    trial = make(
        channel, relative={"n": draw(3.0, IntDistribution(1, 5)), "unused": draw(1, FloatDistribution(0, 1))}
    )
    value = trial.suggest_int("n", 1, 5)
    assert value == 3
    assert isinstance(value, int)
    assert channel.asked == []
    assert [message.name for message in channel.sent] == ["n"]


def test_a_relative_value_outside_the_range_is_sampled_anew() -> None:
    channel = FakeChannel(Sample=9.0)
    assert make(channel, relative={"n": draw(3.0, IntDistribution(1, 5))}).suggest_int("n", 8, 9) == 9


def test_an_enqueued_parameter_wins_and_a_wrong_one_warns() -> None:
    trial = make(fixed={"c": "b", "x": 5.0}, relative={"x": draw(0.5, FloatDistribution(0, 1))})
    assert trial.suggest_categorical("c", ["a", "b"]) == "b"
    with pytest.warns(UserWarning, match="out of range"):
        assert trial.suggest_float("x", 0, 1) == 5.0


def test_parameters_of_an_earlier_attempt_stay_and_are_not_sent_again() -> None:
    channel = FakeChannel()
    trial = make(channel, params={"c": draw(1, CategoricalDistribution(["a", "b"]))}, fixed={"c": "a"})
    assert trial.params == {"c": "b"}
    assert trial.suggest_categorical("c", ["a", "b"]) == "b"
    assert channel.sent == channel.asked == []
    with pytest.raises(ValueError, match="CategoricalDistribution"):
        trial.suggest_categorical("c", ["a", "z"])


_DISTRIBUTIONS = (
    FloatDistribution(0.0, 1.0),
    FloatDistribution(0.0, 2.0),
    FloatDistribution(0.1, 1.0, log=True),
    FloatDistribution(0.0, 1.0, step=0.25),
    IntDistribution(0, 1),
    CategoricalDistribution((0, 1)),
    CategoricalDistribution((False, True)),
    CategoricalDistribution((1.0, float("nan"))),
    CategoricalDistribution((1.0, None)),
)


@pytest.mark.parametrize("second", _DISTRIBUTIONS, ids=str)
@pytest.mark.parametrize("first", _DISTRIBUTIONS, ids=str)
def test_a_parameter_that_it_has_is_given_as_optuna_gives_it(
    first: BaseDistribution, second: BaseDistribution
) -> None:
    theirs = optuna.create_study().ask({"x": first})
    stored = first.to_internal_repr(theirs.params["x"])
    ours = Trial(
        assignment(params={"x": Draw(value=stored, distribution=distribution_to_json(first))}),
        Place(),
        FakeChannel(),
        None,
    )
    assert _given(ours, second) == _given(theirs, second)


def _given(trial: optuna.trial.Trial, distribution: BaseDistribution) -> tuple[str, list[str]]:
    """What a trial gives or raises, and what it warns of."""
    kinds = {FloatDistribution: trial.suggest_float, IntDistribution: trial.suggest_int}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            if isinstance(distribution, CategoricalDistribution):
                value = trial.suggest_categorical("x", distribution.choices)
            else:
                fields = {**vars(distribution)}
                value = kinds[type(distribution)]("x", fields.pop("low"), fields.pop("high"), **fields)
        except ValueError as error:
            return f"ValueError: {error}", [str(one.message) for one in said]
    return repr(value), [str(one.message) for one in said]


def test_a_single_value_needs_no_question() -> None:
    channel = FakeChannel()
    assert make(channel).suggest_int("n", 4, 4) == 4
    assert channel.asked == []


def test_another_rank_asks_and_records_parameters_alone() -> None:
    channel = FakeChannel(Sample=0.25)
    trial = make(channel, rank=1, store=NoStore())
    assert trial.suggest_float("x", 0, 1) == 0.25
    trial.report(1.0, 0)
    trial.log({"loss": 1}, 0)
    trial.set_user_attr("k", 1)
    trial.set_constraint("c", 0)
    (said,) = channel.sent  # the trial has run with it, also where rank 0 never comes to suggest it
    assert isinstance(said, Param)
    assert (said.name, said.value) == ("x", 0.25)
    assert (trial.params, trial.user_attrs, trial.constraints) == ({"x": 0.25}, {"k": 1}, {"c": 0})


@pytest.mark.parametrize("name", ["a\0b", "x" * 513, ""])
def test_a_name_that_no_database_holds_is_refused(name: str) -> None:
    channel = FakeChannel(Sample=0.5)
    trial = make(channel)
    for call in (
        lambda: trial.suggest_float(name, 0, 1),
        lambda: trial.set_user_attr(name, 1),
        lambda: trial.set_constraint(name, 1),
        lambda: trial.log({name: 1.0}, 0),
    ):
        with pytest.raises(BadInput, match="the name"):
            call()
    assert channel.sent == channel.asked == []


def test_the_longest_names_are_taken() -> None:
    trial = make(FakeChannel(Sample=0.5))
    trial.suggest_float("x" * 512, 0, 1)
    trial.set_constraint("x" * 500, 1)  # stored under "constraints:..."
    with pytest.raises(BadInput, match="500"):
        trial.set_constraint("x" * 501, 1)


# ----------------------------------------------------------------- reports


def test_reports_and_metrics_are_sent_in_order() -> None:
    channel = FakeChannel()
    trial = make(channel)
    trial.report(numpy.float32(0.5), 0)
    trial.log({"a": 1, "b": numpy.float64(2)}, numpy.int64(1))
    trial.report(float("nan"), 2**31 - 1)
    trial.log({}, 3)
    assert channel.sent[:2] == [Report(step=0, value=0.5), Log(step=1, metrics={"a": 1.0, "b": 2.0})]
    assert channel.sent[2].step == 2**31 - 1
    assert len(channel.sent) == 3


@pytest.mark.parametrize("step", [-1, 2**31, numpy.int64(2**31)])
def test_a_step_out_of_range_is_refused_everywhere(step: int, tmp_path: Path) -> None:
    trial = make(checkpoints=str(tmp_path))
    for call in (
        lambda: trial.report(0.0, step),
        lambda: trial.log({"a": 1}, step),
        lambda: trial.save_checkpoint({}, step),
        lambda: trial.checkpoint_dir(step).__enter__(),
    ):
        with pytest.raises(ValueError, match=f"step={int(step)}"):
            call()
    assert list(tmp_path.iterdir()) == []


def test_values_that_are_no_numbers_are_refused() -> None:
    trial = make()
    with pytest.raises(TypeError, match="float"):
        trial.report("high", 0)
    with pytest.raises(BadInput, match="'a' is str"):
        trial.log({"a": "high"}, 0)
    with pytest.raises(TypeError, match="step='one'"):
        trial.report(0.0, "one")


def test_a_step_that_was_reported_before_the_checkpoint_is_ignored_with_optunas_warning() -> None:
    channel = FakeChannel()
    trial = make(channel, reports={0: 1.0})
    with pytest.warns(UserWarning, match="already reported"):
        trial.report(2.0, 0)
    trial.report(2.0, 1)
    assert channel.sent == [Report(step=1, value=2.0)]


def test_several_objectives_neither_report_nor_prune() -> None:
    trial = make(directions=("minimize", "maximize"))
    with pytest.raises(NotImplementedError):
        trial.report(1.0, 0)
    with pytest.raises(NotImplementedError):
        trial.should_prune()


# ----------------------------------------------------------------- attributes


def test_user_attributes_are_plain_copies() -> None:
    channel = FakeChannel()
    trial = make(channel, user_attrs={"old": 1})
    value = {"a": [1, (2, None)]}
    trial.set_user_attr("k", value)
    value["a"].append("later")
    assert channel.sent == [UserAttr(key="k", value={"a": [1, [2, None]]})]
    assert trial.user_attrs == {"old": 1, "k": {"a": [1, [2, None]]}}


def test_a_user_attribute_that_cannot_be_stored_is_named() -> None:
    channel = FakeChannel()
    trial = make(channel)
    with pytest.raises(TypeError, match=r"'model'.*not JSON serializable"):
        trial.set_user_attr("model", {"w": object()})
    with pytest.raises(BadInput, match=r"'big'.*1048576"):
        trial.set_user_attr("big", "x" * 2**20)
    with pytest.raises(BadInput, match=r"'nul'.*NUL"):
        trial.set_user_attr("nul", ["a\0"])
    trial.set_user_attr("backslash", "\\u0000")
    assert [message.key for message in channel.sent] == ["backslash"]


def test_constraints_are_set_once_over_all_attempts() -> None:
    channel = FakeChannel()
    trial = make(channel, system_attrs={"constraints:old": 1.0})
    trial.set_constraint("new", -1)
    with pytest.warns(UserWarning, match="already set"):
        trial.set_constraint("old", 5)
    assert channel.sent == [Constraint(key="new", value=-1.0)]
    assert trial.constraints == {"old": 1.0, "new": -1.0}
    with pytest.raises(ValueError, match="NaN"):
        trial.set_constraint("x", float("nan"))


def test_what_a_library_notes_is_sent_and_stays_readable() -> None:
    channel = FakeChannel()
    trial: Any = make(channel, system_attrs={"artifacts:1": "{}"})
    trial.storage.set_trial_system_attr(trial._trial_id, "mlflow_run_id", "a")
    assert channel.sent == [SystemAttr(key="mlflow_run_id", value="a")]
    assert trial.study._storage.get_trial_system_attrs(0) == {"artifacts:1": "{}", "mlflow_run_id": "a"}
    with pytest.raises(TypeError, match="system attribute 'run'"):
        trial.storage.set_trial_system_attr(trial._trial_id, "run", object())


# ----------------------------------------------------------------- pruning and stopping


def test_should_prune_asks_the_driver_once_something_is_reported() -> None:
    channel = FakeChannel(Ask=True)
    trial = make(channel)
    assert trial.should_prune() is False
    assert channel.asked == []
    trial.report(1.0, 0)
    assert trial.should_prune() is True
    assert channel.asked == [Ask(id=1, ordinal=2)]


@pytest.mark.parametrize("rank", [0, 1])
def test_where_the_pruner_never_prunes_nobody_is_asked(rank: int) -> None:
    channel = FakeChannel(Ask=True)
    trial = make(channel, rank=rank, store=NoStore(), can_prune=False)
    trial.report(1.0, 0)
    assert trial.should_prune() is False
    assert channel.asked == []


def test_should_stop_says_what_the_channel_says_and_stays_true() -> None:
    channel = FakeChannel()
    trial = make(channel)
    assert trial.should_stop() is False
    channel.stop = True
    assert trial.should_stop() is True
    channel.stop = False
    assert trial.should_stop() is True


def test_code_that_never_asks_is_interrupted_at_its_next_word(tmp_path: Path) -> None:
    channel = FakeChannel(Ask=False)
    trial = make(channel, checkpoints=str(tmp_path))
    channel.stop = True
    for call in (lambda: trial.report(1.0, 0), trial.should_prune):
        with pytest.raises(Interrupted):
            call()
    assert channel.sent == channel.asked == []
    with pytest.raises(Interrupted):
        trial.save_checkpoint({"a": 1}, 0)
    assert [type(question) for question in channel.asked] == [Saved]  # kept, then interrupted


def test_code_that_asks_should_stop_is_trusted(tmp_path: Path) -> None:
    channel = FakeChannel(Ask=False)
    trial = make(channel, checkpoints=str(tmp_path))
    channel.stop = True
    assert trial.should_stop()
    trial.report(1.0, 0)
    assert trial.should_prune() is False
    trial.save_checkpoint({"a": 1}, 0)


def test_only_rank_0_decides_on_interruption() -> None:
    channel = FakeChannel()
    channel.stop = True
    make(channel, rank=1, store=NoStore()).report(1.0, 0)


# ----------------------------------------------------------------- checkpoints


def resumed(trial: Trial, channel: FakeChannel, world: int = 1) -> Resume:
    from tuner.assignment import Shard

    saved = channel.asked[-1]
    shard = Shard(rank=trial.rank, path=saved.path, digest=saved.digest, size=saved.size)
    return Resume(attempt=trial.attempt, step=saved.step, shards=(shard,) * world)


def test_a_checkpoint_is_recorded_and_comes_back(tmp_path: Path) -> None:
    channel = FakeChannel()
    trial = make(channel, checkpoints=str(tmp_path))
    assert trial.load_checkpoint() is None
    trial.save_checkpoint({"epoch": 4, "w": numpy.ones(2)}, numpy.int64(4))
    (saved,) = channel.asked
    assert (type(saved), saved.step) == (Saved, 4)
    assert saved.path == str(tmp_path / "a2" / "step-4" / "rank-0.pt")
    loaded = make(resume=resumed(trial, channel)).load_checkpoint()
    assert loaded is not None
    assert (loaded.step, loaded.state["epoch"], loaded.state["w"].tolist()) == (4, 4, [1, 1])


def test_with_more_ranks_than_shards_they_are_dealt_out_again(tmp_path: Path) -> None:
    shards = []
    for rank in (0, 1):
        channel = FakeChannel()
        trial = make(channel, rank=rank, store=NoStore(), checkpoints=str(tmp_path))
        trial.save_checkpoint({"rank": rank}, 1)
        shards.append(resumed(trial, channel).shards[0])
    resume = Resume(attempt=2, step=1, shards=tuple(shards))
    states = [make(rank=rank, store=NoStore(), resume=resume).load_checkpoint() for rank in range(4)]
    assert [found.state["rank"] for found in states if found] == [0, 1, 0, 1]


def test_a_refused_state_is_not_recorded(tmp_path: Path) -> None:
    channel = FakeChannel()
    with pytest.raises(BadCheckpoint, match=r"state\['f'\]"):
        make(channel, checkpoints=str(tmp_path)).save_checkpoint({"f": print}, 0)
    assert channel.asked == []


def test_a_folder_becomes_a_checkpoint_when_its_block_ends_well(tmp_path: Path) -> None:
    channel = FakeChannel()
    trial = make(channel, checkpoints=str(tmp_path))
    with trial.checkpoint_dir(3) as folder:
        (folder / "model.bin").write_bytes(b"1")
        assert channel.asked == []
    assert [path.name for path in (tmp_path / "a2" / "step-3").iterdir()] == ["rank-0.dir"]
    loaded = make(resume=resumed(trial, channel)).load_checkpoint()
    assert loaded is not None
    assert isinstance(loaded.state, Path)
    assert (loaded.state / "model.bin").read_bytes() == b"1"


def fill_and_fail(trial: Trial) -> None:
    with trial.checkpoint_dir(3) as folder:
        (folder / "half").write_text("")
        raise ZeroDivisionError


def test_a_folder_whose_block_fails_is_removed(tmp_path: Path) -> None:
    channel = FakeChannel()
    with pytest.raises(ZeroDivisionError):
        fill_and_fail(make(channel, checkpoints=str(tmp_path)))
    assert channel.asked == []
    assert [path for path in tmp_path.rglob("*") if path.is_file() or "rank" in path.name] == []


def test_without_a_place_for_checkpoints_the_line_says_so() -> None:
    for call in (lambda: make().save_checkpoint({}, 0), lambda: make().checkpoint_dir(0).__enter__()):
        with pytest.raises(BadInput, match="checkpoints="):
            call()


# ----------------------------------------------------------------- trial.study


def finished(number: int, value: float) -> FrozenTrial:
    return FrozenTrial(
        number=number,
        trial_id=number + 10,
        state=TrialState.COMPLETE,
        value=value,
        datetime_start=datetime.datetime(2026, 1, 1),
        datetime_complete=datetime.datetime(2026, 1, 2, 3, 4, 5, 6),
        params={"n": 3, "c": None, "x": 0.1},
        distributions={
            "n": IntDistribution(1, 9, log=True),
            "c": CategoricalDistribution(["a", None]),
            "x": FloatDistribution(0, 1, step=0.1),
        },
        user_attrs={"k": [1]},
        system_attrs={"constraints:a": -1.0},
        intermediate_values={0: 1.0, 5: float("inf")},
    )


def test_trials_survive_their_json_form() -> None:
    import json

    running = FrozenTrial(
        number=3,
        trial_id=4,
        state=TrialState.RUNNING,
        value=None,
        datetime_start=None,
        datetime_complete=None,
        params={},
        distributions={},
        user_attrs={},
        system_attrs={},
        intermediate_values={},
    )
    trials = [finished(0, 1.5), running]
    assert frozen.trials_from_json(json.loads(json.dumps(frozen.trials_to_json(trials)))) == trials


def test_the_study_answers_through_the_driver() -> None:
    trials = [finished(0, 2.0), finished(1, 1.0)]

    def answer(question: Call) -> Any:
        if question.method == "user_attrs":
            return {"owner": "me"}
        if question.method == "best_trial":
            return frozen.trials_to_json(trials[1:])
        return None if question.method == "stop" else frozen.trials_to_json(trials)

    channel = FakeChannel(Call=answer)
    study = make(channel).study
    assert (study.study_name, study.direction.name, len(study.directions)) == ("digits", "MINIMIZE", 1)
    assert channel.asked == []
    assert study.user_attrs == {"owner": "me"}
    assert study.best_trial == trials[1]
    assert (study.best_value, study.best_values, study.best_params) == (1.0, [1.0], trials[1].params)
    assert study.best_trials == study.trials == trials
    study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    assert channel.asked[-1].arguments == {"states": ["COMPLETE", "PRUNED"]}
    study.stop()
    assert channel.asked[-1].method == "stop"


def test_no_best_trial_yet_is_optunas_error() -> None:
    channel = FakeChannel(Call=RuntimeError("ValueError: No trials are completed yet."))
    with pytest.raises(ValueError, match=r"^No trials are completed yet"):
        _ = make(channel).study.best_value


@pytest.mark.parametrize("member", ["optimize", "tell", "add_trial", "enqueue_trial"])
def test_anything_else_of_the_study_names_itself_and_what_there_is(member: str) -> None:
    study = make().study
    with pytest.raises(AttributeError, match=rf"trial.study.{member} .*get_trials"):
        getattr(study, member)
    assert not hasattr(study, member)
