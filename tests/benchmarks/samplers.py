"""``make bench-samplers``: TPE and the pruners on long histories, beside Optuna's own, on the same questions.

Each question goes to both sides in turn, in one process; the answers must be the same. A question
comes after the history has grown by a trial (a sampler's) or a report (a pruner's). Exit 0 when every
figure is reached, 1 when one is missed.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import random
import sys
import time
import warnings
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table

from storage.memory import MemoryStudy
from storage.studies import StudyRecord
from tests.benchmarks.ratios import Spread, spread
from tests.benchmarks.verdict import conclude
from tuner import samplers
from tuner.study import DrivenStudy

__all__ = ["main"]

FLOATS: Mapping[str, BaseDistribution] = {
    **{f"lin{at}": FloatDistribution(-1.0, 1.0) for at in range(4)},
    **{f"log{at}": FloatDistribution(1e-5, 1e-1, log=True) for at in range(4)},
}
MIXED: Mapping[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-5, 1e-1, log=True),
    "dropout": FloatDistribution(0.0, 0.9),
    "momentum": FloatDistribution(0.5, 0.999),
    "decay": FloatDistribution(1e-6, 1e-2, log=True),
    "layers": IntDistribution(1, 12),
    "width": IntDistribution(8, 1024, log=True),
    "warmup": FloatDistribution(0.0, 0.5, step=0.05),
    "optimizer": CategoricalDistribution(["sgd", "adam", "lion"]),
}
STEPS = 27  # nominal steps of a trial
_EPOCH = dt.datetime(2026, 1, 1)

Reply = tuple[Any, ...]
Question = Callable[[], tuple[Reply, float]]
"""Asks one side once: the answer, and seconds."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A row of the table.

    Attributes:
        most: the goal, in seconds; None for a size without one.
    """

    work: str
    trials: int
    most: float | None
    sides: Callable[[int], Iterator[tuple[Question, Question]]]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What was measured: seconds of a question, and Optuna's time over ours for each pair of them."""

    work: str
    trials: int
    questions: int
    ours: Spread
    theirs: Spread
    ratio: Spread
    most: float | None
    passed: bool | None


def studies(count: int, space: Mapping[str, BaseDistribution], pruner: Callable[[], BasePruner]) -> Any:
    """Two studies in memory with the same finished trials: ours to ask, and Optuna's."""
    history = list(finished(count, space))
    made = []
    for sampler in (samplers.kept(TPESampler(seed=1)), TPESampler(seed=1)):
        record = StudyRecord(name="bench", study_id=1, directions=("minimize",), seed=1, uid="bench")
        held = MemoryStudy(record)
        held.image.put(history)
        held._created = count
        study = DrivenStudy(held, optuna.samplers.RandomSampler(), pruner())
        study.sampler = sampler
        made.append(study)
    return made


def finished(count: int, space: Mapping[str, BaseDistribution]) -> Iterator[FrozenTrial]:
    """Trials of a search that halves: a third of those that come to a step of 1, 3, 9, 27 go on."""
    draw = random.Random(7)
    for number in range(count):
        params = {name: value_in(dist, draw) for name, dist in space.items()}
        quality = draw.gauss(0.0, 1.0)
        last = next((step for step in (1, 3, 9) if draw.random() > 1 / 3), STEPS)
        reports = {step: quality + draw.gauss(0.0, 1.0) / step for step in range(1, last + 1)}
        rungs = {f"completed_rung_{at}": reports[3**at] for at in range(4) if 3**at in reports}
        yield FrozenTrial(
            number=number,
            trial_id=number + 1,
            state=TrialState.COMPLETE if last == STEPS else TrialState.PRUNED,
            value=reports[last] if last == STEPS else None,
            datetime_start=_EPOCH,
            datetime_complete=_EPOCH,
            params=params,
            distributions=dict(space),
            user_attrs={},
            system_attrs=rungs,
            intermediate_values=reports,
        )


def value_in(dist: BaseDistribution, draw: random.Random) -> Any:
    """A value of a distribution."""
    if isinstance(dist, CategoricalDistribution):
        return draw.choice(dist.choices)
    assert isinstance(dist, FloatDistribution | IntDistribution)
    at = draw.random()
    value = dist.low * (dist.high / dist.low) ** at if dist.log else dist.low + at * (dist.high - dist.low)
    if dist.step is not None and not dist.log:
        value = min(dist.high, dist.low + round((value - dist.low) / dist.step) * dist.step)
    return round(value) if isinstance(dist, IntDistribution) else value


def sampling(space: Mapping[str, BaseDistribution]) -> Callable[[int], Iterator[tuple[Question, Question]]]:
    """Questions to TPE: the joint draw of a new trial, after the one before has ended."""

    def sides(count: int) -> Iterator[tuple[Question, Question]]:
        pair = studies(count, space, NopPruner)
        value = random.Random(3)
        while True:
            numbers: list[int] = []

            def ask(study: DrivenStudy, numbers: list[int] = numbers) -> tuple[Reply, float]:
                frozen = study.claim_trial()
                begin = time.perf_counter()
                draw = study.draw(frozen._trial_id, frozen.number, space)
                seconds = time.perf_counter() - begin
                numbers.append(frozen.number)
                return tuple(sorted((name, one.value) for name, one in draw.items())), seconds

            yield (lambda ask=ask: ask(pair[0])), (lambda ask=ask: ask(pair[1]))
            told = value.gauss(0.0, 1.0)
            for study, number in zip(pair, numbers, strict=True):
                study.tell(number, told)

    return sides


