"""``tuner run --params``: one trial, and nothing stored: for debugging, and for a final training.

With one rank it runs in this process, where breakpoints work; with several, on Ray.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import difflib
import json
import os
import re
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from tuner.cli.options import as_options, checked_directions, params_of, settings_of
from tuner.errors import BadInput, StudyNotFound, StudyStopped

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from storage import Database
    from storage.views import ParamRange, StudyDetail, TrialDetail
    from tuner.messages import Message, Question
    from tuner.outcome import Outcome
    from tuner.recipe import Recipe

__all__ = ["run_one"]


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """What the trial is run with. ``number`` and ``seed`` make a stored trial's draws come again."""

    params: Mapping[str, Any]
    directions: tuple[str, ...]
    number: int = 0
    seed: int
    study: str = "params"
    final: bool = False


def run_one(target: str | Recipe, storage: str | None, given: Mapping[str, Any]) -> int:
    """Run the objective once with the parameters given and print what it reports.

    Returns:
        The exit code: 0 when it returned a value or pruned itself, 1 when it failed.

    Raises:
        BadInput: a parameter that the objective asks for is not given, or cannot be what is given.
        Infeasible, ClusterUnavailable: there is no place for its ranks.
    """
    from tuner import objective, runtime_env
    from tuner.assignment import Assignment
    from tuner.optimization import environment, make_executor
    from tuner.resources import alternatives
    from tuner.seeds import trial_seed
    from tuner.settings import Settings
    from tuner.solo import Solo

    with as_options():
        settings = Settings(**{key: value for key, value in settings_of(given).items() if key != "alerts"})
    wanted = alternatives(settings.resources)
    here = wanted[-1].count == 1 and given["executor"] != "ray" and not given["address"]
    if here:
        settings = dataclasses.replace(settings, executor="inline")
    runtime_env.importable(settings.runtime_env)
    reference = objective.refer(target)
    recipe = _recipe(target, storage, given, reference.digest)
    listener = _Printed(kept=bool(given["checkpoints"]))
    solo = Solo(make_executor(settings), listener, grace=0.0 if here else 10.0)
    with contextlib.ExitStack() as stack:
        folder = given["checkpoints"] or stack.enter_context(tempfile.TemporaryDirectory(prefix="tuner-"))
        folder = folder if "://" in folder else os.path.abspath(folder)
        run = uuid.uuid4().hex[:16]
        stack.enter_context(solo)
        solo.open(run, wanted)
        if wrong := solo.probe(folder):
            where = "; ".join(f"{host}: {why}" for host, why in sorted(wrong.items()))
            raise BadInput(
                f"checkpoints in {folder} cannot be used on every node ({where}); "
                "name a folder or URI that all nodes share with --checkpoints"
            )
        assignment = Assignment(
            run=run,
            epoch=0,
            study=recipe.study,
            directions=recipe.directions,
            number=recipe.number,
            attempt=1,
            seed=trial_seed(recipe.seed, recipe.number),
            started=dt.datetime.now().isoformat(),
            objective=reference,
            resources=wanted[0],
            alternatives=wanted,
            fixed=recipe.params,
            checkpoints=folder,
            env=environment(settings.env),
            folder=os.getcwd(),
            can_prune=False,
            strict=True,
            final=recipe.final,
        )
        outcome = solo.run(assignment)
    return _conclude(outcome, listener, recipe)


@dataclass
class _Printed:
    """Prints what the ranks say; nobody drives them. ``kept``: checkpoints stay."""

    kept: bool
    used: set[str] = field(default_factory=set)
    missing: dict[str, str] = field(default_factory=dict)

    def hear(self, rank: int, message: Message) -> None:
        from tuner.messages import Constraint, Log, Param, Report, Started, UserAttr
        from tuner.progress import number_text

        match message:
            case Started(ranks=ranks) if len(ranks) > 1:
                hosts = ", ".join(dict.fromkeys(one.host for one in ranks))
                click.echo(f"{len(ranks)} ranks on {hosts}", err=True)
            case Param(name=name):
                self.used.add(name)
            case Report(step=step, value=value):
                click.echo(f"step {step}  {number_text(value)}")
            case Log(step=step, metrics=metrics):
                shown = "  ".join(f"{name}={number_text(value)}" for name, value in metrics.items())
                click.echo(f"step {step}  {shown}")
            case UserAttr(key=key, value=value):
                click.echo(f"user attribute {key} = {value!r}")
            case Constraint(key=key, value=value):
                click.echo(f"constraint {key} = {number_text(value)}")

    def answer(self, question: Question) -> Any:
        from tuner.messages import Sample, Saved
        from tuner.solo import answer_of_nothing

        match question:
            case Sample(name=name, distribution=distribution):
                self.missing[name] = _described(distribution)
                raise RuntimeError(f"--params gives no {name!r}")
            case Saved(step=step, path=path, size=size):
                where = f" in {path}" if self.kept else ", not kept without --checkpoints"
                click.echo(f"checkpoint of step {step}: {size} bytes{where}")
        return answer_of_nothing(question)

    def is_enough(self) -> bool:
        return bool(self.missing)


