"""The main job from end to end: ``make demo``, or ``python -m objectives.demo``.

Tunes :mod:`objectives.digits` with two ranks a trial, TPE and successive halving. Everything is in
``demo.db`` and ``demo-checkpoints`` in the current folder: ended at any moment, in any way, it goes
on from there when it is started again; once the study is complete it shows the result again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

import tuner
from objectives import digits
from objectives.plot import draw_study

__all__ = ["main"]

NAME = "digits"
STORAGE = "sqlite:///demo.db"
PICTURE = "demo.png"
TRIALS = 30
RANKS = 2

TESTED = "test_accuracy"  # attribute of the study: {"trial": number, "accuracy": 0 to 1}


def main() -> int:
    """Run or resume the demo and show its result. Returns the exit code."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    console = Console(highlight=False)
    try:
        study = run(console)
        show(console, study)
    except KeyboardInterrupt:
        console.print("\nInterrupted. Nothing is lost: the same command goes on from here.")
        return 130
    except tuner.TunerError as error:
        Console(stderr=True, highlight=False).print(str(error), style="red", markup=False)
        return error.exit_code
    return 0


def run(console: Console) -> optuna.Study:
    """Drive the study until it has all its trials."""
    study = tuner.create_study(
        NAME,
        storage=STORAGE,
        direction="maximize",
        sampler="tpe(n_startup_trials=8, group=True)",
        pruner="successivehalving(min_resource=1, reduction_factor=3)",
        seed=1,
        load_if_exists=True,
    )
    done = len(finished(study))
    if done >= TRIALS:
        console.print(
            f"Study [bold]{NAME}[/] in demo.db is complete: here is its result again. "
            "For a fresh one: rm -r demo.db* demo-checkpoints"
        )
        return study
    if done:
        console.print(f"Going on with study [bold]{NAME}[/]: {done} of its {TRIALS} trials are done.")
    else:
        console.print(
            f"Tuning a digit classifier: {TRIALS} trials of up to {digits.EPOCHS} epochs, "
            f"each trained by {RANKS} processes together. Starting Ray takes some seconds."
        )
    return tuner.optimize(
        study,
        digits.objective,
        n_trials=TRIALS,
        resources=tuner.Resources(ranks=RANKS, cpus=1),
        progress=True,
    )


def show(console: Console, study: optuna.Study) -> None:
    """What was found, what it cost, and where to look further."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        raise tuner.StudyStopped(f"no trial of study {NAME!r} is complete; see: {command('trials', NAME)}")
    best = study.best_trial
    ranking = sorted(complete, key=lambda trial: (-(trial.value or 0.0), trial.number))
    console.print()
    console.print(best_trials(ranking[:8]))
    console.print(Panel.fit(summary(study, best), title=f"best: trial {best.number}", border_style="green"))
    draw_study(study, PICTURE, step="epoch")
    console.print(f"\nPicture of the history: [bold]{PICTURE}[/]")
    console.print("Look further:")
    for line, what in (
        (command("dashboard"), "the study in the browser"),
        (command("show", NAME, best.number), "the best trial: parameters, curve, attempts"),
        (command("trials", NAME), "all trials"),
    ):
        console.print(f"  [cyan]{line}[/]  [dim]# {what}[/]", soft_wrap=True)


def best_trials(trials: Sequence[FrozenTrial]) -> Table:
    """The table of these trials."""
    table = Table(
        title="Best trials", title_style="bold", title_justify="left", box=SIMPLE_HEAD, padding=(0, 0, 0, 1)
    )
    table.add_column("trial", justify="right")
    table.add_column("accuracy", justify="right", style="green")
    for name in ("lr", "batch", "width", "depth", "dropout"):
        table.add_column(name, justify="right")
    table.add_column("optimizer", no_wrap=True)
    for trial in trials:
        params = trial.params
        table.add_row(
            str(trial.number),
            f"{trial.value:.4f}",
            f"{params['lr']:.2g}",
            str(params["batch_size"]),
            str(params["width"]),
            str(params["depth"]),
            f"{params['dropout']:.2f}",
            optimizer_text(trial),
        )
    return table


def optimizer_text(trial: FrozenTrial) -> str:
    """The optimiser with its own parameters."""
    params = trial.params
    if params["optimizer"] == "adam":
        return f"adam, beta1 {params['beta1']:.3f}"
    return f"sgd, {'nesterov' if params['nesterov'] else 'momentum'} {params['momentum']:.3f}"


def summary(study: optuna.Study, best: FrozenTrial) -> Table:
    """Accuracies, parameters of the winner, and what pruning saved."""
    trials = finished(study)
    trained = sum(len(trial.intermediate_values) for trial in trials)
    nominal = digits.EPOCHS * len(trials)
    pruned = sum(trial.state is TrialState.PRUNED for trial in trials)
    tested = test_accuracy(study, best)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    grid.add_row("validation accuracy", f"[bold green]{best.value:.4f}[/]")
    grid.add_row(
        "test accuracy", "[red]no checkpoint[/]" if tested is None else f"[bold green]{tested:.4f}[/]"
    )
    for name, value in best.params.items():
        grid.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    grid.add_row("trials pruned", f"{pruned} of {len(trials)}")
    saved = f"[bold]{1 - trained / nominal:.0%} saved[/]"
    grid.add_row("epochs trained", f"{trained} instead of {nominal}: {saved}")
    return grid


def test_accuracy(study: optuna.Study, best: FrozenTrial) -> float | None:
    """The winner's accuracy on the test images: evaluated once, and kept in the study."""
    known = study.user_attrs.get(TESTED)
    if known and known["trial"] == best.number:
        return float(known["accuracy"])
    checkpoint = tuner.best_checkpoint(study)
    if checkpoint is None:
        return None
    accuracy = digits.evaluate_test(checkpoint.state)
    study.set_user_attr(TESTED, {"trial": best.number, "accuracy": accuracy})
    return accuracy


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count towards the budget."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]


def command(name: str, *arguments: object) -> str:
    """A command of ``tuner`` on the demo's database, as it can be typed in this folder."""
    program = Path(sys.executable).parent / "tuner"
    on_path = any(Path(folder) == program.parent for folder in os.get_exec_path())
    shown = "tuner" if on_path else os.path.relpath(program)
    return " ".join([shown, name, *map(str, arguments), "--storage", STORAGE])


if __name__ == "__main__":
    sys.exit(main())
