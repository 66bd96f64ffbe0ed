"""What follows a failed attempt: a pure function of the outcome, the history and the policy.

What each class tells the sampler: a trial that is retried stays RUNNING; one that fails for good
is FAIL, which Optuna's samplers leave out of their history, so that they may suggest the like of it
again; one that fails for a reason listed in ``Retry.infeasible`` is PRUNED without a value, which
TPE ranks below every trial that has one.
"""

from __future__ import annotations

import builtins
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tuner.errors import BadInput
from tuner.outcome import Outcome, Reason
from tuner.resources import Resources

if TYPE_CHECKING:  # the command line's help does without Optuna
    from optuna.trial import FrozenTrial, TrialState

__all__ = ["Again", "Decision", "PastAttempt", "Retry", "decide", "should_stop_study", "state_of"]

_CHARGED = frozenset({Reason.RANK_LOST, Reason.STALLED, Reason.TIMEOUT, Reason.OOM})
_UNCHARGED = frozenset(
    {
        Reason.NODE_LOST,
        Reason.NODE_MEMORY,
        Reason.CHECKPOINT_NOT_SAVED,
        Reason.DEVICE_FAILED,
        Reason.PREEMPTED,
        Reason.DRIVER_LOST,
        Reason.INTERRUPTED,
    }
)
_AT_ONCE = frozenset({Reason.DRIVER_LOST, Reason.INTERRUPTED})
_DEFECTS = frozenset({Reason.EXCEPTION, Reason.BAD_VALUE, Reason.REFUSED, Reason.RANK_LOST})
_MAX_DELAY = 60.0
_FAILURES = frozenset(set(Reason) - {Reason.COMPLETE, Reason.PRUNED, Reason.FINISHED_ELSEWHERE} - _UNCHARGED)
_FUNCTION = "function"  # what is kept of a hook, which is code


@dataclass(frozen=True, kw_only=True)
class Again:
    """What a hook of ``Retry.on_oom`` answers: try the trial once more, like this.

    Args:
        resources: for this attempt; None: as before.
        hint: becomes user attributes of the trial, where the objective reads it
            (``trial.user_attrs``).
        alone: nothing else of the study runs on its node meanwhile.

    Raises:
        BadInput: the resources or the hint are none.

    Example:
        >>> Again(hint={"micro_batch": 8}).alone
        False
    """

    resources: Resources | None = None
    hint: Mapping[str, Any] = field(default_factory=dict)
    alone: bool = False

    def __post_init__(self) -> None:
        if self.resources is not None and not isinstance(self.resources, Resources):
            raise BadInput(f"Again: resources={self.resources!r}: give tuner.Resources(...)")
        try:
            json.dumps(dict(self.hint))
        except (TypeError, ValueError) as error:
            raise BadInput(f"Again: hint={self.hint!r}: give plain data by name ({error})") from None


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How failures are answered.

    Args:
        max_failures: charged attempts of a trial that may fail before it fails for good; with 3
            a trial has at most 4 charged attempts.
        retry_on: types of exceptions, or their names, after which a trial is tried again; an
            exception that is not listed fails its trial at once. ``Exception`` lists all; a type
            of Python's own covers those of Python's own below it (``OSError``:
            ``ConnectionError``), any other type only itself.
        backoff: seconds before the first retry; doubled for each further one, at most 60.
        max_preemptions: uncharged attempts (a node or driver lost, a node full of others' memory, a
            GPU that failed, a file system that takes no checkpoint, a preemption) of a trial.
        on_oom: after a trial ran out of memory: ``"alone"``: one more try, with nothing else of the
            study on its node; ``"fail"``: none; or a function of (trial, attempt) that returns
            :class:`tuner.Again`, or None to let the trial fail. It is called in the driver, and
            again after a take-over.
        stop_after: identical failures in a row that stop the study; 0 never stops it.
        infeasible: reasons, such as ``("oom", "nan")``, for which a trial that fails for good is told
            as PRUNED, so that the sampler learns to avoid the like of it; see :mod:`tuner.retry`.

    Raises:
        BadInput: a value is out of range.

    Example:
        >>> Retry(max_failures=1, retry_on=(ConnectionError, "socket.timeout"), infeasible=("oom",)).retry_on
        ('ConnectionError', 'socket.timeout')
    """

    max_failures: int = 3
    retry_on: tuple[Any, ...] = ()
    backoff: float = 1.0
    max_preemptions: int = 100
    on_oom: str | Callable[[FrozenTrial, int], Again | None] = "alone"
    stop_after: int = 5
    infeasible: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_failures", "max_preemptions", "stop_after"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise BadInput(f"retry: {name}={value!r}: give a whole number of at least 0")
        if not isinstance(self.backoff, int | float) or not 0 <= self.backoff < float("inf"):
            raise BadInput(f"retry: backoff={self.backoff!r}: give seconds of at least 0")
        given = self.retry_on if isinstance(self.retry_on, tuple | list) else (self.retry_on,)
        object.__setattr__(self, "retry_on", tuple(_type_name(one) for one in given))
        if self.on_oom == _FUNCTION:
            raise BadInput(
                "retry: on_oom was a function, which is not stored; pass retry=tuner.Retry(on_oom=...)"
            )
        if not callable(self.on_oom) and self.on_oom not in ("alone", "fail"):
            raise BadInput(f"retry: on_oom={self.on_oom!r}: give 'alone' or 'fail', or a function")
        reasons = self.infeasible if isinstance(self.infeasible, tuple | list) else (self.infeasible,)
        for one in reasons:
            if str(one) not in _FAILURES:
                known = ", ".join(sorted(_FAILURES))
                raise BadInput(f"retry: infeasible={one!r}: give reasons of failures: {known}")
        object.__setattr__(self, "infeasible", tuple(str(one) for one in reasons))

    def to_json(self) -> str:
        """The policy as JSON; exception types by their names."""
        fields = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        if callable(self.on_oom):
            fields["on_oom"] = _FUNCTION
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> Retry:
        """The policy that :meth:`to_json` wrote; fields of a newer version are ignored."""
        known = {item.name for item in dataclasses.fields(cls)}
        plain = {name: value for name, value in json.loads(text).items() if name in known}
        for name in ("retry_on", "infeasible"):
            plain[name] = tuple(plain.get(name, ()))
        return cls(**plain)


@dataclass(frozen=True, kw_only=True)
class PastAttempt:
    """An earlier attempt of the same trial."""

    reason: Reason
    charged: bool


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What follows. ``delay`` is in seconds; ``why`` is one line for the event log."""

    again: bool
    charged: bool
    delay: float = 0.0
    why: str = ""