def _conclude(outcome: Outcome, listener: _Printed, recipe: _Recipe) -> int:
    from tuner.outcome import Reason
    from tuner.progress import number_text

    unused = sorted(set(recipe.params) - listener.used)
    for name, distribution in listener.missing.items():
        near = difflib.get_close_matches(name, unused, 1)
        instead = f"write it for {near[0]!r}" if near else "add it"
        raise BadInput(
            f"the objective asks for {name!r} ({distribution}), which --params does not give; {instead}"
        )
    if outcome.exception == "KeyboardInterrupt":
        raise KeyboardInterrupt
    if outcome.exception == f"{BadInput.__module__}.{BadInput.__qualname__}":
        raise BadInput(f"--params: {outcome.message.partition(': ')[2]}")
    if unused:
        click.echo(f"note: the objective never asked for {', '.join(unused)}", err=True)
    if outcome.reason is Reason.COMPLETE:
        click.echo(f"value {', '.join(map(number_text, outcome.values))}")
        return 0
    if outcome.reason is Reason.PRUNED:
        click.echo("pruned by the objective")
        return 0
    hint = ""
    if outcome.reason is Reason.BAD_VALUE:
        hint = "; for several objectives give --direction once for each"
    elif outcome.traceback:
        click.echo(outcome.traceback.rstrip(), err=True)
    raise StudyStopped(f"the trial failed: {outcome.reason}: {outcome.message}{hint}")


def _recipe(target: str | Recipe, storage: str | None, given: Mapping[str, Any], digest: str) -> _Recipe:
    texts: tuple[str, ...] = given["params"]
    stored = [text for text in texts if text.startswith("@")]
    if len(stored) > 1:
        raise BadInput(f"--params {stored[1]!r}: one @STUDY:TRIAL is enough")
    changes = params_of(text for text in texts if not text.startswith("@"))
    if stored:
        return _of_trial(stored[0], changes, storage, given, digest)
    directions, final = checked_directions(given["direction"], target), bool(given["final"])
    return _Recipe(params=changes, directions=directions, seed=given["seed"] or 0, final=final)


def _of_trial(
    text: str, changes: Mapping[str, Any], storage: str | None, given: Mapping[str, Any], digest: str
) -> _Recipe:
    """The parameters of a stored trial, with changes; its seed, unless another is given."""
    from storage import reads
    from tuner.cli.source import known_study, reading

    written = re.fullmatch(r"@(.+?):(best|\d+)(?:,(.*))?", text, re.DOTALL)
    if written is None:
        raise BadInput(f"--params {text!r}: write @STUDY:best or @STUDY:NUMBER")
    name, which, further = written.groups("")
    changes = {**params_of([further]), **changes}
    with reading(storage) as database:
        study = known_study(database, name)
        trial = (
            _winner(database, study) if which == "best" else reads.trial(database.engine, name, int(which))
        )
        if trial is None:
            raise StudyNotFound(f"--params {text!r}: study {name!r} has no trial {which}")
        if changes and (study.objective or {}).get("digest") == digest:  # else its space may be another
            _check_changes(database, name, changes, trial.ranges)
    final = which == "best" if given["final"] is None else given["final"]
    return _Recipe(
        params={**trial.params, **changes},
        directions=tuple(given["direction"]) or study.directions,
        number=trial.number,
        seed=given["seed"] if given["seed"] is not None else study.seed or 0,
        study=f"{name}-final" if final else name,
        final=final,
    )


def _winner(database: Database, study: StudyDetail) -> TrialDetail:
    from tuner.cli.best import winners

    found = winners(database, study)
    if len(found) > 1:
        numbers = ", ".join(str(trial.number) for trial in found[:10])
        raise BadInput(
            f"--params @{study.name}:best: {len(found)} trials are on the Pareto front ({numbers}); "
            "write @STUDY:NUMBER --final"
        )
    return found[0]


def _check_changes(
    database: Database, name: str, changes: Mapping[str, Any], ranges: Mapping[str, ParamRange]
) -> None:
    """Refuse what no trial of a study could have had.

    Args:
        ranges: of the trial that is changed, which count where trials differ.
    """
    from storage.ranges import names
    from tuner.trial import check_value

    known = names(database.engine, name)
    ranges = {**dict(known.ranges), **ranges}
    for param, value in changes.items():
        if param not in known.params:
            near = difflib.get_close_matches(param, known.params, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known.params)}"
            raise BadInput(f"--params: study {name!r} has no parameter {param!r}; {hint}")
        if param in ranges:
            try:
                check_value(param, value, _distribution(ranges[param]))
            except BadInput as error:
                raise BadInput(f"--params: {error}") from None


def _distribution(known: ParamRange) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if known.choices or known.low is None or known.high is None:
        return CategoricalDistribution(known.choices)
    if isinstance(known.low, int):
        return IntDistribution(known.low, int(known.high), log=known.log, step=int(known.step or 1))
    return FloatDistribution(known.low, known.high, log=known.log, step=known.step)


def _described(distribution: str) -> str:
    """A distribution for a person, such as ``FloatDistribution: low=0.1, high=1.0, log=True``."""
    plain = json.loads(distribution)
    told = {key: value for key, value in plain["attributes"].items() if value not in (None, False)}
    return f"{plain['name']}: {', '.join(f'{key}={value}' for key, value in told.items())}"
