"""What the store has to reach, what its peers reach, and how much work is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["DATABASES", "FIGURES", "FULL", "QUICK", "Figure", "Sizes"]

DATABASES = ("sqlite", "postgres")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One row of the table.

    Attributes:
        key: how ``--only`` names it.
        unit: ``"times"`` Optuna's RDBStorage in the same run, at least; ``"ms"`` or ``"MB"``, at most.
        goals: the figure to reach, by database.
        peers: what peers were measured at, on 2 cores; for the reader, nothing is computed from it.
    """

    key: str
    work: str
    unit: str
    goals: Mapping[str, float]
    peers: str

    def reached(self, value: float, database: str) -> bool:
        """Whether a measured value is as good as the figure, or better."""
        goal = self.goals[database]
        return value >= goal if self.unit == "times" else value <= goal


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much work a run does.

    Attributes:
        asks, reports, additions: items in one measurement of Optuna's side and of ours; rates are compared.
        opened, paged, held: (trials, reports of each) in the database that is opened, read by page,
            held by a driver.
        readings: how often the first page is read.
        judged: whether these are the sizes that the figures are meant for.
    """

    pairs: int
    asks: tuple[int, int]
    reports: tuple[int, int]
    additions: tuple[int, int]
    opened: tuple[int, int]
    paged: tuple[int, int]
    held: tuple[int, int]
    readings: int
    judged: bool


FULL = Sizes(
    pairs=5,
    asks=(40, 400),
    reports=(200, 20_000),
    additions=(60, 10_000),
    opened=(10_000, 10),
    paged=(10_000, 78),
    held=(10_000, 100),
    readings=21,
    judged=True,
)
QUICK = Sizes(
    pairs=2,
    asks=(10, 60),
    reports=(40, 2_000),
    additions=(20, 300),
    opened=(300, 10),
    paged=(300, 20),
    held=(300, 20),
    readings=3,
    judged=False,
)

FIGURES = {
    figure.key: figure
    for figure in (
        Figure(
            key="ask-tell",
            work="ask + tell of a trial with 4 parameters, each tell awaited",
            unit="times",
            goals={"sqlite": 10, "postgres": 8},
            peers="trials/s: Optuna 56 (PostgreSQL 48), Ray Tune 24",
        ),
        Figure(
            key="reports",
            work="reports of a running trial, durable",
            unit="times",
            goals={"sqlite": 100, "postgres": 80},
            peers="reports/s: Optuna 470, Ray Tune 340",
        ),
        Figure(
            key="add-trials",
            work="add_trials, 10 reports each",
            unit="times",
            goals={"sqlite": 50, "postgres": 50},
            peers="trials/s: Optuna 80",
        ),
        Figure(
            key="open",
            work="open a study of 10,000 trials x 10 reports, ready to ask",
            unit="times",
            goals={"sqlite": 15, "postgres": 8},
            peers="Optuna 4.6 s",
        ),
        Figure(
            key="page",
            work="first page of 50 trials with their curves, of 10,000 x 78",
            unit="ms",
            goals={"sqlite": 20, "postgres": 30},
            peers="Optuna's load 17 to 32 s, optuna-dashboard 23.7 s",
        ),
        Figure(
            key="memory",
            work="memory of a driver that holds 10,000 x 100, at its peak",
            unit="MB",
            goals={"sqlite": 600, "postgres": 600},
            peers="Optuna 1,500 MB at 10,000 x 78",
        ),
    )
}
