"""How the ends of an attempt's ranks become one outcome: pure functions."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from tuner.outcome import Outcome, Reason

__all__ = ["RankEnding", "decide", "exit_outcome"]

_NORMAL = (Reason.COMPLETE, Reason.PRUNED, Reason.INTERRUPTED)


@dataclass(frozen=True, kw_only=True)
class RankEnding:
    """How one rank ended.

    Attributes:
        rank: which.
        outcome: its own last word, or what its exit code says when it had none.
        collateral: only because a peer went away.
    """

    rank: int
    outcome: Outcome
    collateral: bool = False


def exit_outcome(code: int, log_tail: str) -> Outcome:
    """What an exit without a last word means.

    Args:
        code: exit status; negative for a signal, as :func:`os.waitstatus_to_exitcode` gives it.

    Example:
        >>> exit_outcome(-9, "").message
        'was killed by SIGKILL'
    """
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return Outcome(reason=Reason.RANK_LOST, message=f"was killed by {name}", log_tail=log_tail)
    return Outcome(reason=Reason.RANK_LOST, message=f"exited with code {code}", log_tail=log_tail)


def decide(endings: Sequence[RankEnding], asked: Outcome | None) -> Outcome:
    """The outcome of an attempt.

    Args:
        endings: of the ranks that ended, in order of time; at least one.
        asked: the outcome that we asked for by ending the attempt ourselves, or None.

    Rank 0's normal end stands, whatever the others do. Otherwise what we asked for does; else
    the first rank that failed on its own account, else the first that failed at all.
    """
    for ending in endings:
        if ending.rank == 0 and ending.outcome.reason in _NORMAL:
            if ending.outcome.reason is Reason.INTERRUPTED and asked is not None:
                return dataclasses.replace(ending.outcome, reason=asked.reason)
            return ending.outcome
    if asked is not None:
        tails = [ending.outcome.log_tail for ending in endings if ending.rank == 0]
        return dataclasses.replace(asked, log_tail=tails[0] if tails else "")
    failed = [ending for ending in endings if ending.outcome.reason not in _NORMAL]
    causes = [ending for ending in failed if not ending.collateral] or failed or list(endings)
    cause = causes[0]
    outcome = cause.outcome
    if outcome.reason in (Reason.RANK_LOST, Reason.NODE_LOST):
        outcome = dataclasses.replace(outcome, message=f"rank {cause.rank} {outcome.message}")
    early = [ending.rank for ending in endings if ending.rank and ending.outcome.reason is Reason.COMPLETE]
    if cause.collateral and early:
        text = f"rank {early[0]} returned while the others went on: {outcome.message}"
        return dataclasses.replace(outcome, message=text)
    if outcome.reason in _NORMAL:  # a rank left early and well, and rank 0 never ended
        return Outcome(reason=Reason.RANK_LOST, message=f"rank {cause.rank} left while the others went on")
    return outcome
