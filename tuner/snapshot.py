"""What a person sees of a running study: values that the driver hands to a progress display."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = ["Progress", "RunningTrial", "Snapshot"]


@dataclass(frozen=True, kw_only=True)
class RunningTrial:
    """A trial on the workers. ``seconds`` counts from the attempt's start; ``values`` are its reports."""

    number: int
    attempt: int
    seconds: float
    step: int | None
    values: tuple[float, ...]
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A study at one moment.

    Attributes:
        states: count by Optuna's state name, of the whole study.
        n_trials: the budget, or None.
        seconds: since this run began; ``finished_here`` trials ended in it.
        best: value of the best trial of a single objective, or None; with its number and params.
        reasons: count of failures by reason code, in this run.
        slots: attempts that run at once at most.
        phase: "running", "draining" or "interrupting".
    """

    study: str
    directions: tuple[str, ...]
    states: Mapping[str, int]
    n_trials: int | None
    seconds: float
    finished_here: int
    running: tuple[RunningTrial, ...]
    best: float | None
    best_number: int | None
    best_params: Mapping[str, Any]
    reasons: Mapping[str, int]
    retrying: int
    slots: int
    cluster: str
    phase: str


class Progress(Protocol):
    """A display of a run. The driver calls it from its own thread, a few times a second."""

    def update(self, snapshot: Snapshot) -> None:
        """Show this moment; must return within milliseconds."""

    def close(self, snapshot: Snapshot | None, message: str) -> None:
        """The run ended; ``message`` says how."""
