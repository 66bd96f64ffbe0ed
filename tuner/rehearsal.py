"""A rehearsal: a first trial on the ranks that a run would give it, measured, and nothing stored."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import cloudpickle
import optuna
from optuna.distributions import json_to_distribution

from tuner import samplers
from tuner.assignment import Draw, ObjectiveRef
from tuner.forecast import PATIENCE, is_enough
from tuner.messages import Measured, Message, Param, Question, RankInfo, Sample, Saved, Started
from tuner.meter import measured
from tuner.outcome import Outcome, Reason
from tuner.seeds import derived_seed
from tuner.solo import answer_of_nothing
from tuner.study import joint_draw

__all__ = ["Rehearsal", "metered"]


def metered(objective: ObjectiveRef) -> ObjectiveRef:
    """An objective that calls another one and measures it."""
    pickled = cloudpickle.dumps(functools.partial(measured, objective))
    return ObjectiveRef(
        pickled=pickled, digest=objective.digest, sys_path=objective.sys_path, preload=objective.preload
    )


@dataclass
class Rehearsal:
    """Listens to the trial, and draws its parameters as the study's sampler draws its first ones.

    Args:
        study: of a study in memory, with the directions and the sampler of the one to come.
        seed: of the study.

    Attributes:
        ranks: where they ran.
        params: the trial's parameters.
        measured: by rank, the newest of what it measured.
        checkpoint: bytes of the largest part of a checkpoint that a rank has saved; 0: none was.
    """

    study: optuna.Study
    seed: int
    ranks: tuple[RankInfo, ...] = ()
    params: dict[str, Any] = field(default_factory=dict)
    measured: dict[int, Measured] = field(default_factory=dict)
    checkpoint: int = 0
    _began: float | None = None

    def __post_init__(self) -> None:
        samplers.reseed(self.study.sampler, derived_seed(self.seed, 0))
        self._trial = self.study.ask()
        self.draw: Mapping[str, Draw] = joint_draw(self._trial)

    def hear(self, rank: int, message: Message) -> None:
        match message:
            case Started(ranks=ranks):
                self.ranks = ranks
                self._began = time.monotonic()
            case Param(name=name, value=value, distribution=text):
                self.params[name] = json_to_distribution(text).to_external_repr(value)
            case Measured():
                self.measured[rank] = message

    def answer(self, question: Question) -> Any:
        match question:
            case Sample(name=name, distribution=text):
                distribution = json_to_distribution(text)
                if name not in self._trial.params:
                    samplers.reseed(self.study.sampler, derived_seed(self.seed, 0, name))
                try:
                    value = self._trial._suggest(name, distribution)
                except Exception as error:  # of any sampler
                    raise RuntimeError(f"{type(error).__name__}: {error}") from error
                return float(distribution.to_internal_repr(value))
            case Saved(size=size):
                self.checkpoint = max(self.checkpoint, size)
        return answer_of_nothing(question)

    def is_enough(self) -> bool:
        first = self.measured.get(0)
        if first is not None and is_enough(first.reports, first.seconds):
            return True
        # a rank that holds the interpreter's lock says nothing
        return self._began is not None and time.monotonic() - self._began > PATIENCE + 60

    def came_to_its_end(self, outcome: Outcome) -> bool:
        """Whether the objective ended by itself, and well."""
        return outcome.reason in (Reason.COMPLETE, Reason.PRUNED)

    def has_no_objective(self, outcome: Outcome) -> bool:
        """Whether the objective could not be imported on the worker."""
        return outcome.reason is Reason.IMPORT_ERROR or (
            not self.measured.get(0, _NOTHING).reports and outcome.exception.endswith(".BadObjective")
        )


_NOTHING = Measured(seconds=0.0, reports=[], memory=0, resident=0, gpu=0)
