"""An external program as an objective: any language, any launcher, without a change of it.

What it teaches: how a program that knows nothing of Tuner is tuned, pruned and tried again. It gets its
parameters on its command line, and says how it does on its standard output::

    objective = objectives.command(
        "mpirun -n 4 ./solver --lr {lr} --steps {steps}",
        params={"lr": "log(1e-5,1e-1)", "steps": "int(10,100)"},
        metric="loss",                                  # {"loss": 0.3, "step": 7}, a line each
    )

In a file that is what ``tuner run FILE.py`` tunes, and ``tuner.optimize(study, objective)`` takes it as it
is. On the command line it needs no file::

    tuner run --command './solver --lr {lr}' --param 'lr=log(1e-5,1e-1)' --metric loss --study s --trials 20
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

import tuner
from objectives.external.environment import check_names, variables
from objectives.external.metrics import Metrics, check_source, open_source
from objectives.external.space import distribution
from objectives.external.template import Template, check_quotes, fill, names, shown, template

__all__ = ["Command", "command"]

_LOOK = 0.2  # seconds between two looks at files
_OWN = ("attempt", "folder", "metrics", "params", "seed", "trial")
"""Names that stand for what :mod:`objectives.external.environment` says of them, in capitals."""


def command(
    command: str | Sequence[str],
    params: Mapping[str, str | BaseDistribution] | None = None,
    *,
    metric: str | Sequence[str] = "value",
    metrics: str = "json",
    grace: float = 5.0,
    shell: bool = False,
    from_env: bool = False,
) -> Command:
    """An objective that runs a program and reads its metrics.

    The last value of ``metric`` is the trial's; with one of them each is reported as it comes, and the
    program is stopped when the pruner says so. Other numbers are logged beside it. A program that prints
    through a buffer is heard when it empties that: ``fflush``, ``python -u``, ``stdbuf -oL``.

    Args:
        command: the program and its arguments, with ``{NAME}`` where a parameter goes; a text is taken
            apart as a shell would, and no shell sees it. ``{folder}``, ``{metrics}``, ``{params}``,
            ``{trial}``, ``{attempt}`` and ``{seed}`` are there too: see
            :mod:`objectives.external.environment`, which also says what is in its environment.
        params: what each is drawn from: an Optuna distribution, or as :mod:`objectives.external.space` says.
        metric: name of what is tuned, one for each objective of the study.
        metrics: where they come from: see :mod:`objectives.external.metrics`.
        grace: seconds between SIGTERM, at which it may save a checkpoint in its folder, and SIGKILL. Tuner
            ends a trial that is asked to stop after 10 s.
        shell: the command is a text for ``/bin/sh``; values are quoted.
        from_env: the program reads parameters from its environment, so that not all stand in the command.

    Raises:
        BadInput: a text does not parse, a name is unknown or left out; the program is not there.

    Example:
        >>> objective = command("echo {x}", {"x": "float(0,1)"})
        >>> objective.space["x"].high
        1.0
    """
    wanted = (metric,) if isinstance(metric, str) else tuple(metric)
    if not wanted or len(set(wanted)) < len(wanted) or not all(wanted) or "step" in wanted:
        raise tuner.BadInput(f"metric={metric!r}: give a name, or one for each objective, and not 'step'")
    if not 0 <= grace <= 10:
        raise tuner.BadInput(f"grace={grace!r}: give seconds from 0 to 10")
    space = {name: _distribution(name, given) for name, given in (params or {}).items()}
    for name in set(space) & set(_OWN):
        raise tuner.BadInput(f"a parameter cannot be called {name!r}, which is Tuner's own; rename it")
    check_names(space)
    known = {*space, *_OWN}
    parsed = template(command, known, shell=shell)
    if shell:
        choices = {name: getattr(one, "choices", ()) for name, one in space.items()}
        check_quotes(
            parsed.words[0], {name: [shown(one) for one in given] for name, given in choices.items()}
        )
    kind, place = check_source(metrics, wanted)
    if kind in ("file", "tensorboard"):
        names(place, known - {"metrics"})
    for name in [] if from_env or "params" in parsed.names else sorted(set(space) - parsed.names):
        raise tuner.BadInput(
            f"the command has no {{{name}}}, where parameter {name!r} would go; add it, or say from_env "
            "(--from-env) if the program reads its environment"
        )
    arguments = {
        "command": command if isinstance(command, str) else list(command),
        "params": {
            name: given if isinstance(given, str) else distribution_to_json(given)
            for name, given in (params or {}).items()
        },
        "metric": list(wanted),
        "metrics": metrics,
        "grace": grace,
        "shell": shell,
        "from_env": from_env,
    }
    return Command(
        template=parsed,
        metric=wanted,
        source=(kind, place),
        grace=grace,
        recipe=tuner.Recipe(factory="objectives:command", arguments=arguments, space=space),
    )


@dataclass(frozen=True, kw_only=True)
class Command:
    """The objective that :func:`command` makes. ``recipe`` is what the store keeps of it.

    Example:
        >>> command("echo {x}", {"x": "float(0,1)"}, metrics="regex:(.*)").space
        {'x': FloatDistribution(high=1.0, log=False, low=0.0, step=None)}
    """

    template: Template
    metric: tuple[str, ...]
    source: tuple[str, str]
    grace: float
    recipe: tuner.Recipe

    @property
    def space(self) -> Mapping[str, BaseDistribution]:
        """What its parameters are drawn from, by name."""
        return self.recipe.space

    def __call__(self, trial: tuner.Trial) -> float | list[float]:
        """Run the program once.

        Raises:
            ProgramFailed: it did not end with exit code 0.
            BadMetric: it gave no metric, or one that is no number.
        """
        _check_trial(trial, self.metric)
        drawn = {name: _suggest(trial, name, one) for name, one in self.space.items()}
        folder = str(trial.folder)
        kind, place = self.source
        values = {
            **{name: shown(value) for name, value in drawn.items()},
            "params": json.dumps(drawn),
            "folder": folder,
            "trial": str(trial.number),
            "attempt": str(trial.attempt),
            "seed": str(trial.seed),
        }
        if kind in ("file", "tensorboard"):
            ending = ".jsonl" if kind == "file" else ""
            place = os.path.abspath(fill(place, values) or f"{folder}/metrics-{trial.attempt}{ending}")
        values["metrics"] = "-" if kind in ("json", "regex") else place
        source = open_source(kind, place, self.metric)
        heard = _Heard(trial=trial, wanted=self.metric)
        program = tuner.Program(
            self.template.filled(values),
            env={**os.environ, **variables(trial, drawn, folder, values["metrics"])},
            grace=self.grace,
            name=self.template.name,
        )
        with program:
            looked = time.monotonic()
            for line in program.output():
                if line is not None:
                    heard.note(line)
                    heard.take(source.hear(line))
                if time.monotonic() - looked > _LOOK:
                    heard.take(source.look(is_last=False))
                    looked = time.monotonic()
                if trial.should_stop():
                    program.end()  # what it still says counts
        if program.is_stopped:
            return math.nan  # which nobody asks for: the trial goes on in its next attempt
        program.check()
        heard.take(source.look(is_last=True))
        return heard.value(self.template.name)


@dataclass(kw_only=True)
class _Heard:
    """What a program has said of its metrics."""

    trial: tuner.Trial
    wanted: tuple[str, ...]
    latest: dict[str, float] = field(default_factory=dict)
    step: int = -1
    last_line: str = ""

    def note(self, line: str) -> None:
        """Keep the line as the last one, unless it is empty or a rule below another."""
        if not self.last_line.strip() or any(map(str.isalnum, line)):
            self.last_line = line

    def take(self, all_found: Iterable[Metrics]) -> None:
        """Report and log; a step that was not given is the next one.

        Raises:
            optuna.TrialPruned: the pruner says so.
        """
        for found in all_found:
            self._take(found)

    def _take(self, found: Metrics) -> None:
        first = self.wanted[0]
        tuned = first in found.values and len(self.wanted) == 1
        if found.step is not None:
            self.step = found.step
        elif tuned or self.step < 0:
            self.step += 1
        self.latest.update({name: value for name, value in found.values.items() if name in self.wanted})
        others = {name: value for name, value in found.values.items() if not tuned or name != first}
        if others:
            self.trial.log(others, self.step)
        if tuned:
            self.trial.report(found.values[first], self.step)
            if not self.trial.told_to_stop and self.trial.should_prune():
                raise optuna.TrialPruned(f"after {first}={found.values[first]:g} at step {self.step}")

    def value(self, name: str) -> float | list[float]:
        """The last value of each metric.

        Raises:
            BadMetric: one never came.
        """
        for wanted in self.wanted:
            if wanted not in self.latest:
                line = f"its last line: {self.last_line[:200]}" if self.last_line else "it printed nothing"
                never = f"{name} ended with exit code 0 and never gave {wanted!r}"
                raise tuner.BadMetric(f"{never} (see --metrics); {line}")
        return (
            [self.latest[one] for one in self.wanted] if len(self.wanted) > 1 else self.latest[self.wanted[0]]
        )


def _check_trial(trial: tuner.Trial, metric: Sequence[str]) -> None:
    if trial.world_size > 1:
        raise tuner.BadObjective(
            f"a command starts its own processes: give it ranks=1 and more cpus, not ranks={trial.world_size}"
        )
    objectives = len(trial.study.directions)
    if objectives != len(metric):
        raise tuner.BadObjective(
            f"the study has {objectives} objectives, the command {len(metric)}: {metric}"
        )


def _distribution(name: str, given: Any) -> BaseDistribution:
    if isinstance(given, str):
        return distribution(name, given)
    if isinstance(given, BaseDistribution):
        return given
    raise tuner.BadInput(
        f"parameter {name!r}: {given!r}: give an Optuna distribution, or a text such as 'int(1,9)'"
    )


def _suggest(trial: tuner.Trial, name: str, one: BaseDistribution) -> Any:
    match one:
        case FloatDistribution(low=low, high=high, log=log, step=step):
            return trial.suggest_float(name, low, high, log=log, step=step)
        case IntDistribution(low=low, high=high, log=log, step=step):
            return trial.suggest_int(name, low, high, log=log, step=step or 1)
        case CategoricalDistribution(choices=choices):
            return trial.suggest_categorical(name, choices)
    raise tuner.BadInput(f"parameter {name!r}: {one!r} is none that a command can be given")