def decide(outcome: Outcome, history: Sequence[PastAttempt], policy: Retry) -> Decision:
    """Whether another attempt follows this outcome.

    Args:
        history: the attempts before this one, oldest first.

    Example:
        >>> decide(Outcome(reason=Reason.RANK_LOST), [], Retry(max_failures=1)).again
        True
    """
    reason = outcome.reason
    if reason in _UNCHARGED:
        used = sum(1 for past in history if not past.charged) + 1
        if used > policy.max_preemptions:
            return Decision(
                again=False, charged=False, why=f"{used} uncharged attempts, max_preemptions reached"
            )
        delay = 0.0 if reason in _AT_ONCE else _delay(policy, used)
        return Decision(again=True, charged=False, delay=delay, why=f"{reason}: not the trial's fault")
    listed = reason is Reason.EXCEPTION and _is_listed(outcome.exception, policy.retry_on)
    if reason not in _CHARGED and not listed:
        return Decision(
            again=False, charged=reason not in (Reason.COMPLETE, Reason.PRUNED), why=f"{reason} is final"
        )
    failures = sum(1 for past in history if past.charged) + 1
    most = policy.max_failures
    if reason is Reason.OOM and not callable(policy.on_oom):
        most = 0 if policy.on_oom == "fail" else min(1, most)
    same = sum(1 for past in history if past.reason is reason) + 1 if reason is Reason.OOM else failures
    if same > most or failures > policy.max_failures:
        why = f"{failures} charged failures, max_failures={policy.max_failures}"
        if same > most:
            why = f"{same} attempts ran out of memory" if reason is Reason.OOM else why
        return Decision(again=False, charged=True, why=why)
    why = f"charged failure {failures} of at most {policy.max_failures}"
    return Decision(again=True, charged=True, delay=_delay(policy, failures), why=why)


def state_of(outcome: Outcome, policy: Retry) -> TrialState:
    """What a trial is told as when it ends for good with this outcome.

    Example:
        >>> state_of(Outcome(reason=Reason.OOM), Retry(infeasible=("oom",))).name
        'PRUNED'
    """
    from optuna.trial import TrialState

    if outcome.reason is Reason.COMPLETE:
        return TrialState.COMPLETE
    is_pruned = outcome.reason is Reason.PRUNED or outcome.reason in policy.infeasible
    return TrialState.PRUNED if is_pruned else TrialState.FAIL


def should_stop_study(failures: Sequence[Outcome], policy: Retry) -> str | None:
    """Why the study stops, given the failures in a row since the last trial that did not fail.

    An error at import stops it at once, since every trial would meet it. Of the others only
    those count that show a defect of the code or the machine, and only where they are alike. A
    NaN, a timeout and a stop by a person speak of one trial, and never stop the study.
    """
    if not failures or not policy.stop_after:
        return None
    last = failures[-1]
    if last.reason is Reason.IMPORT_ERROR:
        return f"the objective cannot be imported on a worker: {last.message}"
    if last.reason not in _DEFECTS:
        return None
    recent = failures[-policy.stop_after :]
    if len(recent) < policy.stop_after or any(_signature(one) != _signature(last) for one in recent):
        return None
    text = f"{policy.stop_after} trials in a row failed alike: {last.reason}: {last.message}"
    return f"{text}\n{last.traceback}" if last.traceback else text


def _signature(outcome: Outcome) -> tuple[str, str, str]:
    """What makes two failures alike: the class, the type of the exception, and where it came from."""
    frames = [line.strip() for line in outcome.traceback.splitlines() if line.strip().startswith("File ")]
    return outcome.reason, outcome.exception, "\n".join(frames) or outcome.message


def _delay(policy: Retry, failures: int) -> float:
    return float(min(_MAX_DELAY, policy.backoff * 2.0 ** min(failures - 1, 20)))


def _is_listed(exception: str, listed: Sequence[str]) -> bool:
    return any(_covers(name, exception) for name in listed)


def _covers(name: str, exception: str) -> bool:
    """Whether a listed name means this exception; a script's own ``__main__`` has another name there."""
    module, _, short = name.rpartition(".")
    if name in ("Exception", "BaseException", exception):
        return True
    if module in ("", "__main__") and short == exception.rpartition(".")[2]:
        return "." in exception or not module
    known, raised = vars(builtins).get(name), vars(builtins).get(exception)
    return isinstance(known, type) and isinstance(raised, type) and issubclass(raised, known)


def _type_name(given: Any) -> str:
    if isinstance(given, str):
        return given
    if isinstance(given, type) and issubclass(given, BaseException):
        return (
            given.__qualname__
            if given.__module__ == "builtins"
            else f"{given.__module__}.{given.__qualname__}"
        )
    raise BadInput(f"retry: retry_on={given!r}: give exception types, such as (ConnectionError,)")
