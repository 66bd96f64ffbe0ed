"""A study in memory, as its lease holder sees it: what samplers and pruners read."""

from __future__ import annotations

import bisect
from collections.abc import Container, Iterable
from typing import Any

from optuna.trial import FrozenTrial, TrialState

__all__ = ["StudyImage"]


class StudyImage:
    """The trials and attributes of one study. Used from one thread.

    Trials are changed in place while they run, so a list that a caller keeps sees the change;
    whoever needs a snapshot copies.
    """

    def __init__(self) -> None:
        self.user_attrs: dict[str, Any] = {}
        self.system_attrs: dict[str, Any] = {}
        self._by_id: dict[int, FrozenTrial] = {}
        self._ordered: list[FrozenTrial] = []

    def put(self, trials: Iterable[FrozenTrial]) -> None:
        """Add trials, or replace those of the same id."""
        for trial in trials:
            known = self._by_id.get(trial._trial_id)
            self._by_id[trial._trial_id] = trial
            if known is not None:
                self._ordered[self._ordered.index(known)] = trial
            elif not self._ordered or self._ordered[-1].number < trial.number:
                self._ordered.append(trial)
            else:
                bisect.insort(self._ordered, trial, key=lambda one: one.number)

    def drop(self, trial_id: int) -> None:
        """Forget a trial that is no longer in the database."""
        self._ordered.remove(self._by_id.pop(trial_id))

    def trial(self, trial_id: int) -> FrozenTrial:
        """The trial of that id.

        Raises:
            KeyError: there is none.
        """
        return self._by_id[trial_id]

    def numbered(self, number: int) -> FrozenTrial:
        """The trial of that number.

        Raises:
            KeyError: there is none.
        """
        at = bisect.bisect_left(self._ordered, number, key=lambda one: one.number)
        if at == len(self._ordered) or self._ordered[at].number != number:
            raise KeyError(f"no trial {number}")
        return self._ordered[at]

    def trials(self, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        """The trials in order of number, of all states or of some."""
        if states is None:
            return list(self._ordered)
        return [trial for trial in self._ordered if trial.state in states]