def pruning(
    pruner: Callable[[], BasePruner], steps: Container[int]
) -> Callable[[int], Iterator[tuple[Question, Question]]]:
    """Questions to a pruner after reports of a new trial; a pruned one makes room for the next.

    Args:
        steps: at which it has to compare; at others successive halving looks at nobody.
    """

    def sides(count: int) -> Iterator[tuple[Question, Question]]:
        pair = studies(count, {}, pruner)
        draw = random.Random(5)
        while True:
            quality = draw.gauss(-1.0, 1.0)
            asked = [study.claim_trial() for study in pair]
            for step in range(1, STEPS + 1):
                value = quality + draw.gauss(0.0, 1.0) / step
                said: list[bool] = []
                for study, frozen in zip(pair, asked, strict=True):
                    study.held.storage.set_trial_intermediate_value(frozen._trial_id, step, value)
                if step not in steps:
                    continue

                def ask(at: int, said: list[bool] = said, asked: Any = asked) -> tuple[Reply, float]:
                    study = pair[at]
                    trial = study.held.image.trial(asked[at]._trial_id)
                    decide = study._pruning.prune if at == 0 else lambda one: study.pruner.prune(study, one)
                    begin = time.perf_counter()
                    verdict = bool(decide(trial))
                    seconds = time.perf_counter() - begin
                    said.append(verdict)
                    rungs = study.held.image.trial(asked[at]._trial_id).system_attrs
                    return (verdict, *sorted(rungs.items())), seconds

                yield (lambda ask=ask: ask(0)), (lambda ask=ask: ask(1))
                if said[0]:
                    break
            for study, frozen in zip(pair, asked, strict=True):
                study.tell(frozen.number, state=TrialState.PRUNED)

    return sides


def _asha() -> BasePruner:
    return SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)


def _hyperband() -> BasePruner:
    return HyperbandPruner(min_resource=1, max_resource=STEPS, reduction_factor=3)


QUESTION, DECISION = 10e-3, 50e-6
RUNGS = (1, 3, 9, 27)
FIGURES = (
    Figure(work="TPE, 8 floats", trials=1_000, most=None, sides=sampling(FLOATS)),
    Figure(work="TPE, 8 floats", trials=10_000, most=QUESTION, sides=sampling(FLOATS)),
    Figure(work="TPE, 8 mixed", trials=1_000, most=None, sides=sampling(MIXED)),
    Figure(work="TPE, 8 mixed", trials=10_000, most=QUESTION, sides=sampling(MIXED)),
    Figure(work="successive halving", trials=10_000, most=DECISION, sides=pruning(_asha, RUNGS)),
    Figure(work="successive halving", trials=100_000, most=DECISION, sides=pruning(_asha, RUNGS)),
    Figure(work="Hyperband", trials=100_000, most=DECISION, sides=pruning(_hyperband, RUNGS)),
    Figure(work="median", trials=10_000, most=DECISION, sides=pruning(MedianPruner, range(STEPS + 1))),
    Figure(work="median", trials=100_000, most=DECISION, sides=pruning(MedianPruner, range(STEPS + 1))),
)


def measure(figure: Figure, questions: int, *, judged: bool) -> Result:
    """Ask both sides so many questions; the first, which reads the whole history, does not count."""
    ours, theirs = [], []
    for at, sides in zip(range(questions + 1), figure.sides(figure.trials), strict=False):
        (mine, own), (other, his) = sides[0](), sides[1]()
        if mine != other:
            raise AssertionError(
                f"{figure.work}, {figure.trials} trials, question {at}: {mine} is not {other}"
            )
        if at:
            ours.append(own)
            theirs.append(his)
    middle = spread(ours)
    return Result(
        work=figure.work,
        trials=figure.trials,
        questions=questions,
        ours=middle,
        theirs=spread(theirs),
        ratio=spread([his / own for own, his in zip(ours, theirs, strict=True)]),
        most=figure.most,
        passed=middle.median <= figure.most if judged and figure.most is not None else None,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, and give the exit code."""
    parser = argparse.ArgumentParser(prog="make bench-samplers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few questions: a look, no judgement")
    parser.add_argument("--only", help="only the rows whose name contains this")
    parser.add_argument("--json", metavar="FILE", help="write the results there too")
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    console = Console(width=None if sys.stdout.isatty() else 140)
    load = os.getloadavg()[0]
    console.print(f"{os.cpu_count()} cores, load {load:.1f}, Optuna {optuna.__version__}, one process")
    results = []
    for figure in FIGURES:
        if options.only is None or options.only in figure.work:
            questions = 10 if options.quick else 60 if figure.work.startswith("TPE") else 200
            results.append(measure(figure, questions, judged=not options.quick))
            console.print(f"{figure.work}, {figure.trials:,}: {results[-1].ours.median * 1e6:,.0f} us")
    return conclude(console, table(results), results, options.json, judged=not options.quick)


def table(results: Sequence[Result]) -> Table:
    """Ours and Optuna's for each row."""
    made = Table(title="A question on a long history: median (lowest to highest)")
    for name in ("work", "trials", "at most", "ours", "Optuna", "times faster", ""):
        made.add_column(name, justify="left" if name == "work" else "right")
    for result in results:
        scale, unit = (1e3, "ms") if result.work.startswith("TPE") else (1e6, "us")
        made.add_row(
            result.work,
            f"{result.trials:,}",
            "-" if result.most is None else f"{result.most * scale:g} {unit}",
            _shown(result.ours, scale),
            _shown(result.theirs, scale),
            _shown(result.ratio, 1.0),
            {True: "[green]✓[/green]", False: "[red]✗ missed[/red]", None: "-"}[result.passed],
        )
    return made


def _shown(value: Spread, scale: float) -> str:
    low, high = value.low * scale, value.high * scale
    return f"{value.median * scale:,.1f} ({low:,.1f} to {high:,.1f})"


if __name__ == "__main__":
    sys.exit(main())
