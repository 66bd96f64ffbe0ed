"""What follows a failed attempt, and what stops a study."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tuner
from tuner.errors import BadInput
from tuner.outcome import Outcome, Reason
from tuner.retry import Again, Decision, PastAttempt, Retry, decide, should_stop_study

CHARGED = (Reason.RANK_LOST, Reason.STALLED, Reason.TIMEOUT, Reason.OOM)
UNCHARGED = (
    Reason.NODE_LOST,
    Reason.NODE_MEMORY,
    Reason.DEVICE_FAILED,
    Reason.CHECKPOINT_NOT_SAVED,
    Reason.PREEMPTED,
    Reason.DRIVER_LOST,
    Reason.INTERRUPTED,
)


def after(reason: Reason, policy: Retry, *history: Reason, exception: str = "") -> Decision:
    past = [PastAttempt(reason=one, charged=one not in UNCHARGED) for one in history]
    return decide(Outcome(reason=reason, exception=exception), past, policy)


@pytest.mark.parametrize("reason", sorted(set(Reason) - set(CHARGED) - set(UNCHARGED)))
def test_an_outcome_that_would_only_repeat_itself_is_final(reason: Reason) -> None:
    decision = after(reason, Retry(), exception="ValueError")
    assert not decision.again
    assert decision.charged == (reason not in (Reason.COMPLETE, Reason.PRUNED))


@pytest.mark.parametrize("reason", [Reason.RANK_LOST, Reason.STALLED, Reason.TIMEOUT])
@pytest.mark.parametrize("most", [0, 1, 3])
def test_a_trial_has_one_more_charged_attempt_than_it_may_fail(reason: Reason, most: int) -> None:
    policy = Retry(max_failures=most)
    history: list[Reason] = []
    while after(reason, policy, *history).again:
        history.append(reason)
    assert len(history) + 1 == most + 1
    assert f"max_failures={most}" in after(reason, policy, *history).why


def test_out_of_memory_is_tried_once_more_only() -> None:
    assert after(Reason.OOM, Retry(max_failures=3)).again
    assert not after(Reason.OOM, Retry(max_failures=3), Reason.OOM).again
    assert not after(Reason.OOM, Retry(max_failures=0)).again
    assert after(Reason.OOM, Retry(max_failures=3), Reason.RANK_LOST).again


def test_what_is_not_the_trials_fault_takes_nothing_from_its_failures() -> None:
    policy = Retry(max_failures=1, max_preemptions=5)
    history = [Reason.NODE_LOST, Reason.DRIVER_LOST, Reason.INTERRUPTED, Reason.PREEMPTED]
    assert after(Reason.RANK_LOST, policy, *history).again
    decision = after(Reason.NODE_LOST, policy, *history, Reason.RANK_LOST)
    assert (decision.again, decision.charged) == (True, False)


@pytest.mark.parametrize("reason", UNCHARGED)
def test_uncharged_attempts_have_a_bound_of_their_own(reason: Reason) -> None:
    policy = Retry(max_preemptions=2, max_failures=0)
    assert after(reason, policy, reason).again
    decision = after(reason, policy, reason, reason)
    assert (decision.again, decision.charged) == (False, False)


def test_the_delay_doubles_up_to_a_minute() -> None:
    policy = Retry(max_failures=9, backoff=4)
    delays = [after(Reason.RANK_LOST, policy, *[Reason.RANK_LOST] * past).delay for past in range(7)]
    assert delays == [4, 8, 16, 32, 60, 60, 60]
    assert after(Reason.RANK_LOST, Retry(backoff=0)).delay == 0


@pytest.mark.parametrize("reason", [Reason.DRIVER_LOST, Reason.INTERRUPTED])
def test_a_resumed_trial_does_not_wait(reason: Reason) -> None:
    assert after(reason, Retry(backoff=30), reason, reason).delay == 0


@given(
    reasons=st.lists(st.sampled_from(Reason), max_size=30),
    failures=st.integers(0, 4),
    preemptions=st.integers(0, 4),
)
def test_no_course_of_events_gives_more_attempts_than_the_policy(
    reasons: list[Reason], failures: int, preemptions: int
) -> None:
    policy = Retry(max_failures=failures, max_preemptions=preemptions, retry_on=("ValueError",))
    history: list[PastAttempt] = []
    for reason in reasons:
        decision = decide(Outcome(reason=reason, exception="ValueError"), history, policy)
        if not decision.again:
            break
        assert 0 <= decision.delay <= 60
        assert decision.why
        history.append(PastAttempt(reason=reason, charged=decision.charged))
    assert sum(past.charged for past in history) <= failures
    assert sum(not past.charged for past in history) <= preemptions


class Flaky(Exception):
    pass


@pytest.mark.parametrize(
    ("listed", "raised", "again"),
    [
        ((), "ValueError", False),
        ((ValueError,), "ValueError", True),
        ((ValueError,), "TypeError", False),
        ((OSError,), "ConnectionResetError", True),
        ((ConnectionError,), "OSError", False),
        ((Exception,), "torch.cuda.OutOfWhatever", True),
        ((Flaky,), f"{Flaky.__module__}.Flaky", True),
        ((Flaky,), "other.Flaky", False),
        (("__main__.Flaky",), "train.Flaky", True),  # the script has another name on a worker
        (("Flaky",), "train.Flaky", True),
        (("a.b.Flaky", KeyError), "KeyError", True),
    ],
)
def test_an_exception_is_tried_again_where_it_is_listed(listed: Any, raised: str, again: bool) -> None:
    decision = after(Reason.EXCEPTION, Retry(retry_on=listed), exception=raised)
    assert (decision.again, decision.charged) == (again, True)


def test_a_listed_exception_counts_as_a_failure() -> None:
    policy = Retry(max_failures=1, retry_on=(ValueError,))
    assert not after(Reason.EXCEPTION, policy, Reason.RANK_LOST, exception="ValueError").again


def test_one_type_may_be_given_without_a_tuple() -> None:
    alone: Any = ValueError
    assert Retry(retry_on=alone) == Retry(retry_on=("ValueError",))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_failures": -1}, "max_failures=-1"),
        ({"max_failures": 1.5}, "max_failures=1.5"),
        ({"max_failures": True}, "max_failures=True"),
        ({"max_preemptions": None}, "max_preemptions=None"),
        ({"stop_after": "5"}, "stop_after='5'"),
        ({"backoff": -0.1}, "backoff=-0.1"),
        ({"backoff": float("nan")}, "backoff=nan"),
        ({"backoff": "1"}, "backoff='1'"),
        ({"retry_on": (3,)}, "retry_on=3"),
        ({"retry_on": (ValueError("x"),)}, "retry_on=ValueError"),
    ],
)
def test_a_bad_policy_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInput) as caught:
        Retry(**fields)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_policy_survives_the_store() -> None:
    policy = Retry(max_failures=7, retry_on=(Flaky, OSError, "a.B"), backoff=0.5, stop_after=0)
    assert Retry.from_json(policy.to_json()) == policy
    assert Retry.from_json('{"max_failures": 2, "of_a_newer_version": 1}') == Retry(max_failures=2)


# ---------------------------------------------------------------------------- the study

TRACEBACK = 'Traceback (most recent call last):\n  File "t.py", line {}, in objective\nValueError: {}'


def raised(line: int = 3, text: str = "x") -> Outcome:
    return Outcome(
        reason=Reason.EXCEPTION,
        message=f"ValueError: {text}",
        exception="ValueError",
        traceback=TRACEBACK.format(line, text),
    )


def test_identical_tracebacks_in_a_row_stop_the_study_and_are_shown() -> None:
    failures = [raised(text=str(at)) for at in range(5)]  # the text may carry the trial's values
    assert should_stop_study(failures[:4], Retry()) is None
    why = should_stop_study(failures, Retry())
    assert why is not None
    assert why.startswith("5 trials in a row failed alike: exception: ValueError: 4\n")
    assert why.endswith(failures[-1].traceback)


def test_failures_of_different_places_or_types_do_not_stop_the_study() -> None:
    assert should_stop_study([*[raised(3)] * 4, raised(4)], Retry()) is None
    other = Outcome(reason=Reason.EXCEPTION, exception="KeyError", traceback=raised().traceback)
    assert should_stop_study([*[raised()] * 4, other], Retry()) is None


def test_only_the_last_failures_count() -> None:
    assert should_stop_study([raised(9), raised(), raised()], Retry(stop_after=2)) is not None


def test_an_error_at_import_stops_the_study_at_once() -> None:
    why = should_stop_study([Outcome(reason=Reason.IMPORT_ERROR, message="t.py line 1: no")], Retry())
    assert why == "the objective cannot be imported on a worker: t.py line 1: no"


@pytest.mark.parametrize(
    "reason", [Reason.NAN, Reason.INFINITE, Reason.TIMEOUT, Reason.STALLED, Reason.OOM, Reason.STOPPED]
)
def test_what_speaks_of_a_trials_parameters_never_stops_the_study(reason: Reason) -> None:
    assert should_stop_study([Outcome(reason=reason, message="the same")] * 9, Retry()) is None


def test_an_objective_that_returns_nothing_stops_the_study() -> None:
    nothing = Outcome(reason=Reason.BAD_VALUE, message="the objective returned None; it must return a number")
    why = should_stop_study([nothing] * 5, Retry())
    assert why is not None
    assert "returned None" in why


def test_zero_never_stops_the_study() -> None:
    never = Retry(stop_after=0)
    assert should_stop_study([raised()] * 99, never) is None
    assert should_stop_study([Outcome(reason=Reason.IMPORT_ERROR)], never) is None
    assert should_stop_study([], Retry()) is None


@pytest.mark.parametrize("hint", [{"x": object()}, 3, {"x": {1, 2}}])
def test_a_hint_is_plain_data(hint: Any) -> None:
    with pytest.raises(BadInput, match="hint="):
        Again(hint=hint)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"on_oom": "twice"}, "on_oom='twice': give 'alone' or 'fail', or a function"),
        ({"on_oom": "function"}, "was a function, which is not stored"),
        ({"infeasible": ("omm",)}, "infeasible='omm': give reasons of failures: .*oom"),
        ({"infeasible": ("driver_lost",)}, "infeasible='driver_lost'"),
    ],
)
def test_what_cannot_be_a_policy_is_refused(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(BadInput, match=match):
        Retry(**fields)


def test_a_hook_is_asked_for_again_by_name() -> None:
    with pytest.raises(BadInput, match=r"pass retry=tuner\.Retry"):
        Retry.from_json(Retry(on_oom=lambda trial, attempt: None).to_json())


@pytest.mark.parametrize(("policy", "tries"), [("alone", 2), ("fail", 1), (lambda trial, attempt: None, 4)])
def test_out_of_memory_is_answered_as_was_asked(policy: Any, tries: int) -> None:
    history: list[PastAttempt] = []
    while decide(Outcome(reason=Reason.OOM), history, Retry(on_oom=policy)).again:
        history.append(PastAttempt(reason=Reason.OOM, charged=True))
    assert len(history) + 1 == tries


@pytest.mark.parametrize(
    "answer", ["again", 3, ValueError("the hook fails"), Again(hint={"what no database holds": "\0"})]
)
def test_a_hook_that_fails_fails_its_trial_only(sqlite_url: str, answer: Any) -> None:
    def hook(trial: Any, attempt: int) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    def objective(trial: Any) -> float:
        if trial.number == 0:
            raise MemoryError
        return 1.0

    study = tuner.create_study("s", storage=sqlite_url, sampler="random", seed=1)
    tuner.optimize(
        study, objective, n_trials=2, executor="inline", progress=False, retry=Retry(on_oom=hook, backoff=0)
    )
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE"]
