"""A picture of a study of accuracies: what each trial reached, and the curves that pruning cut off.

The accuracy is drawn on a logit scale, on which 0.97 and 0.98 are as far apart as 0.6 and 0.7.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from optuna.trial import FrozenTrial, TrialState

__all__ = ["draw_study"]

COMPLETE, PRUNED, FAILED, BEST = "#1f6f8b", "#e09f3e", "#b23a48", "#2a9d4b"
QUIET, INK = "#d9dde2", "#2b2f36"
TICKS = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99)
LOWEST, HIGHEST = 0.05, 0.995  # 0 and 1 lie at infinity


def draw_study(study: optuna.Study, file: str | os.PathLike[str], *, step: str) -> None:
    """Write a PNG of the study's history and of its learning curves.

    Args:
        study: of accuracies from 0 to 1 to be maximised, with at least one complete trial.
        step: what a step of a trial is called.
    """
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    best = study.best_trial
    figure = Figure(figsize=(12.5, 5.4), dpi=150, facecolor="white", layout="constrained")
    history, curves = figure.subplots(1, 2, width_ratios=(1.15, 1), sharey=True)
    draw_history(history, trials, best)
    draw_curves(curves, trials, best)
    dress(history, "Every trial", "trial")
    dress(curves, "Learning curves", step)
    history.set_ylabel("validation accuracy", color=INK)
    pruned = sum(trial.state is TrialState.PRUNED for trial in trials)
    title = f"Study {study.study_name}: {len(trials)} trials, {pruned} of them pruned"
    figure.suptitle(title, x=0.012, ha="left", fontsize=14, weight="bold", color=INK)
    figure.savefig(file)


def dress(axes: Axes, title: str, label: str) -> None:
    """Titles, scale, and no more lines than are read."""
    axes.set_title(title, loc="left", fontsize=11, color=INK, pad=10)
    axes.set_xlabel(label, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_yscale("logit")
    axes.set_ylim(LOWEST, HIGHEST)
    axes.yaxis.set_major_locator(FixedLocator(TICKS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(QUIET)
    axes.tick_params(colors=INK, color=QUIET, labelsize=9)
    axes.grid(axis="y", color=QUIET, linewidth=0.6, alpha=0.7)
    axes.set_axisbelow(True)
    axes.legend(
        loc="lower right",  # of the legend, whose corner is put beside the title
        bbox_to_anchor=(1.0, 1.0),
        ncols=4,
        columnspacing=1.2,
        fontsize=9,
        labelcolor=INK,
        frameon=False,
    )


def draw_history(axes: Axes, trials: Sequence[FrozenTrial], best: FrozenTrial) -> None:
    """Trials by number: what a complete one returned, what the others reported last; best so far."""
    marks = (
        (TrialState.COMPLETE, "complete", {"color": COMPLETE, "marker": "o", "s": 42}),
        (TrialState.PRUNED, "pruned", {"facecolors": "white", "edgecolors": PRUNED, "marker": "o", "s": 34}),
        (TrialState.FAIL, "failed", {"color": FAILED, "marker": "x", "s": 38}),
    )
    for state, name, style in marks:
        points = [(one.number, last_value(one)) for one in trials if one.state is state]
        shown = [(number, reached) for number, reached in points if reached is not None]
        if shown:
            axes.scatter(*zip(*shown, strict=True), label=f"{len(points)} {name}", zorder=3, **style)  # type: ignore[arg-type]
    numbers, levels = best_so_far(trials)
    axes.step(numbers, levels, where="post", color=BEST, linewidth=1.8, label="best so far", zorder=2)
    axes.annotate(
        f"{best.value:.4f}  trial {best.number}",
        (best.number, shown_at(best.value or 0.0)),
        xytext=(0, 9),
        textcoords="offset points",
        ha="center",
        color=BEST,
        weight="bold",
        fontsize=9.5,
    )


def draw_curves(axes: Axes, trials: Sequence[FrozenTrial], best: FrozenTrial) -> None:
    """The reported values of each trial; a pruned one ends in a dot."""
    for trial in trials:
        steps, values = curve_of(trial)
        if not steps or trial.number == best.number:
            continue
        pruned = trial.state is TrialState.PRUNED
        axes.plot(steps, values, color=PRUNED if pruned else COMPLETE, linewidth=1.0, alpha=0.55)
        if pruned:
            axes.plot(steps[-1], values[-1], "o", color=PRUNED, markersize=4)
    axes.plot(*curve_of(best), color=BEST, linewidth=2.2, label=f"trial {best.number}, the best")
    axes.plot([], [], color=COMPLETE, label="complete")
    axes.plot([], [], "o-", color=PRUNED, markersize=4, label="pruned")


def curve_of(trial: FrozenTrial) -> tuple[list[int], list[float]]:
    """The steps that a trial reported, and where its values are drawn."""
    curve = sorted(trial.intermediate_values.items())
    return [step for step, _ in curve], [shown_at(value) for _, value in curve]


def best_so_far(trials: Sequence[FrozenTrial]) -> tuple[list[int], list[float]]:
    """Trial numbers, and where the best value of complete trials by then is drawn."""
    numbers: list[int] = []
    levels: list[float] = []
    for trial in trials:
        if trial.state is TrialState.COMPLETE:
            levels.append(max([shown_at(trial.value or 0.0), *levels[-1:]]))
        elif levels:
            levels.append(levels[-1])
        numbers += [trial.number] * (len(levels) - len(numbers))
    return numbers, levels


def last_value(trial: FrozenTrial) -> float | None:
    """Where what the trial returned, or reported last, is drawn; None if it did neither."""
    if trial.state is TrialState.COMPLETE:
        return shown_at(trial.value or 0.0)
    return shown_at(trial.intermediate_values[trial.last_step]) if trial.last_step is not None else None


def shown_at(accuracy: float) -> float:
    """The accuracy, within what the scale can show."""
    return min(max(accuracy, LOWEST), HIGHEST)
